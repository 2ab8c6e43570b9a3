"""One place is spelled one way, and two places share nothing."""

import copy
import json
import multiprocessing.context
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import Corpus, LanceDataModule, TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.location import beside, beside_place, store_place, tokenizer_files
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.process.build_status import status_file
from lightning_lance.process.locks import lock_file
from lightning_lance.sources import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer, TrainedBPE
from tests.support.corpora import data_of, prepare
from tests.support.stores import ListSource, documents

SOURCE = ListSource(documents(*[f"document {i}" * 20 for i in range(30)]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("data/a", "other", "home"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    "spelled",
    [
        "data/x.lance",
        "data/x.lance/",
        "./data//x.lance",
        "data/a/../x.lance",
        "link/x.lance",
        "shortcut",
        "{here}/data/x.lance",
        "file://{here}/data/x.lance",
        "file://localhost{here}/data/x.lance",
        "file:{here}/data/x.lance",
        "FILE://{here}/data/x.lance/",
        "file://{here}/data/%78.lance",
        "file://data/x.lance",
        "~/../data/x.lance",
    ],
)
def test_each_spelling_of_a_place_is_the_same_place(folder: Path, spelled: str):
    (folder / "link").symlink_to(folder / "data")
    (folder / "shortcut").symlink_to("data/x.lance")
    given = spelled.format(here=folder)
    assert store_place(given) == str(folder / "data/x.lance")
    assert lock_file(given) == folder / "data/x.lock"
    assert status_file(given) == folder / "data/x.building.json"


@pytest.mark.parametrize("given", ["file://host/x.lance", "FILE://server/share/x.lance", "file://no%20such/x.lance"])
def test_another_machine_is_refused(folder: Path, given: str):
    """Where a folder has the name, it is a relative path, as before."""
    with pytest.raises(
        ConfigError, match=r"on the host '.*' or in a folder of that name.* file:///.*x\.lance, or without"
    ):
        store_place(given)
    with pytest.raises(ConfigError, match=r"data_files is '(file|FILE)://"):
        DatasetSource.parquet([given])


def test_the_memory_of_a_process_is_no_place():
    with pytest.raises(ConfigError, match="uri is 'memory://x', which would be gone with the process: give a folder"):
        store_place("memory://x")


def test_options_are_not_pickled_unless_for_a_process_of_this_one(caplog: pytest.LogCaptureFixture):
    options = {"aws_region": "eu", "aws_secret_access_key": "HUSHKEY", "endpoint_url": "http://u:HUSHPW@h"}
    source = DatasetSource.parquet(["s3://bucket/x.parquet"], storage_options=options)
    made = Corpus(source, ByteTokenizer(), "s3://bucket/x.lance", storage_options=options)
    written = pickle.dumps(made)
    assert b"HUSH" not in written
    again = pickle.loads(written)
    assert again.storage_options == again.source.storage_options == {"aws_region": "eu"}
    assert "aws_secret_access_key, endpoint_url of storage_options is not kept in pickles" in caplog.text
    for copied in (copy.copy(made), copy.deepcopy(made)):
        assert copied.storage_options == copied.source.storage_options == options
    # As a rank of ddp_spawn, for which multiprocessing sets this.
    multiprocessing.context.set_spawning_popen(object())
    try:
        given = pickle.dumps(made)
    finally:
        multiprocessing.context.set_spawning_popen(None)
    assert pickle.loads(given).storage_options == pickle.loads(given).source.storage_options == options


def test_a_parent_behind_a_link_is_that_of_where_it_leads(folder: Path):
    (folder / "link").symlink_to(folder / "data/a")
    assert store_place("link/../x.lance") == str(folder / "data/x.lance")


def test_object_stores_lose_only_their_last_slashes():
    assert store_place("s3://bucket/a/../x.lance//") == "s3://bucket/a/../x.lance"
    assert beside("s3://bucket/x.lance", "lock") is None
    assert tokenizer_files("s3://bucket/x.lance") == []


def test_a_file_that_has_the_very_spelling_of_a_uri_is_meant(folder: Path):
    (folder / "a%20b").mkdir()
    assert store_place(f"file://{folder}/a%20b") == str(folder / "a%20b")
    assert store_place(f"file://{folder}/c%20d") == str(folder / "c d")
    # A name that is not UTF-8, and one whose escapes alone are too long for a name.
    assert store_place(f"file://{folder}/caf%e9") == os.fsdecode(os.fsencode(folder) + b"/caf\xe9")
    assert store_place(f"file://{folder}/{'%20' * 100}x") == f"{folder}/{' ' * 100}x"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("loop", "is a link that leads back to itself"),
        ("loop/x.lance", "is a link that leads back to itself"),
        ("unmounted", "which does not exist: mount that disk"),
        ("unmounted/x.lance", "which does not exist: mount that disk"),
        ("", "is empty: expected a place"),
        (7, "is 7: expected a place"),
        ("a\0b", "a path cannot contain NUL characters"),
        ("file:///data/a%00b", "a path cannot contain NUL characters"),
        (f"file:///data/{'a' * 300}", "each name in it up to 255"),
        (f"file:///{'a/' * 2500}", "a path has up to 4,095 bytes"),
        ("a\ud800b", "a path cannot contain lone surrogates"),
        ("~nobody-of-this-name/x", "the home folder of an unknown user"),
        ("s3://", "which has no bucket: expected a place such as s3://bucket/x.lance"),
        ("s3:///x.lance", "which has no bucket: expected a place such as s3://bucket/x.lance"),
        ("s3://bucket/why?.lance", r"with a '\?', which ends the path of a URL"),
        ("gs://bucket/a#b.lance", "with a '#', which ends the path of a URL"),
        ("s3://bucket/x.lance ", "with white space around it: leave that out"),
        (" s3://bucket/x.lance", "with white space around it: leave that out"),
        (str(Path("s3://bucket/x.lance")), "with one slash where a URL has two, as pathlib writes it"),
    ],
)
def test_what_is_no_place_is_refused_in_a_sentence(folder: Path, place: str, sentence: str):
    (folder / "loop").symlink_to("loop")
    (folder / "unmounted").symlink_to("/nowhere/at/all")
    with pytest.raises(ConfigError, match=sentence):
        store_place(place)


def test_a_folder_that_is_gone_is_told(folder: Path):
    (folder / "gone").mkdir()
    os.chdir("gone")
    (folder / "gone").rmdir()
    with pytest.raises(ConfigError, match="relative to a working folder that no longer exists"):
        store_place("x.lance")
    assert store_place("/x.lance") == "/x.lance"


names = st.text("ab.-", min_size=1, max_size=4).filter(lambda name: name.strip("."))
names = st.builds(
    lambda name, end: name + end, names, st.sampled_from(["", ".lance", ".store", ".store-lock", ".lock"])
)


@given(names, names, st.sampled_from(["lock", "building.json", "tokenizer.json"]))
def test_two_stores_never_share_a_file(one: str, other: str, what: str):
    files = [beside_place(f"/data/{name}", what) for name in (one, other)]
    assert (files[0] == files[1]) == (one == other)


def test_a_change_of_folder_changes_no_store(folder: Path):
    (folder / "one").mkdir()
    os.chdir("one")
    for budget in (20, 30):
        prepare(SOURCE, ByteTokenizer(), "x.lance", val_fraction=0.0, max_documents=budget)
    store, given = TokenStore.open("x.lance"), LanceDataModule("x.lance", 16, 4)
    several = LanceDataModule({"a": "x.lance", "b": Path("x.lance")}, 16, 4)
    made = data_of(SOURCE, ByteTokenizer(), 16, 4, data_dir="made", val_fraction=0.0)
    loader = WindowLoader(store, 16, 4, extend=True)
    list(loader)
    os.chdir(folder / "other")
    prepare(ListSource(documents(*["another text"] * 30)), ByteTokenizer(), "x.lance", val_fraction=0.0)
    assert store.keep()
    assert len(store.documents(np.array([0]), 9)) == 1
    assert store.newest().fingerprint == store.fingerprint
    list(loader)
    assert loader.state_dict()["stores"][0]["uri"] == str(folder / "one/x.lance")
    for data in (given, several, made):
        data.prepare_data()
        data.setup("fit")
        assert {opened.fingerprint for opened in data.stores.values()} == {store.fingerprint}
    assert made.store.uri.startswith(str(folder / "one/made"))
    assert [path.name for path in (folder / "other").iterdir() if path.suffix == ".lance"] == ["x.lance"]


def test_a_relative_place_of_an_old_checkpoint_still_loads(folder: Path):
    store = prepare(SOURCE, ByteTokenizer(), "data/x.lance", val_fraction=0.0)
    state = WindowLoader(store, 16, 4).state_dict()
    state["stores"][0]["uri"] = "data/x.lance"
    WindowLoader(TokenStore.open("data/x.lance"), 16, 4).load_state_dict(state)


def test_a_path_is_a_place_too(folder: Path):
    store = prepare(SOURCE, ByteTokenizer(), folder / "data/x.lance", val_fraction=0.0)
    data = data_of(SOURCE, ByteTokenizer(), 16, 4, uri=folder / "data/x.lance", val_fraction=0.0)
    data.prepare_data()
    data.setup("fit")
    assert data.store.uri == store.uri == str(folder / "data/x.lance")
    assert verify_store(f"file://{folder}/data/x.lance/") == []
    assert forget(f"file://{folder}/data/x.lance/", {"repo": "repo1"}).documents == 1


def test_stores_with_and_without_the_ending_keep_their_tokenizers(folder: Path):
    prepare(SOURCE, TrainedBPE(270), "data/x", val_fraction=0.0)
    prepare(SOURCE, ByteTokenizer(), "data/x.lance", val_fraction=0.0)
    for place, size in (("data/x", 270), ("data/x.lance", 257)):
        data = LanceDataModule(place, 16, 4)
        data.setup("fit")
        assert data.tokenizer.vocab_size == size


def test_the_tokenizer_of_a_store_that_exists_is_found_where_it_was(folder: Path):
    prepare(SOURCE, TrainedBPE(270), "data/x", val_fraction=0.0)
    assert (folder / "data/x.tokenizer.json").exists()
    data = LanceDataModule("data/x", 16, 4)
    data.setup("fit")
    assert data.tokenizer.vocab_size == 270
    prepare(SOURCE, ByteTokenizer(), "data/x.lance", val_fraction=0.0)
    again = LanceDataModule("data/x", 16, 4)
    again.setup("fit")
    assert again.tokenizer.vocab_size == 270
    # As it stays when it grows, or is built again.
    prepare(SOURCE, TrainedBPE(270), "data/x", val_fraction=0.5, rebuild=True)
    assert (folder / "data/x.tokenizer.json").read_text() == ByteTokenizer().load(None, folder).to_json()
    # Beside a link to the store, too.
    (folder / "data/x.store-tokenizer.json").rename(folder / "other/linked.tokenizer.json")
    (folder / "data/x.tokenizer.json").unlink()
    (folder / "other/linked.lance").symlink_to(folder / "data/x")
    linked = LanceDataModule("other/linked.lance", 16, 4)
    linked.setup("fit")
    assert linked.tokenizer.vocab_size == 270
    (folder / "other/linked.tokenizer.json").write_text(ByteTokenizer().load(None, folder).to_json())
    other = LanceDataModule("other/linked.lance", 16, 4)
    other.setup("fit")
    with pytest.raises(StoreError, match="is not the one that made"):
        _ = other.tokenizer


def test_a_link_to_a_store_stays_where_the_store_is_replaced(folder: Path):
    prepare(SOURCE, ByteTokenizer(), "other/real.lance", val_fraction=0.0)
    (folder / "data/x.lance").symlink_to("../other/real.lance")
    for place in ("data/x.lance", "data/x.lance/"):
        assert prepare(SOURCE, ByteTokenizer(), place, val_fraction=0.0).version == 1
    store = prepare(SOURCE, ByteTokenizer(), "data/x.lance", val_fraction=0.5, rebuild=True)
    assert store.num_tokens("val")
    assert (folder / "data/x.lance").readlink() == Path("../other/real.lance")
    assert sorted(path.name for path in (folder / "other").iterdir()) == ["real.lance", "real.tokenizer.json"]
    assert prepare(SOURCE, ByteTokenizer(), "data/x.lance", val_fraction=0.5, rebuild=True).version == store.version
    # A rebuild that was killed before its first commit leaves a link to nothing: it goes on.
    (folder / "other/real.lance").rename(folder / "other/real.lance.being-removed")
    assert prepare(SOURCE, ByteTokenizer(), "data/x.lance", val_fraction=0.5).num_tokens("val")
    assert sorted(path.name for path in (folder / "other").iterdir()) == ["real.lance", "real.tokenizer.json"]


def test_a_tokenizer_of_the_user_is_not_overwritten(folder: Path):
    mine = folder / "data/x.tokenizer.json"
    made = ByteTokenizer().load(None, folder).to_json()
    # Spelled as other programs do; and as a build does.
    mine.write_text(json.dumps(json.loads(made), indent=2))
    with pytest.raises(
        ConfigError, match=r"x\.tokenizer\.json', where the tokenizer of the store goes, exists already"
    ):
        prepare(SOURCE, TrainedBPE(270), "data/x.lance", val_fraction=0.0)
    assert mine.read_text() == json.dumps(json.loads(made), indent=2)
    mine.write_text(made)
    assert prepare(SOURCE, TrainedBPE(270), "data/x.lance", val_fraction=0.0).commit.vocab_size == 270
