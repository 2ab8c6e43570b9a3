"""Checksums of the files that cannot hold their own: the manifests and transactions of a store, in one small file beside them.

It is written after each commit and clean-up. Killed in between, a builder leaves a newest version without one; the next
commit makes up for it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from lance.file import LanceFileSession

from lightning_lance.fragments import lance_options

SUMS = "lightning_lance.sums.json"
_FOLDERS = ("_versions", "_transactions")
# It changes with every commit, whoever makes it.
_HINT = "latest_version_hint.json"
_CHUNK = 16 << 20


class Sum(NamedTuple):
    """Size in bytes and xxh3_64 of a file."""

    size: int
    hash: str


def root_session(uri: str, storage_options: Mapping[str, str] | None) -> LanceFileSession:
    """Open the folder of a store, local or in a bucket."""
    return LanceFileSession(uri, lance_options(storage_options))


def listed(session: Any) -> set[str]:
    """List the manifests and transactions that are there, by path."""
    found = {f"{folder}/{Path(path).name}" for folder in _FOLDERS for path in session.list(folder)}
    return {path for path in found if not path.endswith(_HINT)}


def sum_of(session: Any, path: str) -> Sum:
    """Hash a small file."""
    with tempfile.TemporaryDirectory() as folder:
        session.download_file(path, str(Path(folder, "file")))
        content = Path(folder, "file").read_bytes()
    return Sum(len(content), xxhash.xxh3_64_hexdigest(content))


def write_sums(uri: str, storage_options: Mapping[str, str] | None, only: Collection[int] | None = None) -> None:
    """Bring the checksums up to date. Those that are known are kept: they tell of files as they were written.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        only: Versions to list, before the others are removed; None for all.
    """
    session = root_session(uri, storage_options)
    try:
        known = read_sums(session) or {}
    except ValueError:
        known = {}
    paths = [path for path in sorted(listed(session)) if only is None or _version_of(path) in only]
    sums = {path: known.get(path) or sum_of(session, path) for path in paths}
    text = json.dumps(sums)
    content = json.dumps({"sums": text, "hash": xxhash.xxh3_64_hexdigest(text.encode())})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, SUMS)
        file.write_text(content, encoding="utf-8")
        session.upload_file(str(file), SUMS)


def _version_of(path: str) -> int:
    name = path.rpartition("/")[2]
    if name.endswith(".txn"):
        return int(name.partition("-")[0]) + 1
    # Lance counts down, so that the newest is listed first.
    return 2**64 - 1 - int(name.partition(".")[0])


def read_sums(session: Any) -> dict[str, Sum] | None:
    """Read the checksums; None if there are none.

    Raises:
        ValueError: If the file is damaged itself.
    """
    if not session.contains(SUMS):
        return None
    with tempfile.TemporaryDirectory() as folder:
        session.download_file(SUMS, str(Path(folder, SUMS)))
        content = Path(folder, SUMS).read_bytes()
    told = json.loads(content)
    if not isinstance(told, dict) or told.keys() != {"sums", "hash"}:
        raise ValueError("not what was written")
    if xxhash.xxh3_64_hexdigest(told["sums"].encode()) != told["hash"]:
        raise ValueError("not what was written")
    return {path: Sum(*entry) for path, entry in json.loads(told["sums"]).items()}
