import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lance.file import LanceFileReader, LanceFileWriter

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_footer import column_pages
from lightning_lance.format.lance_io import no_panic
from tests.support.laws import examples


def write(
    file: Path, rows: int, length: int, dtype: type = np.uint16, version: str = "2.2", many: bool = False
) -> Path:
    """Write a file of lists of one size, and a column of texts behind them; `many` is for many pages."""
    values = np.random.default_rng(rows).integers(0, 60_000, rows * length).astype(dtype)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), length)
    table = pa.table({"tokens": lists, "text": pa.array([str(i) * (i % 9) for i in range(rows)])})
    options = {"data_cache_bytes": 1 << 12} if many else {}
    with LanceFileWriter(str(file), table.schema, version=version, **options) as writer:
        for batch in table.to_batches(max_chunksize=64):
            writer.write_batch(batch)
    return file


def by_lance(file: Path) -> list[tuple[int, int]]:
    """Return (position, size) of the pages of the first column; none if one has not one buffer."""
    pages = LanceFileReader(str(file)).metadata().columns[0].pages
    if any(len(page.buffers) != 1 for page in pages):
        return []
    return [(page.buffers[0].position, page.buffers[0].size) for page in pages]


@examples(20)
@given(
    st.integers(1, 400),
    st.sampled_from([1, 7, 200, 2048]),
    st.sampled_from([np.uint16, np.uint32]),
    st.sampled_from(["2.1", "2.2"]),
    st.booleans(),
)
def test_pages_are_where_lance_says(
    tmp_path_factory: pytest.TempPathFactory, rows: int, length: int, dtype: type, version: str, many: bool
):
    file = write(tmp_path_factory.mktemp("file") / "x.lance", rows, length, dtype, version, many)
    found = column_pages(str(file))
    # Lance packs short lists in another way, which is not understood.
    assert found is not None or length < 200
    if found is not None:
        assert [(page.position, page.size) for page in found.pages] == by_lance(file)
        assert sum(page.rows for page in found.pages) == rows
        assert found.file_size == file.stat().st_size


def test_files_of_many_pages_and_files_that_are_not_understood(tmp_path: Path):
    many = column_pages(str(write(tmp_path / "many.lance", 3000, 200, many=True)))
    assert many is not None
    # More metadata than is read at once.
    assert len(many.pages) > 40
    assert [(page.position, page.size) for page in many.pages] == by_lance(tmp_path / "many.lance")
    assert column_pages(str(write(tmp_path / "old.lance", 9, 2048, version="2.0"))) is None
    for content in (b"", b"LANC", b"x" * 9999):
        (tmp_path / "none.lance").write_bytes(content)
        assert column_pages(str(tmp_path / "none.lance")) is None
    with pytest.raises(FileNotFoundError):
        column_pages(str(tmp_path / "missing.lance"))


def test_files_that_lance_reads_alike_have_one_encoding(tmp_path: Path):
    """Whatever their rows and pages; and no others."""

    def encoding(*what: object) -> object:
        found = column_pages(str(write(tmp_path / "x.lance", *what)))
        assert found is not None
        return found.encoding

    one = encoding(3, 2048)
    assert one == encoding(900, 2048) == encoding(3000, 2048, np.uint16, "2.2", True)
    # The first has as many bytes a row.
    assert one not in (encoding(3, 1024, np.uint32), encoding(3, 2048, np.int16), encoding(3, 2048, np.uint16, "2.1"))


def test_whatever_the_end_of_a_file_is_it_is_not_understood_or_as_lance_does(tmp_path: Path):
    """Where Lance reads a damaged file, it is read at the same places or left to Lance."""
    whole = write(tmp_path / "x.lance", 70, 200).read_bytes()
    damaged = tmp_path / "damaged.lance"
    chance = random.Random(0)
    understood = 0
    for _ in range(400):
        at = len(whole) - 1 - int(700 * chance.random() ** 2)
        byte = chance.choice([0, 1, 127, 128, 255, whole[at] ^ (1 << chance.randrange(8))])
        damaged.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        found = column_pages(str(damaged))
        if found is None:
            continue
        try:
            with no_panic():
                expected = by_lance(damaged)
        except (StoreError, ValueError, OSError):
            continue
        assert [(page.position, page.size) for page in found.pages] == expected
        understood += 1
    assert understood > 20
