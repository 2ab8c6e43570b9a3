from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.build.packing import Packer, join_documents
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.rows import BLOCK, Stream
from tests.support.stores import packed

EOS = 9
Documents = list[tuple[int, str, list[int]]]  # split, language, ids


def test_eos_ends_every_document():
    joined = join_documents(np.array([1, 2, 3], np.uint32), np.array([0, 2, 2, 3]), EOS, np.dtype(np.uint16))
    assert joined.tolist() == [1, 2, EOS, EOS, 3, EOS]
    assert joined.dtype == np.uint16


def test_ids_that_cannot_be_stored_are_refused():
    with pytest.raises(StoreError, match="Token id 65536 does not fit uint16"):
        join_documents(np.array([65536], np.uint32), np.array([0, 1]), EOS, np.dtype(np.uint16))
    with pytest.raises(ConfigError, match="encoded to the EOS id 9"):
        join_documents(np.array([EOS], np.uint32), np.array([0, 1]), EOS, np.dtype(np.uint16))


def pack(packer: Packer, documents: Documents, first: int) -> list[pa.RecordBatch]:
    ids = np.array([i for _, _, part in documents for i in part], np.uint32)
    offsets = np.cumsum([0, *(len(part) for _, _, part in documents)])
    table = pa.table(
        {
            "language": pa.array([language for _, language, _ in documents], pa.string()),
            "id": pa.array([str(first + i) for i in range(len(documents))], pa.string()),
            "path": pa.array([f"p{first + i}" for i in range(len(documents))], pa.string()),
        }
    )
    return packer.add(ids, offsets, np.array([split for split, _, _ in documents], np.int8), table)


@pytest.fixture(scope="module", params=[1, 2, 256], autouse=True)
def _rows_together(request: pytest.FixtureRequest) -> Iterator[None]:
    """Rows are returned as soon as a few of a stream are full, or only at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_TOGETHER_BYTES", "_LEAST_BYTES"):
            patch.setattr(f"lightning_lance.build.packing.{name}", 2 * BLOCK * request.param)
        yield


def unpack(rows: pa.Table) -> dict[tuple[str, str], list[int]]:
    streams: dict[tuple[str, str], list[int]] = {}
    for row in rows.to_pylist():
        stream = streams.setdefault((row["split"], row["language"]), [])
        for document in row["documents"]:
            # A document begins at the start of its stream, or after the EOS of the one before.
            at = document["offset"]
            before = row["tokens"][at - 1] if at else stream[-1] if stream else EOS
            assert before == EOS
        stream += row["tokens"][: row["num_tokens"]]
    return streams


document = st.tuples(
    st.integers(0, 1), st.sampled_from(["Python", "Rust"]), st.lists(st.integers(0, 8), max_size=3 * BLOCK // 2)
)
documents = st.lists(document, max_size=12)


@given(documents, st.lists(st.integers(0, 12), max_size=3))
def test_a_stream_is_its_documents_joined_by_eos_whatever_the_batches(documents: Documents, cuts: list[int]):
    packer = Packer(EOS, np.dtype(np.uint16), ["path"])
    borders = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    full = [rows for low, high in pairwise(borders) for rows in pack(packer, documents[low:high], low)]
    assert all((np.asarray(rows.column("num_tokens")) == BLOCK).all() for rows in full)
    assert packer.num_tokens == sum(len(ids) + 1 for _, _, ids in documents)
    rows = packed(packer, full)
    assert packer.num_tokens == 0
    expected: dict[tuple[str, str], list[int]] = {}
    for split, language, ids in documents:
        expected.setdefault((("train", "val")[split], language), []).extend([*ids, EOS])
    assert unpack(rows) == expected


@given(documents, st.integers(0, 12))
def test_every_document_is_described_where_it_begins(documents: Documents, cut: int):
    packer = Packer(EOS, np.dtype(np.uint32), ["path"])
    full = pack(packer, documents[:cut], 0)
    full += pack(packer, documents[cut:], min(cut, len(documents)))
    described = [entry for row in packed(packer, full).to_pylist() for entry in row["documents"]]
    assert sorted(int(entry["id"]) for entry in described) == list(range(len(documents)))
    assert all(entry["path"] == f"p{entry['id']}" and 0 <= entry["offset"] < BLOCK for entry in described)


@given(documents)
def test_only_the_last_block_of_a_stream_is_not_full(documents: Documents):
    packer = Packer(EOS, np.dtype(np.uint16), ["path"])
    rows = packed(packer, pack(packer, documents, 0)).to_pylist()
    keys = [(row["split"], row["language"]) for row in rows]
    for place, (row, key) in enumerate(zip(rows, keys, strict=True)):
        assert 0 < row["num_tokens"] <= BLOCK
        assert row["num_tokens"] == BLOCK or key not in keys[place + 1 :]
        assert not any(row["tokens"][row["num_tokens"] :])


@pytest.mark.parametrize("streams", [1, 3, 30])
@pytest.mark.parametrize("_rows_together", [1], indirect=True)  # it has sizes of its own
def test_what_is_held_does_not_follow_the_number_of_streams(monkeypatch: pytest.MonkeyPatch, streams: int):
    row = 2 * BLOCK
    for name, rows in (("_TOGETHER_BYTES", 9), ("_HELD_BYTES", 24), ("_LEAST_BYTES", 1)):
        monkeypatch.setattr(f"lightning_lance.build.packing.{name}", rows * row)
    packer = Packer(EOS, np.dtype(np.uint16), ["path"])
    sizes = []
    for i in range(50 * streams):
        sizes += [len(batch) for batch in pack(packer, [(0, f"L{i % streams}", [1] * (BLOCK // 3))], i)]
        assert sum(end.num_bytes for end in packer._ends.values()) <= max(24, streams) * row
    assert max(sizes) == max(1, min(9, 24 // streams))
    # One after the other, each until it is full.
    packer = Packer(EOS, np.dtype(np.uint16), ["path"])
    for i in range(streams):
        while not (end := packer._ends.get(Stream("train", f"L{i}"))) or end.size < end.room - BLOCK // 2:
            pack(packer, [(0, f"L{i}", [1] * (BLOCK // 3))], i)
        assert sum(end.num_bytes for end in packer._ends.values()) <= (24 + streams) * row
