"""From encoded documents to the rows of a token store: documents joined by EOS, one stream per (split, language), in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents import one_array
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.splits import FORGOTTEN, SPLITS

# Tokens per row. Larger blocks read more than they need from object stores, smaller ones are more rows to find.
BLOCK = 2048
# Hashes of forgotten documents in a row: as many bytes as a block of tokens or more, and little to hold of a thousand rows.
_HASHES = 1024


class Stream(NamedTuple):
    """The key of a stream."""

    split: str
    language: str


def store_schema(dtype: np.dtype[Any], metadata: Sequence[str], hashed: bool = False) -> pa.Schema:
    """Give the columns of a token store.

    Args:
        dtype: uint16 or uint32, of the tokens.
        metadata: Names of the strings kept with each document.
        hashed: Whether the hash of its text is kept too: all that de-duplication has to know of a document.
    """
    fields = [("offset", pa.int32()), ("id", pa.string()), *((name, pa.string()) for name in metadata)]
    document = pa.struct([*fields, ("hash", pa.uint64())] if hashed else fields)
    return pa.schema(
        [
            ("tokens", pa.list_(pa.from_numpy_dtype(dtype), BLOCK)),
            ("num_tokens", pa.int32()),
            ("split", pa.string()),
            ("language", pa.string()),
            ("documents", pa.list_(document)),
        ]
    )


def forgotten_rows(hashes: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Make rows that hold no tokens and no more of documents than the hashes of their texts.

    Args:
        hashes: (n,) uint64.
        schema: Of the store; with `hash`.
    """
    num_rows = -(-len(hashes) // _HASHES)
    block, struct = schema.field("tokens").type.list_size, schema.field("documents").type.value_type
    fields = [pa.nulls(len(hashes), field.type) for field in struct]
    fields[0], fields[-1] = pa.repeat(pa.scalar(0, pa.int32()), len(hashes)), pa.array(hashes)
    borders = np.minimum(np.arange(num_rows + 1) * _HASHES, len(hashes)).astype(np.int32)
    zeros = np.zeros(num_rows * block, schema.field("tokens").type.value_type.to_pandas_dtype())
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(zeros), block),
        pa.repeat(pa.scalar(0, pa.int32()), num_rows),
        pa.repeat(pa.scalar(FORGOTTEN), num_rows),
        pa.repeat(pa.scalar(""), num_rows),
        pa.ListArray.from_arrays(pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(struct))),
    ]
    return pa.table(columns, schema=schema)


def join_documents(ids: np.ndarray, offsets: np.ndarray, eos_id: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Put EOS after every document.

    Args:
        ids: (total,) token ids.
        offsets: (n + 1,) borders of the n documents in `ids`.
        eos_id: The id of EOS.
        dtype: Of the result; must hold every id.

    Returns:
        (total + n,) tokens.

    Raises:
        StoreError: If an id does not fit `dtype`, or a document already holds EOS.
    """
    if len(ids) and int(ids.max()) > np.iinfo(dtype).max:
        raise StoreError(
            f"Token id {int(ids.max())} does not fit {dtype}: the tokenizer gave an id beyond its vocabulary."
        )
    if (ids == eos_id).any():
        raise ConfigError(
            f"A text was encoded to the EOS id {eos_id}, which would cut its document in two: choose a tokenizer.eos_token "
            "that is a special token."
        )
    # Straight into place, narrowed on the way: a copy more of all tokens costs as much as the rest of the packing.
    joined = np.empty(len(ids) + len(offsets) - 1, dtype)
    joined[offsets[1:] + np.arange(len(offsets) - 1)] = eos_id
    for i, (low, high) in enumerate(pairwise(offsets.tolist())):
        joined[low + i : high + i] = ids[low:high]
    return joined


class _Run(NamedTuple):
    """Documents of one stream that came one after the other: tokens, lengths, and the place of the first in the commit."""

    tokens: np.ndarray
    lengths: np.ndarray
    first: int


class Packer:
    """Collects encoded documents and gives them as rows of the store. Holds about 2 bytes per token (4 for uint32).

    Args:
        eos_id: The id that ends every document.
        dtype: uint16 or uint32, of the tokens.
        metadata: Names of the string columns kept with each document.
        hashed: Whether the column `hash` is kept too.
    """

    def __init__(self, eos_id: int, dtype: np.dtype[Any], metadata: Sequence[str], hashed: bool = False) -> None:
        self._eos_id = eos_id
        self._dtype = dtype
        self._schema = store_schema(dtype, metadata, hashed)
        self._runs: dict[Stream, list[_Run]] = {}
        self._documents: list[pa.Table] = []
        self._forgotten: list[np.ndarray] = []
        self._num_documents = 0
        self.num_tokens = 0

    def add(self, ids: np.ndarray, offsets: np.ndarray, splits: np.ndarray, documents: pa.Table) -> None:
        """Take n documents.

        Args:
            ids: (total,) token ids, without EOS.
            offsets: (n + 1,) borders of the documents in `ids`.
            splits: (n,) places in `SPLITS`.
            documents: n rows with `language`, `id`, the metadata, and `hash` if it is kept.
        """
        languages = one_array(documents.column("language")).dictionary_encode()
        streams = splits.astype(np.int64) * len(languages.dictionary) + np.asarray(languages.indices)
        joined = join_documents(ids, offsets, self._eos_id, self._dtype)
        borders = np.append(0, offsets[1:] + np.arange(1, len(offsets)))
        # Neighbours of one stream stay together, as views: nothing is copied until `take`.
        cuts = [0, *(np.flatnonzero(np.diff(streams)) + 1).tolist(), len(streams)] if len(streams) else []
        for low, high in pairwise(cuts):
            split, language = divmod(int(streams[low]), len(languages.dictionary))
            runs = self._runs.setdefault(Stream(SPLITS[split], languages.dictionary[language].as_py()), [])
            lengths = np.diff(borders[low : high + 1])
            runs.append(_Run(joined[borders[low] : borders[high]], lengths, self._num_documents + low))
        self._documents.append(documents)
        self._num_documents += len(documents)
        self.num_tokens += len(joined)

    def forget(self, hashes: np.ndarray) -> None:
        """Take the hashes, (n,) uint64, of documents of which nothing else is to be kept."""
        if len(hashes):
            self._forgotten.append(hashes)

    def take(self) -> pa.Table:
        """Give all rows collected, which empties this. The last block of each stream is padded with zeros."""
        documents = pa.concat_tables(self._documents) if self._documents else None
        tables = [self._rows(stream, self._runs.pop(stream), documents) for stream in sorted(self._runs)]
        if self._forgotten:
            tables.append(forgotten_rows(np.concatenate(self._forgotten), self._schema))
        self._documents, self._forgotten, self._num_documents, self.num_tokens = [], [], 0, 0
        return pa.concat_tables(tables) if tables else self._schema.empty_table()

    def _rows(self, stream: Stream, runs: list[_Run], documents: pa.Table) -> pa.Table:
        num_tokens = sum(len(run.tokens) for run in runs)
        num_rows = -(-num_tokens // BLOCK)
        tokens = np.zeros(num_rows * BLOCK, self._dtype)
        np.concatenate([run.tokens for run in runs], out=tokens[:num_tokens])
        valid = np.full(num_rows, BLOCK, np.int32)
        valid[-1] = num_tokens - (num_rows - 1) * BLOCK
        lengths = np.concatenate([run.lengths for run in runs])
        mine = np.concatenate([run.first + np.arange(len(run.lengths)) for run in runs])
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(tokens), BLOCK),
            pa.array(valid),
            pa.repeat(pa.scalar(stream.split), num_rows),
            pa.repeat(pa.scalar(stream.language), num_rows),
            self._document_lists(lengths, documents.take(pa.array(mine)), num_rows),
        ]
        return pa.table(columns, schema=self._schema)

    def _document_lists(self, lengths: np.ndarray, documents: pa.Table, num_rows: int) -> pa.Array:
        """Put each document of a stream into the list of the block in which it begins."""
        starts = np.cumsum(lengths) - lengths
        struct = self._schema.field("documents").type.value_type
        fields = [pa.array((starts % BLOCK).astype(np.int32))]
        fields += [one_array(documents.column(field.name)) for field in list(struct)[1:]]
        borders = np.searchsorted(starts, np.arange(num_rows + 1) * BLOCK).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(struct)))
