"""Rows of several fragments written anew as one: each stream a single run of full blocks, and documents left out if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from lightning_lance.documents.splits import FORGOTTEN
from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import PendingFragments, lance_options, write_rows
from lightning_lance.format.layout import DataFileInfo, StreamPart
from lightning_lance.format.rows import forgotten_rows
from lightning_lance.process.memory import large_blocks_given_back

# Rows read at once: 4 MB of uint16 tokens, and the documents in them. They are written four times as many at once, since Lance
# makes a page of each batch of some size.
_ROWS = 1024
_ROWS_WRITTEN = 4 * _ROWS
_COLUMNS = ["tokens", "num_tokens", "documents"]

#: Tells of documents, an array of structs, of one language, which to leave out: an array of as many booleans.
DocumentFilter = Callable[[pa.StructArray, str], np.ndarray]


@dataclass
class RewriteStats:
    """What a repacking has left out. Tokens count EOS; of the documents' texts, hashes stay, where they are kept."""

    documents: int = 0
    tokens: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    hashes: list[np.ndarray] = field(default_factory=list)


def rewrite_fragments(
    uri: str,
    dataset: Any,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, DataFileInfo],
    storage_options: Mapping[str, str] | None = None,
    drop: DocumentFilter | None = None,
    more: PendingFragments | None = None,
) -> tuple[list[FragmentMetadata], dict[str, DataFileInfo], RewriteStats]:
    """Write the rows of neighbouring fragments anew: each stream as one run of blocks, all full but the last.

    Memory follows neither the fragments nor their documents, but for 8 bytes of each that is left out, or was before, where
    their hashes are kept. Nothing is committed: see `replace_fragments`.

    Args:
        uri: The store.
        dataset: The version in which the fragments are.
        fragments: Neighbours, in their order.
        files: Notes of their files, by path.
        storage_options: Credentials and such for object stores.
        drop: Which documents to leave out, with all their tokens and their EOS; None keeps all.
        more: What no version has yet, to follow those fragments.

    Returns:
        The new fragment, or none if nothing is left; the note of its file; and what was left out.

    Raises:
        StoreError: If it cannot be written, or a note does not tell of all rows of its file.
    """
    for fragment in fragments:
        note = files[fragment.files[0].path]
        if sum(part.rows for part in note.parts) != fragment.physical_rows:
            raise StoreError(
                f"The data file {fragment.files[0].path!r} of the token store {uri!r} has {fragment.physical_rows:,} rows, not "
                "as its metadata says: 'lightning-lance verify' tells what is damaged."
            )
    dropped = RewriteStats()
    schema = dataset.schema
    batches = _streams(_Reader(uri, dataset, more, storage_options), fragments, files, drop, dropped)
    with large_blocks_given_back():
        written, notes = write_rows(uri, dataset, schema, batches, storage_options)
    return written, notes, dropped


class _Reader:
    """Reads parts of the fragments of a dataset, and of a data file, called None, that it does not have yet."""

    def __init__(
        self, uri: str, dataset: Any, more: PendingFragments | None, storage_options: Mapping[str, str] | None
    ) -> None:
        self.dataset = dataset
        self._place, self._storage_options = f"{uri.rstrip('/')}/data", lance_options(storage_options)
        self._more: tuple[str, DataFileInfo] | None = next(iter(more.files.items()), None) if more else None

    @property
    def more(self) -> tuple[StreamPart, ...]:
        """What is in that file."""
        return () if self._more is None else self._more[1].parts

    def batches(
        self, places: Sequence[tuple[int | None, int, int]], columns: Sequence[str] = ("documents",)
    ) -> Iterator[pa.RecordBatch]:
        """Read columns of (fragment, first row, rows) places, in bounded memory."""
        file: LanceFileReader | None = None
        for fragment_id, offset, rows in places:
            if fragment_id is not None:
                yield from read_part(self.dataset, fragment_id, offset, rows, columns)
            elif self._more is not None:
                place = f"{self._place}/{self._more[0]}"
                file = file or LanceFileReader(place, self._storage_options, [*columns])
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
    sources: list[tuple[int | None, tuple[StreamPart, ...]]] = [
        *((fragment.id, files[fragment.files[0].path].parts) for fragment in fragments),
        (None, reader.more),
    ]
    runs: dict[tuple[str, str], list[tuple[int | None, int, int]]] = {}
    for fragment_id, parts in sources:
        for part, end in zip(parts, accumulate(part.rows for part in parts), strict=True):
            runs.setdefault(part[:2], []).append((fragment_id, end - part.rows, part.rows))
    forgotten, schema = runs.pop((FORGOTTEN, ""), []), reader.dataset.schema
    for (split, language), places in sorted(runs.items()):
        packing = _Repacking(schema, split, language, drop, dropped)
        for batch in reader.batches(places, _COLUMNS):
            yield from packing.add(batch)
        yield from packing.rest()
    hashes = [hashes_of(batch.column("documents").flatten()) for batch in reader.batches(forgotten)]
    if hashes := [*hashes, *dropped.hashes]:
        yield from forgotten_rows(np.concatenate(hashes), schema).to_batches()


def hashes_of(documents: pa.StructArray) -> np.ndarray:
    """Give the hashes of documents, (n,) uint64."""
    return np.asarray(documents.field("hash"))


def read_part(
    dataset: Any, fragment_id: int, offset: int, rows: int, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Read columns of some rows of a fragment, in bounded memory."""
    fragment = dataset.get_fragment(fragment_id)
    # A scan of its own for each few rows: one over all reads hundreds of megabytes ahead.
    for first in range(offset, offset + rows, _ROWS):
        size = min(_ROWS, offset + rows - first)
        yield from fragment.scanner(columns=[*columns], offset=first, limit=size, batch_size=_ROWS).to_batches()


class _Repacking:
    """Rows of one stream in, rows of full blocks out.

    Args:
        schema: Of the rows.
        split: Of the stream.
        language: Of the stream.
        drop: Which documents to leave out.
        dropped: Where those are counted.
    """

    def __init__(
        self, schema: pa.Schema, split: str, language: str, drop: DocumentFilter | None, dropped: RewriteStats
    ) -> None:
        self._schema, self._split, self._language = schema, split, language
        self._drop, self._dropped = drop, dropped
        self._block = int(schema.field("tokens").type.list_size)
        self._struct = schema.field("documents").type.value_type
        dtype = schema.field("tokens").type.value_type.to_pandas_dtype()
        # What fills no block yet, and the documents that begin in it.
        self._tokens = np.empty(0, dtype)
        self._starts = np.empty(0, np.int64)
        self._documents = pa.array([], self._struct)
        self._dropping = False

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Take rows, and give those that are full."""
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        blocks = np.asarray(batch.column("tokens").flatten()).reshape(len(batch), self._block)
        full = bool((counts == self._block).all())
        tokens = blocks.reshape(-1) if full else blocks[np.arange(self._block) < counts[:, None]]
        lists = batch.column("documents")
        documents = lists.flatten()
        starts = np.repeat(np.cumsum(counts) - counts, np.asarray(lists.value_lengths().fill_null(0)))
        starts = starts + np.asarray(documents.field("offset"))
        if self._drop is not None:
            tokens, starts, documents = self._without_dropped(self._drop, tokens, starts, documents)
        self._starts = np.concatenate([self._starts, starts + len(self._tokens)])
        self._documents = pa.concat_arrays([self._documents, documents])
        self._tokens = np.concatenate([self._tokens, tokens])
        if len(self._tokens) >= _ROWS_WRITTEN * self._block:
            yield from self._rows(len(self._tokens) // self._block)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Give the last row, which need not be full."""
        yield from self._rows(-(-len(self._tokens) // self._block))

    def _without_dropped(
        self, drop: DocumentFilter, tokens: np.ndarray, starts: np.ndarray, documents: pa.StructArray
    ) -> tuple[np.ndarray, np.ndarray, pa.StructArray]:
        gone = np.asarray(drop(documents, self._language), bool)
        # What is before the first start belongs to the document that was begun before.
        flags = np.append(self._dropping, gone)
        lengths = np.diff(np.concatenate([[0], starts, [len(tokens)]]))
        keep = np.repeat(~flags, lengths)
        kept_before = np.concatenate([[0], np.cumsum(np.where(flags, 0, lengths))])
        self._dropping = bool(flags[-1])
        self._dropped.documents += int(gone.sum())
        self._dropped.tokens += int(len(tokens) - keep.sum())
        if gone.any():
            languages = self._dropped.languages
            languages[self._language] = languages.get(self._language, 0) + int(gone.sum())
            if "hash" in self._struct.names:
                self._dropped.hashes.append(hashes_of(documents.filter(pa.array(gone))))
        return tokens[keep], kept_before[1:-1][~gone], documents.filter(pa.array(~gone))

    def _rows(self, rows: int) -> Iterator[pa.RecordBatch]:
        if not rows:
            return
        size = min(rows * self._block, len(self._tokens))
        tokens = np.zeros(rows * self._block, self._tokens.dtype)
        tokens[:size] = self._tokens[:size]
        counts = np.full(rows, self._block, np.int32)
        counts[-1] -= rows * self._block - size
        mine = int(np.searchsorted(self._starts, size))
        # Copied: an empty slice of strings keeps an offset that Lance takes for damage.
        documents = self._documents.take(pa.array(np.arange(mine)))
        fields = [
            pa.array((self._starts[:mine] % self._block).astype(np.int32)),
            *(documents.field(i) for i in range(1, self._struct.num_fields)),
        ]
        borders = np.searchsorted(self._starts[:mine], np.arange(rows + 1) * self._block).astype(np.int32)
        yield pa.record_batch(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(tokens), self._block),
                pa.array(counts),
                pa.repeat(pa.scalar(self._split), rows),
                pa.repeat(pa.scalar(self._language), rows),
                pa.ListArray.from_arrays(
                    pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(self._struct))
                ),
            ],
            schema=self._schema,
        )
        self._tokens = self._tokens[size:]
        self._starts = self._starts[mine:] - size
        self._documents = self._documents.slice(mine)
