"""Windows of a store that is not in memory, memory that must not grow, and how soon training begins. See README.md."""

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from bench_windows import BATCH_SIZE, CONTEXT_LENGTH, build_store
from peers import nanogpt
from report import bar, environment, publish
from storing import commit_rows

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.format.metadata import CommitMetadata
from tests.support.paths import ROOT

OURS, NANOGPT = "lightning-lance WindowLoader", "nanoGPT get_batch"
# Of the control group in which the store does not fit: what Python and torch take, and some page cache.
MEMORY_LIMIT = 600 << 20
# 10^10 tokens in blocks of 2,048 are so many rows, and so many fragments of 1 GB, into which a build merges its commits; blocks
# of 128 take less disk, and are found as fast.
ROWS, FRAGMENTS, SMALL_BLOCK = 4_900_000, 20, 128
MANY_BATCHES = 50_000


def served(name, folder):
    """Iterate over int64 batches of random windows, without end."""
    if name == NANOGPT:
        return nanogpt.batches(folder, CONTEXT_LENGTH, BATCH_SIZE)
    return chain.from_iterable(
        repeat(WindowLoader(TokenStore.open(str(folder / "ours.lance")), CONTEXT_LENGTH, BATCH_SIZE))
    )


def forget(folder):
    """Drop all files of the stores out of the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(name, folder, batches):
    """Count target tokens per second over the first batches."""
    begin = time.perf_counter()
    done = sum(1 for _ in islice(served(name, folder), batches))
    return {"tokens_per_second": done * BATCH_SIZE * CONTEXT_LENGTH / (time.perf_counter() - begin)}


def growth(folder):
    """Serve many batches, and compare the memory before and after; that of the process, without the mapped store."""
    batches = served(OURS, folder)
    for _ in islice(batches, 2000):
        pass
    before = anonymous_memory()
    for _ in islice(batches, MANY_BATCHES):
        pass
    return {"grown": anonymous_memory() - before}


def anonymous_memory():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024


def begin_training(folder):
    """Open a store of as many rows as 10^10 tokens have and take a batch, in a process that has imported all it needs."""
    torch.zeros(1)
    begin = time.perf_counter()
    loader = WindowLoader(TokenStore.open(str(folder / "many.lance")), 64, 8)
    next(iter(loader))
    first = time.perf_counter() - begin
    state = loader.state_dict()
    epoch = 10**9 // loader.num_windows
    start = epoch * loader.num_windows
    resumed = WindowLoader(loader.stores[""], 64, 8)
    begin = time.perf_counter()
    resumed.load_state_dict({**state, "cursor": 10**9, "epoch": epoch, "epoch_start": start, "digest_from": start})
    next(iter(resumed))
    return {"first_batch": first, "resume": time.perf_counter() - begin}


def build_many(folder):
    """Write a store of as many blocks and fragments as one of 10^10 tokens has."""
    rows = ROWS // FRAGMENTS
    tokens = pa.array(np.arange(rows * SMALL_BLOCK, dtype=np.uint16))
    table = pa.table(
        {
            "tokens": pa.FixedSizeListArray.from_arrays(tokens, SMALL_BLOCK),
            "num_tokens": pa.array(np.full(rows, SMALL_BLOCK, np.int32)),
            "split": pa.repeat(pa.scalar("train"), rows),
            "language": pa.repeat(pa.scalar("Python"), rows),
        }
    )
    note = CommitMetadata("f" * 32, {"format": 2}, {}, "", "<|endoftext|>", 0, 1 << 16, tokens=ROWS * SMALL_BLOCK)
    for _ in range(FRAGMENTS):
        commit_rows(str(folder / "many.lance"), table.to_batches(), table.schema, note)


def train_steps(folder):
    """Time steps of the sample GPT on batches of the loader, and on one batch again and again, in turns."""
    sys.path.insert(0, str(ROOT / "examples"))
    from gpt import GPT

    loader = WindowLoader(TokenStore.open(str(folder / "ours.lance")), 256, 16)
    vocab_size = 8192
    model = GPT(vocab_size=vocab_size, n_layer=4, n_head=4, n_embd=128, context_length=256)
    fixed, batches = next(iter(loader)), iter(loader)
    seconds = {"loader": [], "fixed": [], "waiting": []}
    for i in range(24):
        begin = time.perf_counter()
        batch = next(batches) if i % 2 else fixed
        seconds["waiting"] += [time.perf_counter() - begin] * (i % 2)
        _, loss = model(batch["input_ids"] % vocab_size, batch["targets"] % vocab_size)
        loss.backward()
        seconds["loader" if i % 2 else "fixed"].append(time.perf_counter() - begin)
    return {name: statistics.median(times[3:]) for name, times in seconds.items()}


def in_a_process(folder, limit, *arguments):
    """Run a part of this in a process of its own, in a control group of limited memory if one is given."""
    command = [sys.executable, __file__, "--part", str(folder), limit, *map(str, arguments)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(told.stdout)


@contextlib.contextmanager
def memory_group():
    """Make a control group with little memory (cgroup v1 or v2, as root); gives its list of processes, or ''."""
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, f"bench_cold-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(str(MEMORY_LIMIT))
            yield str(group / "cgroup.procs")
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    yield ""


def part(folder, limit, what, *arguments):
    logging.disable(logging.WARNING)
    torch.set_num_threads(torch.get_num_threads() if what == "train_steps" else 1)
    if limit != "-":
        Path(limit).write_text(str(os.getpid()))
    if what == "cold":
        print(json.dumps(cold(arguments[0], folder, int(arguments[1]))))
    else:
        print(json.dumps({"growth": growth, "begin": begin_training, "train_steps": train_steps}[what](folder)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=300_000_000, help="tokens to store (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, whose median counts (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where to build the stores, on a disk (default: a temporary folder)"
    )
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part(Path(options.part[0]), *options.part[1:])
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_cold-") as folder, memory_group() as group:
        run(Path(folder), group, options)


def run(folder, group, options):
    began = time.perf_counter()
    _, tokens = build_store(str(folder / "ours.lance"), options.tokens)
    nanogpt.store(tokens, folder, CONTEXT_LENGTH)
    size = tokens.nbytes
    del tokens
    build_many(folder)
    begins = [in_a_process(folder, "-", "begin") for _ in range(options.rounds)]
    # nanoGPT gets fewer batches: it is the slower one, and each of its batches is as long.
    contenders = {NANOGPT: 30, OURS: 300}
    measured = {}
    for place, limit in (("cold page cache", "-"), ("memory of 0.6 GB", group)):
        for name, batches in contenders.items() if limit else ():
            rates = []
            for _ in range(options.rounds):
                forget(folder)
                rates.append(in_a_process(folder, limit, "cold", name, batches)["tokens_per_second"])
            measured[f"{name}, {place}"] = rates
    grown = in_a_process(folder, "-", "growth")["grown"]
    steps = in_a_process(folder, "-", "train_steps")
    median = {name: statistics.median(rates) for name, rates in measured.items()}
    rows = []
    for name, rate in median.items():
        ratio = median[f"{OURS}, {name.partition(', ')[2]}"] / rate
        rows.append([name, f"{rate / 1e6:,.1f}", f"{min(measured[name]) / 1e6:,.1f}", f"{ratio:,.1f}"])
    first, resume = (min(begin[what] for begin in begins) for what in ("first_batch", "resume"))
    bars = [
        bar(
            f"ours / nanoGPT's get_batch, {place}, at least 3",
            median[f"{OURS}, {place}"] / median[f"{NANOGPT}, {place}"],
            3,
        )
        for place in dict.fromkeys(name.partition(", ")[2] for name in median)
    ]
    bars += [
        bar("20 MB / growth of the memory over 50,000 batches, at least 1", 20e6 / max(grown, 1), 1),
        bar("0.3 s / time to the first batch of as many blocks as 10^10 tokens have, at least 1", 0.3 / first, 1),
        bar("50 ms / time of a resume at window 10^9, at least 1", 0.05 / resume, 1),
        bar(
            "1 % of a training step / what it waits for its batch, at least 1",
            0.01 * steps["loader"] / steps["waiting"],
            1,
        ),
    ]
    notes = [
        f"{size / 1e9:.1f} GB of uint16 tokens; random windows of {CONTEXT_LENGTH} + 1, batches of {BATCH_SIZE}, int64. Before "
        f"each round the files are dropped out of the page cache (posix_fadvise); the first {contenders[NANOGPT]} batches of "
        f"nanoGPT, {contenders[OURS]} of ours count, opening included. Median of {options.rounds} rounds, the worst beside it.",
        "A control group with too little memory for the store: "
        + ("as told." if group else "skipped, since none could be made here (needs root)."),
        f"50,000 batches: the process's own memory grew by {grown / 1e6:.1f} MB.",
        f"{ROWS:,} blocks in {FRAGMENTS} fragments: {first * 1e3:.0f} ms from opening to the first batch, imports not counted; "
        f"{resume * 1e3:.1f} ms from a state at window 10^9 to its next batch.",
        f"Sample GPT, CPU: a step of {steps['loader'] * 1e3:.0f} ms with the loader, {steps['fixed'] * 1e3:.0f} ms with one "
        f"batch again and again, {steps['waiting'] * 1e6:.0f} us of it for the next batch (medians of 9, in turns).",
        f"The whole run took {time.perf_counter() - began:.0f} s.",
    ]
    data = {
        "environment": environment(["lightning-lance", "numpy", "torch", "pylance", "pyarrow"]),
        "tokens_per_second": measured,
        "grown": grown,
        "begins": begins,
        "steps": steps,
    }
    header = ["windows out of a cold store", "M tokens/s", "worst", "ours is x times"]
    publish("bench_cold", "Windows that are not in memory", header, rows, bars, notes, data)


if __name__ == "__main__":
    main()
