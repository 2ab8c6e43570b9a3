import pickle
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore
from lightning_lance.build.packing import Packer
from lightning_lance.errors import ConfigError, StoreError, StoreReplaced
from lightning_lance.format.commit import replace_fragments
from lightning_lance.format.lance_io import data_files, write_rows
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.rows import BLOCK
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.removal import clean_up
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, append_commit, documents, only_append, packed
from tests.support.written import EOS, NOTE, write

MakeStore = Callable[..., TokenStore]


document = st.tuples(
    st.integers(0, 1), st.sampled_from(["Rust", "C"]), st.lists(st.integers(0, 99), max_size=2 * BLOCK)
)
commits = st.lists(st.lists(document, min_size=1, max_size=5), min_size=1, max_size=4)


@examples(13)
@given(commits, st.sampled_from([np.uint16, np.uint32]), st.data())
def test_both_readers_give_the_logical_stream(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[list[tuple[int, str, list[int]]]],
    dtype: type,
    data: st.DataObject,
):
    uri = str(tmp_path_factory.mktemp("store") / "x.lance")
    write(uri, made, dtype)
    stores = [TokenStore.open(uri, reader=reader) for reader in ("mapped", "take")]
    assert [store.reader for store in stores] == ["mapped", "take"]
    for side, split in enumerate(("train", "val")):
        streams = {
            name: [i for part in made for s, l, ids in part if (s, l) == (side, name) for i in [*ids, EOS]]  # noqa: E741
            for name in ("C", "Rust")
        }
        stream = np.array([i for name in ("C", "Rust") for i in streams[name]], dtype)
        for store in stores:
            assert store.num_tokens(split) == len(stream)
            assert [(s.language, s.num_tokens) for s in store.streams(split)] == [
                (name, len(tokens)) for name, tokens in streams.items() if tokens
            ]
        if not len(stream):
            continue
        length = data.draw(st.integers(1, len(stream)))
        starts = data.draw(st.lists(st.integers(0, len(stream) - length), max_size=6))
        for store in stores:
            assert np.array_equal(store.read(np.zeros(1, np.int64), len(stream), split)[0], stream)
            windows = store.read(np.array(starts, np.int64), length, split)
            assert (windows.shape, windows.dtype) == ((len(starts), length), dtype)
            assert all(np.array_equal(w, stream[a : a + length]) for w, a in zip(windows, starts, strict=True))


@examples(15)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5000)), min_size=1, max_size=12),
    st.integers(1, 9000),
    st.booleans(),
)
def test_the_notes_of_the_commits_tell_what_the_rows_tell(
    parts: list[tuple[int, int]], commit_tokens: int, untidy: bool
):
    made = [(f"{i}" + "x" * size, "abc"[language], f"repo{i}") for i, (language, size) in enumerate(parts)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if untidy:
            patch.setattr("lightning_lance.engines.local.commit_final", only_append)
        source = ListSource(tuple(made), 4, 1)
        store = prepare(source, ByteTokenizer(), data_dir=folder, val_fraction=0.4, commit_tokens=commit_tokens)
        patch.setattr("lightning_lance.store.token_store.layout_of", lambda fragments, files: None)
        other = TokenStore.open(store.uri)
    for split in ("train", "val"):
        assert store.streams(split) == other.streams(split)
        assert np.array_equal(store._table(split).starts, other._table(split).starts)
        if length := store.num_tokens(split):
            begin = np.zeros(1, np.int64)
            assert np.array_equal(store.read(begin, length, split), other.read(begin, length, split))


def test_a_version_stays_as_it_was_when_the_store_grows(byte_store: MakeStore):
    first = byte_store(source=ListSource(documents("aaa", "bbb", "ccc")), max_documents=1)
    later = byte_store(source=ListSource(documents("aaa", "bbb", "ccc")))
    assert (first.version, later.version) == (1, 2)
    assert (first.num_tokens(), later.num_tokens()) == (4, 12)
    again = TokenStore.open(later.uri, version=1)
    assert again.num_tokens() == later.at_version(1).num_tokens() == 4
    assert later.at_version(2) is later


def test_a_store_travels_as_an_address(byte_store: MakeStore):
    store = byte_store("some text")
    data = pickle.dumps(store)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert (copy.version, copy.fingerprint) == (store.version, store.fingerprint)
    assert copy.read(np.array([2]), 4).tolist() == store.read(np.array([2]), 4).tolist()


def test_what_is_no_store_is_refused(tmp_path: Path, byte_store: MakeStore):
    with pytest.raises(StoreError, match=r"There is no committed token store at .*: check the place"):
        TokenStore.open(tmp_path / "none.lance")
    (tmp_path / "file.lance").touch()
    with pytest.raises(StoreError, match=r"at '.*/fil': did you mean '.*/file\.lance'\? check the place"):
        TokenStore.open(tmp_path / "fil")
    for place in ("file.lance", "file.lance/x.lance"):
        with pytest.raises(StoreError, match="There is no committed token store at"):
            TokenStore.open(tmp_path / place)
    foreign = str(tmp_path / "foreign.lance")
    lance.write_dataset(pa.table({"x": [1]}), foreign)
    with pytest.raises(StoreError, match="is not a token store"):
        TokenStore.open(foreign)
    write(str(tmp_path / "new.lance"), [[(0, "C", [1])]])
    append_commit(
        StoreLocation(str(tmp_path / "new.lance")),
        packed(Packer(EOS, np.dtype(np.uint16), []), []),
        replace(NOTE, recipe={"format": 3}),
    )
    with pytest.raises(StoreError, match=r"was written by a newer version \(format 3\): upgrade lightning-lance"):
        TokenStore.open(tmp_path / "new.lance")
    store = byte_store("some text")
    with pytest.raises(ConfigError, match="There is no split 'test': a token store has train and val"):
        store.num_tokens("test")
    with pytest.raises(StoreError, match="version 7"):
        TokenStore.open(store.uri, version=7)


def test_a_store_that_two_built_at_once_is_refused(byte_store: MakeStore):
    store = byte_store("some text")
    append_commit(StoreLocation(store.uri), lance.dataset(store.uri).to_table(), store.commit)
    with pytest.raises(StoreError, match="has 20 tokens, but its metadata says 10: two processes built it at once"):
        TokenStore.open(store.uri)


def test_a_store_says_what_it_is_in_one_line(byte_store: Callable[..., TokenStore]):
    source = ListSource((*documents("aa"), *documents("b", language="Rust"), *documents("c", language="")))
    store = byte_store(source=source)
    streams = "[train/-, train/Python, train/Rust]"
    assert repr(store) == f"TokenStore({store.uri!r}, version={store.version}, tokens=7, streams={streams})"


GROWING = ListSource(documents(*[f"text {i} " * 300 for i in range(24)]), per_shard=1)


STARTS = np.array([0, 3001])


@pytest.mark.parametrize("reader", ["mapped", "take"])
def test_what_is_read_late_of_a_version_that_is_gone_is_read_of_one_that_holds_the_same(tmp_path: Path, reader: str):
    uri = str(tmp_path / "x.lance")
    prepare(GROWING, ByteTokenizer(), uri, val_fraction=0.0)
    stores = [TokenStore.open(uri, reader=reader) for _ in range(3)]
    documents_, tokens = stores[0].documents(STARTS, 5000), stores[0].read(STARTS, 5000)
    traveller = pickle.dumps(stores[2])
    # The version is made once more from other files, as a merge does, and removed.
    before = lance.dataset(uri)
    made, notes = write_rows(StoreLocation(uri), before, before.schema, before.to_table().to_batches())
    replace_fragments(StoreLocation(uri), before, before.schema, made, notes, stores[0].commit)
    lance.dataset(uri).tags.delete(f"build-{stores[0].commit.tokens}")
    clean_up(StoreLocation(uri))
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [2]
    assert not (tmp_path / "x.lance" / "data" / data_files(before)[0]).exists()
    for store in (*stores, pickle.loads(traveller), pickle.loads(pickle.dumps(stores[1]))):
        assert store.documents(STARTS, 5000).equals(documents_)
        assert np.array_equal(store.read(STARTS, 5000), tokens)


@pytest.mark.parametrize("reader", ["mapped", "take"])
def test_what_no_version_holds_any_more_is_said(tmp_path: Path, reader: str):
    uri = str(tmp_path / "x.lance")
    prepare(GROWING, ByteTokenizer(), uri, val_fraction=0.0)
    asked, never = [TokenStore.open(uri, reader=reader) for _ in range(2)]
    asked.documents(STARTS, 5)
    traveller = pickle.dumps(asked)
    forget(uri, {"repo": "repo3"}, purge=True)
    reads: list[Callable[[], object]] = [
        lambda: asked.documents(STARTS, 5),
        lambda: never.documents(STARTS, 5),
        lambda: pickle.loads(traveller),
        lambda: pickle.loads(pickle.dumps(never)),
    ]
    if reader == "take":
        reads.append(lambda: never.read(STARTS, 5))
    for read in reads:
        with pytest.raises(
            StoreError, match=r"Version 1 of the token store .* was removed, and no other version has the same content"
        ):
            read()
    with pytest.raises(StoreError, match=r"no version of .* ends there"):
        asked.at(StoreContent(5))
    with pytest.raises(StoreError, match="no committed version 1"):
        asked.newest().at_version(1)
    if reader == "mapped":
        assert never.read(STARTS, 5).shape == (2, 5)


def test_a_store_that_was_built_anew_by_another_recipe_is_never_taken_for_the_same(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    prepare(GROWING, ByteTokenizer(), uri, val_fraction=0.0)
    stores = [TokenStore.open(uri, reader=reader) for reader in ("mapped", "take")]
    traveller = pickle.dumps(stores[0])
    prepare(
        ListSource(documents(*["other " * 300] * 14)),
        ByteTokenizer(),
        uri,
        val_fraction=0.0,
        rebuild=True,
        commit_tokens=999,
    )
    for store in stores:
        reads: list[Callable[[], object]] = [
            store.newest,
            lambda store=store: store.at_version(2),
            lambda store=store: store.at(StoreContent(5)),
            lambda store=store: store.keep_for_training(),
            lambda store=store: store.documents(STARTS, 5),
            lambda: pickle.loads(traveller),
        ]
        for read in reads if store.reader == "mapped" else [*reads, lambda: stores[1].read(STARTS, 5)]:
            with pytest.raises(StoreReplaced, match="was replaced by one with other settings while it was read"):
                read()
    assert [name for name in lance.dataset(uri).tags.list() if name.startswith("checkpoint")] == []
    # With the same recipe, it is the same store.
    prepare(GROWING, ByteTokenizer(), uri, val_fraction=0.0, rebuild=True)
    assert stores[0].documents(STARTS, 5).num_rows == 2
    assert pickle.loads(traveller).fingerprint == stores[0].fingerprint


def test_an_opening_reads_the_description_of_all_files_once(byte_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    uri = byte_store("some text").uri
    read: list[int] = []
    real = lance.LanceDataset.read_transaction

    def counted(dataset: lance.LanceDataset, version: int) -> object:
        read.append(version)
        return real(dataset, version)

    monkeypatch.setattr(lance.LanceDataset, "read_transaction", counted)
    assert TokenStore.open(uri).version == 1
    assert read == [1]
