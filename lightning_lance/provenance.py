"""What the store says of its documents: which ones a window holds, and the hashes that de-duplication goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader

from lightning_lance.commit import dataset_at
from lightning_lance.documents import one_array
from lightning_lance.splits import SPLITS

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
        for lists in document_lists(uri, dataset, "hash", storage_options):
            yield np.asarray(lists.flatten().field("hash"))


class Provenance:
    """Finds the documents of windows. Holds 20 bytes a block, so a hundredth of a byte a token, however many documents.

    Args:
        uri: The store.
        dataset: The same, open at some version.
        storage_options: As for `TokenStore.open`.
    """

    def __init__(self, uri: str, dataset: Any, storage_options: Mapping[str, str] | None = None) -> None:
        self._dataset = dataset
        rows = dataset.to_table(columns=["num_tokens", "split", "language"])
        keys = [one_array(rows.column(name).dictionary_encode()) for name in ("split", "language")]
        names = [key.dictionary.to_pylist() for key in keys]
        codes = [np.asarray(key.indices) for key in keys]
        lists = document_lists(uri, dataset, "offset", storage_options)
        counts = np.concatenate([np.empty(0, np.int32), *(np.asarray(part.value_lengths()) for part in lists)])
        self._blocks: dict[str, _Blocks] = {}
        for split in SPLITS:
            # As in `read`: the streams of a split by language, each in the order of its rows.
            streams = sorted((name, code) for code, name in enumerate(names[1])) if split in names[0] else []
            mine = codes[0] == names[0].index(split) if split in names[0] else np.zeros(len(counts), bool)
            order = [np.flatnonzero(mine & (codes[1] == code)) for _, code in streams]
            row = np.concatenate([np.empty(0, np.int64), *order])
            starts = np.append(0, np.cumsum(np.asarray(rows.column("num_tokens"))[row], dtype=np.int64))
            begun = np.maximum.accumulate(np.where(counts[row] > 0, np.arange(len(row)), 0)).astype(np.int32)
            self._blocks[split] = _Blocks(row.astype(np.int32), starts, begun)

    def documents(self, starts: np.ndarray, length: int, split: str) -> pa.Table:
        """Tell which documents windows hold; see `TokenStore.documents`. The windows must lie in the split."""
        blocks = self._blocks[split]
        first = np.searchsorted(blocks.starts, starts, side="right") - 1
        last = np.searchsorted(blocks.starts, starts + length, side="left") - 1
        # Of the document that a window begins in, the beginning is in its first block, or in the last one before it with any.
        before = blocks.begun[np.maximum(first - 1, 0)]
        needed = [before, *(first[first + i <= last] + i for i in range(int((last - first).max(initial=-1)) + 1))]
        block = np.unique(np.concatenate(needed))
        taken = self._dataset.take(blocks.row[block].tolist(), columns=["language", "documents"])
        lists = one_array(taken.column("documents"))
        of_block = np.repeat(np.arange(len(block)), np.asarray(lists.value_lengths()))
        described = lists.flatten()
        begins = blocks.starts[block[of_block]] + np.asarray(described.field("offset"))
        low = np.searchsorted(begins, starts, side="right") - 1
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
        languages = one_array(taken.column("language")).take(pa.array(of_block[document]))
        return pa.table({**columns, **{name: found.field(name) for name in names}, "language": languages})


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
