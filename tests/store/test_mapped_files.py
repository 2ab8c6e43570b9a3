import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lance.file import LanceFileReader

from lightning_lance import TokenStore
from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import take_blocks
from lightning_lance.format.rows import BLOCK
from lightning_lance.store import file_maps, mapped_files
from tests.support.laws import examples
from tests.support.stores import only_append
from tests.support.written import EOS, write

MakeStore = Callable[..., TokenStore]


def test_tokens_of_a_commit_are_one_page(byte_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    """The mapped reader depends on this: Lance must not cut a commit into many pages, nor compress it."""
    monkeypatch.setattr("lightning_lance.engines.local.commit_final", only_append)
    store = byte_store(*["x" * 500_000] * 20, commit_tokens=4_000_000)
    assert store.reader == "mapped"
    assert store.version == 3
    assert len(store._table("train").places) == 3


def test_windows_go_over_the_borders_of_pages(byte_store: MakeStore):
    """One commit, larger than a page of Lance."""
    store = byte_store(*[chr(ord("a") + i) * (700_001 + i) for i in range(14)])
    (file,) = (path for path in (Path(store.uri) / "data").iterdir())
    pages = LanceFileReader(str(file)).metadata().columns[0].pages
    assert len(pages) > 1
    borders = np.cumsum([page.buffers[0].size // 2 for page in pages])[:-1]
    starts = np.concatenate([borders - 50, borders, np.random.default_rng(0).integers(0, store.num_tokens() - 99, 50)])
    expected = TokenStore.open(store.uri, reader="take").read(starts, 99)
    assert store.reader == "mapped"
    assert np.array_equal(store.read(starts, 99), expected)


def test_deleted_blocks_are_read_by_take(byte_store: MakeStore):
    store = byte_store("x" * 10_000)
    dataset = lance.dataset(store.uri)
    dataset.delete("num_tokens < 2048")
    smaller = TokenStore.open(store.uri)
    assert smaller.reader == "take"
    assert smaller.num_tokens() == 10_000 // BLOCK * BLOCK
    assert smaller.commit == store.commit
    assert set(smaller.read(np.array([0]), smaller.num_tokens())[0].tolist()) == {ord("x")}
    with pytest.raises(StoreError, match="cannot be mapped"):
        TokenStore.open(store.uri, reader="mapped")


def test_what_is_mapped_must_be_what_lance_reads(byte_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    store = byte_store("some text")
    monkeypatch.setattr(
        "lightning_lance.store.mapped_files.take_blocks", lambda dataset, rows, column: np.ones((len(rows), BLOCK))
    )
    assert TokenStore.open(store.uri).reader == "take"


@examples(12)
@given(st.lists(st.integers(0, 3 * BLOCK), min_size=2, max_size=30), st.integers(1, 2), st.data())
def test_windows_over_many_small_files_are_those_of_the_stream(sizes: list[int], compared: int, data: st.DataObject):
    """Also where not every file is compared with Lance, in any order, in batches of one or many."""
    commits = [[(0, "C", [(31 * i + j) % 50_000 for j in range(size)])] for i, size in enumerate(sizes)]
    stream = np.array([token for [(_, _, ids)] in commits for token in [*ids, EOS]])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped_files, "_ALL_COMPARED", compared)
        write(f"{folder}/x.lance", commits)
        store = TokenStore.open(f"{folder}/x.lance", reader="mapped")
        for _ in range(3):
            length = data.draw(st.integers(1, len(stream)))
            starts = data.draw(st.lists(st.integers(0, len(stream) - length), max_size=40))
            expected = np.array([stream[start : start + length] for start in starts]).reshape(-1, length)
            assert np.array_equal(store.read(np.array(starts, np.int64), length), expected)


def few_compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compare files with Lance as of a store of many. Return the list of the rows that are compared from now on."""
    compared: list[int] = []

    def taken(dataset: lance.LanceDataset, rows: np.ndarray, *column: str) -> np.ndarray:
        compared.extend(rows.tolist())
        return take_blocks(dataset, rows, *column)

    monkeypatch.setattr(mapped_files, "_ALL_COMPARED", 2)
    monkeypatch.setattr(mapped_files, "take_blocks", taken)
    return compared


def test_of_many_files_one_of_each_encoding_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    uri = str(tmp_path / "x.lance")
    write(uri, [[(0, "C", [1] * BLOCK * rows)] for rows in (1, 4, 2)])
    compared = few_compared(monkeypatch)
    store = TokenStore.open(uri)
    assert (store.reader, compared) == ("mapped", [1])
    # What is not understood is left to Lance, and compared.
    monkeypatch.setattr(mapped_files, "column_pages", lambda *_: None)
    assert np.array_equal(TokenStore.open(uri).read(np.arange(3), 9), store.read(np.arange(3), 9))
    assert compared == [1, 1, 6, 9]


@pytest.mark.parametrize("of_many", [False, True])
def test_damaged_files_are_refused_when_a_store_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_many: bool
):
    uri = str(tmp_path / "x.lance")
    write(uri, [[(0, "C", [number] * BLOCK)] for number in range(3)])
    if of_many:
        few_compared(monkeypatch)
    file = Path(uri, "data", lance.dataset(uri).get_fragments()[1].data_files()[0].path)
    whole = file.read_bytes()

    def refused(content: bytes, message: str) -> None:
        file.write_bytes(content)
        with pytest.raises(StoreError, match=message):
            TokenStore.open(uri)

    [page] = LanceFileReader(str(file)).metadata().columns[0].pages
    # The position of its page and its bytes, and their numbers in the metadata of the column.
    assert (page.buffers[0].position, page.buffers[0].size) == (0, 2 * BLOCK * 2)
    assert whole.count(b"\n\x01\x00\x12\x02\x80\x40") == 1
    refused(whole.replace(b"\n\x01\x00\x12\x02\x80\x40", b"\n\x01\x7e\x12\x02\x80\x7f"), "cannot be read|is damaged")
    refused(whole[:-1] + b"X", "cannot be read")
    refused(whole.replace(b"fixed_size_list", b"fixed_size_lost"), "cannot be read")
    refused(whole[:-1], "bytes long, expected")
    file.unlink()
    with pytest.raises(StoreError, match="is missing, expected"):
        TokenStore.open(uri)
    file.write_bytes(whole)
    assert TokenStore.open(uri).reader == "mapped"


def test_maps_hold_removed_files_and_no_open_ones(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    write(uri, [[(0, "C", [number] * BLOCK)] for number in range(40)])
    descriptors = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    before = len([*descriptors.iterdir()])
    store = TokenStore.open(uri, reader="mapped")
    assert len([*descriptors.iterdir()]) - before < 20
    expected = store.read(np.zeros(1, np.int64), store.num_tokens())
    shutil.rmtree(uri)
    assert np.array_equal(store.read(np.zeros(1, np.int64), store.num_tokens()), expected)
    if sys.platform == "linux":
        assert uri in Path("/proc/self/maps").read_text()
        del store
        assert uri not in Path("/proc/self/maps").read_text()


def test_a_store_of_more_files_than_a_process_may_map_is_read_by_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    uri = str(tmp_path / "x.lance")
    write(uri, [[(0, "C", [number] * BLOCK)] for number in range(3)])
    mapped: list[int] = []
    unmapped: list[int] = []

    def mmap(*arguments: object) -> int | None:
        if len(mapped) == 2:
            ctypes.set_errno(errno.ENOMEM)
            return ctypes.c_void_p(-1).value
        mapped.append(real(*arguments))
        return mapped[-1]

    real = file_maps._mmap
    monkeypatch.setattr(file_maps, "_mmap", mmap)
    monkeypatch.setattr(file_maps, "_munmap", lambda address, size: unmapped.append(address))
    store = TokenStore.open(uri)
    assert store.reader == "take"
    assert unmapped == mapped
    assert "cannot be mapped, so it is read by take, which is slower" in caplog.text
    assert os.strerror(errno.ENOMEM) in caplog.text
    if sys.platform == "linux":
        assert "maps, one for each file: raise 'sysctl vm.max_map_count'" in caplog.text
