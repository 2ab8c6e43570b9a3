"""Find and read tokens: a table of segments from offsets in a stream to places on disk, and the gather through it.

A segment is a run of tokens that are contiguous both in the stream and on disk. Each run of a stream's rows in a fragment is
one, so the table stays small however large the store.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from lightning_lance.errors import StoreError
from lightning_lance.store.file_maps import FileMaps, MadeMaps, memory_of, will_need

# With more page faults that waited for the disk than one per so many windows, a store is not in the page cache.
_WINDOWS_PER_FAULT = 16
# Gathers that announce their reads after such a measurement, before the next one.
_ANNOUNCED = 32


class Runs(NamedTuple):
    """Pieces of windows: `length` tokens from `place` go to `row` of the batch, from `column` on. All (n,) int64."""

    row: np.ndarray
    column: np.ndarray
    place: np.ndarray
    length: np.ndarray

    def where(self, chosen: np.ndarray) -> Runs:
        """Return the pieces for which `chosen`, (n,) bool, is true."""
        return Runs(self.row[chosen], self.column[chosen], self.place[chosen], self.length[chosen])


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
        """Return the table of n parts that follow each other in the stream: their tokens, and places of their first ones."""
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
        """Raise StoreError if a window begins before the first token of the stream or ends after the last."""
        if length < 1:
            raise StoreError(f"The length of windows is {length}: expected 1 or more.")
        if len(starts) and (int(starts.min()) < 0 or int(starts.max()) + length > self.num_tokens):
            raise StoreError(
                f"Windows of {length} tokens start at {int(starts.min())} to {int(starts.max())}: expected windows within the "
                f"{self.num_tokens} tokens of the stream."
            )

    def whole(self, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of windows' first tokens, (n,), and whether each window lies in one segment, (n,)."""
        segment = np.searchsorted(self.starts, starts, side="right") - 1
        return starts - self.starts[segment] + self.places[segment], starts + length <= self.starts[segment + 1]

    def runs(self, starts: np.ndarray, length: int) -> Runs:
        """Return windows of `length` tokens, cut at the borders of segments."""
        empty = np.empty(0, np.int64)
        found = [Runs(empty, empty, empty, empty)]
        row = np.arange(len(starts))
        column = np.zeros(len(starts), np.int64)
        while len(row):
            at = starts[row] + column
            segment = np.searchsorted(self.starts, at, side="right") - 1
            count = np.minimum(self.starts[segment + 1] - at, length - column)
            found.append(Runs(row, column, at - self.starts[segment] + self.places[segment], count))
            column = column + count
            unfinished = column < length
            row = row[unfinished]
            column = column[unfinished]
        return Runs(*map(np.concatenate, zip(*found, strict=True)))


class MappedFiles:
    """Local files mapped into memory, with one address space of tokens over all of them.

    The operating system chooses the addresses of the files. A view with a stride of one token over their whole range turns
    any place into a row index, so windows of many files are one vectorised gather. Other memory of this process lies between
    the files. So every gather first compares its places with the extents of the files, and raises if one is outside.

    Pages that are not in the page cache would be fetched one window after the other. So after a gather that waited for the
    disk, the next ones announce all their windows to the operating system first, which then reads many at once.

    Args:
        files: Local files, none of them empty.
        dtype: The dtype of the tokens.
        handles: Their maps, if they are mapped already.
    """

    def __init__(
        self, files: Sequence[str | Path], dtype: np.dtype[Any], handles: Sequence[mmap.mmap] | None = None
    ) -> None:
        self._files = list(map(str, files))
        maps = FileMaps(self._files) if handles is None else MadeMaps(handles)
        self._item = dtype.itemsize
        self._maps = maps
        self._first_address = int(maps.addresses.min())
        self._bytes_before = maps.addresses - self._first_address
        # The files by address, and their begins and ends in whole tokens; the first one begins at 0.
        order = np.argsort(self._bytes_before)
        self._begins = self._bytes_before[order] // self._item
        self._ends = self._begins + maps.sizes[order] // self._item
        first = memory_of(maps, int(order[0]))
        self._base = first[: len(first) // self._item * self._item].view(dtype)
        # The last view, and its length.
        self._views: tuple[int, np.ndarray] = (1, self._view(1))
        self._announcements = 0

    def place(self, file: int, offset: int, tokens: int) -> int:
        """Return the place, in tokens, of a byte offset in a file. StoreError if it is not aligned, or outside the file."""
        if offset % self._item:
            raise StoreError(
                f"The tokens at byte {offset} are not aligned to {self._item} bytes, so they cannot be mapped."
            )
        size = int(self._maps.sizes[file])
        if offset < 0 or tokens < 0 or offset + tokens * self._item > size:
            raise StoreError(
                f"The data file {self._files[file]!r} is damaged: its {tokens:,} tokens at byte {offset:,} exceed its "
                f"{size:,} bytes; restore it, or remove the store and build it again."
            )
        return (int(self._bytes_before[file]) + offset) // self._item

    def places(self, files: np.ndarray, offsets: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the places of many pages, (n,), as `place`. StoreError as for the first that has none."""
        odd = (offsets % self._item != 0) | (offsets < 0) | (tokens < 0)
        odd |= offsets > self._maps.sizes[files] - tokens * self._item
        for page in np.flatnonzero(odd)[:1]:
            self.place(int(files[page]), int(offsets[page]), int(tokens[page]))
        places: np.ndarray = (self._bytes_before[files] + offsets) // self._item
        return places

    def gather(self, places: np.ndarray, length: int) -> np.ndarray:
        """Return a copy of `length` tokens from each place: (n, length), in the dtype of the tokens.

        Raises:
            StoreError: If a window does not lie within one file. Nothing is read then.
        """
        return self.gather_later(places, length)()

    def gather_later(self, places: np.ndarray, length: int) -> Callable[[], np.ndarray]:
        """Return a function that gathers as `gather` does. The places are checked before: then only copying is left to do."""
        self._check(places, length)
        known, view = self._views
        if known != length:
            view = self._view(length)
            self._views = (length, view)
        return partial(self._copy, view, places)

    def _copy(self, view: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return a copy of the windows of a view at some places."""
        announced = self._announcements > 0
        if announced:
            self._announcements -= 1
            self._announce(places, view.shape[1])
        before = _disk_faults()
        windows: np.ndarray = view[places]
        if not announced and (_disk_faults() - before) * _WINDOWS_PER_FAULT > len(places):
            self._announcements = _ANNOUNCED
        return windows

    def fill(self, windows: np.ndarray, runs: Runs) -> None:
        """Copy pieces of windows into `windows`. StoreError, before anything is read, if a piece is not within one file."""
        self._check(runs.place, runs.length)
        tokens = self._view(1)[:, 0]
        pieces = zip(runs.row.tolist(), runs.column.tolist(), runs.place.tolist(), runs.length.tolist(), strict=True)
        for row, column, place, count in pieces:
            windows[row, column : column + count] = tokens[place : place + count]

    def _view(self, length: int) -> np.ndarray:
        """Return the windows at all places. Those outside the files must not be read."""
        shape = (max(int(self._ends[-1]) - length + 1, 0), length)
        return as_strided(self._base, shape, (self._item, self._item), writeable=False)

    def _check(self, places: np.ndarray, lengths: np.ndarray | int) -> None:
        """Check that the tokens at each place lie within one file. StoreError if they do not."""
        files = np.searchsorted(self._begins[1:], places, side="right")
        shortest = lengths if isinstance(lengths, int) else lengths.min(initial=1)
        # Not `places + lengths`, which may overflow.
        if len(places) and (places.min() < 0 or shortest < 1 or (places > self._ends[files] - lengths).any()):
            raise StoreError(
                "Windows of the store lie outside its data files, so its metadata is damaged: 'lightning-lance verify' lists "
                "the damage."
            )

    def _announce(self, places: np.ndarray, length: int) -> None:
        begins = self._first_address + places * self._item
        pages = begins // mmap.PAGESIZE * mmap.PAGESIZE
        sizes = begins - pages + length * self._item
        for page, size in zip(pages.tolist(), sizes.tolist(), strict=True):
            will_need(page, size)


def _disk_faults() -> int:
    """Return the number of page faults of this thread that waited for the disk; 0 if the system does not count them."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
