"""The files of a set of tokens, by split."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.location import is_local
from lightning_lance.sources.local_paths import (
    from_folder,
    hint,
    is_denied,
    local_path,
    readable,
    what_is_there,
)

#: Names of the splits in other tools, and ours.
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val"}


class Found(NamedTuple):
    """A file or folder of a set, and its split: `train`, `val`, or empty where the set does not say."""

    split: str
    path: Path


_Find = Callable[[Path], Iterator[Found]]


class Places(NamedTuple):
    """Where a set is.

    Attributes:
        base: The folder that relative places are relative to.
        place: The set, or its training tokens.
        val: Its validation tokens, if they are elsewhere.
    """

    base: str
    place: str
    val: str | None

    def files(self, ending: str, what: str) -> list[Found]:
        """Return files with an ending: the named one, or those of the named folder.

        Raises:
            ConfigError: If there are none; `what` says what was expected.
        """
        return self._found(lambda path: _files(path, ending), what)

    def folders(self, index: str, what: str) -> list[Found]:
        """Return folders with an index: the named one, or its folders `train` and `val`.

        Raises:
            ConfigError: If there are none; `what` says what was expected.
        """
        return self._found(lambda path: _folders(path, index), what)

    def _found(self, find: _Find, what: str) -> list[Found]:
        found = self._at("place", self.place, find, what)
        if self.val is None:
            return sorted(found, key=lambda one: one.split != "val")
        if any(one.split == "val" for one in found):
            raise ConfigError(
                f"{self.place!r} has validation tokens of its own, and val is {self.val!r}: leave out val, or name the "
                "training tokens alone."
            )
        val = self._at("val", self.val, find, what)
        train_paths = {one.path.resolve() for one in found}
        for one in val:
            if one.path.resolve() in train_paths:
                raise ConfigError(f"{str(one.path)!r} is read for training and for validation: give two places.")
        # Validation first, as in a build, so that it is whole in a store of any budget.
        return [*_of_split("val", val), *_of_split("train", found)]

    def _at(self, name: str, place: str, find: _Find, what: str) -> list[Found]:
        if not is_local(place):
            raise ConfigError(f"{name} is {place!r}: expected {what} on a disk of this machine; copy it there first.")
        path = Path(from_folder(self.base, local_path(place)))
        try:
            found = list(find(path))
        except PermissionError as error:
            raise denied(name, place) from error
        if not found:
            raise nothing_at(name, place, self.base, what)
        for one in found:
            if is_denied(one.path):
                raise denied(name, str(one.path))
        return found


def _of_split(split: str, found: Sequence[Found]) -> list[Found]:
    return [Found(split, one.path) for one in found]


def nothing_at(name: str, place: str, base: str, what: str) -> ConfigError | SourceError:
    """Return the error for a local place without what is expected there.

    Args:
        name: Name of the argument: `place` or `val`.
        place: As the user wrote it.
        base: The folder that it is relative to.
        what: What was expected.
    """
    path = from_folder(base, local_path(place))
    if is_denied(path):
        return denied(name, place)
    if os.path.isdir(path):
        there = "a folder without such files"
    else:
        there = what_is_there(path)
        near = hint(place, base)
        if near:
            there = f"{there} ({near})"
    return ConfigError(f"{name} is {readable(place)!r}, {there}: expected {what}; check the place and the format.")


def denied(name: str, place: str) -> SourceError:
    """Return the error for a place that must not be read."""
    return SourceError(f"{name} is {readable(place)!r}, which cannot be read (Permission denied): grant read access.")


def _files(path: Path, ending: str) -> Iterator[Found]:
    for named in (path, path.with_name(path.name + ending), path.with_suffix(ending)):
        if named.is_file() and named.suffix == ending:
            yield Found("", named)
            return
    if not path.is_dir():
        return
    by_split: dict[str, Found] = {}
    for name, split in SPLIT_NAMES.items():
        file = path / f"{name}{ending}"
        if file.is_file():
            by_split.setdefault(split, Found(split, file))
    if len(by_split) == 2:
        yield from by_split.values()
        return
    for file in sorted(path.glob(f"*{ending}")):
        if file.is_file() and not file.name.startswith("."):
            yield Found("", file)


def _folders(path: Path, index: str) -> Iterator[Found]:
    if (path / index).is_file():
        yield Found("", path)
        return
    by_split: dict[str, Found] = {}
    for name, split in SPLIT_NAMES.items():
        if (path / name / index).is_file():
            by_split.setdefault(split, Found(split, path / name))
    for one in by_split.values():
        # A single one is the whole set.
        yield one if len(by_split) == 2 else Found("", one.path)
