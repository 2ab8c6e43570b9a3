"""From offsets of a stream to places on disk: one table of segments, and the gather that reads through it.

A segment is a run of tokens that are next to each other both in the stream and where they are kept. There is
one for each turn that a stream has in a commit, so the table stays small however large the store.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lightning_lance.errors import StoreError

# Page faults that waited for the disk, for each so many windows, that tell of a store which is not in the page cache.
_WINDOWS_PER_FAULT = 16
# Gathers that announce their reads after that, before the next look.
_ANNOUNCED = 32


class Runs(NamedTuple):
    """Pieces of windows: `length` tokens from `place` go to `row` of the batch, from `column` on. All (n,) int64."""

    row: np.ndarray
    column: np.ndarray
    place: np.ndarray
    length: np.ndarray


@dataclass(frozen=True)
class SegmentTable:
    """Segments in the order of the stream.

    Attributes:
        starts: (n + 1,) int64 offsets in the stream: segment i holds the tokens from `starts[i]` to `starts[i + 1]`.
        places: (n,) int64 place of the first token of each segment, in tokens.
    """

    starts: np.ndarray
    places: np.ndarray

    @classmethod
    def from_parts(cls, num_tokens: np.ndarray, places: np.ndarray) -> SegmentTable:
        """Join parts that follow each other.

        Args:
            num_tokens: (n,) tokens of each part, in the order of the stream.
            places: (n,) place of the first token of each part, in tokens.
        """
        if not len(places):
            return cls(np.zeros(1, np.int64), np.empty(0, np.int64))
        first = np.concatenate([[0], np.flatnonzero(places[:-1] + num_tokens[:-1] != places[1:]) + 1])
        offsets = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])
        return cls(np.append(offsets[first], offsets[-1]), places[first].astype(np.int64))

    @property
    def num_tokens(self) -> int:
        """Tokens in all segments."""
        return int(self.starts[-1])

    def check(self, starts: np.ndarray, length: int) -> None:
        """Refuse windows that are not whole in the stream.

        Raises:
            StoreError: If one begins before the first token or ends after the last.
        """
        if length < 1:
            raise StoreError(f"Windows of {length} tokens are asked for: expected 1 or more.")
        if len(starts) and (int(starts.min()) < 0 or int(starts.max()) + length > self.num_tokens):
            raise StoreError(
                f"Windows of {length} tokens start at {int(starts.min())} to {int(starts.max())}, but the stream has "
                f"{self.num_tokens} tokens: a window must lie in it whole."
            )

    def whole(self, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Locate windows: (n,) places of their first tokens, and (n,) whether all the tokens follow there."""
        segment = np.searchsorted(self.starts, starts, side="right") - 1
        return starts - self.starts[segment] + self.places[segment], starts + length <= self.starts[segment + 1]

    def runs(self, starts: np.ndarray, length: int) -> Runs:
        """Cut windows of `length` tokens at the borders of the segments."""
        rows, columns, places, counts = [], [], [], []
        row, column = np.arange(len(starts)), np.zeros(len(starts), np.int64)
        while len(row):
            at = starts[row] + column
            segment = np.searchsorted(self.starts, at, side="right") - 1
            count = np.minimum(self.starts[segment + 1] - at, length - column)
            rows.append(row)
            columns.append(column)
            places.append(at - self.starts[segment] + self.places[segment])
            counts.append(count)
            more = column + count < length
            row, column = row[more], (column + count)[more]
        empty = [np.empty(0, np.int64)]
        return Runs(*(np.concatenate(part or empty) for part in (rows, columns, places, counts)))


class MappedFiles:
    """Local files mapped into memory, with one address space of tokens over all of them.

    The files lie where the operating system put them. A view with a stride of one token over the whole range of addresses
    turns any place into a row index, so windows of many files are still one vectorised gather. What lies between the files
    is other memory of this process. So every gather first holds its places against the extents of the files, and refuses
    one that leaves them, whoever has worked out the places.

    What is not in the page cache would be fetched one window after the other. So when a gather had to wait for the disk, the
    ones after it announce all their windows to the operating system first, which then reads many at once.

    Args:
        files: Local files, none of them empty.
        dtype: Of the tokens.
    """

    def __init__(self, files: Sequence[str | Path], dtype: np.dtype[Any]) -> None:
        self._files = [str(file) for file in files]
        handles = []
        for file in files:
            with Path(file).open("rb") as stream:
                handles.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        maps = [np.frombuffer(handle, np.uint8) for handle in handles]
        addresses = np.asarray([mapped.ctypes.data for mapped in maps], dtype=np.int64)
        sizes = np.asarray([len(mapped) for mapped in maps], dtype=np.int64)
        self._item = dtype.itemsize
        self._handles, self._sizes = handles, sizes
        self._bytes_before = addresses - addresses.min()
        # The files by address, and where each begins and ends, in whole tokens; the first one begins at 0.
        self._order = np.argsort(self._bytes_before)
        self._begins = self._bytes_before[self._order] // self._item
        self._ends = self._begins + sizes[self._order] // self._item
        first = maps[int(self._order[0])]
        self._base = first[: len(first) // self._item * self._item].view(dtype)
        self._views: tuple[int, np.ndarray] = 1, self._view(1)
        self._announcements = 0

    def place(self, file: int, offset: int, tokens: int) -> int:
        """Give the place, in tokens, of some tokens at a byte offset of a file.

        Raises:
            StoreError: If the offset is not a multiple of the token size, or the tokens do not lie in the file.
        """
        if offset % self._item:
            raise StoreError(
                f"Tokens at byte {offset} are not aligned to {self._item} bytes, so they cannot be mapped."
            )
        size = int(self._sizes[file])
        if offset < 0 or tokens < 0 or offset + tokens * self._item > size:
            raise StoreError(
                f"The data file {self._files[file]!r} says that {tokens:,} tokens lie at byte {offset:,}, but it ends at byte "
                f"{size:,}: it is damaged; bring it back, or remove the store and build it again."
            )
        return (int(self._bytes_before[file]) + offset) // self._item

    def gather(self, places: np.ndarray, length: int) -> np.ndarray:
        """Copy `length` tokens from each place: (n, length), of the dtype of the tokens.

        Raises:
            StoreError: If a window does not lie in one file whole. Nothing was read then.
        """
        files = self._files_of(places, np.int64(length))
        announced = self._announcements > 0
        if announced:
            self._announcements -= 1
            self._announce(files, places, length)
        known, view = self._views
        if known != length:
            view = self._view(length)
            self._views = length, view
        before = _disk_faults()
        windows: np.ndarray = view[places]
        if not announced and (_disk_faults() - before) * _WINDOWS_PER_FAULT > len(places):
            self._announcements = _ANNOUNCED
        return windows

    def fill(self, windows: np.ndarray, runs: Runs) -> None:
        """Copy pieces of windows to where they belong in `windows`.

        Raises:
            StoreError: If a piece does not lie in one file whole. Nothing was read then.
        """
        self._files_of(runs.place, runs.length)
        tokens = self._view(1)[:, 0]
        for row, column, place, count in zip(*(part.tolist() for part in runs), strict=True):
            windows[row, column : column + count] = tokens[place : place + count]

    def _view(self, length: int) -> np.ndarray:
        """Give the windows at all places; what they show outside the files must not be read."""
        shape = (max(int(self._ends[-1]) - length + 1, 0), length)
        return as_strided(self._base, shape, (self._item, self._item), writeable=False)

    def _files_of(self, places: np.ndarray, lengths: np.ndarray | np.int64) -> np.ndarray:
        """Give the file of each place, (n,) by address; StoreError if its tokens do not lie in that file whole."""
        files = np.searchsorted(self._begins[1:], places, side="right")
        # Not `places + lengths`, which may be more than an int64 holds.
        if len(places) and (places.min() < 0 or np.min(lengths) < 1 or (places > self._ends[files] - lengths).any()):
            raise StoreError(
                "Windows of the store do not lie in its data files: what the store says of its rows does not fit them; "
                "'lightning-lance verify' tells what is damaged."
            )
        return files

    def _announce(self, files: np.ndarray, places: np.ndarray, length: int) -> None:
        order = self._order[files]
        begins = places * self._item - self._bytes_before[order]
        pages = begins // mmap.PAGESIZE * mmap.PAGESIZE
        for file, page, size in zip(
            order.tolist(), pages.tolist(), (begins - pages + length * self._item).tolist(), strict=True
        ):
            self._handles[file].madvise(mmap.MADV_WILLNEED, page, size)


def _disk_faults() -> int:
    """Count the page faults of this thread that waited for the disk; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
