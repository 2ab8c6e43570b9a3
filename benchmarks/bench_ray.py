"""What a build on Ray's workers costs and gains on one machine, beside the engine in one process. See README.md."""

import argparse
import logging
import os
import statistics
import sysconfig
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from report import bar, environment, publish

from lightning_lance import Corpus
from lightning_lance.build.ledger import Ledger
from lightning_lance.build.plan import Budget
from lightning_lance.build.unit import UnitResult
from lightning_lance.build.unit_results import Written, read_result, write_result
from lightning_lance.documents.batch import document_batch
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.engines import RayEngine
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.lance_names import UnitName
from lightning_lance.location import StoreLocation
from lightning_lance.sources import DatasetSource
from lightning_lance.sources.source import ReadReport
from lightning_lance.tokenization import ByteTokenizer, TokenizerFile, TrainedBPE


def write_corpus(folder, megabytes, files):
    """Write the standard library's code to Parquet files, over and over, each document a little different."""
    texts = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            texts.append(path.read_bytes().decode("utf-8", "ignore"))
    wanted = megabytes * 1_000_000 // files
    for number in range(files):
        rows, size, i = [], 0, 0
        while size < wanted:
            rows.append(f"# {number} {i}\n{texts[(i * 7 + number) % len(texts)]}")
            size += len(rows[-1])
            i += 1
        pq.write_table(pa.table({"text": rows}), folder / f"{number:03}.parquet", row_group_size=500)


@dataclass(frozen=True)
class SlowSource:
    """Shards that take two seconds each to come, as from a bucket far away."""

    shards: tuple = tuple(map(str, range(64)))
    seconds: float = 2.0
    name: str = "slow"
    wanted: tuple = ()
    metadata: tuple = ()
    dedup: str = "none"
    has_validation: bool = False
    num_bytes: int | None = None
    pin: dict = field(default_factory=dict)
    trouble: ReadReport = field(default_factory=ReadReport)

    def identity(self):
        return {"slow": len(self.shards)}

    def open(self, pin=None):
        return self

    def present_languages(self):
        return [""]

    def read(self, shard, row):
        if row:
            return
        time.sleep(self.seconds)
        columns = {"text": pa.array([f"shard {shard}"], pa.large_string())}
        yield document_batch(columns, pa.array([""]), 0, (), TextFilter())


def processor_seconds():
    """Return the processor seconds of this process, and those of its children: Ray's own processes, and the workers."""
    own = psutil.Process()
    spent = own.cpu_times()
    ray, workers = 0.0, 0.0
    for child in own.children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            # Ray names a worker by its task.
            if child.name().startswith("ray::"):
                workers += times.user + times.system
            else:
                ray += times.user + times.system
    return np.array([spent.user + spent.system, ray, workers])


def seconds_of(source, tokenizer, place, engine):
    """Build a store. Return the seconds, the processor seconds of the driver, Ray and the workers, and all tokens."""
    before = processor_seconds()
    began = time.perf_counter()
    store = Corpus(source, tokenizer, place, val_fraction=0.0).prepare(engine=engine)
    seconds = time.perf_counter() - began
    spent = processor_seconds() - before
    return seconds, spent, store.read(np.zeros(1, np.int64), store.num_tokens())[0]


def driver_rate(folder, units):
    """Return how many results of units a driver reads and folds in a second: 200 documents each."""
    location = StoreLocation(str(folder / "x.lance"))
    Path(location.uri).mkdir()
    count = 200
    names = []
    for shard in range(units):
        documents = pa.table({"language": ["Python"] * count, "id": [f"{shard}:{row}" for row in range(count)]})
        rows = np.arange(count)
        result = UnitResult(shard, rows, rows + 500, rows + 2000, documents, next_row=count, ends_shard=True)
        names.append(UnitName("unit", shard, 0, f"{shard:016x}"))
        write_result(location, names[-1], Written("key", result))
    empty = CommitMetadata("f" * 32, {}, {}, "", "<|endoftext|>", 0, 50_277)
    ledger = Ledger(empty, Budget(), [str(shard) for shard in range(units)])
    began = time.perf_counter()
    for name in names:
        ledger.fold(read_result(location, name).result)
    return units / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--units", type=int, default=100_000)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    import ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        write_corpus(corpus, options.megabytes, 8)
        source = DatasetSource.parquet(str(corpus / "*.parquet"))
        # One tokenizer for all, trained once.
        trained = Corpus(source, TrainedBPE(8192), folder / "t.lance", data_dir=folder, max_documents=1)
        trained.prepare()
        tokenizer = TokenizerFile(str(folder / "t.tokenizer.json"))
        times, spent, rates, tokens = {}, {}, {}, None
        # Before Ray is started, which has workers yield to every other process.
        os.environ.setdefault("RAY_worker_niceness", "0")
        for workers in (1, 2):
            ray.init(num_cpus=workers, include_dashboard=False, logging_level="error", log_to_driver=False)
            engine = RayEngine(unit_bytes=1 << 30)
            seconds_of(source, tokenizer, folder / f"warm{workers}.lance", engine)
            for turn in range(options.rounds):
                contenders = {f"ray, {workers} workers": engine}
                if workers == 1:
                    contenders["local"] = "local"
                for what, chosen in contenders.items():
                    place = folder / f"{what}{turn}.lance"
                    seconds, busy, found = seconds_of(source, tokenizer, place, chosen)
                    times.setdefault(what, []).append(seconds)
                    spent.setdefault(what, []).append(busy)
                    tokens = found if tokens is None else tokens
                    if not np.array_equal(tokens, found):
                        raise ValueError(f"{what} stored other tokens")
            ray.shutdown()
        for workers, shards in ((1, 16), (16, 64)):
            ray.init(num_cpus=workers, include_dashboard=False, logging_level="error", log_to_driver=False)
            # Until all workers have started, which Ray does one by one.
            for turn in range(6):
                warm = SlowSource(shards=tuple(map(str, range(2 * workers))))
                _, busy, _ = seconds_of(warm, ByteTokenizer(), folder / f"w{workers}-{turn}.lance", RayEngine())
                if busy[2] < 0.2 * workers:
                    break
            slow = SlowSource(shards=tuple(map(str, range(shards))))
            seconds, _, _ = seconds_of(slow, ByteTokenizer(), folder / f"slow{workers}.lance", RayEngine())
            rates[workers] = shards / seconds
            ray.shutdown()
        rate = driver_rate(folder, options.units)
    middle = {what: statistics.median(found) for what, found in times.items()}
    busy = {what: np.median(found, axis=0) for what, found in spent.items()}
    rows = []
    for what, seconds in sorted(middle.items()):
        used = [f"{part:.2f}" for part in busy[what]]
        rows.append(
            [what, f"{seconds:.2f}", f"{options.megabytes / seconds:.1f}", f"{middle['local'] / seconds:.2f}", *used]
        )
    gain = rates[16] / rates[1]
    ours = busy["ray, 2 workers"][0] + busy["ray, 2 workers"][2]
    bars = [
        bar("two workers against the local engine on two cores", middle["local"] / middle["ray, 2 workers"], 0.87),
        bar(
            "processor seconds of the local engine against driver and two workers", float(busy["local"][0] / ours), 0.87
        ),
        bar("16 workers against one where a shard takes two seconds to come", gain, 12.0),
    ]
    notes = [
        f"{len(tokens):,} tokens from {options.megabytes} MB of Python in 8 Parquet files; medians of {options.rounds} rounds; "
        "Ray was running.",
        f"Of shards that take two seconds each, {rates[1]:.2f} are done in a second by one worker (of 16 shards), and "
        f"{rates[16]:.2f} by 16 (of 64).",
        f"The driver reads and folds {rate:,.0f} results of 200 documents in a second ({options.units:,} results).",
    ]
    data = {
        "environment": environment(["ray", "pylance", "pyarrow", "gigatoken"]),
        "times": times,
        "processor_seconds": {what: [part.tolist() for part in found] for what, found in spent.items()},
        "rates": rates,
        "rate": rate,
    }
    publish(
        "bench_ray",
        "A build on Ray's workers",
        ["engine", "s", "MB/s", "of local", "driver core-s", "Ray core-s", "workers core-s"],
        rows,
        bars,
        notes,
        data,
    )


if __name__ == "__main__":
    main()
