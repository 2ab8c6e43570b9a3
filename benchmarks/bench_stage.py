"""Training from a bucket 30 ms away with copies on the local disk, beside LitData and MosaicML Streaming. See README.md."""

import argparse
import importlib
import multiprocessing
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from bench_remote import BUCKET, KEPT, KEYS, REGION, check, client, serve, upload
from bench_windows import BATCH_SIZE, CONTEXT_LENGTH, answer, build_store, quiet
from report import environment, publish

from lightning_lance import TokenStore, WindowLoader

LOCAL, PLAIN, STAGED = "ours, local store", "ours, without stage", "ours, with stage"
PEERS = ("lit_data", "mosaic")


def ours(contender, folder, endpoint):
    """Serve epochs without end, shuffled over all windows."""
    options = {**KEYS, "aws_endpoint": endpoint, "aws_region": REGION, "allow_http": "true"}
    place = str(folder / "ours.lance") if contender == LOCAL else f"s3://{BUCKET}/ours.lance"
    store = TokenStore.open(place, storage_options=None if contender == LOCAL else options)
    if contender == STAGED:
        store.stage(folder / "cache")
    loader = WindowLoader(store, CONTEXT_LENGTH, BATCH_SIZE)
    while True:
        for batch in loader:
            yield batch["input_ids"], batch["targets"]


def contend(contender, folder, endpoint, orders):
    """Be one contender, in a process of its own. Sends its name, or why it cannot take part; then its times, when asked."""
    quiet(folder)
    torch.set_num_threads(1)
    tokens, cache = np.load(folder / "tokens.npy", mmap_mode="r"), folder / "cache"
    name = f"lightning-lance, {contender.removeprefix('ours, ')}"
    if contender in PEERS:
        try:
            module = importlib.import_module(f"peers.{contender}")
            place = folder / contender
            place.mkdir()
            module.store(tokens, place, CONTEXT_LENGTH)
        except Exception as error:  # not installed, or not for this version of torch
            orders.send((contender, f"{type(error).__name__}: {error}"))
            return
        name = module.NAME
        for file in (path for path in place.rglob("*") if path.is_file()):
            upload(file, f"{contender}/{file.relative_to(place)}", endpoint["straight"])
    orders.send((name, None))
    while (epoch := orders.recv()) is not None:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        begin = time.perf_counter()
        if contender not in PEERS:
            served = ours(contender, folder, endpoint["front"])
        else:
            options = {**KEYS, "endpoint_url": endpoint["front"], "region_name": REGION}
            uri = f"s3://{BUCKET}/{contender}" + ("/optimized" if contender == "lit_data" else "")
            served = module.remote_epochs(uri, cache, options, CONTEXT_LENGTH, BATCH_SIZE)
        times, kept = [], []
        for x, y in islice(served, 2 * epoch):
            times.append(time.perf_counter() - begin)
            if len(times) % KEPT == 1:
                kept.append((x, y))
        served.close()
        check(name, kept, tokens)
        orders.send({"first": times[0], "one": times[epoch - 1], "two": times[-1] - times[epoch - 1]})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=12_000_000, help="tokens to store (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, of which the best counts (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_stage-") as folder:
        run(Path(folder), options)


def run(folder, options):
    began = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    asked, theirs = spawn.Pipe()
    server = spawn.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    endpoint = answer("server", asked)
    client(endpoint["straight"]).create_bucket(Bucket=BUCKET)
    _, tokens = build_store(str(folder / "ours.lance"), options.tokens)
    np.save(folder / "tokens.npy", tokens)
    for file in (folder / "ours.lance").rglob("*.*"):
        upload(file, str(file.relative_to(folder)), endpoint["straight"])
    # All serve the same number of whole batches.
    epoch = (len(tokens) // (CONTEXT_LENGTH + 1)) // BATCH_SIZE - 1
    rows, data, missing = [], {}, {}
    try:
        for contender in (LOCAL, PLAIN, STAGED, *PEERS):
            orders, theirs = spawn.Pipe()
            process = spawn.Process(target=contend, args=(contender, folder, endpoint, theirs))
            process.start()
            theirs.close()
            name, why = answer(contender, orders)
            if why is not None:
                missing[contender] = why
                continue
            # The server takes every object out of moto once, before it is asked for it.
            for entry in client(endpoint["straight"]).list_objects_v2(Bucket=BUCKET)["Contents"]:
                client(endpoint["front"]).get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            rounds = []
            for _ in range(options.rounds):
                asked.send("forget")
                answer("server", asked)
                orders.send(epoch)
                times = answer(contender, orders)
                asked.send("tell")
                rounds.append({**times, **answer("server", asked)})
            orders.send(None)
            process.join(60)
            process.terminate()
            each = epoch * BATCH_SIZE * CONTEXT_LENGTH
            rows.append(
                [
                    name,
                    f"{min(entry['first'] for entry in rounds):.2f}",
                    f"{each / min(entry['one'] for entry in rounds) / 1e6:,.1f}",
                    f"{each / min(entry['two'] for entry in rounds) / 1e6:,.1f}",
                    f"{rounds[0]['requests']:,}",
                    f"{rounds[0]['bytes'] / 1e6:,.0f}",
                ]
            )
            data[name] = rounds
    finally:
        server.terminate()
    rows += [[f"{contender}: skipped, {why}", *[None] * 5] for contender, why in missing.items()]
    notes = [
        f"{len(tokens) / 1e6:,.1f} M tokens of uint16 in a bucket on loopback; the server begins with each request after "
        f"30 ms. Shuffled windows of {CONTEXT_LENGTH} + 1, batches of {BATCH_SIZE}, int64 tensors. One process each, "
        "no workers.",
        "The first epoch is from cold, with the opening of the store in its time; the second one follows at once. Ours are "
        "shuffled over all windows; LitData shuffles 256 neighbours of a chunk at a time, MosaicML Streaming within blocks.",
        f"One batch in {KEPT} of each was looked up among the tokens: the same.",
        f"The whole run took {time.perf_counter() - began:.0f} s.",
    ]
    header = [
        "from a bucket 30 ms away",
        "first batch, s",
        "epoch 1, M tokens/s",
        "epoch 2, M tokens/s",
        "requests",
        "MB",
    ]
    packages = ["lightning-lance", "numpy", "torch", "pylance", "litdata", "mosaicml-streaming"]
    publish(
        "bench_stage",
        "Training from a bucket, with copies on the local disk",
        header,
        rows,
        [],
        notes,
        {"environment": environment(packages), "tokens": len(tokens), "rounds": data, "skipped": missing},
    )


if __name__ == "__main__":
    main()
