"""Parts of shards: read from their cuts on, they are the rows of the whole shard."""

import gzip
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_lance import Corpus
from lightning_lance.build.tasks import _Part
from lightning_lance.build.unit import Unit
from lightning_lance.readers import jsonl
from lightning_lance.sources import DatasetSource, FilesSource
from lightning_lance.sources.source import Divisible, OpenedSource
from lightning_lance.tokenization import ByteTokenizer
from tests.support.streams import streams
from tests.support.workers import FakeEngine

ROWS = 300
FILTERS: list[dict[str, Any]] = [{}, {"where": {"kind": ["a", "b"]}}, {"where": {"kind": ["b"]}}]


def rows() -> list[dict[str, str]]:
    random = Random(0)
    return [
        {"content": f"{i} " * random.randrange(1, 200), "kind": random.choice("abc") if i > 90 else "c"}
        for i in range(ROWS)
    ]


def parquet(folder: Path, options: dict[str, Any]) -> DatasetSource:
    pq.write_table(pa.Table.from_pylist(rows()), folder / "x.parquet", row_group_size=17)
    return DatasetSource.parquet(str(folder / "x.parquet"), columns={"text": "content"}, **options)


def lines(folder: Path, options: dict[str, Any]) -> DatasetSource:
    text = "".join(f"{json.dumps(row)}\n" + "\n" * (i % 3) for i, row in enumerate(rows()))
    (folder / "x.jsonl").write_text(text)
    return DatasetSource.jsonl(str(folder / "x.jsonl"), columns={"text": "content"}, **options)


def read(opened: OpenedSource, units: list[Unit]) -> list[tuple[int, str]]:
    found = []
    for unit in units:
        # Each part by another worker.
        part = _Part(pickle.loads(pickle.dumps(opened)), unit)
        for batch in part.read(unit.shard, unit.row):
            found += zip(batch.column("row").to_pylist(), batch.column("text").to_pylist(), strict=True)
    return found


@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("make", [parquet, lines])
def test_the_parts_of_a_shard_are_its_rows(
    make: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "_FIRST_BLOCK", 1024)
    monkeypatch.setattr(jsonl.LinesShard.__init__, "__defaults__", (4096,))
    source = make(tmp_path, options)
    opened = source.open()
    assert isinstance(opened, Divisible)
    whole = read(opened, [Unit(0)])
    assert len(whole) == sum(row["kind"] in options.get("where", {}).get("kind", "abc") for row in rows())
    for part_bytes in (3000, 10_000, 40_000):
        cuts = opened.cuts(0, part_bytes)
        assert cuts
        assert [cut.row for cut in cuts] == sorted({cut.row for cut in cuts} - {0}) or options
        ends = [*(cut.row for cut in cuts), None]
        units = [
            Unit(0, 0, ends[0]),
            *(Unit(0, cut.row, end, cut=cut) for cut, end in zip(cuts, ends[1:], strict=True)),
        ]
        assert read(opened, [unit for unit in units if unit.row != unit.end]) == whole
    assert opened.cuts(0, 1 << 30) == []
    monkeypatch.undo()
    local = Corpus(source, ByteTokenizer(), tmp_path / "local.lance").prepare()
    engine = FakeEngine(slots=3, unit_bytes=10_000)
    store = Corpus(source, ByteTokenizer(), tmp_path / "cluster.lance").prepare(engine=engine)
    assert streams(store) == streams(local)
    assert store.commit.documents == local.commit.documents


def test_a_part_is_read_from_its_cut_on(tmp_path: Path) -> None:
    source = lines(tmp_path, {})
    file = tmp_path / "x.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows() * 200))
    opened = source.open()
    cuts = opened.cuts(0, 4 << 20)
    assert cuts
    # What lies before the last part is not needed for it.
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.write(b"x" * cuts[-1].place)
    assert file.stat().st_size == size
    found = read(opened, [Unit(0, cuts[-1].row, cut=cuts[-1])])
    assert [row for row, _ in found] == list(range(cuts[-1].row, ROWS * 200))


def test_no_part_of_a_compressed_file(tmp_path: Path) -> None:
    source = lines(tmp_path, {})
    packed = tmp_path / "y.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "x.jsonl").read_bytes()))
    opened = DatasetSource.jsonl(str(packed), columns={"text": "content"}).open()
    assert opened.cuts(0, 1) == []
    assert source.open().cuts(0, 1 << 30) == []


def test_files_are_cut_by_their_sizes(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.py").write_text("x" * 100)
    opened = FilesSource("*.py", tmp_path, shard_seed=None).open()
    assert [cut.row for cut in opened.cuts(0, 300)] == [3, 6, 9]
