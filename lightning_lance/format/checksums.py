"""Checksums of the manifests and transactions of a store, in one small file beside them.

The file is written after each commit and clean-up. A builder killed in between leaves its newest version without checksums;
the next commit adds them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from lance.file import LanceFileSession

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import dataset_at, lance_options, lance_said, opening
from lightning_lance.json_checks import count_of, json_of, list_of, object_of, text_of
from lightning_lance.lance_names import TRANSACTIONS, VERSIONS, is_manifest, of_a_version, transaction_of, version_of
from lightning_lance.location import StoreLocation
from lightning_lance.messages.escaping import logger
from lightning_lance.process.files import write_atomic
from lightning_lance.process.locks import content_of

_log = logger(__name__)

SUMS = "lightning_lance.sums.json"


class Sum(NamedTuple):
    """Size in bytes and xxh3_64 of a file."""

    size: int
    hash: str


class Root:
    """The folder of a store, local or in a bucket."""

    def __init__(self, location: StoreLocation) -> None:
        # Local files are not read through Lance: it lists nothing if one name is not UTF-8, respells some names, and blocks
        # on a pipe.
        self._folder = None if "://" in location.uri else Path(location.uri)
        options = lance_options(location)
        with opening(location.uri):
            self._session = LanceFileSession(location.uri, options)

    def list(self, folder: str) -> list[str]:
        """Return the paths of the files in a folder."""
        if self._folder is None:
            return list(map(str, self._session.list(folder)))
        files: list[str] = []
        for name in self.names(folder):
            path = f"{folder}/{name}"
            if self.contains(path):
                files.append(path)
        return files

    def contains(self, path: str) -> bool:
        """Return whether a file exists."""
        if self._folder is not None:
            return (self._folder / path).is_file()
        return bool(self._session.contains(path))

    def names(self, folder: str) -> Sequence[str]:
        """Return the names in a folder, without those in folders below it."""
        if self._folder is not None:
            try:
                return sorted(os.listdir(self._folder / folder))  # noqa: PTH208 - names, also of folders and broken links
            except (FileNotFoundError, NotADirectoryError):
                return []
        names: list[str] = []
        for path in self.list(folder):
            name = path.removeprefix(f"{folder}/")
            if "/" not in name:
                names.append(name)
        return sorted(names)

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        if self._folder is not None:
            (self._folder / path).unlink(missing_ok=True)
            return
        self._session.delete_file(path)

    def content(self, path: str) -> bytes:
        """Return the bytes of a small file."""
        # A local file needs no temporary folder, which a kill would leave behind.
        if self._folder is not None:
            return content_of(self._folder / path)
        with tempfile.TemporaryDirectory() as folder:
            self._session.download_file(path, str(Path(folder, "file")))
            return Path(folder, "file").read_bytes()

    def upload(self, file: str, path: str) -> None:
        """Copy a local file into a bucket, as one object."""
        self._session.upload_file(file, path)

    def put(self, path: str, text: str) -> None:
        """Write a small file atomically."""
        if self._folder is not None:
            write_atomic(self._folder / path, text)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file")
            file.write_text(text, encoding="utf-8")
            self._session.upload_file(str(file), path)


def listed(session: Root) -> set[str]:
    """Return the paths of all manifests and transactions."""
    found: set[str] = set()
    for folder in (VERSIONS, TRANSACTIONS):
        for listed_path in session.list(folder):
            path = f"{folder}/{Path(listed_path).name}"
            # The folders also hold the hint of the newest version, half-written files, and files of other programs.
            if of_a_version(path):
                found.add(path)
    return found


def sum_of(session: Root, path: str) -> Sum:
    """Return the size and hash of a small file."""
    content = session.content(path)
    return Sum(len(content), xxhash.xxh3_64_hexdigest(content))


def write_sums(location: StoreLocation, only: Collection[int] | None = None) -> bool:
    """Update the checksums. Known ones are kept, since they are of the files as they were written.

    The list also coordinates a clean-up with a run that tags a version (`stays`). The clean-up removes versions from the
    list before it checks the tags once more, and the run checks the list after it has made its tag. So only `only` puts a
    version back on the list.

    Args:
        location: The store.
        only: Versions to list, before the others are removed; None for the listed ones and newer ones.

    Returns:
        Whether the list was written. If not, the versions on it must not be removed.
    """
    try:
        _write(location, only)
        return True
    except (ValueError, OSError, RuntimeError, StoreError) as error:
        # The commit was made, and the next one adds its checksums.
        _log.warning("The checksums of %s could not be written: %s", location.uri, lance_said(error))
        return False


def _write(location: StoreLocation, only: Collection[int] | None) -> None:
    session = Root(location)
    dataset = dataset_at(location, None)
    try:
        known = read_sums(session) or {}
    except ValueError:
        known = {}
    on_list = listed_versions(known)
    sums: dict[str, Sum] = {}
    found = listed(session)
    for manifest in sorted(filter(is_manifest, found)):
        version = version_of(manifest)
        wanted = stays(on_list, version) if only is None else version in only
        if not wanted:
            continue
        if manifest in known or dataset is None:
            sums |= _of_version(known, version)
            continue
        sums[manifest] = sum_of(session, manifest)
        # Only the transaction of this version: other processes may be trying to commit at the same time.
        transaction = transaction_of(version, dataset.read_transaction(version).uuid)
        if transaction in found:
            sums[transaction] = sum_of(session, transaction)
    session.put(SUMS, _text_of(sums))


def _text_of(sums: Mapping[str, Sum]) -> str:
    text = json.dumps(sums)
    return json.dumps({"sums": text, "hash": xxhash.xxh3_64_hexdigest(text.encode())})


def sums_of_version(location: StoreLocation, version: int) -> str:
    """Return the content of the file of checksums for a copy of a store that has one version only.

    Raises:
        ValueError: If the file of checksums is damaged.
    """
    known = read_sums(Root(location)) or {}
    return _text_of(_of_version(known, version))


def _of_version(sums: Mapping[str, Sum], version: int) -> dict[str, Sum]:
    """Return the checksums of the files of a version."""
    return {path: entry for path, entry in sums.items() if version_of(path) == version}


def listed_versions(sums: Mapping[str, Sum]) -> set[int]:
    """Return the versions whose manifests are on a list of checksums."""
    return set(map(version_of, filter(is_manifest, sums)))


def versions_on_list(location: StoreLocation) -> set[int]:
    """Return the versions on the list of checksums; none if the list is missing or damaged."""
    try:
        return listed_versions(read_sums(Root(location)) or {})
    except (ValueError, OSError):
        return set()


def stays(on_list: Collection[int], version: int) -> bool:
    """Return whether a version is to stay. One that is not on the list is about to be removed.

    But one that is newer than all on the list was committed after the list was written.
    """
    return version in on_list or version > max(on_list, default=0)


def read_sums(session: Root) -> dict[str, Sum] | None:
    """Read the checksums; None if there are none. ValueError if their file is damaged."""
    if not session.contains(SUMS):
        return None
    stored = object_of(json_of(session.content(SUMS).decode(), "the list of checksums"), "the list of checksums")
    if stored.keys() != {"sums", "hash"}:
        raise ValueError(f"the list of checksums has other fields than sums and hash: {', '.join(stored)}")
    text = text_of(stored["sums"], "sums")
    if xxhash.xxh3_64_hexdigest(text.encode()) != stored["hash"]:
        raise ValueError("the list of checksums differs from its own hash")
    sums: dict[str, Sum] = {}
    for path, entry in object_of(json_of(text, "sums"), "sums").items():
        sums[path] = _sum_from(path, entry)
    return sums


def _sum_from(path: str, entry: Any) -> Sum:
    # No other file is read, whatever path a manipulated list contains.
    if not of_a_version(path):
        raise ValueError(f"{path!r} is neither a manifest nor a transaction")
    if len(list_of(entry, "a checksum")) != 2:
        raise ValueError(f"a checksum has {len(entry)} values: expected size and hash")
    return Sum(count_of(entry[0], "a size"), text_of(entry[1], "a hash"))
