"""The streams of the rows of a version: which parts of the rows are of which stream, and so where the tokens of a split are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_lance.documents.splits import SPLITS
from lightning_lance.format.layout import StreamExtent, StreamPart
from lightning_lance.store.segments import SegmentTable


class StreamLayout(NamedTuple):
    """The streams of the rows of a version.

    Attributes:
        block: Tokens of a full row.
        streams: The streams, sorted.
        stream: (parts,) index of the stream of each part.
        tokens: (parts,) tokens of each part.
        rows: (parts + 1,) first row of each part, and the number of all rows.
    """

    block: int
    streams: list[tuple[str, str]]
    stream: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[StreamPart], block: int) -> StreamLayout:
        """Return the layout of the parts of all rows, in their order."""
        streams = sorted({part.stream for part in parts})
        numbers = {stream: i for i, stream in enumerate(streams)}
        stream: list[int] = []
        tokens: list[int] = []
        rows = [0]
        for part in parts:
            stream.append(numbers[part.stream])
            tokens.append(part.tokens)
            rows.append(part.rows)
        return cls(block, streams, np.asarray(stream, np.int64), np.asarray(tokens, np.int64), np.cumsum(rows))

    @property
    def num_rows(self) -> int:
        """The number of all rows."""
        return int(self.rows[-1])

    def extents(self) -> dict[str, list[StreamExtent]]:
        """Return the streams of each split, one behind the other."""
        extents: dict[str, list[StreamExtent]] = {}
        for split in SPLITS:
            extents[split] = []
            start = 0
            for number, (of, language) in enumerate(self.streams):
                if of == split:
                    count = int(self.tokens[self.stream == number].sum())
                    extents[split].append(StreamExtent(language, start, count))
                    start += count
        return extents

    def segments(self, pages: np.ndarray) -> dict[str, SegmentTable]:
        """Return where the tokens of each split are.

        Args:
            pages: (pages, 2) int64: the place of each page, and its rows, for all rows in their order.
        """
        # Cut parts at the ends of pages.
        first_rows = np.append(0, np.cumsum(pages[:, 1]))
        begins = np.empty(0, np.int64)
        if len(self.tokens):
            begins = np.union1d(self.rows[:-1], first_rows[:-1])
        part = np.searchsorted(self.rows, begins, side="right") - 1
        page = np.searchsorted(first_rows, begins, side="right") - 1
        within = (begins - self.rows[part]) * self.block
        ends = np.append(begins[1:], self.rows[-1])
        counts = np.minimum((ends - begins) * self.block, self.tokens[part] - within)
        places = pages[page, 0] + (begins - first_rows[page]) * self.block
        segments = {}
        for split in SPLITS:
            numbers = [number for number, stream in enumerate(self.streams) if stream[0] == split]
            mine = np.flatnonzero(np.isin(self.stream[part], numbers))
            mine = mine[np.argsort(self.stream[part[mine]], kind="stable")]
            segments[split] = SegmentTable.from_parts(counts[mine], places[mine])
        return segments
