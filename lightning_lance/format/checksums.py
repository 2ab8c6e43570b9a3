"""Checksums of the files that cannot hold their own: the manifests and transactions of a store, in one small file beside them.

It is written after each commit and clean-up. Killed in between, a builder leaves a newest version without one; the next
commit makes up for it.
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
from lightning_lance.format.lance_names import (
    TRANSACTIONS,
    VERSIONS,
    is_manifest,
    of_a_version,
    transaction_of,
    version_of,
)
from lightning_lance.json_checks import count_of, json_of, list_of, object_of, text_of
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
    """The folder of a store, local or in a bucket.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None) -> None:
        self._folder = None if "://" in uri else Path(uri)
        options = lance_options(storage_options)
        with opening(uri):
            self._session = LanceFileSession(uri, options)

    def list(self, folder: str) -> list[str]:
        """List the files of a folder, by path."""
        if self._folder is not None:  # Lance lists nothing where one name is not UTF-8
            return [path for name in self.names(folder) if (self._folder / (path := f"{folder}/{name}")).is_file()]
        return [str(path) for path in self._session.list(folder)]

    def contains(self, path: str) -> bool:
        """Tell whether there is such a file."""
        if self._folder is not None:  # Lance would wait for what comes out of a pipe
            return (self._folder / path).is_file()
        return bool(self._session.contains(path))

    def names(self, folder: str) -> Sequence[str]:
        """List the names in a folder, also those that Lance's own listing stumbles over; nothing of folders below it."""
        if self._folder is not None:
            try:
                return sorted(os.listdir(self._folder / folder))  # noqa: PTH208 - names, also of folders and broken links
            except (FileNotFoundError, NotADirectoryError):
                return []
        paths = (path.removeprefix(f"{folder}/") for path in self.list(folder))
        return sorted(path for path in paths if "/" not in path)

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        if self._folder is not None:  # Lance spells some names in another way
            (self._folder / path).unlink(missing_ok=True)
            return
        self._session.delete_file(path)

    def content(self, path: str) -> bytes:
        """Read a small file."""
        if self._folder is not None:  # nothing for the folder of temporary files, where a kill would leave it
            return content_of(self._folder / path)
        with tempfile.TemporaryDirectory() as folder:
            self._session.download_file(path, str(Path(folder, "file")))
            return Path(folder, "file").read_bytes()

    def put(self, path: str, text: str) -> None:
        """Write a small file, as a whole or not at all."""
        if self._folder is not None:
            write_atomic(self._folder / path, text)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file")
            file.write_text(text, encoding="utf-8")
            self._session.upload_file(str(file), path)


def root_session(uri: str, storage_options: Mapping[str, str] | None) -> Root:
    """Open the folder of a store, local or in a bucket."""
    return Root(uri, storage_options)


def listed(session: Root) -> set[str]:
    """List the manifests and transactions that are there, by path."""
    # Beside them lie the hint of the newest version, what a killed writer left half-written, and what others put there.
    paths = {f"{folder}/{Path(path).name}" for folder in (VERSIONS, TRANSACTIONS) for path in session.list(folder)}
    return {path for path in paths if of_a_version(path)}


def sum_of(session: Root, path: str) -> Sum:
    """Hash a small file."""
    content = session.content(path)
    return Sum(len(content), xxhash.xxh3_64_hexdigest(content))


def write_sums(uri: str, storage_options: Mapping[str, str] | None, only: Collection[int] | None = None) -> bool:
    """Bring the checksums up to date. Those that are known are kept: they tell of files as they were written.

    The list is also how a clean-up and a run that tags a version see each other (`stays`): the clean-up takes versions off
    the list before it looks at the tags once more, and the run looks at the list after it has made its tag. So a version
    that is off the list comes back only by `only`.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        only: Versions to list, before the others are removed; None for those that are listed, and newer ones.

    Returns:
        Whether they could be written. If not, what they list must stay.
    """
    try:
        _write(uri, storage_options, only)
        return True
    except (ValueError, OSError, RuntimeError, StoreError) as error:
        # The commit is made, and the next one lists what is not listed now.
        _log.warning("The checksums of %s could not be written: %s", uri, lance_said(error))
        return False


def _write(uri: str, storage_options: Mapping[str, str] | None, only: Collection[int] | None) -> None:
    session, dataset = root_session(uri, storage_options), dataset_at(uri, None, storage_options)
    try:
        known = read_sums(session) or {}
        on_list = listed_versions(known)
    except ValueError:
        known, on_list = {}, set()
    sums: dict[str, Sum] = {}
    there = listed(session)
    for manifest in sorted(path for path in there if is_manifest(path)):
        version = version_of(manifest)
        if not (stays(on_list, version) if only is None else version in only):
            continue
        mine = {path: entry for path, entry in known.items() if version_of(path) == version}
        if manifest not in mine and dataset is not None:
            # Of transactions, those that made a version: others may be trying at the same time.
            transaction = transaction_of(version, dataset.read_transaction(version).uuid)
            mine = {path: sum_of(session, path) for path in (manifest, transaction) if path in there}
        sums |= mine
    text = json.dumps(sums)
    session.put(SUMS, json.dumps({"sums": text, "hash": xxhash.xxh3_64_hexdigest(text.encode())}))


def listed_versions(sums: Mapping[str, Sum]) -> set[int]:
    """Give the versions whose manifests are on a list of checksums."""
    return {version_of(path) for path in sums if is_manifest(path)}


def versions_on_list(uri: str, storage_options: Mapping[str, str] | None) -> set[int]:
    """Read which versions are on the list of checksums; none where there is no list, or it is damaged."""
    try:
        return listed_versions(read_sums(root_session(uri, storage_options)) or {})
    except (ValueError, OSError):
        return set()


def stays(on_list: Collection[int], version: int) -> bool:
    """Tell whether a version is to stay: one that is off the list is about to be removed.

    Args:
        on_list: Versions on the list.
        version: The version. One that is newer than all on the list was committed since it was written.
    """
    return version in on_list or version > max(on_list, default=0)


def read_sums(session: Root) -> dict[str, Sum] | None:
    """Read the checksums; None if there are none.

    Raises:
        ValueError: If the file is damaged itself.
    """
    if not session.contains(SUMS):
        return None
    told = object_of(json_of(session.content(SUMS).decode(), "the list of checksums"), "the list of checksums")
    if told.keys() != {"sums", "hash"}:
        raise ValueError("not what was written")
    text = text_of(told["sums"], "sums")
    if xxhash.xxh3_64_hexdigest(text.encode()) != told["hash"]:
        raise ValueError("not what was written")
    return {path: _sum_from(path, entry) for path, entry in object_of(json_of(text, "sums"), "sums").items()}


def _sum_from(path: str, entry: Any) -> Sum:
    # Nothing else is read, wherever a list that somebody else has written may point to.
    if not of_a_version(path):
        raise ValueError(f"{path!r} is neither a manifest nor a transaction")
    if len(list_of(entry, "a checksum")) != 2:
        raise ValueError(f"a checksum has {len(entry)} values: expected size and hash")
    return Sum(count_of(entry[0], "a size"), text_of(entry[1], "a hash"))
