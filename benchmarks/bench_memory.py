"""How much memory a build takes, over corpora small and large, of many languages, and of odd documents. See README.md."""

import argparse
import base64
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from bench_prepare import collect, peak_memory, train
from report import bar, environment, publish

LANGUAGES = 60
SHARD_BYTES = 100_000_000
SMALL, LARGE, MANY = "200 MB of code", "2 GB of code", "200 MB of code, in 60 languages"
FILE, TINY = "one text file of 200 MB", "a million tiny documents"


def write_code(folder, rows, num_bytes, languages):
    """Write Parquet shards of real files, over and over, each time with other names in them."""
    folder.mkdir()
    size, shard, texts = 0, 0, []
    for turn in itertools.count():
        for i, row in enumerate(rows):
            text = row["content"].replace("self", f"me{turn}").replace("return", f"return r{turn * 7919 + i},")
            texts.append({"text": text, "language": f"L{i % languages:02}"})
            size += len(text.encode())
            if size >= num_bytes or size >= (shard + 1) * SHARD_BYTES:
                pq.write_table(pa.Table.from_pylist(texts), folder / f"{shard:03}.parquet", row_group_size=1000)
                shard, texts = shard + 1, []
                if size >= num_bytes:
                    return


def write_lines(folder, rows, num_bytes):
    """Write one file per kind of text without spaces, each one line of `num_bytes`."""
    chance = random.Random(1)
    letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=num_bytes))
    minified = "".join("".join(row["content"].split()) for row in rows[:2000] if row["content"].isascii())
    lines = {
        "letters": letters,
        "one letter": "a" * num_bytes,
        "base64": base64.b64encode(chance.randbytes(num_bytes * 3 // 4)).decode(),
        "minified code": (minified * (num_bytes // len(minified) + 1))[:num_bytes],
    }
    for name, line in lines.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "line.txt").write_text(line)
    return {f"one line, {name}": folder / name for name in lines}


def build(place, uri, tokenizer, engine):
    """Build one store, in a process of its own, and tell what it took."""
    from lightning_lance import Corpus
    from lightning_lance.sources.datasets import DatasetSource
    from lightning_lance.sources.files import FilesSource
    from lightning_lance.tokenization.tokenizer import Tokenizer

    class Loaded:
        def load(self, source, folder):
            return Tokenizer(Path(tokenizer).read_text(encoding="utf-8"), engine=engine)

    if list(Path(place).glob("*.parquet")):
        source = DatasetSource("parquet", data_files=[f"{place}/*.parquet"], language_column="language")
    else:
        source = FilesSource(["*"], root=place)
    begin = time.perf_counter()
    store = Corpus(source, Loaded(), uri, val_fraction=0.0).prepare()
    seconds = time.perf_counter() - begin
    commit = store.commit
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak": peak_memory(),
                "bytes": commit.text_bytes,
                "documents": commit.documents,
                "tokens": commit.tokens,
                "streams": len(store.streams("train")),
            }
        )
    )


def measure(place, uri, tokenizer, engine="auto"):
    command = [sys.executable, __file__, "--build", str(place), str(uri), str(tokenizer), engine]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environ, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: trains a BPE of 8192)")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes (default: %(default)s)")
    parser.add_argument("--only", help="only the cases with this in their name; writes no results")
    parser.add_argument("--folder", type=Path, help="where to build (default: a temporary folder)")
    parser.add_argument("--build", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build(*options.build)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_memory-") as folder:
        os.environ["HF_HOME"] = f"{folder}/hf"
        run(Path(folder), options)


def run(folder, options):
    def wanted(name):
        return options.only is None or options.only in name

    rows, _ = collect(100_000_000)
    tokenizer = options.tokenizer or folder / "trained.json"
    if options.tokenizer is None:
        train(rows, tokenizer)
    scale, measured = options.scale, {}
    for name, num_bytes, languages in ((SMALL, 2e8, 1), (MANY, 2e8, LANGUAGES), (LARGE, 2e9, 1)):
        if wanted(name):
            place = folder / "corpus"
            write_code(place, rows, int(num_bytes * scale), languages)
            measured[name] = measure(place, folder / "code.lance", tokenizer)
            clear(folder)
    files = {FILE: folder / "file", **write_lines(folder / "lines", rows, int(5e7 * scale))}
    files[FILE].mkdir()
    text = "".join(row["content"] for row in rows)
    (files[FILE] / "large.txt").write_text((text * 3)[: int(2e8 * scale)], encoding="utf-8")
    table = pa.table({"text": [f"document {i}" for i in range(int(1e6 * scale))]}).append_column(
        "language", pa.repeat("L00", int(1e6 * scale))
    )
    files[TINY] = folder / "tiny"
    files[TINY].mkdir()
    pq.write_table(table, files[TINY] / "tiny.parquet", row_group_size=100_000)
    del text, table
    for name, place in files.items():
        if wanted(name):
            measured[name] = measure(place, folder / "odd.lance", tokenizer)
            clear(folder)
    name = "one line, base64, by tokenizers"
    if wanted(name):
        measured[name] = measure(files["one line, base64"], folder / "odd.lance", tokenizer, "tokenizers")
    tell(measured, options)


def clear(folder):
    """Remove a corpus and the stores."""
    for path in [*folder.glob("*.lance"), folder / "corpus"]:
        subprocess.run(["rm", "-rf", str(path)], check=True)


def tell(measured, options):
    header = ["corpus", "MB", "documents", "M tokens", "streams", "s", "peak GB"]
    rows = [
        [
            name,
            f"{made['bytes'] / 1e6:,.0f}",
            f"{made['documents']:,}",
            f"{made['tokens'] / 1e6:,.1f}",
            made["streams"],
            f"{made['seconds']:,.0f}",
            f"{made['peak'] / 1e9:.2f}",
        ]
        for name, made in measured.items()
    ]
    if options.only is not None:
        print(*rows, sep="\n")
        return
    peak = {name: made["peak"] for name, made in measured.items()}
    bars = [
        bar("1.5 GB / the largest peak, at least 1", 1.5e9 / max(peak.values()), 1),
        bar("peak over 200 MB / over 2 GB, at least 0.9", peak[SMALL] / peak[LARGE], 0.9),
        bar("peak with one language / with 60, at least 0.9", peak[SMALL] / peak[MANY], 0.9),
    ]
    notes = [
        "Each row is one build in a process of its own; peak: the largest resident set of that process (VmHWM).",
        "Code: files of this machine's Python, over and over, each time with other names, as Parquet files of 100 MB of text.",
        "Lines: 50 MB without a space, in one document.",
    ]
    data = {
        "environment": environment(
            ["lightning-lance", "gigatoken", "tokenizers", "datasets", "pyarrow", "pylance", "numpy"]
        ),
        "results": measured,
    }
    publish("bench_memory", "Memory of a build", header, rows, bars, notes, data)


if __name__ == "__main__":
    main()
