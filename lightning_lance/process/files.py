"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import glob
import re
import secrets
from pathlib import Path

# How the name of a file goes on until it is whole.
_PART = re.compile(r"\.[0-9a-f]{4,32}\.part")


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that readers find all of it or what was there before; for one writer at a time.

    What writers that were killed left behind is removed.

    Raises:
        OSError: If it cannot be written; also if it is a link, which would be lost.
    """
    if path.is_symlink():
        raise FileExistsError(errno.EEXIST, "It is a link", str(path))
    remove_parts(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_parts(path: Path) -> None:
    """Remove what killed writers of a file left behind."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        if _PART.fullmatch(left.name, len(path.name)) and left.is_file() and not left.is_symlink():
            left.unlink(missing_ok=True)
