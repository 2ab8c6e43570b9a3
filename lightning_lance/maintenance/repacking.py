"""Rewrite several fragments as one: each stream becomes a single run of full blocks, without dropped documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from lightning_lance.documents.splits import FORGOTTEN
from lightning_lance.errors import StoreError
from lightning_lance.format.channels import TOKENS
from lightning_lance.format.lance_io import PendingFragments, file_names, lance_options, write_rows
from lightning_lance.format.layout import DataFileInfo, StreamPart
from lightning_lance.format.rows import blocks_of, forgotten_rows, token_columns
from lightning_lance.lance_names import data_file_at
from lightning_lance.location import StoreLocation
from lightning_lance.process.memory import large_blocks_given_back

# Rows read at once: 4 MB of uint16 tokens, and their documents.
_ROWS = 1024
# Rows written at once: more, since Lance makes a page of each large batch.
_ROWS_WRITTEN = 4 * _ROWS
_COLUMNS = ["num_tokens", "documents"]

#: Takes documents, an array of structs, and their language; returns an array of booleans, true for those to drop.
DocumentFilter = Callable[[pa.StructArray, str], np.ndarray]


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
    for fragment in fragments:
        path = fragment.files[0].path
        rows = files[path].num_rows
        if rows != fragment.physical_rows:
            raise StoreError(
                f"The data file {path!r} of the token store {location.uri!r} has {fragment.physical_rows:,} rows, but its "
                f"metadata says {rows:,}: 'lightning-lance verify' lists the damage."
            )
    dropped = RewriteStats()
    batches = _streams(_Reader(location, dataset, more), fragments, files, drop, dropped)
    with large_blocks_given_back():
        rewritten, infos = write_rows(location, dataset, dataset.schema, batches, name)
    return rewritten, infos, dropped


# A fragment of a dataset by its id, or a pending data file by its name.
_Place = int | str


class _Reader:
    """Reads rows of a dataset's fragments, and of pending data files."""

    def __init__(self, location: StoreLocation, dataset: Any, more: PendingFragments | None) -> None:
        self.dataset = dataset
        self._storage_options = lance_options(location)
        self._folder = location.uri.rstrip("/")
        #: The parts of the pending data files, in order.
        self.pending_parts: dict[_Place, tuple[StreamPart, ...]] = {}
        if more is not None:
            self.pending_parts = {path: more.files[path].parts for path in file_names(more.fragments)}

    def batches(
        self, places: Sequence[tuple[_Place, int, int]], columns: Sequence[str] = ("documents",)
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of places, each (fragment or file, first row, rows), in bounded memory."""
        files: dict[str, LanceFileReader] = {}
        for place, offset, rows in places:
            if isinstance(place, int):
                yield from read_part(self.dataset, place, offset, rows, columns)
                continue
            if place not in files:
                path = f"{self._folder}/{data_file_at(place)}"
                files[place] = LanceFileReader(path, self._storage_options, [*columns])
            file = files[place]
            for first in range(offset, offset + rows, _ROWS):
                size = min(_ROWS, offset + rows - first)
                yield from file.read_range(first, size, batch_size=_ROWS).to_batches()


def _streams(
    reader: _Reader,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, DataFileInfo],
    drop: DocumentFilter | None,
    dropped: RewriteStats,
) -> Iterator[pa.RecordBatch]:
    parts_of: dict[_Place, tuple[StreamPart, ...]] = {}
    for fragment in fragments:
        parts_of[fragment.id] = files[fragment.files[0].path].parts
    parts_of |= reader.pending_parts
    runs: dict[tuple[str, str], list[tuple[_Place, int, int]]] = {}
    for place, parts in parts_of.items():
        first = 0
        for part in parts:
            runs.setdefault(part[:2], []).append((place, first, part.rows))
            first += part.rows
    schema = reader.dataset.schema
    forgotten = runs.pop((FORGOTTEN, ""), [])
    for (split, language), places in sorted(runs.items()):
        packing = _Repacking(schema, split, language, drop, dropped)
        for batch in reader.batches(places, [*token_columns(schema), *_COLUMNS]):
            yield from packing.add(batch)
        yield from packing.rest()
    hashes = [hashes_of(batch.column("documents").flatten()) for batch in reader.batches(forgotten)]
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
        self._columns = {name: _empty(schema, name) for name in token_columns(schema)}
        self._starts = np.empty(0, np.int64)
        self._documents = pa.array([], self._struct)
        self._dropping = False

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Add rows, and yield full ones."""
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        full = bool((counts == self._block).all())
        columns = {}
        for name in self._columns:
            blocks = np.asarray(batch.column(name).flatten()).reshape(len(batch), self._block)
            columns[name] = blocks.reshape(-1) if full else blocks[np.arange(self._block) < counts[:, None]]
        lists = batch.column("documents")
        documents = lists.flatten()
        starts = np.repeat(np.cumsum(counts) - counts, np.asarray(lists.value_lengths().fill_null(0)))
        starts = starts + np.asarray(documents.field("offset"))
        if self._drop is not None:
            columns, starts, documents = self._without_dropped(self._drop, columns, starts, documents)
        self._starts = np.concatenate([self._starts, starts + self._size])
        self._documents = pa.concat_arrays([self._documents, documents])
        for name, values in columns.items():
            self._columns[name] = np.concatenate([self._columns[name], values])
        if self._size >= _ROWS_WRITTEN * self._block:
            yield from self._rows(self._size // self._block)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yield the remaining rows, of which the last may be partial."""
        yield from self._rows(-(-self._size // self._block))

    @property
    def _size(self) -> int:
        """Tokens that are not written yet."""
        return len(self._columns[TOKENS])

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
        blocks = []
        for name, values in self._columns.items():
            filled = np.zeros(rows * self._block, values.dtype)
            filled[:size] = values[:size]
            blocks.append(blocks_of(filled, self._block))
            self._columns[name] = values[size:]
        tokens, *channels = blocks
        counts = np.full(rows, self._block, np.int32)
        counts[-1] -= rows * self._block - size
        begun = int(np.searchsorted(self._starts, size))
        # Copied: an empty slice of strings keeps an offset that Lance takes for damage.
        documents = self._documents.take(pa.array(np.arange(begun)))
        fields = documents.flatten()
        fields[0] = pa.array((self._starts[:begun] % self._block).astype(np.int32))
        borders = np.searchsorted(self._starts[:begun], np.arange(rows + 1) * self._block).astype(np.int32)
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
        self._starts = self._starts[begun:] - size
        self._documents = self._documents.slice(begun)


def _empty(schema: pa.Schema, name: str) -> np.ndarray:
    """Return no values of a column that has one for each token."""
    return np.empty(0, schema.field(name).type.value_type.to_pandas_dtype())
