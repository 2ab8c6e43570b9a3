from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest
from lance.file import LanceFileReader

from lightning_lance import TokenStore
from lightning_lance.errors import StoreError
from lightning_lance.format.rows import BLOCK
from tests.support.stores import only_append

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
        "lightning_lance.store.mapped_files.take_blocks", lambda dataset, rows: np.ones((len(rows), BLOCK))
    )
    assert TokenStore.open(store.uri).reader == "take"
