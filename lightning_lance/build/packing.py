"""From encoded documents to the rows of a token store: documents joined by EOS, one stream per (split, language), in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from lightning_lance.build.ledger import Folded
from lightning_lance.build.pipeline import EncodedBatch
from lightning_lance.build.unit import UnitResult
from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.splits import SPLITS, splits_of
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.channels import TOKENS, bytes_of_token, ordered
from lightning_lance.format.rows import BLOCK, Stream, blocks_of, forgotten_rows, store_schema, token_columns

# Tokens of a stream that are returned together: a little more than a page of Lance, which then needs no copy of them.
_TOGETHER_BYTES = 9 << 20
# Tokens of all streams that are held. Several streams share them, but each gets enough to be efficient.
_HELD_BYTES = 27 << 20
_LEAST_BYTES = 256 << 10


def join_documents(ids: np.ndarray, offsets: np.ndarray, eos_id: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Put EOS after every document.

    Args:
        ids: (total,) token ids.
        offsets: (n + 1,) borders of the n documents in `ids`.
        eos_id: The id of EOS.
        dtype: Type of the result.

    Returns:
        (total + n,) tokens.

    Raises:
        StoreError: If an id does not fit `dtype`.
        ConfigError: If a document already holds EOS.
    """
    if ids.itemsize > dtype.itemsize and len(ids) and int(ids.max()) > np.iinfo(dtype).max:
        raise StoreError(
            f"Token id {int(ids.max())} does not fit {dtype}: the tokenizer gave an id beyond its vocabulary."
        )
    if (ids == eos_id).any():
        raise ConfigError(
            f"A text was encoded to the EOS id {eos_id}, which would cut its document in two: choose a tokenizer.eos_token "
            "that is a special token."
        )
    # Straight into place: one more copy of all tokens costs as much as the rest of the packing.
    joined = np.empty(len(ids) + len(offsets) - 1, dtype)
    joined[offsets[1:] + np.arange(len(offsets) - 1)] = eos_id
    for i, (low, high) in enumerate(pairwise(offsets.tolist())):
        joined[low + i : high + i] = ids[low:high]
    return joined


class _End:
    """The unfinished blocks at the end of a stream: tokens with their channels, and the documents that begin in them.

    Args:
        rows: Blocks that there is room for.
        dtypes: The columns with a value for each token, and their types.
    """

    def __init__(self, rows: int, dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self.columns = {name: np.empty(rows * BLOCK, dtype) for name, dtype in dtypes.items()}
        self.room = rows * BLOCK
        self.size = 0
        self.starts: list[np.ndarray] = []
        self.documents: list[pa.Table] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of the blocks."""
        return sum(values.nbytes for values in self.columns.values())

    def fill(self, joined: Mapping[str, np.ndarray], low: int, high: int) -> int:
        """Take those of some tokens that fit, and return the place of the first that does not.

        Args:
            joined: The columns.
            low: Place of the first token in them.
            high: Place after the last one.
        """
        count = min(high - low, self.room - self.size)
        for name, values in joined.items():
            self.columns[name][self.size : self.size + count] = values[low : low + count]
        self.size += count
        return low + count

    def describe(self, starts: np.ndarray, documents: pa.Table) -> None:
        """Take the documents that begin at `starts`, (n,) offsets in `tokens`."""
        if len(starts):
            self.starts.append(starts)
            self.documents.append(documents)


class Packer:
    """Turns encoded documents into rows of the store, as soon as the rows are full.

    Holds some megabytes of tokens: a quarter of a megabyte for each stream, and up to 27 more.

    Args:
        eos_id: The id that ends every document.
        dtype: Type of the tokens, uint16 or uint32.
        metadata: Names of the string columns kept with each document.
        hashed: Whether the column `hash` is kept too.
        channels: Names of the channels of the tokens.

    Attributes:
        schema: Schema of the rows.
        num_tokens: Tokens taken since the last `flush`.
    """

    def __init__(
        self,
        eos_id: int,
        dtype: np.dtype[Any],
        metadata: Sequence[str],
        hashed: bool = False,
        channels: Sequence[str] = (),
    ) -> None:
        self._eos_id = eos_id
        self._dtype = dtype
        stored = ordered(channels)
        self.schema = store_schema(dtype, metadata, hashed, stored)
        self._bytes_of_token = bytes_of_token(dtype, stored)
        #: The columns with a value for each token, and their types.
        self._dtypes: dict[str, np.dtype[Any]] = {}
        for name in token_columns(self.schema):
            self._dtypes[name] = np.dtype(self.schema.field(name).type.value_type.to_pandas_dtype())
        self._ends: dict[Stream, _End] = {}
        self._forgotten: list[np.ndarray] = []
        self.num_tokens = 0

    def add(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        splits: np.ndarray,
        documents: pa.Table,
        channels: Mapping[str, np.ndarray] | None = None,
    ) -> list[pa.RecordBatch]:
        """Take n documents, and return full rows once there are many.

        Args:
            ids: (total,) token ids, without EOS.
            offsets: (n + 1,) borders of the documents in `ids`.
            splits: (n,) indices into `SPLITS`.
            documents: n rows with `language`, `id`, the metadata, and `hash` if it is kept.
            channels: By name, (total + n,) values of the tokens, with one for each EOS.
        """
        languages = as_single_chunk(documents.column("language")).dictionary_encode()
        streams = splits.astype(np.int64) * len(languages.dictionary) + np.asarray(languages.indices)
        tokens = join_documents(ids, offsets, self._eos_id, self._dtype)
        joined = {TOKENS: tokens, **(channels or {})}
        self._check_channels(joined)
        borders = np.append(0, offsets[1:] + np.arange(1, len(offsets)))
        self.num_tokens += len(tokens)
        full: list[pa.RecordBatch] = []
        for code in np.unique(streams).tolist():
            split, language = divmod(code, len(languages.dictionary))
            mine = np.flatnonzero(streams == code)
            # Neighbouring documents of one stream are one run.
            cuts = np.flatnonzero(np.diff(mine) != 1) + 1
            first = mine[np.append(0, cuts)]
            last = mine[np.append(cuts, len(mine)) - 1]
            runs = list(zip(borders[first].tolist(), borders[last + 1].tolist(), strict=True))
            described = documents
            if len(mine) != len(documents):
                described = documents.take(pa.array(mine))
            lengths = (borders[1:] - borders[:-1])[mine]
            stream = Stream(SPLITS[split], languages.dictionary[language].as_py())
            full += self._append(stream, joined, runs, lengths, described)
        return full

    def _check_channels(self, joined: Mapping[str, np.ndarray]) -> None:
        """Check that each token has a value of each channel."""
        sizes = {name: len(values) for name, values in joined.items()}
        if sizes != dict.fromkeys(self._dtypes, sizes[TOKENS]):
            raise ValueError(f"columns of {sizes} values, expected {sizes[TOKENS]} of each of {[*self._dtypes]}")

    def forget(self, hashes: np.ndarray) -> None:
        """Take the hashes, (n,) uint64, of documents of which nothing else is kept."""
        if len(hashes):
            self._forgotten.append(hashes)

    def flush(self) -> list[pa.RecordBatch]:
        """Return all remaining rows. The last block of each stream is padded with zeros."""
        rows: list[pa.RecordBatch] = []
        for stream, end in sorted(self._ends.items()):
            if end.size:
                rows.append(self._rows(stream, end))
        if self._forgotten:
            rows += forgotten_rows(np.concatenate(self._forgotten), self.schema).to_batches()
        self._ends = {}
        self._forgotten = []
        self.num_tokens = 0
        return rows

    def _append(
        self,
        stream: Stream,
        joined: Mapping[str, np.ndarray],
        runs: Sequence[tuple[int, int]],
        lengths: np.ndarray,
        documents: pa.Table,
    ) -> Iterator[pa.RecordBatch]:
        end = self._ends.get(stream) or self._new_end(stream)
        starts = end.size + np.cumsum(lengths) - lengths
        for low, high in runs:
            rest = end.fill(joined, low, high)
            while end.size == end.room:
                here = int(np.searchsorted(starts, end.size))
                end.describe(starts[:here], documents.slice(0, here))
                yield self._rows(stream, end)
                starts = starts[here:] - end.size
                documents = documents.slice(here)
                end = self._new_end(stream)
                rest = end.fill(joined, rest, high)
        end.describe(starts, documents)

    def _new_end(self, stream: Stream) -> _End:
        # A new stream begins small: the first documents do not show how many streams there will be.
        share = 0
        if stream in self._ends:
            share = _HELD_BYTES // len(self._ends)
        others = 0
        for other, held in self._ends.items():
            if other != stream:
                others += held.num_bytes
        size = max(min(share, _TOGETHER_BYTES, _HELD_BYTES - others), _LEAST_BYTES)
        end = _End(max(size // (BLOCK * self._bytes_of_token), 1), self._dtypes)
        self._ends[stream] = end
        return end

    def _rows(self, stream: Stream, end: _End) -> pa.RecordBatch:
        num_rows = -(-end.size // BLOCK)
        blocks = {}
        for name, values in end.columns.items():
            values[end.size : num_rows * BLOCK] = 0
            blocks[name] = blocks_of(values[: num_rows * BLOCK], BLOCK)
        valid = np.full(num_rows, BLOCK, np.int32)
        valid[-1] -= num_rows * BLOCK - end.size
        columns = [
            blocks.pop(TOKENS),
            pa.array(valid),
            pa.repeat(pa.scalar(stream.split), num_rows),
            pa.repeat(pa.scalar(stream.language), num_rows),
            self._document_lists(end, num_rows),
            *blocks.values(),
        ]
        return pa.record_batch(columns, schema=self.schema)

    def _document_lists(self, end: _End, num_rows: int) -> pa.Array:
        """Put each document of a stream into the list of the block in which it begins."""
        struct = self.schema.field("documents").type.value_type
        starts = np.concatenate([np.empty(0, np.int64), *end.starts])
        documents = pa.concat_tables(end.documents) if end.documents else None
        fields = [pa.array((starts % BLOCK).astype(np.int32))]
        for field in list(struct)[1:]:
            # A copy: an empty slice of strings keeps an offset that Lance considers damage.
            values = pa.array([], field.type)
            if documents is not None:
                values = documents.column(field.name).combine_chunks()
            fields.append(values)
        borders = np.searchsorted(starts, np.arange(num_rows + 1) * BLOCK).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(struct)))


def pack_stored(
    packer: Packer, batch: EncodedBatch, result: UnitResult, folded: Folded, val_fraction: float
) -> list[pa.RecordBatch]:
    """Pack the documents of a batch that the ledger stores, and return full rows once there are many.

    Args:
        packer: The packer.
        batch: The batch.
        result: Its result.
        folded: What the ledger said of it.
        val_fraction: Share of the documents for validation.
    """
    stored, forgotten = folded
    if "hash" in result.documents.column_names:
        packer.forget(np.asarray(result.documents.column("hash"))[forgotten])
    count = int(np.count_nonzero(stored))
    if not count:
        return []
    ids, offsets = batch.encoded
    if stored[:count].all():
        # All up to the end of the budget: slices, without a copy.
        ids = ids[: offsets[count]]
        offsets = offsets[: count + 1]
        channels = {name: values[: len(ids) + count] for name, values in batch.channels.items()}
        texts = batch.documents.slice(0, count)
        described = result.documents.slice(0, count)
    else:
        lengths = np.diff(offsets)
        ids = ids[np.repeat(stored, lengths)]
        channels = {name: values[np.repeat(stored, lengths + 1)] for name, values in batch.channels.items()}
        offsets = np.append(0, np.cumsum(lengths[stored]))
        texts = batch.documents.filter(pa.array(stored))
        described = result.documents.filter(pa.array(stored))
    return packer.add(ids, offsets, splits_of(texts, val_fraction), described, channels)
