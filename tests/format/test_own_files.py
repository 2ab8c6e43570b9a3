"""Whatever command runs, it removes only a store's own files, and reaches nothing through a link."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance.fragment import DataFile

from lightning_lance import TokenStore
from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.format.checksums import SUMS, write_sums
from lightning_lance.format.commit import data_file_infos
from lightning_lance.format.lance_io import fragments_of
from lightning_lance.format.layout import properties_of
from lightning_lance.format.own_files import is_plain_name
from lightning_lance.location import StoreLocation, beside
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.maintenance.removal import clean_up, find_orphans
from lightning_lance.process.build_status import StatusFile, status_file
from lightning_lance.process.locks import Lease, lock_file
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.bucket import serving
from tests.support.commits import NOTE, rows_of
from tests.support.corpora import prepare
from tests.support.stores import ListSource, append_commit, documents, written

SOURCE = ListSource(documents(*[f"document {i}" * 20 for i in range(20)]))
# A name as Lance gives it to data files, and nobody else does.
UUID = "010000111010101011001110" + "14063884c53af381efafad97ff"
LONG_AGO = datetime(2001, 1, 1, tzinfo=timezone.utc).timestamp()


def put(place: Path, text: str = "years of work") -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    os.utime(place, (LONG_AGO, LONG_AGO))
    return place


def contents(folder: Path) -> dict[str, Any]:
    found = {}
    for path in folder.rglob("*"):
        found[str(path)] = path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
    return found


def build(uri: Path, **options: Any) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), uri, **{"val_fraction": 0.0, **options})


def call_all(uri: Path) -> dict[str, str]:
    """Run every command on a store, and return the message of each."""
    calls: dict[str, Callable[[], Any]] = {
        "open": lambda: TokenStore.open(uri),
        "verify": lambda: verify_store(str(uri)),
        "keep": lambda: TokenStore.open(uri).keep_for_training(),
        "clean": lambda: clean_up(StoreLocation(str(uri)), orphans=find_orphans(StoreLocation(str(uri)))),
        "complete": lambda: build(uri, max_documents=10),
        "grow": lambda: build(uri),
        "forget": lambda: forget(str(uri), {"repo": "repo1"}),
        "purge": lambda: forget(str(uri), {"repo": "repo2"}, purge=True),
        "rebuild": lambda: build(uri, val_fraction=0.5, rebuild=True),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = ""
        except LightningLanceError as error:
            said[name] = str(error)
    return said


@pytest.fixture
def uri(tmp_path: Path) -> Path:
    build(tmp_path / "data/x.lance", max_documents=10)
    return tmp_path / "data/x.lance"


def moved(place: Path, elsewhere: Path) -> None:
    """Move a folder or file, or make a folder, and link to it."""
    if place.exists():
        shutil.move(place, elsewhere)
    else:
        elsewhere.mkdir()
    place.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "linked", ["data", "_versions", "_transactions", "_refs", "_refs/tags", "_deletions", "_indices", SUMS]
)
def test_nothing_is_removed_or_written_through_a_link(uri: Path, tmp_path: Path, linked: str):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved(uri / linked, elsewhere / "there")
    if (elsewhere / "there").is_dir():
        for name in ("thesis.tex", UUID + ".lance", "other.lance", "5-7c16bc3c-731c-4138-8aa8-e300dd1ae38b.txn"):
            put(elsewhere / "there" / name)
    before = contents(elsewhere)
    said = call_all(uri)
    assert contents(elsewhere) == before
    assert (said["open"], said["complete"]) == ("", "")
    for name in ("grow", "forget", "purge", "rebuild"):
        assert f"contains the link {linked!r}" in said[name]


@pytest.mark.parametrize("target", ["..", "/nowhere/at/all", "{elsewhere}"])
def test_a_link_that_is_none_of_its_own_is_not_followed_either(uri: Path, tmp_path: Path, target: str):
    elsewhere = put(tmp_path / "elsewhere/thesis.tex").parent
    (uri / "data/sub").symlink_to(target.format(elsewhere=elsewhere))
    said = call_all(uri)
    assert "contains the link 'data/sub'" in said["grow"]
    assert (elsewhere / "thesis.tex").read_text() == "years of work"


def test_of_files_that_are_links_a_store_is_read(uri: Path, tmp_path: Path):
    """The cache of the Hugging Face Hub stores downloads like this."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate([path for path in uri.rglob("*") if path.is_file()]):
        moved(file, blobs / str(number))
    before = contents(blobs)
    said = call_all(uri)
    assert (said["open"], said["verify"], said["complete"]) == ("", "", "")
    assert contents(blobs) == before


def test_what_others_put_into_a_store_stays(uri: Path):
    theirs = lance.write_dataset(pa.table({"x": [1]}), uri.parent / "theirs.lance")
    file = Path(theirs.uri, "data", theirs.get_fragments()[0].data_files()[0].path)
    placed = [Path(shutil.copy(file, uri / f"data/{UUID}.lance")), put(uri / "thesis.tex")]
    for folder in ("data", "_versions", "_transactions", "_refs/tags", "data/sub", "_deletions"):
        for name in ("thesis.tex", "other.lance", f"{UUID[:-1]}e.lance", ".tmp", "5-7c16bc3c.txn"):
            placed.append(put(uri / folder / name))
    placed.append(put(uri / "_transactions/5-7c16bc3c-731c-4138-8aa8-e300dd1ae38b.txn"))
    before = {path: path.read_bytes() for path in placed}
    said = call_all(uri)
    assert {path: path.read_bytes() for path in placed} == before
    assert (said["grow"], said["forget"], said["purge"]) == ("", "", "")
    assert "its folder contains files of others" in said["rebuild"]


def test_a_folder_of_the_user_is_no_unfinished_store(tmp_path: Path):
    """It has a folder `data`, like a store that was never committed."""
    project = tmp_path / "project"
    put(project / "data/thesis.tex")
    with pytest.raises(ConfigError, match="exists already and is not a token store"):
        build(project)
    assert contents(project)
    put(project / "data" / f"{UUID}.lance")
    (project / "data/thesis.tex").unlink()
    with pytest.raises(ConfigError, match="exists already and is not a token store"):
        build(project, rebuild=True)
    assert (project / "data" / f"{UUID}.lance").exists()


@pytest.mark.parametrize("what", ["lock", "building.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_what_others_have_beside_a_store_stays(uri: Path, tmp_path: Path, what: Any, kind: str):
    neighbour = beside(str(uri), what)
    assert neighbour is not None
    neighbour.unlink(missing_ok=True)
    thesis = put(tmp_path / "thesis.tex")
    if kind == "file":
        put(neighbour)
    elif kind == "folder":
        put(neighbour / "thesis.tex")
    else:
        neighbour.symlink_to(thesis if kind == "link" else tmp_path / "nowhere")
    before = {path: text for path, text in contents(tmp_path).items() if not path.startswith(str(uri))}
    said = call_all(uri)
    after = contents(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert (said["open"], said["complete"]) == ("", "")
    if what != "building.json":
        assert neighbour.name in said["grow"]
        assert TokenStore.open(uri).num_tokens("val") == 0  # it was not replaced


def test_a_lock_file_of_another_program_is_no_lease(tmp_path: Path):
    """It was mistaken for the lease of a dead holder, and removed."""
    put(tmp_path / "poetry.lock", "# This file is automatically @generated by Poetry\n")
    lease = lock_file(str(tmp_path / "poetry.lance"))
    assert lease == tmp_path / "poetry.lock"
    with pytest.raises(StoreError, match=r"poetry\.lock' is not a lease of lightning-lance"):
        Lease(lease).take_from_the_dead()
    assert (tmp_path / "poetry.lock").exists()


def test_a_status_file_of_others_is_neither_written_nor_removed(tmp_path: Path):
    file = status_file(str(tmp_path / "x.lance"))
    assert file is not None
    put(file, json.dumps({"my": "notes"}))
    status = StatusFile(file, "f").begin()
    status.update(1, 1, 1.0)
    status.failed(StoreError("no"))
    status.remove()
    assert json.loads(file.read_text()) == {"my": "notes"}


@pytest.mark.parametrize("link", [False, True])
def test_what_only_looks_as_if_it_were_being_removed_stays(uri: Path, tmp_path: Path, link: bool):
    aside = uri.with_name("x.lance.being-removed")
    put(tmp_path / "thesis/thesis.tex")
    if link:
        aside.symlink_to(tmp_path / "thesis")
    else:
        shutil.copytree(tmp_path / "thesis", aside)
    said = call_all(uri)
    assert said["grow"] == ""
    assert "exists and is not a token store" in said["rebuild"]
    assert (aside / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "thesis/thesis.tex").exists()


def test_what_a_killed_removal_left_goes(uri: Path):
    aside = uri.with_name("x.lance.being-removed")
    shutil.copytree(uri, aside)
    shutil.rmtree(aside / "_versions")
    build(uri)
    assert not aside.exists()


def renamed(uri: Path, name: str, noted: bool) -> Path:
    """Copy a store, and rename its data file in the metadata: `name`, relative to the folder of its data."""
    copy = uri.with_name("hostile.lance")
    dataset = lance.dataset(uri)
    (fragment,) = fragments_of(dataset)
    notes = data_file_infos(dataset)
    (file,) = fragment.files
    if noted:
        notes[name] = notes.pop(file.path)
    fields = {
        key: getattr(file, key) for key in ("fields", "column_indices", "file_major_version", "file_minor_version")
    }
    fragment.files = [DataFile(name, file_size_bytes=file.file_size_bytes, **fields)]
    old = dataset.read_transaction(dataset.version).transaction_properties
    properties = {"lightning_lance": old["lightning_lance"], **properties_of(notes)}
    operation = lance.LanceOperation.Overwrite(dataset.lance_schema, [fragment])
    made = lance.Transaction(read_version=0, operation=operation, transaction_properties=properties)
    lance.LanceDataset.commit(str(copy), made)
    assert write_sums(StoreLocation(str(copy)))
    return copy


@pytest.mark.parametrize("name", ["../../thesis.lance", "/tmp/thesis.lance", "sub/../../../thesis.lance"])
@pytest.mark.parametrize("noted", [False, True])
def test_metadata_that_names_files_outside_reaches_none(uri: Path, tmp_path: Path, name: str, noted: bool):
    (file,) = (uri / "data").iterdir()
    thesis = Path(shutil.copy(file, tmp_path / "data/thesis.lance"))
    before = thesis.read_bytes()
    copy = renamed(uri, name, noted)
    problems = [problem.what for problem in verify_store(str(copy))]
    # A long path leaves less of the sentence.
    assert ["is damaged or malicious" in what for what in problems] == [True], problems
    said = call_all(copy)
    for call in ("open", "grow", "forget", "purge"):
        assert "is outside its folder" in said[call]
    assert thesis.read_bytes() == before


def test_names_that_stay_inside():
    inside = ["a.lance", "sub/a.lance", "a..lance", "..."]
    outside = ["", "../a.lance", "/a.lance", "sub/../../a", "a\\..\\b", "a\0b", ".."]
    assert [name for name in [*inside, *outside] if is_plain_name(name)] == inside


def test_checksums_that_name_files_outside_read_none(uri: Path, tmp_path: Path):
    import xxhash

    put(tmp_path / "thesis.tex")
    text = json.dumps({"../../thesis.tex": [13, "0" * 16]})
    (uri / SUMS).write_text(json.dumps({"sums": text, "hash": xxhash.xxh3_64_hexdigest(text.encode())}))
    (problem,) = verify_store(str(uri))
    assert (
        problem.what == "the list of checksums is damaged ('../../thesis.tex' is neither a manifest nor a transaction)"
    )
    # The next commit writes it again.
    build(uri)
    assert verify_store(str(uri)) == []


def test_versions_that_a_branch_is_made_of_stay(uri: Path):
    dataset = lance.dataset(uri)
    dataset.create_branch("mine")
    dataset.tags.delete(next(iter(dataset.tags.list())))
    build(uri)
    assert lance.dataset(uri).checkout_version(("mine", None)).count_rows() > 0


def test_in_a_bucket_lance_cleans_up_only_where_nothing_is_of_others(monkeypatch: pytest.MonkeyPatch):
    cleaned, clean = list[str](), lance.LanceDataset.cleanup_old_versions

    def watched(dataset: Any, *arguments: Any, **options: Any) -> Any:
        cleaned.append(dataset.uri)
        return clean(dataset, *arguments, **options)

    monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", watched)
    uri = "s3://bucket/x.lance"
    with serving() as bucket:
        options = bucket.lance_options
        for number in (1, 2):
            append_commit(StoreLocation(uri, options), rows_of(number), NOTE)
        # A file of a builder, and one of another program.
        written(uri, rows_of(3), options=options)
        clean_up(StoreLocation(uri, options))
        assert cleaned == [uri]
        assert [entry["version"] for entry in lance.dataset(uri, storage_options=options).versions()] == [2]
        for key in (f"data/{UUID}.lance", "data/thesis.lance", "_deletions/thesis.arrow"):
            append_commit(StoreLocation(uri, options), rows_of(4), NOTE)
            bucket.client.put_object(Bucket="bucket", Key=f"x.lance/{key}", Body=b"years of work")
            clean_up(StoreLocation(uri, options))
            assert cleaned == [uri]
            assert len(lance.dataset(uri, storage_options=options).versions()) == 1
            bucket.client.delete_object(Bucket="bucket", Key=f"x.lance/{key}")
        assert lance.dataset(uri, storage_options=options).count_rows() == 5


def test_in_a_bucket_a_store_with_what_is_of_others_is_not_replaced():
    uri = "s3://bucket/r.lance"
    with serving() as bucket:
        options = {"storage_options": bucket.lance_options}
        prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0, max_documents=5, **options)
        beside = bucket.client.list_objects_v2(Bucket="bucket", Prefix="r.lance")["KeyCount"]
        for key in ("thesis.tex", "data/thesis.lance", f"data/{UUID}.lance", "sub/y.lance/_versions/1.manifest"):
            bucket.client.put_object(Bucket="bucket", Key=f"r.lance/{key}", Body=b"years of work")
            with pytest.raises(StoreError, match=f"its folder contains files of others \\('{key}'\\)"):
                prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.5, rebuild=True, **options)
            assert bucket.client.list_objects_v2(Bucket="bucket", Prefix="r.lance")["KeyCount"] == beside + 1
            bucket.client.delete_object(Bucket="bucket", Key=f"r.lance/{key}")
        # The file of a killed builder, a folder as some tools make it, and a store whose name has the same beginning.
        written(uri, rows_of(3), options=bucket.lance_options)
        bucket.client.put_object(Bucket="bucket", Key="r.lance/data/", Body=b"")
        bucket.client.put_object(Bucket="bucket", Key="r.lance2/thesis.tex", Body=b"years of work")
        store = prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.5, rebuild=True, **options)
        assert (store.version, store.num_tokens("val") > 0) == (1, True)
        keys = [entry["Key"] for entry in bucket.client.list_objects_v2(Bucket="bucket", Prefix="r.lance")["Contents"]]
        assert "r.lance2/thesis.tex" in keys
        assert len([key for key in keys if key.startswith("r.lance/data/") and key.endswith(".lance")]) == 1


@pytest.mark.parametrize("name", [b"\xff.txn", b"thesis.manifest", b"5-.txn"])
@pytest.mark.parametrize("folder", ["_versions", "_transactions", "_refs/tags"])
def test_names_of_others_hinder_nothing(uri: Path, folder: str, name: bytes):
    """Lance lists no folder with a name that is not UTF-8, and a manifest without a number used to count as damage."""
    file = put(uri / folder / os.fsdecode(name))
    assert verify_store(str(uri)) == []
    said = call_all(uri)
    assert file.read_text() == "years of work"
    if folder == "_versions" and not name.isascii():
        assert (said["open"], said["verify"]) == ("", "")
        for call in ("grow", "forget", "purge", "rebuild"):
            assert r"in _versions whose name is not UTF-8 ('\udcff.txn')" in said[call]
        file.unlink()
        assert verify_store(str(uri)) == []
        return
    assert "its folder contains files of others" in said.pop("rebuild")
    assert said == dict.fromkeys(said, "")
    assert len(lance.dataset(uri).versions()) == 1


@pytest.mark.parametrize("pipe", [SUMS, "_refs/tags/mine.json"])
def test_pipes_are_not_waited_for(uri: Path, pipe: str):
    (uri / pipe).unlink(missing_ok=True)
    os.mkfifo(uri / pipe)
    said = [str(problem) for problem in verify_store(str(uri))]
    assert len(said) == 1
    assert said[0].startswith(f"{pipe}: ")
    assert TokenStore.open(uri).keep_for_training()


def test_a_data_file_that_is_a_pipe_is_missing(uri: Path):
    (file,) = (uri / "data").iterdir()
    file.unlink()
    os.mkfifo(file)
    (problem,) = verify_store(str(uri))
    assert problem.what == "is missing"
    with pytest.raises(StoreError, match="is missing, expected"):
        TokenStore.open(uri)
