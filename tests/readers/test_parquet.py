from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.filters import EndsWith, OneOf, RowFilter
from lightning_lance.readers import parquet
from lightning_lance.readers.parquet import ParquetShard
from lightning_lance.readers.retry import is_transient


class RangedFile(AbstractBufferedFile):
    """A file elsewhere, of which ranges are fetched."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fetched.append((start, end))
        return Path(self.path).read_bytes()[start : min(end, start + self.fs.longest)]


class RangedFiles(AbstractFileSystem):
    """Serves local files as a bucket does."""

    protocol = "ranged"
    fetched: ClassVar[list[tuple[int, int]]] = []
    longest = 1 << 40  # bytes of an answer

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> RangedFile:
        return RangedFile(self, path, mode, **kwargs)


fsspec.register_implementation("ranged", RangedFiles)

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


@given(
    st.sampled_from(sorted(FILTERS)), st.integers(0, 450), st.integers(0, 5),
    st.sampled_from(["", "file://", "ranged://"]),
)  # fmt: skip
def test_reading_goes_on_from_any_row(shard: Path, name: str, row: int, known: int, protocol: str):
    """Whether or not it is known already how many rows pass before the row groups."""
    filters = FILTERS[name]
    passed = table(437) if filters is None else filters.passing(table(437), "it")
    starts: dict[int, int] = {}
    with ParquetShard(f"{protocol}{shard}", {}) as file:
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
    plain: dict[str, Any] = {
        "compression": "none",
        "use_dictionary": False,
        "data_page_size": 10_000,
        "write_batch_size": 50,
    }
    pq.write_table(pa.table(wide), tmp_path / "x.parquet", row_group_size=1000, **plain)
    fetched = RangedFiles.fetched
    fetched.clear()
    with ParquetShard(f"ranged://{tmp_path}/x.parquet", {}) as file:
        tables = file.tables(["text"], None, 2500, {})
        assert len(fetched) == 1
        assert next(tables)[0] == 2000
        # The footer once, and of one row group one column; of those before it, nothing.
        assert len(fetched) == 2
        assert fetched[1][1] - fetched[1][0] < 1000 * (width + 4) * 1.05
        tables.close()
        fetched.clear()
        next(file.tables(["text", "also"], None, 0, {}))
        assert len(fetched) == 1  # neighbours are fetched together
        fetched.clear()
        next(file.tables(["skipped", "also"], None, 0, {}))
        assert len(fetched) == 2  # but not what is between others
        fetched.clear()
        monkeypatch.setattr(parquet, "_AHEAD_BYTES", 1000)
        monkeypatch.setattr(parquet, "_PIECE_BYTES", 5000)
    with ParquetShard(f"ranged://{tmp_path}/x.parquet", {}) as file:
        next(file.tables(["text"], None, 0, {}))
        # A large row group is fetched as it is read.
        assert len(fetched) > 5
        assert sum(high - low for low, high in fetched[1:]) < 1000 * (width + 4) * 1.05


def test_an_answer_that_is_cut_off_is_asked_for_again(shard: Path, monkeypatch: pytest.MonkeyPatch):
    with ParquetShard(f"ranged://{shard}", {}) as file:
        monkeypatch.setattr(RangedFiles, "longest", 100)
        with pytest.raises(ConnectionError, match=r"100 of \d+ bytes came") as told:
            next(file.tables(["text"], None, 0, {}))
        assert is_transient(told.value)
        monkeypatch.undo()
        assert len(next(file.tables(["text"], None, 0, {}))[1]) == 30
