"""The files that a commit forces onto the disk, and their order: the calls are real, and recorded."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import lance
import pytest

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format import durability
from lightning_lance.format.commit import last_version
from lightning_lance.format.lance_io import data_files, dataset_at
from lightning_lance.location import StoreLocation
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.commits import NOTE, rows_of
from tests.support.corpora import prepare
from tests.support.stores import ListSource, append_commit, documents

# Enough small commits to merge some of them.
DOCUMENTS = documents(*["some text"] * 60)
OPTIONS = {"commit_tokens": 20, "val_fraction": 0.0}


# The real function, which a fixture replaces in other tests.
FORCE = durability._force


@pytest.fixture(autouse=True)
def forcing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durability, "_force", FORCE)


class Events:
    """Records the forced files of the store at `uri`, and the versions that are made and removed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, uri: Path) -> None:
        self.all: list[tuple[str, str]] = []
        real_sync, real_commit, real_unlink = os.fsync, lance.LanceDataset.commit, Path.unlink

        def sync(descriptor: int) -> None:
            real_sync(descriptor)
            path = os.path.realpath(f"/proc/self/fd/{descriptor}")
            self.all.append(("force", os.path.relpath(path, uri)))

        def commit(*arguments: object, **named: object) -> object:
            dataset = real_commit(*arguments, **named)
            self.all.append(("commit", str(dataset.version)))
            return dataset

        def unlink(path: Path, missing_ok: bool = False) -> None:
            real_unlink(path, missing_ok=missing_ok)
            self.all.append(("remove", os.path.relpath(path, uri)))

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(commit))
        monkeypatch.setattr(Path, "unlink", unlink)

    def place(self, kind: str, what: str) -> int:
        return self.all.index((kind, what))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Events:
    return Events(monkeypatch, tmp_path / "x.lance")


@pytest.fixture
def files_of_versions(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[list[str], str]]:
    """The data files and the transaction of each version, as soon as it exists."""
    found: dict[int, tuple[list[str], str]] = {}
    real = lance.LanceDataset.commit

    def commit(*arguments: object, **named: object) -> object:
        dataset = real(*arguments, **named)
        version = int(dataset.version)
        found[version] = (
            data_files(dataset),
            f"_transactions/{version - 1}-{dataset.read_transaction(version).uuid}.txn",
        )
        return dataset

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(commit))
    return found


def test_data_files_are_forced_before_the_manifest_and_that_before_anything_goes(
    tmp_path: Path, files_of_versions: dict[int, tuple[list[str], str]], events: Events
):
    store = prepare(ListSource(DOCUMENTS), ByteTokenizer(), str(tmp_path / "x.lance"), **OPTIONS)  # type: ignore[arg-type]
    assert store.version > 9
    assert sorted(files_of_versions) == [*range(1, store.version + 1)]
    known: set[str] = set()
    for version, (names, transaction) in files_of_versions.items():
        made = events.place("commit", str(version))
        begun = events.place("commit", str(version - 1)) if version > 1 else -1
        new = {f"data/{name}" for name in names} - known
        assert new
        before = [what for kind, what in events.all[begun + 1 : made] if kind == "force"]
        assert new <= {*before}
        # Their folder too, once all of them are forced.
        assert before[-1] == "data"
        after = events.all[made + 1 : made + 5]
        manifest = f"_versions/{2**64 - 1 - version:020d}.manifest"
        expected = [manifest, transaction, "_versions", "_transactions"]
        assert after == [("force", path) for path in expected]
        known |= new
    # The folder of a new store, and its parent.
    first = events.place("commit", "1")
    assert events.all[first + 5 : first + 7] == [("force", "."), ("force", "..")]
    assert [what for kind, what in events.all if kind == "force"].count("..") == 1
    # Some data files were merged and removed.
    assert any(kind == "remove" and what.startswith("data/") for kind, what in events.all)


def test_nothing_is_forced_where_nobody_wants_it(tmp_path: Path, events: Events):
    uri = str(tmp_path / "x.lance")
    quick = prepare(ListSource(DOCUMENTS), ByteTokenizer(), uri, durable=False, **OPTIONS)  # type: ignore[arg-type]
    assert "force" not in {kind for kind, _ in events.all}
    durable = prepare(ListSource(DOCUMENTS), ByteTokenizer(), str(tmp_path / "y.lance"), **OPTIONS)  # type: ignore[arg-type]
    assert quick.commit == durable.commit
    with pytest.raises(ConfigError, match="durable is 'no'"):
        prepare(ListSource(DOCUMENTS), ByteTokenizer(), uri, durable="no")  # type: ignore[arg-type]


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str], bool], number: int) -> None:
    real = os.fsync

    def sync(descriptor: int) -> None:
        if fails(os.path.realpath(f"/proc/self/fd/{descriptor}")):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_what_the_disk_does_not_take_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    uri = str(tmp_path / "x.lance")
    append_commit(StoreLocation(uri), rows_of(1), NOTE)
    before = sorted(path for path in Path(uri).rglob("*") if path.is_file())
    with monkeypatch.context() as patch:
        failing(patch, lambda path: "/data/" in path, number)
        with pytest.raises(StoreError, match=r"cannot be written \(.*(Input/output error|No space left)"):
            append_commit(StoreLocation(uri), rows_of(2), NOTE)
    assert sorted(path for path in Path(uri).rglob("*") if path.is_file()) == before
    assert append_commit(StoreLocation(uri), rows_of(2), NOTE) == 2


def test_a_manifest_that_the_disk_does_not_take_counts_as_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The version may exist all the same, and then it is whole."""
    uri = str(tmp_path / "x.lance")
    with monkeypatch.context() as patch:
        failing(patch, lambda path: path.endswith(".manifest"), errno.EIO)
        with pytest.raises(StoreError, match="cannot be written"):
            append_commit(StoreLocation(uri), rows_of(1), NOTE)
    assert last_version(StoreLocation(uri)) == (1, NOTE)
    assert dataset_at(StoreLocation(uri), None).count_rows() == 1


def test_a_build_that_the_disk_does_not_take_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is not a conflict with another builder, although there is a version that the build has not counted."""
    uri, source = str(tmp_path / "x.lance"), ListSource(DOCUMENTS)
    with monkeypatch.context() as patch:
        failing(patch, lambda path: path.endswith(f"{2**64 - 1 - 3:020d}.manifest"), errno.EIO)
        with pytest.raises(StoreError, match="cannot be written"):
            prepare(source, ByteTokenizer(), uri, **OPTIONS)  # type: ignore[arg-type]
    assert last_version(StoreLocation(uri))[0] == 3
    store = prepare(source, ByteTokenizer(), uri, **OPTIONS)  # type: ignore[arg-type]
    assert store.commit == prepare(source, ByteTokenizer(), str(tmp_path / "y.lance"), **OPTIONS).commit  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_forces_nothing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    failing(monkeypatch, lambda path: True, number)
    assert append_commit(StoreLocation(str(tmp_path / "x.lance")), rows_of(1), NOTE) == 1


def test_in_a_bucket_nothing_is_forced(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, lambda path: True, errno.EIO)
    durability.force_data_files("s3://bucket/x.lance", ["a.lance"])
    durability.force_version("s3://bucket/x.lance", "_versions/1.manifest", "_transactions/0-a.txn", is_first=True)
