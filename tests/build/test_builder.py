"""Edge cases of one run of a build; test_runner.py tests what it stores."""

import logging
import os
import pkgutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lightning_lance import TokenStore
from lightning_lance.build.coordination import CommitTurn
from lightning_lance.build.plan import Budget, make_plan
from lightning_lance.engines.local import LocalBuild
from lightning_lance.errors import BuildInterrupted, CommitConflict, ConfigError, SourceError, StoreError
from lightning_lance.format.commit import data_file_infos, last_version, replace_fragments
from lightning_lance.format.lance_io import dataset_at, fragments_of, write_rows
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.maintenance.removal import find_orphans
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


class Ends(ListSource):
    """Raises when a shard is read."""

    error: BaseException = SourceError("the network is gone")
    at: int = 6

    def identity(self) -> dict[str, Any]:
        return {}

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        if shard == self.at:
            raise self.error
        yield from super().read(shard, row)


@pytest.mark.parametrize("text", ["some text", None])
def test_the_clock_makes_commits_also_where_nothing_is_kept(tmp_path: Path, text: str | None):
    """Finished work is not repeated, with or without documents."""
    uri = str(tmp_path / "x.lance")
    with pytest.raises(SourceError, match="the network is gone"):
        prepare(Ends(documents(*[text] * 40)), ByteTokenizer(), uri, commit_seconds=0.0)
    version, commit = last_version(StoreLocation(uri))
    assert commit is not None
    # Two batches are in flight when the third fails.
    assert commit.shard >= 4
    assert commit.documents == (0 if text is None else 4 * commit.shard + commit.row)
    assert version >= 4


def test_rows_that_are_not_wanted_are_not_read_again(tmp_path: Path):
    """A long shard with two wanted documents, the first and the last."""

    class Gone(ListSource):
        def read(self, shard: int, row: int) -> Iterator[pa.Table]:
            read.append(row)
            yield from super().read(shard, row)
            if len(read) == 1:
                raise SourceError("the network is gone")

    read: list[int] = []
    made = (*documents("first"), *documents(*["other"] * 98, language="Rust"), *documents("last"))
    source, uri = Gone(made, per_shard=100, languages=("Python",), dedup="exact"), str(tmp_path / "x.lance")
    with pytest.raises(SourceError, match="the network is gone"):
        prepare(source, ByteTokenizer(), uri, commit_seconds=0.0)
    _, commit = last_version(StoreLocation(uri))
    assert commit is not None
    assert (commit.documents, commit.shard) == (1, 0)
    assert commit.row > 80
    store = prepare(source, ByteTokenizer(), uri)
    assert read == [0, commit.row]
    whole = prepare(ListSource(*vars(source).values()), ByteTokenizer(), str(tmp_path / "y.lance"))
    assert store.commit == whole.commit
    assert store.commit.documents == 2


def test_no_commit_comes_before_its_time(tmp_path: Path):
    for seconds in (-1, "often", float("nan")):
        with pytest.raises(ConfigError, match=r"commit_seconds is .*: expected a number of seconds"):
            prepare(ListSource(documents("a")), ByteTokenizer(), str(tmp_path / "y.lance"), commit_seconds=seconds)  # type: ignore[arg-type]
    uri = str(tmp_path / "x.lance")
    with pytest.raises(SourceError):
        prepare(Ends(documents(*["some text"] * 40)), ByteTokenizer(), uri)
    assert last_version(StoreLocation(uri)) == (0, None)


def test_an_interruption_says_what_is_safe(tmp_path: Path):
    """Ctrl-C in the main thread, here raised by the source."""

    class Pressed(Ends):
        error = KeyboardInterrupt()

    uri, made = str(tmp_path / "x.lance"), documents(*["some text"] * 40)
    with pytest.raises(
        BuildInterrupted, match=r"^Nothing is committed in '.*' yet: run it again to start from the beginning\.$"
    ):
        prepare(Pressed(made), ByteTokenizer(), uri)
    with pytest.raises(
        BuildInterrupted,
        match=r"^\d+ documents \(.* tokens\) are committed in '.*': run it again to continue from there\.$",
    ):
        prepare(Pressed(made), ByteTokenizer(), uri, commit_tokens=1)
    assert {path.name for path in tmp_path.iterdir()} == {"x.lance", "x.tokenizer.json"}
    assert prepare(ListSource(made, name="list"), ByteTokenizer(), str(tmp_path / "y.lance")).commit.documents == 40


def test_who_finds_another_commit_stops(tmp_path: Path):
    source, uri = ListSource(documents(*["some text"] * 40)), str(tmp_path / "x.lance")
    plan = make_plan(source, ByteTokenizer(), uri)
    build = LocalBuild(source, plan, Budget(), 0, None)
    prepare(source, ByteTokenizer(), uri, max_documents=7)
    before = last_version(StoreLocation(uri))
    with pytest.raises(CommitConflict):
        build.run(CommitTurn(uri, 0), 1, 60.0)
    assert last_version(StoreLocation(uri)) == before
    assert prepare(source, ByteTokenizer(), uri).commit.documents == 40


def test_what_a_builder_that_begins_removes_nobody_can_commit(tmp_path: Path):
    """A builder stops between its data file and its commit, and resumes before the new builder has committed."""
    made, uri = documents(*["some text"] * 40), str(tmp_path / "x.lance")
    stored = prepare(Ends(made), ByteTokenizer(), uri, val_fraction=0.0, max_documents=8)
    stream = stored.read(np.array([0]), stored.num_tokens())[0].tolist()
    dataset = dataset_at(StoreLocation(uri), None)
    rows = dataset.to_table()
    written, files = write_rows(StoreLocation(uri), dataset, rows.schema, rows.to_batches())
    notes = data_file_infos(dataset)
    with pytest.raises(SourceError):
        prepare(Ends(made), ByteTokenizer(), uri, val_fraction=0.0)
    note = replace(stored.commit, documents=16, tokens=2 * stored.commit.tokens)
    fragments = [*fragments_of(dataset), *written]
    assert find_orphans(StoreLocation(uri)) == set()
    with pytest.raises(CommitConflict):
        replace_fragments(StoreLocation(uri), dataset, rows.schema, fragments, {**notes, **files}, note)
    store = TokenStore.open(uri, verify=True)
    assert store.commit == stored.commit
    assert store.read(np.array([0]), store.num_tokens())[0].tolist() == stream


class Panic(BaseException):
    """A BaseException, as Lance raises it."""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("format.lance_io.hash_local", Panic),
        ("format.commit.lance.LanceDataset.commit", Panic),
        ("format.commit.lance.LanceDataset.commit", RuntimeError),
        ("maintenance.compaction.end_build", RuntimeError),
    ],
)
def test_an_error_of_whatever_kind_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: type[BaseException]
):
    """In the first, a later, and the last commit, which merges, and after it."""
    uri, source = tmp_path / "x.lance", ListSource(documents(*["0123456789" * 10_000] * 24))
    options: dict[str, Any] = {"uri": str(uri), "val_fraction": 0.0, "commit_tokens": 1_000_000}

    def fails(*arguments: Any, **options: Any) -> Any:
        count[0] -= 1
        if count[0] < 0:
            raise kind("unforeseen")
        return real(*arguments, **options)

    whole = prepare(source, ByteTokenizer(), str(tmp_path / "y.lance"), val_fraction=0.0).commit
    target = f"lightning_lance.{place}"
    real = pkgutil.resolve_name(target)
    for calls in range(5):
        count = [calls]
        with monkeypatch.context() as patch:
            patch.setattr(target, fails)
            try:
                prepare(source, ByteTokenizer(), **options)
            except kind:
                assert find_orphans(StoreLocation(str(uri))) == set()
                assert uri.exists() == (calls > 0 or place == "maintenance.compaction.end_build")
        if count[0] >= 0:
            break
    assert calls > 0
    assert prepare(source, ByteTokenizer(), **options).commit == whole


def test_what_builders_left_that_were_killed_before_their_first_commit_does_not_pile_up(tmp_path: Path):

    class Mended(Ends):
        at = -1

    made, uri = documents(*["some text"] * 40), tmp_path / "x.lance"
    rows = prepare(ListSource(made), ByteTokenizer(), str(tmp_path / "y.lance"), val_fraction=0.0)._dataset.to_table()
    written, files = write_rows(StoreLocation(str(uri)), None, rows.schema, rows.to_batches())
    assert len(find_orphans(StoreLocation(str(uri)))) == 1
    with pytest.raises(SourceError):
        prepare(Ends(made), ByteTokenizer(), str(uri), val_fraction=0.0)
    assert find_orphans(StoreLocation(str(uri))) == set()
    # One of them was only stopped, and resumes with its commit.
    note = replace(last_version(StoreLocation(str(tmp_path / "y.lance")))[1], tokens=1)
    with pytest.raises(CommitConflict):
        replace_fragments(StoreLocation(str(uri)), None, rows.schema, written, files, note)
    store = prepare(Mended(made), ByteTokenizer(), str(uri), val_fraction=0.0)
    assert store.read(np.array([0]), store.num_tokens())[0].tolist() == [*b"some text", 256] * 40
    assert not verify_store(str(uri))


def test_a_full_disk_is_told_and_goes_on_after_room_was_made(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        source = ListSource(documents(*["0123456789" * 5000] * 60))
        options: dict[str, Any] = {"uri": str(disk / "x.lance"), "val_fraction": 0.0, "commit_tokens": 400_000}
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(StoreError, match=r"^The disk of '.*/x\.lance' is full: free some space"),
        ):
            prepare(source, ByteTokenizer(), **options)
        _, commit = last_version(StoreLocation(options["uri"]))
        assert commit is not None
        assert 0 < commit.documents < 60
        assert any(message.startswith(f"{commit.documents} documents (") for message in caplog.messages)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        store = prepare(source, ByteTokenizer(), **options)
        assert store.commit.documents == 60
        assert store.num_tokens("train") == store.commit.tokens == 60 * 50_001
        assert {path.name for path in disk.iterdir()} == {"x.lance", "x.tokenizer.json"}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_running_again_cannot_cure_is_not_advised_and_its_cause_goes_with_the_next_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    class Wrong(Ends):
        error = ConfigError("there is no such language")

    made = documents(*["some text"] * 40)
    for source in (Wrong(made), Ends(made)):
        with pytest.raises((ConfigError, SourceError)):
            prepare(source, ByteTokenizer(), str(tmp_path / f"{type(source).__name__}.lance"))
    # Nothing was committed to continue from: the error itself has the cure.
    assert caplog.messages == []
    # The waiting process sees both.
    assert {path.stem for path in tmp_path.glob("*.building.json")} == {"Wrong.building", "Ends.building"}
    prepare(ListSource(made), ByteTokenizer(), str(tmp_path / "Wrong.lance"))
    assert {path.stem for path in tmp_path.glob("*.building.json")} == {"Ends.building"}


def test_that_nothing_is_to_validate_on_is_told_when_it_is_built(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = ListSource(documents("some text"))
    for options in ({"val_fraction": 1e-9}, {"val_fraction": 0.0}):
        for _ in range(2):
            prepare(source, ByteTokenizer(), data_dir=tmp_path, **options)
    (line,) = caplog.messages
    assert "has nothing to validate on, since val_fraction=1e-09 drew none of its 1 document" in line
