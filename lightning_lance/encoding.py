"""Documents of a source read and encoded, ahead of who packs them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents import one_array
from lightning_lance.fast_engine import Encoded
from lightning_lance.inspection import counted, remarks, skip_reasons, spelled
from lightning_lance.long_texts import LongDocuments, encode_texts
from lightning_lance.read_ahead import read_ahead
from lightning_lance.sources import BATCH_BYTES, OpenedSource
from lightning_lance.tokenization import Tokenizer

# Batches read ahead, and encoded at once: enough to keep the cores busy (with one, a core idles at the end of each
# batch), few enough for memory.
_READ_AHEAD = 1
_ENCODERS = 2

# Text under way before nothing more is read: what those batches hold, except where single documents are larger.
_ROOM_BYTES = 4 * BATCH_BYTES


class EncodedBatch(NamedTuple):
    """A document batch, read and encoded.

    Attributes:
        batch: The document batch.
        sizes: Bytes of its texts, -1 for null.
        wanted: Rows that are kept.
        documents: Those rows.
        encoded: Their ids.
        skipped: Reason to which rows of the batch are left out for it.
        noted: Remark to which of the documents it holds for.
    """

    batch: pa.Table
    sizes: np.ndarray
    wanted: np.ndarray
    documents: pa.Table
    encoded: Encoded
    skipped: dict[str, np.ndarray]
    noted: dict[str, np.ndarray]

    def counts(self, documents: int, rows: int) -> tuple[dict[str, int], dict[str, int]]:
        """Count, among the first rows, those left out by reason, and among the first documents, the remarks."""
        return counted(self.skipped, rows), counted(self.noted, documents)


class _Room:
    """Keeps a reader waiting while more text is under way than memory is meant for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bytes = 0
        self._closed = False

    @property
    def full(self) -> bool:
        return self._bytes > _ROOM_BYTES

    def change(self, num_bytes: int) -> None:
        with self._changed:
            self._bytes += num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self.full)


def encoded_batches(
    opened: OpenedSource,
    tokenizer: Tokenizer,
    shard: int,
    row: int,
    max_documents: int | None = None,
    long: LongDocuments = LongDocuments(),  # noqa: B008 - frozen
) -> Generator[tuple[int, EncodedBatch | None], None, None]:
    """Read and encode from a cursor on, in the source's order.

    Args:
        opened: The source.
        tokenizer: The tokenizer.
        shard: Place of the first shard to read.
        row: First row to read of it.
        max_documents: Documents to encode; None for all.
        long: What becomes of long documents.

    Yields:
        (shard, batch) pairs, and (shard, None) after the last batch of each shard.
    """
    left = max_documents
    ahead: deque[tuple[int, Future[EncodedBatch] | None, int]] = deque()
    special, room = spelled(tokenizer.special_tokens), _Room()

    def oldest() -> Iterator[tuple[int, EncodedBatch | None]]:
        place, encoding, num_bytes = ahead.popleft()
        yield place, None if encoding is None else encoding.result()
        # Only now does who packs it let go of it.
        room.change(-num_bytes)

    with (
        closing(read_ahead(_batches(opened, shard, row, room), _READ_AHEAD)) as batches,
        closing(room),
        ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode") as encoders,
    ):
        for place, batch in batches:
            if batch is None:
                ahead.append((place, None, 0))
            else:
                sizes = _sizes(batch)
                skipped = skip_reasons(batch, sizes, long)
                wanted = np.flatnonzero(~np.logical_or.reduce([*skipped.values()]))[:left]
                left = None if left is None else left - len(wanted)
                made = encoders.submit(_encode, tokenizer, special, long, batch, sizes, wanted, skipped)
                ahead.append((place, made, _num_bytes(sizes)))
                # It may be a gigabyte, and the next one takes its time.
                del batch, made
            while ahead and (len(ahead) > _ENCODERS or room.full):
                yield from oldest()
        while ahead:
            yield from oldest()


def _encode(
    tokenizer: Tokenizer,
    special: list[str],
    long: LongDocuments,
    batch: pa.Table,
    sizes: np.ndarray,
    wanted: np.ndarray,
    skipped: dict[str, np.ndarray],
) -> EncodedBatch:
    documents = batch if len(wanted) == len(batch) else batch.take(pa.array(wanted))
    noted = remarks(documents, special, long)
    documents = documents.select([name for name in documents.column_names if name not in ("not_utf8", "bom")])
    encoded = encode_texts(tokenizer, one_array(documents.column("text")), long.max_bytes)
    return EncodedBatch(batch, sizes, wanted, documents, encoded, skipped, noted)


def _sizes(batch: pa.Table) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), -1))


def _num_bytes(sizes: np.ndarray) -> int:
    return int(sizes[sizes > 0].sum())


def _batches(opened: OpenedSource, shard: int, row: int, room: _Room) -> Iterator[tuple[int, pa.Table | None]]:
    for place in range(shard, len(opened.shards)):
        room.wait()
        batches = iter(opened.read(place, row if place == shard else 0))
        while (batch := next(batches, None)) is not None:
            room.change(_num_bytes(_sizes(batch)))
            yield place, batch
            del batch
            room.wait()
        yield place, None
