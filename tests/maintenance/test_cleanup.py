"""The repairs and removals of `clean`; and damaged tags stop no other command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import lance
import pytest

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import StoreError
from lightning_lance.format.checksums import SUMS, write_sums
from lightning_lance.format.refs import read_refs
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import removal
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.process.build_status import StatusFile
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.bucket import serving
from tests.support.commands import run as run_in
from tests.support.commits import NOTE as COMMIT
from tests.support.commits import rows_of
from tests.support.corpora import prepare
from tests.support.merges import NOTE, append
from tests.support.stores import ListSource, append_commit, documents

SOURCE = ListSource(documents(*["some text"] * 40))
GARBAGE = {
    "empty": b"",
    "zeros": b"\0" * 180,
    "garbage": b"\xff\xfegarbage",
    "list": b"[1]",
    "null": b"null",
    "no version": b'{"manifestSize": 1}',
    "no size": b'{"version": 1}',
    "negative": b'{"version": -1, "manifestSize": 1}',
    "text": b'{"version": "1", "manifestSize": 1}',
    "huge": b'{"version": 1e400, "manifestSize": 1}',
    "nested": b"[" * 100_000,
    "cut": b'{"branch": null, "vers',
    "dangling": b'{"branch": null, "version": 77, "manifestSize": 1}',
}


def tags_of(uri: Path) -> dict[str, int]:
    return {name: tag["version"] for name, tag in lance.dataset(str(uri)).tags.list().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the tag of a build and one of a run's checkpoints."""
    uri = tmp_path_factory.mktemp("trained") / "x.lance"
    store = prepare(SOURCE, ByteTokenizer(), str(uri), val_fraction=0.0, max_documents=10)
    store.keep()
    return uri


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "x.lance")
    return tmp_path / "x.lance"


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_damaged_tag_of_ours_stops_nobody_and_is_mended(copied: Path, content: bytes):
    uri, tags = str(copied), copied / "_refs" / "tags"
    for name in ("checkpoint-100.json", "build-100.json"):
        (tags / name).write_bytes(content)
    state = WindowLoader(TokenStore.open(uri), 4, 2).state_dict()
    assert TokenStore.open(uri).keep_for_training("ab12")
    (problem, _) = verify_store(uri)
    assert problem.place == "_refs/tags/build-100.json"
    assert "lightning-lance clean" in problem.cure
    grown = prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0)
    assert grown.commit.documents == 40
    forget(uri, {"repo": "repo1"})
    # The version of the damaged tag still exists.
    WindowLoader(grown, 4, 2).load_state_dict(state)
    clean(uri)
    assert verify_store(uri) == []
    assert tags_of(copied)["checkpoint-100"] == 1
    WindowLoader(TokenStore.open(uri), 4, 2).load_state_dict(state)
    assert clean(uri) == ([], [])


def test_a_damaged_tag_of_a_version_that_is_gone_goes(copied: Path):
    tags = copied / "_refs" / "tags"
    for name in ("checkpoint-7.json", "checkpoint-7-0123abcd-run-0a.json", "build-7.json"):
        (tags / name).touch()
    cleaned = clean(str(copied))
    assert cleaned.left == []
    assert cleaned.done[0] == "_refs/tags/build-7.json is empty: removed, since no version has the content in its name"
    assert sorted(tags_of(copied)) == ["build-100", "checkpoint-100"]


def test_what_is_not_ours_goes_only_if_it_is_empty(copied: Path):
    tags = copied / "_refs" / "tags"
    files = {"empty.json": b"", "my tag.json": b"garbage", "gone.json": GARBAGE["dangling"], "note.txt": b"", "n": b""}
    for name, content in files.items():
        (tags / name).write_bytes(content)
    (tags / "folder.json").mkdir()
    (tags / "folder.json" / "thesis.tex").touch()
    note = prepare(SOURCE, ByteTokenizer(), str(copied), val_fraction=0.0).commit
    # The version of an unreadable tag is unknown, so all versions stay.
    assert len(lance.dataset(str(copied)).versions()) > 1
    assert note.documents == 40
    cleaned = clean(str(copied))
    assert cleaned.done == ["_refs/tags/empty.json is empty: removed"]
    assert [line.split(":")[0] for line in cleaned.left] == [
        "_refs/tags/folder.json is a folder",
        "_refs/tags/my tag.json is not JSON, and another program made it",
        "_refs/tags/gone.json names version 77, which is missing, and another program made it",
    ]
    assert {path.name for path in tags.iterdir()} >= {*files} - {"empty.json"} | {"folder.json"}
    assert (tags / "folder.json" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["my tag", "\u00fc", "a%20b", "\udcff"])
def test_a_tag_of_any_name_keeps_its_version_and_stops_no_clean_up(tmp_path: Path, name: str):
    """Lance cannot list tags of such names."""
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(3):
        note = append(uri, [(0, "C", 3000)], i, note)
    lance.dataset(uri).tags.create("a", 1)
    tags = tmp_path / "x.lance" / "_refs" / "tags"
    (tags / "a.json").rename(tags / f"{name}.json")
    assert read_refs(StoreLocation(uri)).tags == {name: 1}
    assert TokenStore.open(uri, 3).keep()
    removal.clean_up(StoreLocation(uri))
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [1, 3]
    assert len(list((tmp_path / "x.lance" / "_transactions").iterdir())) == 2
    assert verify_store(uri) == []
    assert clean(uri) == ([], [])


def test_versions_of_branches_stay_and_their_tags_are_theirs(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(4):
        note = append(uri, [(0, "C", 3000)], i, note)
    branch = lance.dataset(uri).create_branch("mine", 2)
    lance.write_dataset(branch.to_table().slice(0, 1), branch, mode="append")
    lance.dataset(uri).tags.create("theirs", ("mine", 3))
    removal.clean_up(StoreLocation(uri))
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [2, 4]
    assert lance.dataset(uri).checkout_version(("mine", None)).count_rows() == 5
    assert verify_store(uri) == []
    assert forget(uri, {"repo": "r0"}, purge=True).kept == ["branch mine"]
    (tmp_path / "x.lance" / "_refs" / "branches" / "mine.json").write_text("")
    (problem,) = verify_store(uri)
    assert problem.place == "_refs/branches/mine.json"
    assert len(clean(uri).left) == 1


def test_what_killed_builders_and_clean_ups_left_goes(copied: Path):
    uri, beside = str(copied), copied.parent
    stored = next((copied / "data").glob("*.lance"))
    left = "data/" + "01" * 12 + "ab" * 13 + ".lance"
    shutil.copy(stored, copied / left)
    StatusFile(beside / "x.building.json", "f").begin()
    (beside / "x.lance.being-removed").mkdir()
    (beside / "thesis.tex").touch()
    (copied / SUMS).unlink()
    done = "\n".join(clean(uri).done)
    for what in (
        f"{left}, a file of no version",
        "x.building.json, of a dead builder",
        "being-removed, the rest",
        SUMS,
    ):
        assert what in done
    assert {path.name for path in beside.iterdir()} == {"x.lance", "thesis.tex"}
    assert verify_store(uri) == []
    assert tags_of(copied)["build-100"] == lance.dataset(uri).version
    assert clean(uri) == ([], [])
    # A clean-up removes versions from the list before it removes them.
    note = append(uri, [(0, "C", 10)], 0, TokenStore.open(uri).commit)
    append(uri, [(0, "C", 10)], 1, note)
    assert write_sums(StoreLocation(uri), {1, 4})
    assert clean(uri).done == ["1 version half removed by a killed clean-up: removed"]
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [1, 2, 4]


def test_old_versions_and_tags_that_are_whole_stay(tmp_path: Path):
    uri, note = str(tmp_path / "x.lance"), NOTE
    for i in range(3):
        note = append(uri, [(0, "C", 3000)], i, note)
    assert TokenStore.open(uri, 2).keep_for_training("ab")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert clean(uri) == ([], [])
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_what_is_no_store_of_ours_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="There is no committed token store at"):
        clean(str(tmp_path / "none.lance"))
    lance.write_dataset([{"a": 1}], str(tmp_path / "other.lance"))
    with pytest.raises(StoreError, match="is not a token store"):
        clean(str(tmp_path / "other.lance"))
    assert {path.name for path in tmp_path.iterdir()} == {"other.lance"}


def test_the_command(copied: Path):
    def run(*arguments: str) -> tuple[int, str, str]:
        return run_in(copied.parent, "clean", *arguments)

    (copied / "_refs" / "tags" / "checkpoint-100.json").write_text("")
    (copied / "_refs" / "tags" / "other.json").write_text(json.dumps({"a": 1}))
    code, out, err = run("x.lance")
    assert code == 1
    assert out.splitlines() == [
        "_refs/tags/checkpoint-100.json is empty: repaired, names version 1 again.",
        "_refs/tags/other.json has no version, and another program made it: remove it by hand if it is not needed.",
    ]
    assert err == "error: x.lance: 1 problem left.\n"
    (copied / "_refs" / "tags" / "other.json").unlink()
    assert run("x.lance") == (0, "x.lance: nothing to clean.\n", "")
    assert run("x.lance", "now=true")[0] == 1


def test_a_tag_in_a_bucket_is_mended_too():
    with serving() as bucket:
        uri, options, note = "s3://bucket/cleaning/x.lance", bucket.lance_options, replace(COMMIT, tokens=5001)
        append_commit(StoreLocation(uri, options), rows_of(1, 5000), note)
        append_commit(StoreLocation(uri, options), rows_of(1, 50), replace(note, tokens=5052))
        first, second = (TokenStore.open(uri, version, options) for version in (1, 2))
        assert first.keep_for_training("ab")
        first.keep_for_checkpoints()
        append_commit(StoreLocation(uri, options), rows_of(1, 50), replace(note, tokens=5103))
        removal.clean_up(StoreLocation(uri, options))
        assert read_refs(StoreLocation(uri, options)).tags == {"checkpoint-5001": 1}
        assert not second.keep()
        tags = "cleaning/x.lance/_refs/tags"
        for name in ("checkpoint-5001", "my tag"):
            bucket.client.put_object(Bucket="bucket", Key=f"{tags}/{name}.json", Body=b"")
        assert len(verify_store(uri, options)) == 2
        assert clean(uri, options) == (
            [
                "_refs/tags/checkpoint-5001.json is empty: repaired, names version 1 again",
                "_refs/tags/my tag.json is empty: removed",
            ],
            [],
        )
        assert verify_store(uri, options) == []
