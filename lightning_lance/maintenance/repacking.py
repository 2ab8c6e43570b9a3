"""Rewrite several fragments as one: each stream becomes a single run of full blocks, without dropped documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata

from lightning_lance.documents.splits import FORGOTTEN
from lightning_lance.errors import StoreError
from lightning_lance.format.channels import TOKENS
from lightning_lance.format.lance_io import PendingFragments, data_session, file_names, write_rows
from lightning_lance.format.layout import DataFileInfo, StreamPart
from lightning_lance.format.rows import blocks_of, forgotten_rows, token_columns
from lightning_lance.location import StoreLocation
from lightning_lance.process.memory import large_blocks_given_back

# Rows read at once: 4 MB of uint16 tokens, and their documents.
_ROWS = 1024
# Rows written at once: more, since Lance makes a page of each large batch.
_ROWS_WRITTEN = 4 * _ROWS
_COLUMNS = ["num_tokens", "documents"]
# Data files that are open at the same time.
_OPEN_FILES = 64

#: Takes documents, an array of structs, and their language; returns an array of booleans, true for those to drop.
DocumentFilter = Callable[[pa.StructArray, str], np.ndarray]


class _Place(NamedTuple):
    """Rows of a stream in the data file of a name."""

    name: str
    first: int
    rows: int


@dataclass
class RewriteStats:
    """Counts of dropped documents, and the hashes of their texts if the store has hashes. Tokens include EOS."""

    documents: int = 0
    tokens: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    hashes: list[np.ndarray] = field(default_factory=list)


def rewrite_fragments(
    location: StoreLocation,
    dataset: Any,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, DataFileInfo],
    drop: DocumentFilter | None = None,
    more: PendingFragments | None = None,
    name: str | None = None,
) -> tuple[list[FragmentMetadata], dict[str, DataFileInfo], RewriteStats]:
    """Write the rows of neighbouring fragments into one: each stream as one run of blocks, all full but the last.

    Memory does not grow with the fragments or their documents, except for 8 bytes per dropped document, now or earlier, in a
    store with hashes. Nothing is committed: see `replace_fragments`.

    Args:
        location: The store.
        dataset: The version of the fragments.
        fragments: Neighbouring fragments, in order.
        files: The descriptions of their files, by path.
        drop: Selects documents to drop, with their tokens and EOS; None keeps all.
        more: Pending fragments to append.
        name: The name of the file; None for one of Lance's.

    Returns:
        The new fragment, or none if no rows remain; the description of its file by path; and the counts of dropped documents.

    Raises:
        StoreError: If it cannot be written, or the commit metadata does not cover all rows of a file.
    """
    parts_of: dict[str, Sequence[StreamPart]] = {}
    for fragment in fragments:
        path = fragment.files[0].path
        rows = files[path].num_rows
        if rows != fragment.physical_rows:
            raise StoreError(
                f"The data file {path!r} of the token store {location.uri!r} has {fragment.physical_rows:,} rows, but its "
                f"metadata says {rows:,}: 'lightning-lance verify' lists the damage."
            )
        parts_of[path] = files[path].parts
    dropped = RewriteStats()
    if more is not None:
        for path in file_names(more.fragments):
            parts_of[path] = more.files[path].parts
    batches = _streams(location, dataset.schema, parts_of, drop, dropped)
    with large_blocks_given_back():
        rewritten, infos = write_rows(location, dataset, dataset.schema, batches, name)
    return rewritten, infos, dropped


class _Files:
    """Reads columns of data files, committed or not, in bounded memory."""

    def __init__(self, location: StoreLocation, columns: Sequence[str]) -> None:
        session = data_session(location)
        self._opened = lru_cache(_OPEN_FILES)(lambda name: session.open_reader(name, [*columns]))

    def batches(self, places: Sequence[_Place]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of places."""
        for place in places:
            file = self._opened(place.name)
            for done in range(0, place.rows, _ROWS):
                size = min(_ROWS, place.rows - done)
                yield from file.read_range(place.first + done, size, batch_size=_ROWS).to_batches()


def _streams(
    location: StoreLocation,
    schema: pa.Schema,
    parts_of: Mapping[str, Sequence[StreamPart]],
    drop: DocumentFilter | None,
    dropped: RewriteStats,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of files, stream by stream; `parts_of` has their parts by the names of the files, in order."""
    runs: dict[tuple[str, str], list[_Place]] = {}
    for name, parts in parts_of.items():
        first = 0
        for part in parts:
            runs.setdefault(part.stream, []).append(_Place(name, first, part.rows))
            first += part.rows
    files = _Files(location, [*token_columns(schema), *_COLUMNS])
    forgotten = runs.pop((FORGOTTEN, ""), [])
    for (split, language), places in sorted(runs.items()):
        packing = _Repacking(schema, split, language, drop, dropped)
        for batch in files.batches(places):
            yield from packing.add(batch)
        yield from packing.rest()
    hashes: list[np.ndarray] = []
    for batch in files.batches(forgotten):
        hashes.append(hashes_of(batch.column("documents").flatten()))
    hashes += dropped.hashes
    if hashes:
        yield from forgotten_rows(np.concatenate(hashes), schema).to_batches()


def hashes_of(documents: pa.StructArray) -> np.ndarray:
    """Return the hashes of documents, (n,) uint64."""
    return np.asarray(documents.field("hash"))


def read_part(
    dataset: Any, fragment_id: int, offset: int, rows: int, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield columns of some rows of a fragment, in bounded memory."""
    fragment = dataset.get_fragment(fragment_id)
    # One scan for every few rows, since a single one reads hundreds of megabytes ahead.
    for first in range(offset, offset + rows, _ROWS):
        size = min(_ROWS, offset + rows - first)
        yield from fragment.scanner(columns=[*columns], offset=first, limit=size, batch_size=_ROWS).to_batches()


class _Repacking:
    """Repacks rows of one stream into full blocks, without the documents to `drop`, which `dropped` counts."""

    def __init__(
        self, schema: pa.Schema, split: str, language: str, drop: DocumentFilter | None, dropped: RewriteStats
    ) -> None:
        self._schema = schema
        self._split = split
        self._language = language
        self._drop = drop
        self._dropped = dropped
        self._block = int(schema.field("tokens").type.list_size)
        self._struct = schema.field("documents").type.value_type
        # Tokens that are not written yet, with their channels, and the documents that begin in them.
        self._columns = {name: _Values(schema, name) for name in token_columns(schema)}
        self._starts = [np.empty(0, np.int64)]
        self._documents = [pa.array([], self._struct)]
        self._dropping = False

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Add rows, and yield full ones."""
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        columns = {name: self._values_of(batch.column(name), counts) for name in self._columns}
        lists = batch.column("documents")
        documents = lists.flatten()
        starts = np.repeat(np.cumsum(counts) - counts, np.asarray(lists.value_lengths().fill_null(0)))
        starts = starts + np.asarray(documents.field("offset"))
        if self._drop is not None:
            columns, starts, documents = self._without_dropped(self._drop, columns, starts, documents)
        self._starts.append(starts + self._size)
        self._documents.append(documents)
        for name, values in columns.items():
            self._columns[name].add(values)
        if self._size >= _ROWS_WRITTEN * self._block:
            yield from self._rows(self._size // self._block)

    def _values_of(self, blocks: pa.FixedSizeListArray, counts: np.ndarray) -> np.ndarray:
        """Return the values of blocks without their padding."""
        values = np.asarray(blocks.flatten())
        if (counts[:-1] == self._block).all():
            # As in all rows that a build has written at once: a view, not a copy.
            return values[: counts.sum()]
        within = np.arange(self._block) < counts[:, None]
        return values.reshape(within.shape)[within]

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yield the remaining rows, of which the last may be partial."""
        yield from self._rows(-(-self._size // self._block))

    @property
    def _size(self) -> int:
        """Tokens that are not written yet."""
        return self._columns[TOKENS].size

    def _without_dropped(
        self, drop: DocumentFilter, columns: dict[str, np.ndarray], starts: np.ndarray, documents: pa.StructArray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, pa.StructArray]:
        size = len(columns[TOKENS])
        gone = np.asarray(drop(documents, self._language), bool)
        # Tokens before the first start belong to the document before.
        flags = np.append(self._dropping, gone)
        lengths = np.diff(np.concatenate([[0], starts, [size]]))
        keep = np.repeat(~flags, lengths)
        kept_before = np.concatenate([[0], np.cumsum(np.where(flags, 0, lengths))])
        self._dropping = bool(flags[-1])
        self._dropped.documents += int(gone.sum())
        self._dropped.tokens += int(size - keep.sum())
        if gone.any():
            languages = self._dropped.languages
            languages[self._language] = languages.get(self._language, 0) + int(gone.sum())
            if "hash" in self._struct.names:
                self._dropped.hashes.append(hashes_of(documents.filter(pa.array(gone))))
        kept = {name: values[keep] for name, values in columns.items()}
        return kept, kept_before[1:-1][~gone], documents.filter(pa.array(~gone))

    def _rows(self, rows: int) -> Iterator[pa.RecordBatch]:
        if not rows:
            return
        size = min(rows * self._block, self._size)
        blocks: list[pa.Array] = []
        for values in self._columns.values():
            taken = values.take(size, rows * self._block)
            blocks.append(blocks_of(taken, self._block))
        tokens, *channels = blocks
        counts = np.full(rows, self._block, np.int32)
        counts[-1] -= rows * self._block - size
        starts = np.concatenate(self._starts)
        documents = pa.concat_arrays(self._documents)
        begun = int(np.searchsorted(starts, size))
        self._starts = [starts[begun:] - size]
        self._documents = [documents.slice(begun)]
        # Copied: an empty slice of strings keeps an offset that Lance takes for damage.
        fields = documents.take(pa.array(np.arange(begun))).flatten()
        fields[0] = pa.array((starts[:begun] % self._block).astype(np.int32))
        borders = np.searchsorted(starts[:begun], np.arange(rows + 1) * self._block).astype(np.int32)
        yield pa.record_batch(
            [
                tokens,
                pa.array(counts),
                pa.repeat(pa.scalar(self._split), rows),
                pa.repeat(pa.scalar(self._language), rows),
                pa.ListArray.from_arrays(
                    pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(self._struct))
                ),
                *channels,
            ],
            schema=self._schema,
        )


class _Values:
    """Values of a column that has one for each token, in the pieces in which they were read: each is copied once."""

    def __init__(self, schema: pa.Schema, name: str) -> None:
        self._dtype = schema.field(name).type.value_type.to_pandas_dtype()
        self._pieces: deque[np.ndarray] = deque()
        self.size = 0

    def add(self, values: np.ndarray) -> None:
        """Add values."""
        self._pieces.append(values)
        self.size += len(values)

    def take(self, size: int, padded: int) -> np.ndarray:
        """Take away the first values, and return them with zeros behind them, `padded` in all."""
        taken = np.zeros(padded, self._dtype)
        first = 0
        while first < size:
            piece = self._pieces.popleft()
            part = piece[: size - first]
            taken[first : first + len(part)] = part
            first += len(part)
            if len(part) < len(piece):
                self._pieces.appendleft(piece[len(part) :])
        self.size -= size
        return taken
