"""Commits are conditional: of several builders on one version, one commits, and nothing of the others stays."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from lightning_lance.errors import CommitConflict, StoreError
from lightning_lance.format import commit
from lightning_lance.format.commit import last_commit, last_version, replace_fragments
from lightning_lance.format.lance_io import dataset_at, fragments_of, remove_store, write_rows
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.rows import BLOCK
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.integrity import verify_store
from tests.support.bucket import Bucket, serving
from tests.support.commits import NOTE, rows_of
from tests.support.stores import append_commit, finish
from tests.support.warm import BUILDING, server

PROCESSES, ROUNDS = 3, 5


# Competes for a commit in every round: first to make the store, then on top of the round's version.
RACE = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from lightning_lance.errors import CommitConflict
from lightning_lance.location import StoreLocation
from tests.support.commits import NOTE, rows_of
from tests.support.stores import append_commit
uri, folder, number, processes, rounds, options = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
won = []

def meet(name):
    (folder / f"{name}.{number}").touch()
    # Not by `until`, which sleeps so long that one would always be the first.
    end = time.monotonic() + 60
    while len([*folder.glob(f"{name}.*")]) < processes:
        assert time.monotonic() < end
        time.sleep(0.0002)

for version in range(rounds):
    meet(f"{version}-begins")
    try:
        note = replace(NOTE, row=number, documents=version + 1, tokens=2 * (version + 1))
        won.append(append_commit(StoreLocation(uri, options), rows_of(number), note, expected_version=version))
    except CommitConflict:
        won.append(0)
    meet(f"{version}-ends")
print(won)
"""


def raced(uri: str, options: dict[str, str], folder: Path) -> list[int]:
    """Let processes race, and return the winner of each round."""
    folder.mkdir()
    asked = [[number, PROCESSES, ROUNDS, options] for number in range(PROCESSES)]
    processes = [server(BUILDING).start(RACE, uri, folder, *map(json.dumps, each)) for each in asked]
    won = {}
    for number, process in enumerate(processes):
        assert process.wait(120) == 0, process.output()
        won[number] = json.loads(process.output()[0])
    winners = []
    for version in range(1, ROUNDS + 1):
        made = [number for number, versions in won.items() if versions[version - 1] == version]
        assert len(made) == 1, f"version {version}: {won}"
        assert sum(versions[version - 1] for versions in won.values()) == version
        winners += made
    return winners


def check_raced(uri: str, winners: list[int], options: dict[str, str]) -> None:
    dataset = dataset_at(StoreLocation(uri, options), None)
    table = dataset.to_table()
    assert [row[0] for row in table.column("tokens").to_pylist()] == winners
    # The commit metadata is the winner's too: tokens and cursor are one transaction.
    assert [last_commit(StoreLocation(uri, options), version).row for version in range(1, ROUNDS + 1)] == winners
    assert int(dataset.version) == ROUNDS
    assert len(lance.file.LanceFileSession(f"{uri}/_transactions", options or None).list()) == ROUNDS
    data = {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}
    assert set(lance.file.LanceFileSession(f"{uri}/data", options or None).list()) == data


def test_of_processes_that_commit_on_one_version_one_does(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    check_raced(uri, raced(uri, {}, tmp_path / "race"), {})


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serving() as bucket:
        yield bucket


def test_so_it_is_in_a_bucket(bucket: Bucket, tmp_path: Path):
    uri = "s3://bucket/race/x.lance"
    check_raced(uri, raced(uri, bucket.lance_options, tmp_path / "race"), bucket.lance_options)


def test_a_commit_whose_answer_was_lost_was_made(bucket: Bucket):
    """The bucket stores the manifest, but its answer is lost: the second request finds the manifest existing."""
    uri, options = "s3://bucket/lost/x.lance", bucket.lance_options
    append_commit(StoreLocation(uri, options), rows_of(1), NOTE)
    bucket.lose_answer("/_versions/")
    assert append_commit(StoreLocation(uri, options), rows_of(2), NOTE, expected_version=1) == 2
    assert bucket.lost == 1
    assert dataset_at(StoreLocation(uri, options), None).count_rows() == 2


def test_another_version_than_the_expected_is_refused_before_anything_is_written(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    with pytest.raises(CommitConflict, match=r"it has version 0, expected 3.*run it again"):
        append_commit(StoreLocation(uri), rows_of(1), NOTE, expected_version=3)
    assert not Path(uri).exists()
    assert append_commit(StoreLocation(uri), rows_of(1), NOTE, expected_version=0) == 1
    files = sorted(Path(uri).rglob("*"))
    with pytest.raises(CommitConflict, match="it has version 1, expected 0"):
        append_commit(StoreLocation(uri), rows_of(1), NOTE, expected_version=0)
    assert sorted(Path(uri).rglob("*")) == files


def test_a_builder_that_stood_still_commits_nothing_also_where_its_version_is_free_again(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1), NOTE)
    # It has written its rows on top of version 1, and is suspended.
    before = dataset_at(StoreLocation(uri), None)
    made, notes = write_rows(StoreLocation(uri), before, before.schema, rows_of(99).to_batches())
    for number in range(2, 4):
        append_commit(StoreLocation(uri), rows_of(number), replace(NOTE, tokens=2 * number))
    finish(StoreLocation(uri), rows_of(4), replace(NOTE, tokens=8))
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [4]
    with pytest.raises(CommitConflict):
        replace_fragments(StoreLocation(uri), before, before.schema, [*fragments_of(before), *made], notes, NOTE)
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [4]
    assert len(list(Path(uri, "data").iterdir())) == 1
    assert not verify_store(uri)


def test_a_builder_that_stood_still_commits_nothing_to_a_store_that_was_built_anew(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    for number in range(1, 4):
        append_commit(StoreLocation(uri), rows_of(number), NOTE)
    before = dataset_at(StoreLocation(uri), None)
    made, notes = write_rows(StoreLocation(uri), before, before.schema, rows_of(99).to_batches())
    remove_store(StoreLocation(uri))
    anew = replace(NOTE, fingerprint="other", tokens=0)
    # As many versions as it had seen, then fewer.
    for versions in (1, 3):
        while last_version(StoreLocation(uri))[0] < versions:
            anew = replace(anew, tokens=anew.tokens + 2)
            append_commit(StoreLocation(uri), rows_of(7), anew)
        with pytest.raises(CommitConflict, match=f"it has version {versions}, expected 3"):
            replace_fragments(StoreLocation(uri), before, before.schema, [*fragments_of(before), *made], notes, NOTE)
        assert last_version(StoreLocation(uri)) == (versions, anew)
        assert len(list(Path(uri, "data").iterdir())) == versions
    assert not verify_store(uri)


def test_files_that_the_newest_version_has_are_not_taken_back(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1), NOTE)
    before = dataset_at(StoreLocation(uri), None)
    append_commit(StoreLocation(uri), rows_of(2), NOTE)
    append_commit(StoreLocation(uri), rows_of(3), replace(NOTE, tokens=6))
    # Like a builder whose commit was made although its answer was lost.
    now = dataset_at(StoreLocation(uri), None)
    with pytest.raises(CommitConflict):
        replace_fragments(StoreLocation(uri), before, before.schema, fragments_of(now), {}, NOTE)
    assert not verify_store(uri)


def test_the_last_version_is_looked_for_again_where_it_is_removed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A builder commits and cleans up between the opening of the newest version and the reading of its commit."""
    uri, opened, done = str(tmp_path / "x.lance"), commit.dataset_at, list[int]()
    append_commit(StoreLocation(uri), rows_of(1), NOTE)

    def open_and_finish(*arguments: Any) -> Any:
        dataset = opened(*arguments)
        if not done:
            done.append(dataset.version)
            finish(StoreLocation(uri), rows_of(2), replace(NOTE, documents=2, tokens=4))
        return dataset

    monkeypatch.setattr(commit, "dataset_at", open_and_finish)
    version, note = last_version(StoreLocation(uri))
    assert (version, note.documents, done) == (2, 2, [1])


def test_a_store_that_was_built_anew_is_not_gone_on_from(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1), NOTE, 0)
    remove_store(StoreLocation(uri))
    append_commit(StoreLocation(uri), rows_of(7), replace(NOTE, fingerprint="other"), 0)
    for append in (append_commit, finish):
        with pytest.raises(CommitConflict):
            append(StoreLocation(uri), rows_of(2), NOTE, 1)
    assert lance.dataset(uri).version == 1
    assert len(list(Path(uri, "data").iterdir())) == 1


def test_a_plain_append_of_others_counts_too(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1), NOTE)
    lance.write_dataset(rows_of(2), uri, mode="append")
    with pytest.raises(CommitConflict):
        append_commit(StoreLocation(uri), rows_of(3), NOTE, expected_version=1)


def test_a_commit_without_rows_moves_the_cursor(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    for version in range(3):
        assert (
            append_commit(
                StoreLocation(uri), rows_of(1).slice(0, 0), replace(NOTE, row=version), expected_version=version
            )
            == version + 1
        )
    append_commit(StoreLocation(uri), rows_of(1), replace(NOTE, row=9))
    assert (
        last_commit(StoreLocation(uri), 2).row,
        last_commit(StoreLocation(uri)).row,
        lance.dataset(uri).count_rows(),
    ) == (1, 9, 1)


def test_a_commit_is_one_file_whatever_its_rows(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1, 3000 * BLOCK - 1), NOTE)
    append_commit(StoreLocation(uri), pa.concat_tables([rows_of(i) for i in range(50)]), NOTE)
    assert len(lance.dataset(uri).get_fragments()) == 2


def test_what_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "x.lance").mkdir()
    (tmp_path / "x.lance" / "data").touch()
    with pytest.raises(
        StoreError, match=r"cannot be written \(.*free disk space or grant write access, then run it again"
    ):
        append_commit(StoreLocation(str(tmp_path / "x.lance")), rows_of(1), NOTE)


def test_a_note_comes_back_from_json():
    note = CommitMetadata(
        "f", {"source": {"languages": ["C"]}}, {"revision": "1f"}, "s", "<eos>", 0, 9, languages={"C": 3}
    )
    assert CommitMetadata(**json.loads(json.dumps(asdict(note)))) == note
