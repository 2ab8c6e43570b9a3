import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import StoreError
from lightning_lance.store import file_maps
from lightning_lance.store.segments import MappedFiles, Runs, SegmentTable

BLOCK = 4


def test_a_literal_table():
    """Blocks of 4: two full ones that are neighbours, a short one, then one elsewhere."""
    table = SegmentTable.from_parts(np.array([4, 4, 3, 4]), np.array([100, 104, 108, 40]))
    assert table.starts.tolist() == [0, 11, 15]
    assert table.places.tolist() == [100, 40]
    places, whole = table.whole(np.array([0, 8, 9, 11]), 3)
    assert places.tolist() == [100, 108, 109, 40]
    assert whole.tolist() == [True, True, False, True]
    runs = table.runs(np.array([9, 0]), 3)
    assert [part.tolist() for part in runs] == [[0, 1, 0], [0, 0, 2], [109, 100, 40], [2, 3, 1]]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Valid tokens per block, places, and a memory with the blocks at these places."""
    counts = np.array(draw(st.lists(st.integers(1, BLOCK), max_size=12)), dtype=np.int64)
    order = draw(st.permutations(range(len(counts)))) if draw(st.booleans()) else range(len(counts))
    memory = np.arange(1000, 1000 + BLOCK * len(counts))
    return counts, np.array(order, dtype=np.int64) * BLOCK, memory


@given(blocks(), st.data())
def test_runs_give_the_tokens_of_the_stream(made: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject):
    counts, places, memory = made
    parts = [memory[place : place + count] for place, count in zip(places, counts, strict=True)]
    stream = np.concatenate([np.empty(0, np.int64), *parts])
    table = SegmentTable.from_parts(counts, places)
    assert table.num_tokens == len(stream)
    length = data.draw(st.integers(1, len(stream) + 1))
    starts = np.array(
        data.draw(st.lists(st.integers(0, max(0, len(stream) - length)), max_size=5 * (length <= len(stream)))),
        dtype=np.int64,
    )
    table.check(starts, length)
    windows = np.full((len(starts), length), -1)
    for row, column, place, count in zip(*table.runs(starts, length), strict=True):
        windows[row, column : column + count] = memory[place : place + count]
    assert (windows == np.array([stream[start : start + length] for start in starts]).reshape(windows.shape)).all()


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (9, 3), (11, 1)])
def test_a_window_that_is_not_whole_is_refused(start: int, length: int):
    table = SegmentTable.from_parts(np.array([4, 4, 3]), np.array([0, 4, 8]))
    with pytest.raises(StoreError, match="expected windows within the"):
        table.check(np.array([start]), length)
    with pytest.raises(StoreError, match="expected 1 or more"):
        table.check(np.array([0]), 0)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_windows_of_many_files_are_one_gather(tmp_path: Path, dtype: type):
    files, tokens = [], []
    for i, size in enumerate((5000, 64, 123_456, 7)):
        tokens.append((np.arange(size) * (i + 3) % 60_000).astype(dtype))
        files.append(tmp_path / str(i))
        files[-1].write_bytes(bytes(8 * i) + tokens[-1].tobytes() + b"x")
    mapped = MappedFiles(files, np.dtype(dtype))
    places = np.array([mapped.place(i, 8 * i, 7) for i in (3, 0, 2, 1)])
    expected = [tokens[i][:7] for i in (3, 0, 2, 1)]
    assert mapped.gather(places, 7).tolist() == [part.tolist() for part in expected]
    assert mapped.gather(places, 7).dtype == dtype
    last = np.array([mapped.place(2, 16, 123_456) + 123_449])
    assert mapped.gather(last, 7).tolist() == [tokens[2][-7:].tolist()]
    with pytest.raises(StoreError, match="not aligned"):
        mapped.place(0, 1, 1)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[MappedFiles, dict[int, int]]:
    """Files of odd sizes, and the token at each place in them."""
    folder, files, tokens = tmp_path_factory.mktemp("files"), [], []
    for i, size in enumerate((5000, 3, 9_000)):
        tokens.append((np.arange(size) * (i + 3) % 60_000).astype(np.uint16))
        files.append(folder / str(i))
        files[-1].write_bytes(tokens[-1].tobytes() + b"x")
    made = MappedFiles(files, np.dtype(np.uint16))
    firsts = [made.place(i, 0, len(part)) for i, part in enumerate(tokens)]
    return made, {
        first + i: int(token) for first, part in zip(firsts, tokens, strict=True) for i, token in enumerate(part)
    }


INT64 = np.iinfo(np.int64)


@given(st.data())
def test_no_gather_leaves_its_file(mapped: tuple[MappedFiles, dict[int, int]], data: st.DataObject):
    """For any place, gather returns the tokens of the file, or raises before it reads."""
    files, known = mapped
    near = st.builds(lambda place, by: place + by, st.sampled_from([*known][::100]), st.integers(-150, 150))
    places = data.draw(st.lists(near | st.integers(INT64.min, INT64.max), min_size=1, max_size=3))
    length = data.draw(st.integers(-3, 300) | st.sampled_from([9_000, 9_001, 10**6, INT64.max]))
    inside = 0 < length <= 9_000 and all(place in known and place + length - 1 in known for place in places)
    # Files may be neighbours in memory, but no window spans two of them.
    expected = [[known.get(place + i) for i in range(length)] for place in places] if inside else None
    inside = expected is not None and not any(None in row for row in expected)
    runs = Runs(*(np.asarray(part) for part in (range(len(places)), [0] * len(places), places, [length] * len(places))))
    if not inside:
        for read in (
            lambda: files.gather(np.asarray(places), length),
            lambda: files.fill(np.zeros((3, 9), np.uint16), runs),
        ):
            with pytest.raises(StoreError, match="lie outside its data files"):
                read()
        return
    assert files.gather(np.asarray(places), length).tolist() == expected
    windows = np.zeros((len(places), length), np.uint16)
    files.fill(windows, runs)
    assert windows.tolist() == expected


@pytest.mark.parametrize(("offset", "tokens"), [(-2, 1), (0, 5001), (9_998, 2), (2**63, 1), (0, 2**63), (0, -1)])
def test_a_page_outside_its_file_has_no_place(mapped: tuple[MappedFiles, dict[int, int]], offset: int, tokens: int):
    with pytest.raises(StoreError, match="exceed its 10,001 bytes; restore it"):
        mapped[0].place(0, offset, tokens)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell who waited for the disk")
def test_after_a_wait_for_the_disk_windows_are_announced(
    mapped: tuple[MappedFiles, dict[int, int]], monkeypatch: pytest.MonkeyPatch
):
    files, known = mapped
    places = np.asarray([*known])[[0, 4321, -9]]
    announced: list[int] = []
    real = file_maps._madvise
    monkeypatch.setattr(file_maps, "_madvise", lambda *arguments: announced.append(real(*arguments)))
    faults = itertools.count()
    monkeypatch.setattr("lightning_lance.store.segments._disk_faults", lambda: next(faults))
    for expected in ([], [0, 0, 0], [0] * 6):
        assert files.gather(places, 9).tolist() == [[known[place + i] for i in range(9)] for place in places.tolist()]
        # Zero is for an address that the system has mapped.
        assert announced == expected
