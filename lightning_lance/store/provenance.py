"""What the store says of its documents: which ones a window holds, and the hashes that de-duplication goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import dataset_at, reading, reading_documents, stream_columns
from lightning_lance.format.schema import begins_of

# Rows whose lists of documents are held at a time.
_BATCH_ROWS = 8192
# Where a document begins; what de-duplication goes by.
_NOT_METADATA = ("offset", "hash")


def document_lists(
    uri: str, dataset: Any, field: str, storage_options: Mapping[str, str] | None = None
) -> Iterator[pa.ListArray]:
    """Read one field of the documents of all rows, in the order of the rows, as lists of structs; pieces of some rows.

    Args:
        uri: The store.
        dataset: The same, open at some version.
        field: `offset`, `hash`, ...
        storage_options: As for `TokenStore.open`.
    """
    for fragment in dataset.get_fragments():
        files = fragment.data_files()
        if len(files) == 1 and not fragment.num_deletions:
            # A dataset gives the whole column only, with all metadata; its files give a leaf of it.
            file = f"{uri.rstrip('/')}/data/{files[0].path}"
            reader = LanceFileReader(file, dict(storage_options or {}) or None, [f"documents.item.{field}"])
            batches = reader.read_all(batch_size=_BATCH_ROWS).to_batches()
        else:
            batches = fragment.to_batches(columns=["documents"], batch_size=_BATCH_ROWS)
        for batch in batches:
            yield batch.column("documents")


def stored_hashes(uri: str, storage_options: Mapping[str, str] | None = None) -> Iterator[np.ndarray]:
    """Read the hashes of all documents of a store, in pieces; none where it has none, or there is no store."""
    dataset = dataset_at(uri, None, storage_options)
    if dataset is not None:
        with reading(uri):
            for lists in document_lists(uri, dataset, "hash", storage_options):
                hashes = lists.flatten().field("hash")
                if hashes.null_count or hashes.type != pa.uint64():
                    raise ValueError("documents without a hash of their text")
                yield np.asarray(hashes)


class Provenance:
    """Finds the documents of windows. Reads nothing before it is asked; then holds 16 bytes a block, whatever its documents.

    Args:
        uri: The store.
        dataset: The same, open at some version.
        storage_options: As for `TokenStore.open`.
    """

    def __init__(self, uri: str, dataset: Any, storage_options: Mapping[str, str] | None = None) -> None:
        self._uri, self._dataset, self._storage_options = uri, dataset, storage_options
        self._process = os.getpid()

    @cached_property
    def _blocks(self) -> dict[str, _Blocks]:
        rows = stream_columns(self._dataset)
        names, codes = {}, {}
        for key in ("split", "language"):
            column = as_single_chunk(rows.column(key).dictionary_encode())
            names[key], codes[key] = column.dictionary.to_pylist(), np.asarray(column.indices)
        lists = document_lists(self._uri, self._dataset, "offset", self._storage_options)
        counts = np.concatenate([np.empty(0, np.int32), *(_lengths(part) for part in lists)])
        if len(counts) != len(rows):
            raise ValueError(f"{len(counts):,} of {len(rows):,} rows tell of their documents")
        blocks = {}
        for split in SPLITS:
            # As in `read`: the streams of a split by language, each in the order of its rows.
            mine = np.isin(codes["split"], [i for i, name in enumerate(names["split"]) if name == split])
            languages = sorted(range(len(names["language"])), key=names["language"].__getitem__)
            order = [np.flatnonzero(mine & (codes["language"] == language)) for language in languages]
            row = np.concatenate([np.empty(0, np.int64), *order])
            starts = np.append(0, np.cumsum(np.asarray(rows.column("num_tokens"))[row], dtype=np.int64))
            begun = np.maximum.accumulate(np.where(counts[row] > 0, np.arange(len(row)), 0)).astype(np.int32)
            blocks[split] = _Blocks(row.astype(np.int32), starts, begun)
        return blocks

    def documents(self, starts: np.ndarray, length: int, split: str) -> pa.Table:
        """Tell which documents windows hold; see `TokenStore.documents`. The windows must lie in the split."""
        if self._process != os.getpid():
            raise StoreError(
                "The documents of windows cannot be asked for in a forked process: ask the one that forked it."
            )
        blocks = self._blocks[split]
        first = np.searchsorted(blocks.starts, starts, side="right") - 1
        last = np.searchsorted(blocks.starts, starts + length, side="left") - 1
        # Of the document that a window begins in, the beginning is in its first block, or in the last one before it with any.
        before = blocks.begun[np.maximum(first - 1, 0)]
        needed = [before, *(first[first + i <= last] + i for i in range(int((last - first).max(initial=-1)) + 1))]
        block = np.unique(np.concatenate(needed))
        with reading_documents(self._uri):
            taken = self._dataset.take(blocks.row[block].tolist(), columns=["language", "documents"])
        lists = as_single_chunk(taken.column("documents"))
        offsets = begins_of(self._uri, lists, np.diff(blocks.starts)[block])
        of_block = np.repeat(np.arange(len(block)), np.asarray(lists.value_lengths()))
        described = lists.flatten()
        begins = blocks.starts[block[of_block]] + offsets
        low = np.searchsorted(begins, starts, side="right") - 1
        if len(low) and int(low.min()) < 0:
            raise ValueError("no document begins before a window")
        count = np.searchsorted(begins, starts + length, side="left") - low
        window = np.repeat(np.arange(len(starts)), count)
        document = np.arange(len(window)) + np.repeat(low - (np.cumsum(count) - count), count)
        # Within a window every block was taken, so the next document found is the next one there is.
        until = np.append(begins, np.iinfo(np.int64).max)[document + 1]
        columns = {
            "window": window,
            "begin": np.maximum(begins[document] - starts[window], 0),
            "end": np.minimum(until - starts[window], length),
        }
        found = described.take(pa.array(document))
        names = [name.name for name in found.type if name.name not in _NOT_METADATA]
        languages = as_single_chunk(taken.column("language")).take(pa.array(of_block[document]))
        return pa.table({**columns, **{name: found.field(name) for name in names}, "language": languages})


def _lengths(lists: pa.ListArray) -> np.ndarray:
    if lists.null_count:
        raise ValueError("a row tells of no documents")
    return np.asarray(lists.value_lengths())


class _Blocks(NamedTuple):
    """The blocks of a split in the order of its tokens.

    Attributes:
        row: (n,) int32 rows of the dataset.
        starts: (n + 1,) int64 offsets of their first tokens in the split.
        begun: (n,) int32 places here of the last block, up to each, in which a document begins.
    """

    row: np.ndarray
    starts: np.ndarray
    begun: np.ndarray
