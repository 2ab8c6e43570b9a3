"""How fast windows are served out of a bucket 30 ms away, beside LitData on the same server. See README.md."""

import argparse
import asyncio
import importlib
import logging
import multiprocessing
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from itertools import islice
from pathlib import Path

import boto3
import numpy as np
import torch
from bench_windows import BATCH_SIZE, CONTEXT_LENGTH, answer, build_store, locate, quiet
from moto.server import ThreadedMotoServer
from report import bar, environment, publish

from lightning_lance import TokenStore, WindowLoader

# Seconds before the server begins with a request.
LATENCY = 0.03
BUCKET = "bucket"
REGION = "us-east-1"
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
# Batches until the first rate is taken.
FIRST_BATCHES = 64
# Every so many batches one is kept, and looked up among the tokens.
KEPT = 64
# Headers that the server gives anew with each answer.
HOP = ("connection", "content-length", "date", "server", "transfer-encoding")

PEER = "lit_data"
# Windows that stay together in the shuffle. LitData shuffles 256 neighbours of a chunk at a time: the first is as local.
OURS = {"blocks of 256": 256, "blocks of 64": 64, "shuffled over all": None}
LOCAL, _, OVER_ALL = OURS


class Counts:
    """What the server counts: requests, the most of them in flight, and bytes of their answers."""

    def __init__(self):
        self.in_flight = 0
        self.take()

    def take(self):
        """Give the counts since the last time."""
        counted = dict(vars(self))
        self.requests = self.most_in_flight = self.bytes = 0
        return {name: counted.get(name, 0) for name in ("requests", "most_in_flight", "bytes")}


class Front(asyncio.Protocol):
    """A connection to what stands before moto: it waits, counts, and gives objects out of memory.

    For a range, moto copies the whole object, and it takes some milliseconds for a request: it would be the limit of all.
    """

    def __init__(self, endpoint, objects, counts):
        self._endpoint, self._objects, self._counts, self._received = endpoint, objects, counts, b""

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._received += data
        # What reads a bucket sends no bodies, and waits for an answer before it asks again.
        if self._received.endswith(b"\r\n\r\n"):
            head, self._received = self._received.decode("latin-1"), b""
            line, *lines = head.strip().split("\r\n")
            method, path, _ = line.split(" ")
            headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
            self._counts.requests += 1
            self._counts.in_flight += 1
            self._counts.most_in_flight = max(self._counts.most_in_flight, self._counts.in_flight)
            asyncio.get_running_loop().call_later(LATENCY, self._answer, method, path, headers)

    def _answer(self, method, path, headers):
        if path not in self._objects:
            # Other questions than for an object may have another answer the next time.
            listing = path.count("/") < 3 and "?" in path
            request = urllib.request.Request(self._endpoint + path, headers=_without(headers, "range", "connection"))
            try:
                with urllib.request.urlopen(request) as answer:
                    found = 200, _without(dict(answer.headers), *HOP), answer.read()
            except urllib.error.HTTPError as error:
                found, listing = (error.code, _without(dict(error.headers), *HOP), error.read()), True
            if not listing:
                self._objects[path] = found
        else:
            found = self._objects[path]
        status, kept, body = found
        length = len(body)
        if status == 200 and "range" in headers:
            first, last = headers["range"].removeprefix("bytes=").split("-")
            start, stop = (
                (int(first), min(int(last or length - 1) + 1, length)) if first else (length - int(last), length)
            )
            status, kept = 206, {**kept, "Content-Range": f"bytes {start}-{stop - 1}/{length}"}
            body = memoryview(body)[start:stop]
        lines = [f"HTTP/1.1 {status} Told", *(f"{name}: {value}" for name, value in kept.items())]
        self._transport.write("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1"))
        if method != "HEAD":
            self._transport.write(body)
            self._counts.bytes += len(body)
        self._counts.in_flight -= 1


def _without(headers, *names):
    return {name: value for name, value in headers.items() if name.lower() not in names}


def serve(orders):
    """Be the server, in a process of its own. Sends its endpoints, without the wait and with it; then counts, when asked."""
    logging.disable(logging.WARNING)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    straight = "http://{}:{}".format(*moto.get_host_and_port())
    objects, counts = {}, Counts()
    loop = asyncio.new_event_loop()
    front = loop.run_until_complete(loop.create_server(lambda: Front(straight, objects, counts), "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    orders.send({"straight": straight, "front": "http://{}:{}".format(*front.sockets[0].getsockname())})
    while orders.recv() is not None:
        orders.send(counts.take())


def ours(endpoint, shuffle_block):
    options = {**KEYS, "aws_endpoint": endpoint, "aws_region": REGION, "allow_http": "true"}
    store = TokenStore.open(f"s3://{BUCKET}/ours.lance", storage_options=options)
    for batch in WindowLoader(store, CONTEXT_LENGTH, BATCH_SIZE, shuffle_block=shuffle_block):
        yield batch["input_ids"], batch["targets"]


def contend(contender, folder, endpoint, orders):
    """Be one contender, in a process of its own. Sends its name, or why it cannot take part; then answers each order.

    An order is how many batches to serve at most. All is opened anew for it, and what was kept on the disk is removed.
    """
    quiet(folder)
    torch.set_num_threads(1)
    tokens, cache, checked = np.load(folder / "tokens.npy", mmap_mode="r"), folder / "cache", False
    if contender in OURS:
        name = f"lightning-lance, {contender}"
    else:
        try:
            module = importlib.import_module(f"peers.{contender}")
        except Exception as error:  # not installed, or not for this version of torch
            orders.send((contender, f"{type(error).__name__}: {error}"))
            return
        name = module.NAME
        place = folder / contender
        place.mkdir()
        module.store(tokens, place, CONTEXT_LENGTH)
        for file in (place / "optimized").iterdir():
            upload(file, f"{contender}/{file.name}", endpoint["straight"])
    orders.send((name, None))
    while (count := orders.recv()) is not None:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        begin, times, kept = time.perf_counter(), [], []
        if contender in OURS:
            served = ours(endpoint["front"], OURS[contender])
        else:
            options = {**KEYS, "endpoint_url": endpoint["front"], "region_name": REGION}
            served = module.remote_batches(f"s3://{BUCKET}/{contender}", cache, options, CONTEXT_LENGTH, BATCH_SIZE)
        for x, y in islice(served, count):
            times.append(time.perf_counter() - begin)
            if len(times) % KEPT == 1:
                kept.append((x, y))
        # Waits for what is still read ahead, which else would disturb the next one.
        served.close()
        if not checked:
            check(name, kept, tokens)
        checked = True
        orders.send(times)


def check(name, kept, tokens):
    """Look for windows among the tokens. AssertionError if one is not there, or differs."""
    x, y = (np.concatenate([part.numpy() for part in parts]) for parts in zip(*kept, strict=True))
    windows = np.concatenate([x, y[:, -1:]], axis=1)
    if windows.shape != (len(kept) * BATCH_SIZE, CONTEXT_LENGTH + 1) or not np.array_equal(windows[:, 1:], y):
        raise AssertionError(f"{name}: y is not x, one token later.")
    starts = locate(windows, tokens)
    if not np.array_equal(tokens[starts[:, None] + np.arange(CONTEXT_LENGTH + 1)], windows):
        raise AssertionError(f"{name} served other tokens than were stored.")


def client(endpoint):
    return boto3.client("s3", endpoint_url=endpoint, region_name=REGION, **KEYS)


def upload(file, key, straight):
    client(straight).upload_file(str(file), BUCKET, key)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=48_000_000, help="tokens to store (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="interleaved rounds, of which the best counts (%(default)s)"
    )
    parser.add_argument(
        "--batches", type=int, default=128, help="batches served where the shuffle goes over all (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to build the stores (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_remote-") as folder:
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
    started = {}
    for contender in (*OURS, PEER):
        orders, theirs = spawn.Pipe()
        process = spawn.Process(target=contend, args=(contender, folder, endpoint, theirs))
        process.start()
        theirs.close()
        started[contender] = (process, orders)
    try:
        names, missing, measured = {}, {}, {}
        for contender, (_, orders) in started.items():
            names[contender], why = answer(contender, orders)
            if why is None:
                measured[contender] = []
            else:
                missing[contender] = why
        # The server takes every object out of moto once, before it is asked for it.
        for entry in client(endpoint["straight"]).list_objects_v2(Bucket=BUCKET)["Contents"]:
            client(endpoint["front"]).get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        for _ in range(options.rounds):
            for contender, rounds in measured.items():
                asked.send("forget")
                answer("server", asked)
                started[contender][1].send(options.batches if contender == OVER_ALL else len(tokens))
                times = answer(contender, started[contender][1])
                asked.send("tell")
                rounds.append({"times": times, **answer("server", asked)})
        for process, orders in started.values():
            if process.is_alive():
                orders.send(None)
            process.join()
    finally:
        for process, _ in (*started.values(), (server, None)):
            process.terminate()
    tell(measured, names, missing, len(tokens), time.perf_counter() - began)


def figures(rounds):
    """Give the best of the rounds: seconds to the first batch, and tokens per second of the first batches and of all."""
    each = BATCH_SIZE * CONTEXT_LENGTH
    return {
        "first": min(entry["times"][0] for entry in rounds),
        "begin": max(FIRST_BATCHES * each / entry["times"][FIRST_BATCHES - 1] for entry in rounds),
        "all": max(len(entry["times"]) * each / entry["times"][-1] for entry in rounds),
    }


def tell(measured, names, missing, num_tokens, seconds):
    best = {contender: figures(rounds) for contender, rounds in measured.items()}
    rows = [
        [
            names[contender],
            f"{best[contender]['first']:.2f}",
            f"{best[contender]['begin'] / 1e6:,.1f}",
            f"{best[contender]['all'] / 1e6:,.1f}",
            len(rounds[0]["times"]),
            f"{rounds[0]['requests']:,}",
            max(entry["most_in_flight"] for entry in rounds),
            f"{rounds[0]['bytes'] / 1e6:,.0f}",
        ]
        for contender, rounds in measured.items()
    ]
    rows += [[f"{contender}: skipped, {why}", *[None] * 7] for contender, why in missing.items()]
    bars = []
    if PEER in best:
        mine, theirs = best[LOCAL], best[PEER]
        bars = [
            bar(
                f"LitData / ours ({LOCAL}), seconds to the first batch, at least 1", theirs["first"] / mine["first"], 1
            ),
            bar(
                f"ours ({LOCAL}) / LitData, the first {FIRST_BATCHES} batches, at least 1",
                mine["begin"] / theirs["begin"],
                1,
            ),
            bar(f"ours ({LOCAL}) / LitData, the epoch, at least 1", mine["all"] / theirs["all"], 1),
        ]
    notes = [
        f"{num_tokens / 1e6:,.1f} M tokens of uint16 in a bucket on loopback; the server begins with each request after "
        f"{LATENCY * 1000:.0f} ms. Shuffled windows of {CONTEXT_LENGTH} + 1, batches of {BATCH_SIZE}, int64 tensors; one "
        "process each, no workers.",
        "All is from cold: the time begins before the store is opened, and nothing is left on the disk from the round before. "
        "The best of the interleaved rounds counts, for each column.",
        "LitData goes through its chunks of 64 MB one after the other, and shuffles 256 windows of a chunk at a time: "
        f"our {LOCAL} are as local, and shuffled over the whole store. A shuffle over all windows, which LitData does not "
        "have, is limited by how many requests the server answers; its epoch is cut short.",
        f"Of the first round, one batch in {KEPT} was looked up among the tokens: the same.",
        f"The whole run took {seconds:.0f} s.",
    ]
    data = {
        "environment": environment(["lightning-lance", "numpy", "torch", "pylance", "moto", "litdata", "obstore"]),
        "tokens": num_tokens,
        "context_length": CONTEXT_LENGTH,
        "batch_size": BATCH_SIZE,
        "latency_seconds": LATENCY,
        "rounds": {
            names[contender]: [
                {
                    "first_batch_seconds": round(entry["times"][0], 3),
                    "tokens_per_second_first_batches": round(figures([entry])["begin"]),
                    "tokens_per_second": round(figures([entry])["all"]),
                    "batches": len(entry["times"]),
                    "requests": entry["requests"],
                    "most_in_flight": entry["most_in_flight"],
                    "bytes": entry["bytes"],
                }
                for entry in rounds
            ]
            for contender, rounds in measured.items()
        },
        "skipped": missing,
    }
    header = [
        "from a bucket 30 ms away",
        "first batch, s",
        f"first {FIRST_BATCHES}, M tokens/s",
        "all, M tokens/s",
        "batches",
        "requests",
        "in flight",
        "MB",
    ]
    publish("bench_remote", "Serving windows out of a bucket", header, rows, bars, notes, data)


if __name__ == "__main__":
    main()
