"""Which files in the folder of a local store are its own: all others are left alone, and links are not followed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from lance.file import LanceFileReader

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_names import (
    FOLDERS,
    MAGIC,
    VERSIONS,
    belongs,
    is_folder,
    is_lance_file,
    is_transaction,
    may_be_left,
    uuid_of,
)
from lightning_lance.location import is_local

# Beside Lance's own files: the checksums, and what a killed writer of theirs left.
_SUMS = re.compile(r"lightning_lance\.sums\.json")
_HALF_SUMS = re.compile(r"lightning_lance\.sums\.json\.[0-9a-f]{4,32}\.part")
# What the rows of every store have.
_COLUMNS = {"tokens", "num_tokens", "split", "language"}
# So many names are told.
_TOLD = 3


def check_no_links(uri: str) -> None:
    """Refuse to write to a local store that has a link inside, or to remove files from it: they would be others'.

    The store itself may be at the end of a link.

    Raises:
        StoreError: Naming the first link; or a file among the versions whose name keeps Lance from listing them.
    """
    if not is_local(uri):
        return
    for entry in _entries(Path(uri)):
        if entry.is_symlink():
            raise StoreError(
                f"The token store {uri!r} has a link inside ({entry.relative_to(uri).as_posix()!r}), so nothing is written "
                "to it or removed from it, since that would reach files elsewhere: put the files themselves in its place, or "
                "move the whole store and link to it."
            )
        if entry.parent.name == VERSIONS and not _is_utf8(entry.name):
            raise StoreError(
                f"The token store {uri!r} has a file in {VERSIONS} whose name is not UTF-8 ({entry.name!r}), where Lance lists "
                "no version then: move it elsewhere."
            )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def left_files(uri: str) -> set[str]:
    """List the files of a local store that have such names as killed builders leave, by path; never through a link."""
    return {path for entry in _entries(Path(uri)) if _is_file(entry) and _may_be_left(path := _path_in(uri, entry))}


def is_builders(uri: str, path: str) -> bool:
    """Tell whether a file, one of `left_files`, was written by a builder, by what is in it."""
    place = Path(uri, path)
    if is_lance_file(path):
        return is_data_file(str(place))
    if is_transaction(path):
        # A transaction holds its own uuid.
        return uuid_of(path).encode() in place.read_bytes()
    return True


def is_data_file(place: str, storage_options: dict[str, str] | None = None) -> bool:
    """Tell whether a Lance file, local or in a bucket, has the columns of a token store."""
    if is_local(place) and not _ends_as_lance(Path(place)):
        return False
    try:
        schema = LanceFileReader(place, storage_options).metadata().schema
    except Exception:  # of whatever kind: it is no file that Lance wrote
        return False
    return {*schema.names} >= _COLUMNS


def is_plain_name(name: str) -> bool:
    """Tell whether what names a data file stays in its folder."""
    path = PurePosixPath(name)
    return name != "" and "\\" not in name and "\0" not in name and not path.is_absolute() and ".." not in path.parts


def foreign_files(uri: str, listed: Collection[str] = ()) -> list[str]:
    """List what lies in the folder of a local store and is not its own, links included, by path.

    Args:
        uri: The folder.
        listed: The data files that its versions name, by path.
    """
    foreign = []
    for entry in _entries(Path(uri)):
        path = _path_in(uri, entry)
        if entry.is_symlink():
            foreign.append(path)
        elif entry.is_dir():
            if not is_folder(path):
                foreign.append(path)
        elif not _is_own(uri, path, listed):
            foreign.append(path)
    return foreign


def foreign_objects(
    uri: str, paths: Collection[str], storage_options: dict[str, str] | None, listed: Collection[str] = ()
) -> list[str]:
    """List what lies at the place of a store in a bucket and is not its own, by path.

    Args:
        uri: The store.
        paths: All objects that are there, by path.
        storage_options: Credentials and such, as Lance takes them.
        listed: The data files that its versions name, by path.
    """

    def is_own(path: str) -> bool:
        # Some tools make objects that stand for folders.
        if path in listed or path in FOLDERS or _belongs(path):
            return True
        if not _may_be_left(path):
            return False
        return not is_lance_file(path) or is_data_file(f"{uri}/{path}", storage_options)

    return sorted(path for path in paths if not is_own(path))


def describe_files(paths: Collection[str]) -> str:
    """Name some files for a message."""
    first = sorted(paths)[:_TOLD]
    more = len(paths) - len(first)
    return ", ".join(map(repr, first)) + (f" and {more:,} more" if more else "")


def _is_own(uri: str, path: str, listed: Collection[str]) -> bool:
    if path in listed or _belongs(path):
        return True
    return _may_be_left(path) and _is_file(Path(uri, path)) and is_builders(uri, path)


def _entries(root: Path) -> Iterator[Path]:
    """Go through a folder, and through those in it that a store has; never through a link."""
    folders = [root]
    while folders:
        try:
            entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            path = Path(entry.path)
            yield path
            known = _path_in(str(root), path)
            if entry.is_dir(follow_symlinks=False) and is_folder(known):
                folders.append(path)


def _path_in(uri: str, entry: Path) -> str:
    return entry.relative_to(uri).as_posix()


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


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
