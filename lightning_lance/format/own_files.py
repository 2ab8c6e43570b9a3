"""Find the files of a store in its folder. Files of others are never touched, and links are never followed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from lance.file import LanceFileReader

from lightning_lance.documents.columns import is_unicode
from lightning_lance.errors import StoreError
from lightning_lance.lance_names import (
    FOLDERS,
    MAGIC,
    VERSIONS,
    belongs,
    is_data_name,
    is_folder,
    is_lance_file,
    is_transaction,
    may_be_left,
    uuid_of,
)
from lightning_lance.location import StoreLocation, is_local
from lightning_lance.messages.formatting import format_list

# Besides Lance's own files: the checksums, and half-written ones of a killed builder.
_SUMS = re.compile(r"lightning_lance\.sums\.json")
_HALF_SUMS = re.compile(r"lightning_lance\.sums\.json\.[0-9a-f]{4,32}\.part")
# Columns of every store, which identify its data files.
_COLUMNS = {"tokens", "num_tokens", "split", "language"}
# Names shown in a message.
_SHOWN = 3


def check_no_links(uri: str) -> None:
    """Check that a local store contains no links, through which writes and removals would reach files of others.

    The store itself may be the target of a link.

    Raises:
        StoreError: Naming the first link, or a file among the versions whose name keeps Lance from listing them.
    """
    if not is_local(uri):
        return
    for entry in _entries(Path(uri)):
        if entry.is_symlink():
            raise StoreError(
                f"The token store {uri!r} contains the link {_path_in(uri, entry)!r}, and writing or removing through it would "
                "change files elsewhere: replace it with the files themselves, or move the whole store and link to that."
            )
        if entry.parent.name == VERSIONS and not is_unicode(entry.name):
            raise StoreError(
                f"The token store {uri!r} has a file in {VERSIONS} whose name is not UTF-8 ({entry.name!r}), so Lance lists no "
                "version: move the file elsewhere."
            )


def left_files(uri: str) -> set[str]:
    """Return the paths of files in a local store that a killed builder may have left, by their names."""
    left: set[str] = set()
    for entry in _entries(Path(uri)):
        path = _path_in(uri, entry)
        if _is_file(entry) and _may_be_left(path):
            left.add(path)
    return left


def is_builders(uri: str, path: str) -> bool:
    """Return whether one of `left_files` was written by a builder, by its content."""
    place = Path(uri, path)
    if is_lance_file(path):
        return is_data_file(str(place))
    if is_transaction(path):
        # A transaction holds its own uuid.
        return uuid_of(path).encode() in place.read_bytes()
    return True


def is_data_file(place: str, storage_options: Mapping[str, str] | None = None) -> bool:
    """Return whether a Lance file, local or in a bucket, has the columns of a token store."""
    if is_local(place) and not _ends_as_lance(Path(place)):
        return False
    try:
        schema = LanceFileReader(place, dict(storage_options or {}) or None).metadata().schema
    # Lance raises errors of any kind for a file that it did not write.
    except Exception:
        return False
    return {*schema.names} >= _COLUMNS


def sizes_of(uri: str) -> dict[str, int]:
    """Return the path of each file in the folder of a local store, without links, to its bytes."""
    sizes = {}
    for entry in _entries(Path(uri)):
        with suppress(OSError):  # it may have been removed meanwhile
            if _is_file(entry):
                sizes[_path_in(uri, entry)] = entry.stat().st_size
    return sizes


def is_plain_name(name: str) -> bool:
    """Return whether a name of a data file stays within its folder."""
    if is_data_name(name):
        return True
    path = PurePosixPath(name)
    return name != "" and "\\" not in name and "\0" not in name and not path.is_absolute() and ".." not in path.parts


def foreign_files(uri: str, listed: Collection[str] = ()) -> list[str]:
    """Return the paths of files of others, and of links, in the folder of a local store; `listed` are its data files' paths."""

    def is_own(entry: Path, path: str) -> bool:
        if entry.is_symlink():
            return False
        if entry.is_dir():
            return is_folder(path)
        if path in listed or _belongs(path):
            return True
        return _may_be_left(path) and entry.is_file() and is_builders(uri, path)

    foreign: list[str] = []
    for entry in _entries(Path(uri)):
        path = _path_in(uri, entry)
        if not is_own(entry, path):
            foreign.append(path)
    return foreign


def foreign_objects(location: StoreLocation, paths: Collection[str], listed: Collection[str] = ()) -> list[str]:
    """Return the paths of objects of others among those at the place of a store in a bucket; `listed` are its data files'."""

    def is_own(path: str) -> bool:
        # Some tools make objects to represent folders.
        if path in listed or path in FOLDERS or _belongs(path):
            return True
        if not _may_be_left(path):
            return False
        return not is_lance_file(path) or is_data_file(f"{location.uri}/{path}", location.storage_options)

    return sorted(path for path in paths if not is_own(path))


def describe_files(paths: Collection[str]) -> str:
    """Return the names of the first files, for a message."""
    return format_list([*map(repr, sorted(paths))], _SHOWN)


def _entries(root: Path) -> Iterator[Path]:
    """Yield the entries of a store's folder and of its known subfolders, without following links."""
    folders = [root]
    while folders:
        try:
            entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            path = Path(entry.path)
            yield path
            if entry.is_dir(follow_symlinks=False) and is_folder(_path_in(str(root), path)):
                folders.append(path)


def _is_file(entry: Path) -> bool:
    """Return whether an entry is a file itself, and not a link to one."""
    return entry.is_file() and not entry.is_symlink()


def _path_in(uri: str, entry: Path) -> str:
    return entry.relative_to(uri).as_posix()


def _may_be_left(path: str) -> bool:
    return may_be_left(path) or _HALF_SUMS.fullmatch(path) is not None


def _belongs(path: str) -> bool:
    return belongs(path) or _SUMS.fullmatch(path) is not None


def _ends_as_lance(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() < len(MAGIC):
            return False
        file.seek(-len(MAGIC), os.SEEK_END)
        return file.read() == MAGIC
