"""Where reports go: a file of the user's, which is replaced at once and only if it is an earlier report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError
from lightning_lance.location import given_place, is_local
from lightning_lance.process.files import replacing

#: Stands near the begin of each page that is written here.
MARK = '<meta name="generator" content="lightning-lance report">'
#: The key of the metadata that each Parquet file has that is written here.
KEY = "lightning_lance.token_counts"
# Bytes in which the mark stands.
_HEAD = 2048


class Target(NamedTuple):
    """A file to write.

    Attributes:
        name: What it is called in messages: the argument.
        path: Its path.
        overwrite: Whether a file of others is replaced too.
        is_ours: Whether a file is one that may be replaced.
    """

    name: str
    path: Path
    overwrite: bool
    is_ours: Callable[[Path], bool]

    def check(self) -> None:
        """Check that the file may be written.

        Raises:
            ConfigError: If it is one of others, a link or a folder, or its folder is missing.
        """
        path = self.path
        if path.is_symlink():
            raise ConfigError(f"{self.name} is {str(path)!r}, a link: give the place that it leads to.")
        if path.is_dir():
            raise ConfigError(f"{self.name} is {str(path)!r}, a folder: give a file, such as {path / 'report.html'}.")
        if not path.parent.is_dir():
            raise ConfigError(
                f"{self.name} is {str(path)!r}, but there is no folder {str(path.parent)!r}: make it first."
            )
        if path.exists() and not self.overwrite and not self._is_ours():
            raise ConfigError(
                f"{self.name} is {str(path)!r}, a file that is no earlier report: give another place, or overwrite=true to "
                "replace it."
            )

    def _is_ours(self) -> bool:
        try:
            return self.is_ours(self.path)
        except Exception:  # a file of others may break any reader
            return False

    @contextmanager
    def part(self) -> Iterator[Path]:
        """Yield the path of a new file that takes the place of this one at the end.

        Raises:
            ConfigError: If it cannot be written.
        """
        try:
            with replacing(self.path) as part:
                yield part
                self.check()
        except OSError as error:
            raise ConfigError(
                f"{self.name} cannot be written to {str(self.path)!r} ({error.strerror}): give another place."
            ) from error


def target(name: str, path: Any, overwrite: bool, store: str, is_ours: Callable[[Path], bool]) -> Target:
    """Return a file to write, checked.

    Args:
        name: The argument.
        path: Its value.
        overwrite: Whether a file of others is replaced too.
        store: The place of the store, in which nothing is written.
        is_ours: Whether a file is one that may be replaced.

    Raises:
        ConfigError: If it cannot be written.
    """
    place = given_place(path, name)
    if not is_local(place):
        raise ConfigError(f"{name} is {place!r}: expected a file on this machine.")
    found = Path(place)
    if is_local(store) and Path(os.path.realpath(store)) in Path(os.path.realpath(found)).parents:
        raise ConfigError(
            f"{name} is {place!r}, inside the token store, which holds no other files: give another place."
        )
    made = Target(name, found, overwrite, is_ours)
    made.check()
    return made


def is_report(path: Path) -> bool:
    """Return whether a file is a page that was written here."""
    with path.open("rb") as stream:
        return MARK.encode() in stream.read(_HEAD)


def is_token_counts(path: Path) -> bool:
    """Return whether a file holds token counts that were written here."""
    import pyarrow.parquet as pq

    return KEY.encode() in (pq.read_schema(path).metadata or {})
