"""The rules of tags; `keep` of a store is in test_token_store.py, removed documents in test_forgetting.py."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pytest

from lightning_lance import TokenStore
from lightning_lance.errors import ConfigError, StoreError, StoreReplaced
from lightning_lance.format import tags
from lightning_lance.format.checksums import SUMS, write_sums
from lightning_lance.format.lance_io import remove_store
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.versions import first_version
from lightning_lance.lance_names import manifest_of
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import removal
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.merges import NOTE, append
from tests.support.stores import ListSource, append_commit, documents, finish


def tags_of(uri: str) -> dict[str, int]:
    return {name: tag["version"] for name, tag in lance.dataset(uri).tags.list().items()}


def test_a_tag_is_written_below_any_folder_and_nothing_else_is(tmp_path: Path):
    """Lance writes it by way of the encoded path, which may be nobody's to make."""
    folder = tmp_path / "jürgen [~a%20b]"
    folder.mkdir()
    blocked = tmp_path / "j%C3%BCrgen %5B%7Ea%2520b%5D"
    blocked.touch()
    store = prepare(ListSource(documents("text")), ByteTokenizer(), folder / "x.lance", val_fraction=0.0)
    assert [*tags_of(store.uri)] == [f"build-{store.commit.tokens}"]
    tags.set_tag(lance.dataset(store.uri), f"build-{store.commit.tokens}")
    assert {*tmp_path.iterdir()} == {folder, blocked}


def test_a_tag_stays_where_the_streams_are_the_same_and_moves_where_not(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(3):
        note = append(uri, [(0, "C", 3000)], i, note)
    append_commit(StoreLocation(uri), lance.dataset(uri).to_table().slice(0, 0), note)
    versions = {version: lance.dataset(uri, version=version) for version in (1, 2, 3, 4)}
    # A tag of this name from an earlier store at this place.
    versions[1].tags.create("checkpoint-9003", 1)
    assert tags.tag_version(versions[3], StoreLocation(uri), StoreContent(9003))
    assert tags_of(uri) == {"checkpoint-9003": 3}
    # Version 4 has the content of version 3.
    assert tags.tag_version(versions[4], StoreLocation(uri), StoreContent(9003))
    assert tags_of(uri) == {"checkpoint-9003": 3}
    assert tags.tag_version(versions[2], StoreLocation(uri), StoreContent(6002), "checkpoint-9003")
    assert tags_of(uri) == {"checkpoint-9003": 2}


def test_what_a_builder_has_removed_is_not_kept(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    note = append(uri, [(0, "C", 3000)], 0, note)
    opened = lance.dataset(uri)
    note = append(uri, [(0, "C", 3000)], 1, note)
    finish(StoreLocation(uri), opened.to_table().slice(0, 0), note)
    assert not tags.tag_version(opened, StoreLocation(uri), StoreContent(3001))
    assert tags_of(uri) == {f"build-{note.tokens}": 3}
    # Nor if a tag of that name is on another version.
    lance.dataset(uri).tags.create("checkpoint-3001", 3)
    assert not tags.tag_version(opened, StoreLocation(uri), StoreContent(3001))
    # A build's own tag keeps that version too, but may go with the next one forgotten.
    assert tags.tag_version(lance.dataset(uri), StoreLocation(uri), note.extent)
    assert tags_of(uri)[f"checkpoint-{note.tokens}"] == 3
    assert not tags.lacks_build_tag(lance.dataset(uri), StoreLocation(uri))
    append(uri, [(0, "C", 3000)], 2, note)
    assert tags.lacks_build_tag(lance.dataset(uri), StoreLocation(uri))
    lance.dataset(uri).delete("split = 'val'")
    assert lance.dataset(uri).version == 5
    assert not tags.lacks_build_tag(lance.dataset(uri), StoreLocation(uri))


def test_of_a_store_that_is_gone_as_a_whole_nothing_can_be_kept(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    opened = lance.dataset(uri)
    remove_store(StoreLocation(uri))
    with pytest.raises(StoreError, match=r"cannot be tagged \(the store is gone\): grant"):
        tags.tag_version(opened, StoreLocation(uri), StoreContent(3001))


def test_each_run_has_a_tag_of_its_own(tmp_path: Path):
    """However close together they start: a run that fails removes its own tag, and a run that trains is kept."""
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    first, second = TokenStore.open(uri), TokenStore.open(uri)
    assert first.keep_for_training()
    assert second.keep_for_training()
    mine, _ = tags_of(uri)
    assert mine.startswith("checkpoint-3001-run-")
    first.let_go()
    assert len(tags_of(uri)) == 1
    first.let_go()
    second.keep_for_checkpoints()
    assert tags_of(uri) == {"checkpoint-3001": 1}
    # Once checkpoints need it, no run removes it, whoever made it.
    second.let_go()
    assert first.keep_for_training()
    first.keep_for_checkpoints()
    first.let_go()
    assert tags_of(uri) == {"checkpoint-3001": 1}


def test_the_ranks_of_a_run_share_its_tag(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    ranks = [TokenStore.open(uri) for _ in range(3)]
    assert all(rank.keep_for_training("ab12") for rank in ranks)
    assert tags_of(uri) == {"checkpoint-3001-run-ab12": 1}
    for rank in ranks:
        rank.let_go()
    assert tags_of(uri) == {}
    assert ranks[0].keep_for_training("ab12")


def test_a_run_sees_a_clean_up_that_has_begun_and_a_clean_up_sees_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(3):
        note = append(uri, [(0, "C", 3000)], i, note)
    early, late = TokenStore.open(uri, 1), TokenStore.open(uri, 2)
    kept: list[bool] = []
    announce, remove = removal.write_sums, removal._remove_versions

    def before_the_list_is_written(*args: Any) -> bool:
        kept.append(early.keep_for_training("aa"))
        return announce(*args)

    def after_it(*args: Any) -> None:
        kept.append(late.keep_for_training("bb"))
        kept.append(late.keep("mine"))
        remove(*args)

    monkeypatch.setattr(removal, "write_sums", before_the_list_is_written)
    monkeypatch.setattr(removal, "_remove_versions", after_it)
    removal.clean_up(StoreLocation(uri))
    assert kept[0] is kept[1] is True
    assert kept[-2:] == [False, False]
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [1, 3]
    assert tags_of(uri) == {"checkpoint-3001-run-aa": 1}
    assert verify_store(uri) == []


def test_what_a_killed_clean_up_was_about_to_remove_is_kept_no_more(tmp_path: Path):
    """It is not on the list but still exists; the newest version is kept whatever the list says."""
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(3):
        note = append(uri, [(0, "C", 3000)], i, note)
    assert write_sums(StoreLocation(uri), {3})
    note = append(uri, [(0, "C", 3000)], 3, note)
    assert not TokenStore.open(uri, 2).keep()
    assert first_version(StoreLocation(uri), lambda commit: commit.tokens >= 3001) == 3
    assert TokenStore.open(uri, 3).keep("a.b")
    sums = tmp_path / "x.lance" / SUMS
    sums.write_text(sums.read_text().replace("x", "y"))
    assert TokenStore.open(uri, 2).keep()
    shutil.rmtree(tmp_path / "x.lance" / "_refs")
    assert write_sums(StoreLocation(uri))
    lance.dataset(uri, version=3).restore()
    for version in (4, 5):
        Path(tmp_path, "x.lance", manifest_of(version)).unlink()
    assert TokenStore.open(uri).version == 3
    assert TokenStore.open(uri).keep()


@pytest.mark.parametrize("name", ["my tag", "\u00fc", "a/b", "a..b", ".a", "a.lock", "a\n"])
def test_a_name_that_lance_cannot_list_is_refused(tmp_path: Path, name: str):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    with pytest.raises(ConfigError, match="expected letters, digits"):
        TokenStore.open(uri).keep(name)
    assert tags_of(uri) == {}


def test_a_store_that_was_built_anew_is_not_tagged(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0)
    store = TokenStore.open(uri)
    remove_store(StoreLocation(uri))
    append(uri, [(0, "C", 3000)], 0, replace(NOTE, fingerprint="another"))
    for keeps in (store.keep_for_training, store.keep):
        with pytest.raises(StoreReplaced, match="was replaced by one with other settings while it was read"):
            keeps()
    assert tags_of(uri) == {}
    remove_store(StoreLocation(uri))
    append(uri, [(0, "C", 10)], 0)
    # In a store of the same recipe, another version has this number.
    assert not store.keep()


def test_what_a_build_ended_with_is_one_version_though_it_was_made_twice(tmp_path: Path):
    """A new builder makes the version once more, so that no killed builder can commit."""
    uri = str(tmp_path / "x.lance")
    append(uri, [(0, "C", 3000)], 0, full=1 << 30)
    removal.fence_stale_builders(StoreLocation(uri), 1, set())
    assert tags_of(uri) == {"build-3001": 2}
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [2]
