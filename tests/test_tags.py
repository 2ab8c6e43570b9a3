"""What tags keep; by way of a store, `keep` is in test_store.py, and what is forgotten in test_forgetting.py."""

from pathlib import Path

import lance
import pytest
from conftest import append_commit, finish
from test_merging import NOTE, append

from lightning_lance import TokenStore, tags
from lightning_lance.errors import StoreError
from lightning_lance.fragments import remove_store
from lightning_lance.layout import Extent


def tags_of(uri: str) -> dict[str, int]:
    return {name: tag["version"] for name, tag in lance.dataset(uri).tags.list().items()}


def test_a_tag_stays_where_the_streams_are_the_same_and_moves_where_not(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(3):
        note = append(uri, [(0, "C", 3000)], i, note)
    append_commit(uri, lance.dataset(uri).to_table().slice(0, 0), note)
    versions = {version: lance.dataset(uri, version=version) for version in (1, 2, 3, 4)}
    # A tag of this name that is of another store, which was here before.
    versions[1].tags.create("checkpoint-9003", 1)
    assert tags.keep(versions[3], uri, Extent(9003), None)
    assert tags_of(uri) == {"checkpoint-9003": 3}
    # Version 4 holds what version 3 holds.
    assert tags.keep(versions[4], uri, Extent(9003), None)
    assert tags_of(uri) == {"checkpoint-9003": 3}
    assert tags.keep(versions[2], uri, Extent(6002), None, "checkpoint-9003")
    assert tags_of(uri) == {"checkpoint-9003": 2}


def test_what_a_builder_has_removed_is_not_kept(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    note = append(uri, [(0, "C", 3000)], 0, note)
    opened = lance.dataset(uri)
    note = append(uri, [(0, "C", 3000)], 1, note)
    finish(uri, opened.to_table().slice(0, 0), note)
    assert not tags.keep(opened, uri, Extent(3001), None)
    assert tags_of(uri) == {f"build-{note.tokens}": 3}
    # Nor where a tag of that name names another version.
    lance.dataset(uri).tags.create("checkpoint-3001", 3)
    assert not tags.keep(opened, uri, Extent(3001), None)
    # A build's own tag keeps that version too, but may go with the next one forgotten.
    assert tags.keep(lance.dataset(uri), uri, note.extent, None)
    assert tags_of(uri)[f"checkpoint-{note.tokens}"] == 3
    assert not tags.lacks_build_tag(lance.dataset(uri), uri)
    append(uri, [(0, "C", 3000)], 2, note)
    assert tags.lacks_build_tag(lance.dataset(uri), uri)
    lance.dataset(uri).delete("split = 'val'")
    assert lance.dataset(uri).version == 5
    assert not tags.lacks_build_tag(lance.dataset(uri), uri)


def test_of_a_store_that_is_gone_as_a_whole_nothing_can_be_kept(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    opened = lance.dataset(uri)
    remove_store(uri, None)
    with pytest.raises(StoreError, match="cannot be tagged"):
        tags.keep(opened, uri, Extent(3001), None)


def test_a_tag_that_another_run_found_stays_for_its_checkpoints(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    first, second = TokenStore.open(uri), TokenStore.open(uri)
    first.keep_for_training()
    second.keep_for_training()
    first.let_go()
    assert tags_of(uri) == {"checkpoint-3001": 1}


def test_a_tag_for_training_goes_only_with_the_run_that_made_it(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    first, other_rank = TokenStore.open(uri), TokenStore.open(uri)
    first.keep_for_training()
    other_rank.keep_for_training(share=False)
    other_rank.let_go()
    assert tags_of(uri) == {"checkpoint-3001": 1}
    first.let_go()
    assert tags_of(uri) == {}
    first.let_go()
    assert first.keep_for_training()
    assert tags_of(uri) == {"checkpoint-3001": 1}
    # Where somebody else was first, nothing is left to do.
    lance.dataset(uri).tags.delete("checkpoint-3001")
    first.let_go()
