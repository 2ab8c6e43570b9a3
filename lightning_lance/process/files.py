"""Atomic writing of files."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Suffix of an incomplete file.
_PART = re.compile(r"\.[0-9a-f]{4,32}\.part")


def write_atomic(path: Path, text: str) -> None:
    """Write a file in one step: readers see the old content or the new one. Only for one writer at a time.

    Removes the parts left by killed writers.

    Raises:
        OSError: If it cannot be written, or is a link, which would be replaced.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which takes the place of another one in one step at the end; see `write_atomic`."""
    if path.is_symlink():
        raise FileExistsError(errno.EEXIST, "It is a link", str(path))
    remove_parts(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_parts(path: Path) -> None:
    """Remove the parts of a file left by killed writers."""
    try:
        # Names only: a pattern would be compiled anew for each file that is written.
        names = os.listdir(path.parent)  # noqa: PTH208 - names
    except OSError:
        # There are none, or the write that follows fails with the reason.
        return
    for name in names:
        if not name.startswith(f"{path.name}.") or not _PART.fullmatch(name, len(path.name)):
            continue
        left = path.with_name(name)
        if left.is_file() and not left.is_symlink():
            left.unlink(missing_ok=True)
