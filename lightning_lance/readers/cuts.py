"""Places in a shard where a reading may begin, so that several workers can read it."""

from __future__ import annotations

from typing import NamedTuple


class Cut(NamedTuple):
    """A place in a shard where a reading may begin.

    Attributes:
        row: Its row.
        place: Where its reader finds it, such as a row group or a byte.
    """

    row: int
    place: int
