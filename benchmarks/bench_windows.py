"""How fast windows are served, in one process, beside others that serve the same tokens. See README.md."""

import argparse
import importlib
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from report import bar, environment, publish
from storing import commit_rows

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.build.packing import Packer
from lightning_lance.format.metadata import FORMAT_VERSION, CommitMetadata

CONTEXT_LENGTH = 1024
BATCH_SIZE = 64
VOCABULARY = 50_277
EOS = 0
# Tokens per commit, as in a real build.
COMMIT_TOKENS = 1 << 24
# Batches that a contender may have ready before it is asked for them.
READY = 192

OURS, LIMIT, TUTORIAL = "lightning-lance WindowLoader", "bare_gather", "lance_tutorial"
DOCUMENTS = "WindowLoader with document ids"
PEERS = ("guide_loom", "hf_datasets", "lance_db", "lit_data", "mosaic", "nanogpt", "tok_bin", "zephon_rows", TUTORIAL)


def build_store(uri, num_tokens):
    """Write a token store of random documents, in as many commits as a build would make, and read all of it."""
    rng, made = np.random.default_rng(0), 0
    recipe = {"format": FORMAT_VERSION, "seed": 0}
    while made < num_tokens:
        packer, rows = Packer(EOS, np.dtype(np.uint16), []), []
        while packer.num_tokens < COMMIT_TOKENS and made + packer.num_tokens < num_tokens:
            lengths = rng.integers(100, 3000, size=1000)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            ids = rng.integers(1, VOCABULARY, size=offsets[-1], dtype=np.uint32)
            names = pa.array([str(i) for i in range(1000)])
            documents = pa.table({"language": pa.repeat(pa.scalar("Python"), 1000), "id": names})
            rows += packer.add(ids, offsets, np.zeros(1000, np.int8), documents)
        made += packer.num_tokens
        note = CommitMetadata("f" * 32, recipe, {}, "", "<|endoftext|>", EOS, VOCABULARY, tokens=made)
        commit_rows(uri, [*rows, *packer.flush()], packer.schema, note)
    store = TokenStore.open(uri)
    return store, store.read(np.zeros(1, np.int64), made)[0]


def ours(store, **options):
    """Serve epoch after epoch; the start of each, with its empty queue, is in the time."""
    loader = WindowLoader(store, CONTEXT_LENGTH, BATCH_SIZE, **options)
    for batch in chain.from_iterable(repeat(loader)):
        yield batch["input_ids"], batch["targets"]


def check(name, served, tokens, store):
    """Look for the windows of a few batches among the tokens, and read them from our store too.

    Raises:
        AssertionError: If one is not there, or differs.
    """
    for x, y in islice(served, 3):
        for part in (x, y):
            if part.shape != (BATCH_SIZE, CONTEXT_LENGTH) or str(part.dtype) != "torch.int64":
                raise AssertionError(f"{name} gave {tuple(part.shape)} {part.dtype}.")
        windows = np.concatenate([x.numpy(), y.numpy()[:, -1:]], axis=1)
        if not np.array_equal(windows[:, 1:], y.numpy()):
            raise AssertionError(f"{name}: y is not x, one token later.")
        starts = locate(windows, tokens)
        if not np.array_equal(store.read(starts, CONTEXT_LENGTH + 1), windows):
            raise AssertionError(f"{name} and our store read other tokens.")


def locate(windows, tokens):
    """Find where windows begin, by their first four tokens: (n,) starts."""
    wanted = np.zeros(1 << 16, bool)
    wanted[windows[:, 0]] = True
    starts = np.flatnonzero(wanted[tokens[: len(tokens) - windows.shape[1] + 1]])
    heads = {bytes(head): int(start) for head, start in zip(_heads(tokens, starts), starts, strict=True)}
    found = [heads.get(bytes(head)) for head in windows[:, :4].astype(np.uint16)]
    if None in found:
        raise AssertionError("A window was served that is nowhere among the tokens.")
    return np.asarray(found)


def _heads(tokens, starts):
    return np.lib.stride_tricks.sliding_window_view(tokens, 4)[starts]


def measure(served, count, seconds):
    """Count target tokens per second over `count` batches, or as many as come in `seconds`.

    Returns them per second, per second of processor time of all threads, and the batches.
    """
    done, begin = 0, time.perf_counter()
    # What was made ready while others had their turn does not count.
    for _ in islice(served, READY):
        if time.perf_counter() - begin > seconds / 4:
            break
    begin, worked = time.perf_counter(), time.process_time()
    for _ in served:
        done += 1
        if done == count or time.perf_counter() - begin > seconds:
            break
    tokens = done * BATCH_SIZE * CONTEXT_LENGTH
    return tokens / (time.perf_counter() - begin), tokens / (time.process_time() - worked), done


def contend(contender, folder, orders):
    """Be one contender, in a process of its own: what others leave running must not slow it down, nor it them.

    Sends its name, or why it cannot take part; then answers each order (batches, seconds) with its rate.
    """
    quiet(folder)
    # As in the workers of torch's DataLoader. With more threads the peers that stack tensors are up to ten times slower as
    # soon as a core is busy, and hardly faster when all are idle.
    torch.set_num_threads(1)
    store, tokens = TokenStore.open(str(folder / "ours.lance")), np.load(folder / "tokens.npy", mmap_mode="r")
    if contender in (OURS, DOCUMENTS):
        name, served = contender, ours(store, document_ids=contender == DOCUMENTS)
    else:
        try:
            module = importlib.import_module(f"peers.{contender}")
        except Exception as error:  # not installed, or not for this version of torch
            orders.send((contender, f"{type(error).__name__}: {error}"))
            return
        place = folder / contender
        place.mkdir()
        module.store(tokens, place, CONTEXT_LENGTH)
        name, served = module.NAME, module.batches(place, CONTEXT_LENGTH, BATCH_SIZE)
    check(name, served, tokens, store)
    # Warm-up: page cache, allocator, what libraries do at the first use.
    measure(served, 100, 0.5)
    orders.send((name, None))
    while (order := orders.recv()) is not None:
        orders.send(measure(served, *order))
    served.close()


def quiet(folder):
    """Keep the peers from the network, from the terminal, and from the temporary folder, where they leave locks and copies."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TMPDIR=str(folder))
    tempfile.tempdir = str(folder)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=52_000_000, help="tokens to store (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=8, help="interleaved rounds, of which the median counts (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.25, help="longest time of a contender in a round (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to build the stores (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_windows-") as folder:
        run(Path(folder), options)


def run(folder, options):
    began = time.perf_counter()
    store, tokens = build_store(str(folder / "ours.lance"), options.tokens)
    np.save(folder / "tokens.npy", tokens)
    count = len(tokens) // CONTEXT_LENGTH // BATCH_SIZE
    spawn = multiprocessing.get_context("spawn")
    started = {}
    for contender in (OURS, DOCUMENTS, LIMIT, *PEERS):
        orders, theirs = spawn.Pipe()
        process = spawn.Process(target=contend, args=(contender, folder, theirs))
        process.start()
        theirs.close()
        started[contender] = (process, orders)
    try:
        names, missing, contenders = {}, {}, {}
        for contender, (_, orders) in started.items():
            names[contender], why = answer(contender, orders)
            if why is None:
                contenders[contender] = orders
            else:
                missing[contender] = why
        measured = {contender: [] for contender in contenders}
        for _ in range(options.rounds):
            for contender, orders in contenders.items():
                orders.send((count, options.seconds))
                measured[contender].append(answer(contender, orders))
        for orders in contenders.values():
            orders.send(None)
        for process, _ in started.values():
            process.join()
    finally:
        for process, _ in started.values():
            process.terminate()
    tell(measured, names, missing, len(tokens), store, time.perf_counter() - began)


def answer(contender, orders):
    try:
        return orders.recv()
    except EOFError:
        raise RuntimeError(f"The contender {contender!r} failed: see above.") from None


def ratio(rates, one, other):
    """Give the median over the rounds of one contender's rate divided by another's in the same round."""
    return median(mine / theirs for mine, theirs in zip(rates[one], rates[other], strict=True))


def tell(measured, names, missing, num_tokens, store, seconds):
    rates = {peer: [rate for rate, _, _ in rounds] for peer, rounds in measured.items()}
    by_core = {peer: [rate for _, rate, _ in rounds] for peer, rounds in measured.items()}
    middle = {peer: median(of_peer) for peer, of_peer in rates.items()}
    rows = [
        [
            names[peer],
            f"{middle[peer] / 1e6:,.1f}",
            f"{min(rates[peer]) / 1e6:,.1f} to {max(rates[peer]) / 1e6:,.1f}",
            f"{ratio(rates, OURS, peer):,.2f}",
            f"{ratio(by_core, OURS, peer):,.2f}",
            max(done for _, _, done in measured[peer]),
        ]
        for peer in sorted(measured, key=lambda peer: -middle[peer])
    ]
    rows += [[f"{peer}: skipped, {why}", None, None, None, None, None] for peer, why in missing.items()]
    best = max((peer for peer in PEERS if peer in middle), key=middle.get)
    bars = [
        bar("ours / best of the peers, at least 8", ratio(rates, OURS, best), 8),
        bar("ours / the Lance tutorial's loader, at least 100", ratio(rates, OURS, TUTORIAL), 100),
        bar("ours / the limit, at least 0.75", ratio(rates, OURS, LIMIT), 0.75),
        bar("with document ids / the limit, at least 0.5", ratio(rates, DOCUMENTS, LIMIT), 0.5),
    ]
    notes = [
        f"{num_tokens / 1e6:,.1f} M tokens of uint16 in the page cache; random windows of {CONTEXT_LENGTH} + 1, batches of "
        f"{BATCH_SIZE}, int64 tensors; one process each, no workers. Our store is read by reader={store.reader!r}, from "
        f"{store.version} commits.",
        "M tokens/s of targets: the median of the interleaved rounds, and the slowest and the fastest; the ratios are medians "
        "of those of the rounds, by the clock and by the processor time of all threads. Slow contenders serve fewer batches.",
        "Before the timing, windows of every contender were looked up among the tokens, and read from our store: the same.",
        f"The whole run took {seconds:.0f} s.",
    ]
    data = {
        "environment": environment(
            [
                *(
                    "lightning-lance",
                    "numpy",
                    "torch",
                    "pylance",
                    "pyarrow",
                    "datasets",
                    "guideloom",
                    "lancedb",
                    "litdata",
                ),
                *("mosaicml-streaming", "tokbin", "zephon"),
            ]
        ),
        "tokens": num_tokens,
        "context_length": CONTEXT_LENGTH,
        "batch_size": BATCH_SIZE,
        "tokens_per_second": {names[peer]: list(map(round, of_peer)) for peer, of_peer in rates.items()},
        "tokens_per_core_second": {names[peer]: list(map(round, of_peer)) for peer, of_peer in by_core.items()},
        "batches_per_round": {names[peer]: [done for _, _, done in rounds] for peer, rounds in measured.items()},
        "skipped": missing,
    }
    header = [
        "one process, windows of 1,024",
        "M tokens/s",
        "rounds",
        "ours is x times",
        "by core time",
        "batches a round",
    ]
    publish("bench_windows", "Serving windows", header, rows, bars, notes, data)


if __name__ == "__main__":
    main()
