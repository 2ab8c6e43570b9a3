from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.filters import EndsWith, OneOf, RowFilter
from lightning_lance.readers.parquet import ParquetShard

FILTERS: dict[str, RowFilter | None] = {
    "none": None,
    "statistics": RowFilter((OneOf("language", ("Go", "Rust")),)),
    "no statistics": RowFilter((EndsWith("path", (".py",)),)),
}


def table(rows: int) -> pa.Table:
    return pa.table(
        {
            "text": [f"text {row}" for row in range(rows)],
            "path": [f"{row}.{('py', 'js')[row % 2]}" for row in range(rows)],
            "language": sorted(("C", "Go", "Python", "Rust")[row % 4] for row in range(rows)),
        }
    )


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("parquet") / "x.parquet"
    pq.write_table(table(437), file, row_group_size=30)
    return file


@given(st.sampled_from(sorted(FILTERS)), st.integers(0, 450), st.integers(0, 5), st.booleans())
def test_reading_goes_on_from_any_row(shard: Path, name: str, row: int, known: int, remote: bool):
    """Whether or not it is known already how many rows pass before the row groups."""
    filters = FILTERS[name]
    passed = table(437) if filters is None else filters.passing(table(437), "it")
    starts: dict[int, int] = {}
    with ParquetShard(f"file://{shard}" if remote else str(shard), {}) as file:
        assert file.columns == ["text", "path", "language"]
        for _, _ in zip(range(known), file.tables(["text", "path", "language"], filters, 0, starts), strict=False):
            pass
        read: list[dict[str, Any]] = []
        for first, rows in file.tables(["text", "path", "language"], filters, row, starts):
            assert rows.to_pylist() == passed.slice(first, len(rows)).to_pylist()
            read += rows.slice(max(row - first, 0)).to_pylist()
    assert read == passed.slice(row).to_pylist()


def test_only_the_wanted_bytes_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, width = 4000, 100
    wide = {name: [f"{name}{row}".ljust(width) for row in range(rows)] for name in ("skipped", "text", "also")}
    pq.write_table(
        pa.table(wide), tmp_path / "x.parquet", row_group_size=1000, compression="none", use_dictionary=False
    )
    fs = fsspec.filesystem("memory")
    fs.pipe("/x.parquet", (tmp_path / "x.parquet").read_bytes())
    fetched: list[int] = []
    kind = type(fs.open("/x.parquet"))
    monkeypatch.setattr(
        kind, "read", lambda self, size: fetched.append(size) or super(kind, self).read(size), raising=False
    )
    with ParquetShard("memory://x.parquet", {}) as file:
        opened = len(fetched)
        tables = file.tables(["text"], None, 2500, {})
        assert next(tables)[0] == 2000
        # The footer once, and of one row group one column; of those before it, nothing.
        assert opened == 1
        assert len(fetched) == 2
        assert fetched[1] < 1000 * (width + 4) * 1.05
        tables.close()
        fetched.clear()
        next(file.tables(["text", "also"], None, 0, {}))
        assert len(fetched) == 1  # neighbours are fetched together
