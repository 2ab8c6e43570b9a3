"""Shards of a Hub that fails, read all the same; the Hub is on loopback, and the clients are the real ones."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Faults, Hub

ROWS, GROUP, SHARDS, MANY = 120, 20, 5, 1126


def table(shard: int) -> pa.Table:
    return pa.table(
        {
            "text": [f"text {row} of {shard}\n" * 20 for row in range(ROWS)],
            "language": [("Python", "Rust", "Go")[row // GROUP % 3] for row in range(ROWS)],
            "ignored": ["x" * 2000 + str(row) for row in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    data = {name: folder / "datasets/own" / name / "data" for name in ("corpus", "lines", "many", "moving")}
    for place in data.values():
        place.mkdir(parents=True)
    for shard in range(SHARDS):
        options = {"row_group_size": GROUP, "compression": "none", "use_dictionary": False}
        pq.write_table(table(shard), data["corpus"] / f"{shard}.parquet", **options)
        lines = "".join(json.dumps(row) + "\n" for row in table(shard).to_pylist())
        (data["lines"] / f"{shard}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    few = pa.table({"text": [f"text {row}\n" * 400 for row in range(100)]})
    pq.write_table(few, data["many"] / f"train-{0:05}-of-{MANY:05}.parquet", row_group_size=20)
    for shard in range(1, MANY):
        name = data["many"] / f"train-{shard:05}-of-{MANY:05}.parquet"
        name.write_bytes((data["many"] / f"train-{0:05}-of-{MANY:05}.parquet").read_bytes())
    pq.write_table(pa.table({"text": ["old"] * 50}), data["moving"] / "0.parquet")
    with Hub(folder) as hub:
        yield hub


@pytest.fixture(autouse=True)
def healthy(hub: Hub) -> None:
    hub.faults = Faults()
    hub.requests.clear()


PRELUDE = """
import json, logging, sys
from pathlib import Path
from lightning_lance import prepare
from lightning_lance.errors import LightningLanceError
from lightning_lance.streaming import DatasetSource
from lightning_lance.tokenizer_choice import ByteChoice
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
def source(name, kind="parquet", end="*.parquet", **options):
    files = [f"hf://datasets/own/{name}/data/{end}"]
    return DatasetSource(kind, data_files=files, name=name, **options)
def digest(store):
    return [store.read([0], store.num_tokens(split), split=split).tolist() for split in ("train", "val")]
"""


def run(hub: Hub, home: Path, script: str) -> tuple[Any, str]:
    process = hub.run(PRELUDE + script, home, timeout=120)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1]), process.stderr


BUILD = """
names = {"corpus": ("parquet", "*.parquet"), "lines": ("json", "*.jsonl.gz")}
options = dict(timeout_seconds=1.0, max_retries=12)
built = [digest(prepare(source(name, *kind, **options), ByteChoice(), data_dir=folder)) for name, kind in names.items()]
print(json.dumps(built))
"""


def test_a_hub_that_fails_gives_the_same_store(hub: Hub, tmp_path: Path):
    expected, quiet = run(hub, tmp_path / "calm", "folder = 'data'" + BUILD)
    assert quiet == ""
    hub.faults = Faults(errors=0.2, limited=0.05, retry_after="1", cut=0.05, stalls=0.03, down_after=12, seed=3)
    got, told = run(hub, tmp_path / "rough", "folder = 'data'" + BUILD)
    assert got == expected
    happened = sum(number for kind, number in hub.faults.kinds.items() if kind)
    assert {"errors", "limited", "cut", "stalls", "down"} <= {*hub.faults.kinds}
    # A line for each, and a count at the end of each build; connections that were refused come on top.
    lines = [line for line in told.splitlines() if "; try " in line]
    assert len(lines) >= happened
    counts = [line for line in told.splitlines() if "times and was tried again" in line]
    assert sum(int(line.split(" failed ")[1].split()[0]) for line in counts) == len(lines)
