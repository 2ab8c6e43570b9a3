"""How a store of 10^7 blocks in 10^4 fragments is committed, opened and served. See README.md."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata
from report import bar, environment, publish

from lightning_lance.build.packing import Packer
from lightning_lance.format.commit import append_commit, newest_at, replace_fragments
from lightning_lance.format.lance_io import PendingFragments, fragment_json, write_rows
from lightning_lance.format.metadata import FORMAT_VERSION, CommitMetadata
from lightning_lance.location import StoreLocation

BLOCK = 2048
# What a reader does, in a process of its own: its seconds, and its memory besides the imports. What it has mapped and touched
# is counted as resident, but belongs to the page cache.
READER = """
import json, sys, time
from pathlib import Path
from lightning_lance import TokenStore, WindowLoader
import torch

def megabytes():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon")]

before = megabytes()
busy = time.process_time()
began = time.perf_counter()
store = TokenStore.open(sys.argv[1])
opened = time.perf_counter() - began
busy = time.process_time() - busy
memory = [now - then for now, then in zip(megabytes(), before)]
began = time.perf_counter()
batch = next(iter(WindowLoader(store, 1024, 64)))
first = time.perf_counter() - began
memory += [now - then for now, then in zip(megabytes(), before)]
print(json.dumps([opened, busy, first, memory, store.num_tokens()]))
"""


def build(place, fragments, blocks):
    """Make a store of many fragments out of one data file, which lies on the disk once. Return the seconds of its commit."""
    location = StoreLocation(str(place))
    packer = Packer(0, np.dtype(np.uint16), [])
    recipe = {"format": FORMAT_VERSION, "scale": fragments}
    commit = CommitMetadata("f" * 32, recipe, {}, "", "<|endoftext|>", 0, 50_277)
    append_commit(location, PendingFragments(None, packer.schema, [], {}), commit)
    before = newest_at(location, 1)
    ids = np.ones(blocks * BLOCK - 1, np.uint16)
    documents = pa.table({"language": ["Python"], "id": ["0:0"]})
    rows = packer.add(ids, np.array([0, len(ids)]), np.zeros(1, np.int8), documents)
    [fragment], files = write_rows(location, before, packer.schema, [*rows, *packer.flush()], None)
    [(path, info)] = files.items()
    described = json.loads(fragment_json(fragment))
    made, infos = [], {}
    for number in range(fragments):
        name = f"unit-{number:07d}-{0:012d}-{number:016x}.lance"
        os.link(place / "data" / path, place / "data" / name)
        described["files"][0]["path"] = name
        made.append(FragmentMetadata.from_json(json.dumps(described)))
        infos[name] = info
    (place / "data" / path).unlink()
    commit = replace(commit, tokens=fragments * blocks * BLOCK, documents=fragments)
    began = time.perf_counter()
    replace_fragments(location, before, packer.schema, made, infos, commit, durable=False)
    return time.perf_counter() - began


def forget_in_memory(place):
    """Drop the data files out of the page cache, where they are since they were written: a run rarely finds them there."""
    os.sync()
    for file in (place / "data").iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        # All are links to one file.
        return


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fragments", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=1_000, help="blocks of each fragment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "x.lance"
        committed = build(place, options.fragments, options.blocks)
        forget_in_memory(place)
        output = subprocess.run([sys.executable, "-c", READER, str(place)], capture_output=True, text=True, check=True)
        opened, busy, first, memory, tokens = json.loads(output.stdout)
        metadata = sum(
            file.stat().st_size for folder in ("_transactions", "_versions") for file in (place / folder).iterdir()
        )
    seconds = [f"{committed:.2f}", f"{opened:.2f}", f"{first:.2f}"]
    rows = [[f"{options.fragments:,}", f"{tokens:,}", *seconds, f"{memory[0]:.0f}", f"{memory[2]:.0f}"]]
    bars = [
        bar("seconds to open, of 2", 2 / opened, 1.0),
        bar("megabytes of an opened store, of 200", 200 / memory[0], 1.0),
        bar("megabytes after the first batch, of 200", 200 / memory[2], 1.0),
    ]
    notes = [
        f"Manifests and transactions of both versions: {metadata / 1e6:.1f} MB.",
        f"Opening took {busy:.2f} s of processor time.",
        f"Of the megabytes, the process's own are {memory[1]:.0f} when opened and {memory[3]:.0f} after the first batch. The "
        "rest is page cache that it has mapped and touched, shared with other processes. Each touch counts as 64 kB. Of a file "
        "that was written a moment ago, Linux maps up to 2 MB with it.",
    ]
    data = {
        "environment": environment(["pylance", "pyarrow", "torch"]),
        "committed": committed,
        "opened": opened,
        "busy": busy,
        "first_batch": first,
        "memory": memory,
        "metadata": metadata,
    }
    header = ["fragments", "tokens", "commit s", "open s", "first batch s", "MB opened", "MB after it"]
    publish("bench_scale", "A store of many fragments", header, rows, bars, notes, data)


if __name__ == "__main__":
    main()
