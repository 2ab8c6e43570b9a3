"""Read the tokens of an open version, and what its channels have for them: from mapped files, or by Lance's `take`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from lance.fragment import FragmentMetadata
from numpy.lib.stride_tricks import sliding_window_view

from lightning_lance.errors import StoreError
from lightning_lance.format.channels import TOKENS
from lightning_lance.format.lance_io import fragments_of, reading, take_blocks
from lightning_lance.lance_names import name_of
from lightning_lance.store.mapped_files import map_copies, map_tokens, place_in
from lightning_lance.store.segments import MappedFiles, Runs, SegmentTable
from lightning_lance.store.staging import Copy
from lightning_lance.store.stream_layout import StreamLayout

# Places from here on are not mapped: they are rows of `take`, times the tokens of a row. No file is mapped so far up.
_TAKEN = 1 << 58

#: Given a function that reads windows by `take`, and their starts: returns what it reads, or what another version has there.
TakeOrElse = Callable[[Callable[[], np.ndarray], np.ndarray], np.ndarray]


class MappedColumn(NamedTuple):
    """A column of a local store, mapped into memory.

    Attributes:
        files: The mapped files.
        pages: (pages, 2) int64: the place of each page in them, in tokens, and its rows.
    """

    files: MappedFiles
    pages: np.ndarray


class _Places(NamedTuple):
    """Where the values of a column are.

    Attributes:
        mapped: The files that are mapped into memory, if there are any.
        segments: The segments of each split, with places in `mapped`, or from `_TAKEN` on in rows of `take`.
        is_mapped: Whether all values are in mapped files.
    """

    mapped: MappedFiles | None
    segments: dict[str, SegmentTable]
    is_mapped: bool


def map_columns(
    uri: str,
    dataset: Any,
    fragments: Sequence[FragmentMetadata],
    block: int,
    dtypes: Mapping[str, np.dtype[Any]],
) -> dict[str, MappedColumn]:
    """Map the columns of a store into memory, those of them for which Lance's layout and the system allow it.

    Raises:
        StoreError: If a page lies outside its file, or two pages overlap.
    """
    columns = {}
    for column, dtype in dtypes.items():
        mapped = map_tokens(uri, dataset, fragments, block, dtype, column)
        if mapped is not None:
            columns[column] = MappedColumn(*mapped)
    return columns


class TokenReader:
    """Reads windows of one version, column by column.

    Args:
        uri: The place of the store.
        dataset: Its open dataset.
        layout: The streams of its rows.
        dtypes: The dtypes of its tokens and channels, as they are stored, by column.
        mapped: The columns that are mapped; the others are taken.

    Raises:
        StoreError: If the mapped files have other rows than the layout.
    """

    def __init__(
        self,
        uri: str,
        dataset: Any,
        layout: StreamLayout,
        dtypes: dict[str, np.dtype[Any]],
        mapped: Mapping[str, MappedColumn],
    ) -> None:
        self._uri = uri
        self._dataset = dataset
        self._layout = layout
        self._dtypes = dtypes
        self._process = os.getpid()
        self._places: dict[str, _Places] = {}
        for column in dtypes:
            if column in mapped:
                files, pages = mapped[column]
                self._check_rows(pages)
                self._places[column] = self._located(files, pages)
            else:
                self._places[column] = self._located(None, np.asarray([[_TAKEN, layout.num_rows]]))

    def _check_rows(self, pages: np.ndarray) -> None:
        rows = int(pages[:, 1].sum())
        if rows != self._layout.num_rows:
            raise StoreError(
                f"The data files of the token store {self._uri!r} have {rows:,} rows, but its metadata says "
                f"{self._layout.num_rows:,}: use another copy of it, or build it again elsewhere."
            )

    def _located(self, mapped: MappedFiles | None, pages: np.ndarray) -> _Places:
        is_mapped = mapped is not None and bool((pages[:, 0] < _TAKEN).all())
        return _Places(mapped, self._layout.segments(pages), is_mapped)

    @property
    def is_mapped(self) -> bool:
        """Whether all columns are in mapped files."""
        return all(places.is_mapped for places in self._places.values())

    @property
    def tables(self) -> Mapping[str, SegmentTable]:
        """Where the tokens of each split are."""
        return self._places[TOKENS].segments

    def read_later(
        self, column: str, starts: np.ndarray, length: int, split: str, take: TakeOrElse
    ) -> Callable[[], np.ndarray]:
        """Return a function that reads what a column has for the tokens of windows of a split, (n, length), as it is stored.

        Args:
            column: The column.
            starts: (n,) offsets of the first tokens, of windows that lie in the split.
            length: Tokens per window.
            split: The split.
            take: Called for the windows that are not mapped.
        """
        # The places of today: while windows are read, copies may come in place of what is taken.
        mapped, segments, _ = self._places[column]
        table = segments[split]
        if mapped is None:

            def read_all() -> np.ndarray:
                windows = np.empty((len(starts), length), self._dtypes[column])
                return self._take(column, windows, table.runs(starts, length))

            return partial(take, read_all, starts)
        found, whole = table.whole(starts, length)
        whole &= found < _TAKEN
        if whole.all():
            return mapped.gather_later(found, length)
        others = np.flatnonzero(~whole)
        runs = table.runs(starts[others], length)
        runs = runs._replace(row=others[runs.row])
        taken = runs.place >= _TAKEN
        far = np.unique(runs.row[taken])
        gather = None
        if len(others) < len(starts):
            # Any whole one in place of the others, which are read over it: few are, so this is less than a second copy of all.
            found[others] = found[whole.argmax()]
            gather = mapped.gather_later(found, length)

        def read() -> np.ndarray:
            windows = np.empty((len(starts), length), self._dtypes[column]) if gather is None else gather()
            mapped.fill(windows, runs.where(~taken))
            if len(far):
                windows[far] = take(lambda: self._take(column, windows, runs.where(taken))[far], starts[far])
            return windows

        return read

    def _take(self, column: str, windows: np.ndarray, runs: Runs) -> np.ndarray:
        """Read the pieces of windows that are not mapped into `windows`. Return it."""
        length = windows.shape[1]
        block = self._layout.block
        first = (runs.place - _TAKEN) // block
        last = (runs.place - _TAKEN + runs.length - 1) // block
        needed = [np.empty(0, np.int64)]
        for i in range(int((last - first).max(initial=-1)) + 1):
            needed.append(first[first + i <= last] + i)
        rows = np.unique(np.concatenate(needed))
        blocks = self._blocks(rows, column).reshape(-1)
        # The blocks of a run are neighbours in the store, and so in `blocks`.
        at = np.searchsorted(rows, first) * block + (runs.place - _TAKEN) % block
        whole = runs.length == length
        if whole.any():
            windows[runs.row[whole]] = sliding_window_view(blocks, length)[at[whole]]
        cut = np.flatnonzero(~whole)
        pieces = zip(runs.row[cut], runs.column[cut], at[cut], runs.length[cut], strict=True)
        for row, offset, place, count in pieces:
            windows[row, offset : offset + count] = blocks[place : place + count]
        return windows

    def _blocks(self, rows: np.ndarray, column: str) -> np.ndarray:
        if not len(rows):
            return np.empty((0, self._layout.block), self._dtypes[column])
        if self._process != os.getpid():
            # A fork lacks Lance's threads, and new ones sometimes crash it.
            raise StoreError(
                f"The token store {self._uri!r} is not mapped into memory, so a forked process cannot read it: start workers "
                "by 'forkserver' or 'spawn' instead."
            )
        with reading(self._uri):
            return take_blocks(self._dataset, rows, column)

    def read_from(self, copies: Mapping[str, Copy]) -> None:
        """Read from these copies of data files, by name, and the rest by `take`."""
        fragments = fragments_of(self._dataset)
        rows = {name_of(fragment.files[0]): fragment.physical_rows for fragment in fragments}
        # Tokens last: until then, the windows are read as before.
        for column in reversed(self._dtypes):
            places: dict[str, int | None] = {}
            if column != TOKENS:
                for fragment in fragments:
                    file = fragment.files[0]
                    places[name_of(file)] = place_in(file, self._dataset, column)
            dtype = self._dtypes[column]
            mapped, pages = map_copies(copies, rows, self._layout.block, dtype, column, places)
            located: list[tuple[int, int]] = []
            first = 0
            for name, count in rows.items():
                located += pages.get(name, [(_TAKEN + first * self._layout.block, count)])
                first += count
            self._places[column] = self._located(mapped, np.asarray(located, np.int64).reshape(-1, 2))
