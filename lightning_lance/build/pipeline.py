"""Read and encode the documents of a source, ahead of the packing."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.build.unit import UnitResult
from lightning_lance.documents.arrow import as_single_chunk, offsets_and_bytes
from lightning_lance.documents.batch import next_row
from lightning_lance.documents.columns import REPLACED
from lightning_lance.documents.dedup import text_hashes
from lightning_lance.documents.screening import LongDocuments, flag_of, flags_of, skip_reasons, spelled
from lightning_lance.documents.spans import LOSS_SPANS, spans_of
from lightning_lance.errors import ConfigError
from lightning_lance.format.channels import CHANNELS, LOSS_MASK
from lightning_lance.process.memory import give_back_arrow
from lightning_lance.process.prefetch import read_ahead
from lightning_lance.sources.source import OpenedSource
from lightning_lance.tokenization.extents import Characters, extents_of, trained_tokens
from lightning_lance.tokenization.gigatoken import ENCODERS, Encoded
from lightning_lance.tokenization.long_texts import encode_texts, in_pieces
from lightning_lance.tokenization.tokenizer import Tokenizer

# Batches read ahead.
_READ_AHEAD = 2

# Batches that wait for an encoder or for the packing, besides those that are being encoded.
_WAITING = 2

# Threads for the `tokenizers` library: it uses all cores for a batch, but at its end some are idle.
_TOKENIZERS_THREADS = 2

# Text in flight at which reading pauses: more than these batches hold, except where single documents are larger.
_ROOM_BYTES = 64 << 20

# Text after which Arrow returns freed memory to the system, in some ten milliseconds. It would keep some 100 MB over
# gigabytes of text.
_RELEASE_BYTES = 32 << 20


class EncodedBatch(NamedTuple):
    """A document batch, read and encoded.

    Attributes:
        batch: The document batch.
        sizes: Bytes of its texts; -1 for null.
        wanted: Indices of the rows that are kept.
        documents: Those rows.
        encoded: Their token ids.
        skipped: By reason, a mask of the rows that are skipped.
        noted: By remark, a mask of the documents that it applies to.
        channels: By name, the value of each token, the EOS behind each document included.
    """

    batch: pa.Table
    sizes: np.ndarray
    wanted: np.ndarray
    documents: pa.Table
    encoded: Encoded
    skipped: dict[str, np.ndarray]
    noted: dict[str, np.ndarray]
    channels: Mapping[str, np.ndarray] = {}

    def result(self, shard: int) -> UnitResult:
        """Return the batch as the result of a unit, for the ledger. Duplicates are among the skipped rows."""
        rows = np.asarray(self.batch.column("row"))
        seen = len(rows)
        behind = next_row(self.batch)
        if not behind:
            behind = int(rows[-1]) + 1 if seen else None
        kept = np.flatnonzero(~np.logical_or.reduce([*self.skipped.values()]))
        if len(self.wanted) < len(kept):
            # The upper bound was reached: the next document was not encoded, and is for another unit.
            seen = int(kept[len(self.wanted)])
            behind = int(rows[seen])
        # Tokens that are imported have no text.
        described = [name for name in self.documents.column_names if name not in ("row", "text")]
        # `shard:row` finds a document in the source again.
        places = as_single_chunk(self.documents.column("row"))
        ids = pc.binary_join_element_wise(pa.scalar(str(shard)), places.cast(pa.string()), ":")
        return UnitResult(
            shard,
            rows=np.asarray(places),
            num_tokens=np.diff(self.encoded.offsets) + 1,
            text_bytes=self.sizes[self.wanted],
            documents=self.documents.select(described).append_column("id", ids),
            noted=self.noted,
            skipped={reason: rows[:seen][mask[:seen]] for reason, mask in self.skipped.items()},
            next_row=behind,
        )


class KnownTexts(Protocol):
    """Knows which texts are copies of earlier ones; see `SeenHashes`."""

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Take the next texts by their (n,) uint64 hashes, and return (n,) bool: which are new."""
        ...


class _Backpressure:
    """Bounds reading ahead by memory and by the rest of the budget, so that no more is fetched than needed.

    The tokens of a text are estimated from the texts before it, and before there are any, as one for each byte.
    """

    def __init__(self, max_documents: int | None, max_tokens: int | None) -> None:
        self._max_documents = math.inf if max_documents is None else max_documents
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._changed = threading.Condition()
        self._batches = 0
        # Documents and bytes of text that were read and not yet taken.
        self._ahead = np.zeros(2, np.int64)
        # Documents, bytes and tokens that were taken.
        self._taken = np.zeros(3, np.int64)
        self._closed = False

    def is_tight(self) -> bool:
        """Whether the texts read so far may be enough, or fill the memory for them."""
        documents, size, tokens = self._taken.tolist()
        ahead, ahead_size = self._ahead.tolist()
        tokens_per_byte = tokens / size if size else 1.0
        expected = tokens + ahead + ahead_size * tokens_per_byte
        enough = documents + ahead >= self._max_documents or expected >= self._max_tokens
        return bool(enough or ahead_size > _ROOM_BYTES)

    def wait(self) -> bool:
        """Wait until more may be read. Return False if no more is needed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._batches or not self.is_tight())
            return not self._closed

    def add(self, sizes: np.ndarray) -> None:
        """Count a batch that was read, by the sizes of its texts."""
        with self._changed:
            self._batches += 1
            self._ahead += _amount(sizes)

    def take(self, sizes: np.ndarray, wanted: np.ndarray, tokens: int) -> None:
        """Count a batch as taken: its `wanted` texts gave `tokens`, without EOS."""
        with self._changed:
            self._batches -= 1
            self._ahead -= _amount(sizes)
            self._taken += (len(wanted), int(sizes[wanted].sum()), tokens + len(wanted))
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def encoded_batches(
    opened: OpenedSource,
    tokenizer: Tokenizer,
    shard: int,
    row: int,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    long: LongDocuments = LongDocuments(),  # noqa: B008 - frozen
    known: KnownTexts | None = None,
) -> Generator[tuple[int, EncodedBatch | None], None, None]:
    """Read and encode from a cursor on, in the source's order.

    Args:
        opened: The source.
        tokenizer: The tokenizer.
        shard: Place of the first shard to read.
        row: First row to read of it.
        max_documents: Documents to encode; None for all.
        max_tokens: Tokens, EOS included, after which no more are needed; None for no bound.
        long: How long documents are treated.
        known: Knows which texts are copies, which are not encoded. Documents then get a column `hash`. None keeps all.

    Yields:
        (shard, batch) pairs, and (shard, None) after the last batch of each shard.
    """
    left = max_documents
    room = _Backpressure(max_documents, max_tokens)
    special = spelled(tokenizer.special_tokens)
    ahead: deque[tuple[int, Future[EncodedBatch] | None]] = deque()

    def oldest() -> Generator[tuple[int, EncodedBatch | None], None, None]:
        place, encoding = ahead.popleft()
        if encoding is None:
            yield place, None
            return
        made = encoding.result()
        taken = made.sizes, made.wanted, len(made.encoded.ids)
        yield place, made
        # Only now has the consumer released it.
        room.take(*taken)

    with (
        closing(read_ahead(_batches(opened, shard, row, room), _READ_AHEAD)) as batches,
        _encoders(ENCODERS if tokenizer.engine == "gigatoken" else _TOKENIZERS_THREADS) as encoders,
        closing(room),
    ):
        for place, batch in batches:
            if batch is None:
                ahead.append((place, None))
            else:
                sizes = _sizes(batch)
                skipped = skip_reasons(batch, sizes, long)
                kept = ~np.logical_or.reduce([*skipped.values()])
                if known is not None:
                    # Before encoding, which takes the time; and here, where the texts come in order.
                    hashes = text_hashes(batch.column("text"))
                    batch = batch.append_column("hash", pa.array(hashes))
                    skipped["duplicate"] = np.zeros(len(batch), bool)
                    skipped["duplicate"][kept] = ~known.add(hashes[kept])
                    kept &= ~skipped["duplicate"]
                wanted = np.flatnonzero(kept)[:left]
                if left is not None:
                    left -= len(wanted)
                name = opened.shards[place]
                made = encoders.submit(_encode, tokenizer, special, long, batch, sizes, wanted, skipped, name)
                ahead.append((place, made))
                # They may hold a gigabyte, and reading the next batch takes time.
                del batch, made
            while ahead and (len(ahead) > ENCODERS + _WAITING or room.is_tight()):
                yield from oldest()
        while ahead:
            yield from oldest()


@contextmanager
def _encoders(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
    try:
        yield pool
    finally:
        # A consumer that stops early waits for the batches being encoded, and not for queued ones.
        pool.shutdown(cancel_futures=True)


def _encode(
    tokenizer: Tokenizer,
    special: list[str],
    long: LongDocuments,
    batch: pa.Table,
    sizes: np.ndarray,
    wanted: np.ndarray,
    skipped: dict[str, np.ndarray],
    name: str,
) -> EncodedBatch:
    documents = _rows(batch, wanted)
    noted = flags_of(documents, special, long)
    # What is needed no more once the documents are encoded.
    used = {"not_utf8", "not_json", "bom", REPLACED, LOSS_SPANS}
    flagged = documents
    needed = [column for column in documents.column_names if column not in used]
    documents = documents.select(needed)
    texts = as_single_chunk(documents.column("text"))
    encoded = encode_texts(tokenizer, texts, long.max_bytes)
    largest = int(encoded.ids.max(initial=0))
    if largest >= tokenizer.vocab_size:
        raise ConfigError(
            f"The engine {tokenizer.engine} gave the id {largest:,}, but the tokenizer has {tokenizer.vocab_size:,} ids: give "
            "a complete tokenizer.json."
        )
    if tokenizer.losses.possible:
        noted |= tokenizer.losses.find(texts, encoded, in_pieces(texts, long.max_bytes))
    channels = {}
    if LOSS_SPANS in flagged.column_names:
        channels[LOSS_MASK] = _loss_mask(tokenizer, flagged, texts, encoded, long.max_bytes, name)
    return EncodedBatch(batch, sizes, wanted, documents, encoded, skipped, noted, channels)


def _loss_mask(
    tokenizer: Tokenizer, documents: pa.Table, texts: pa.Array, encoded: Encoded, max_bytes: int, shard: str
) -> np.ndarray:
    """Return which tokens of documents are trained on, as a store holds it, EOS included."""
    characters = Characters(texts)
    # A byte order mark is a character of the source that the text has no more.
    removed = flag_of(documents, "bom").astype(np.int64)
    of, spans = spans_of(documents, characters.counts, removed, f"shard {shard!r}")
    extents = extents_of(tokenizer, characters, encoded, max_bytes)
    trained = trained_tokens(characters, extents, encoded.offsets, of, spans)
    return trained.astype(CHANNELS[LOSS_MASK].stored)


def _rows(batch: pa.Table, wanted: np.ndarray) -> pa.Table:
    """Take rows, without a copy of the texts if only empty ones are skipped."""
    if len(wanted) == len(batch):
        return batch
    texts = as_single_chunk(batch.column("text"))
    borders, _ = offsets_and_bytes(texts)
    low = borders[wanted]
    high = borders[wanted + 1]
    if not len(wanted) or (low[1:] != high[:-1]).any():
        return batch.take(pa.array(wanted))
    others = batch.drop_columns(["text"]).take(pa.array(wanted))
    edges = pa.py_buffer(np.append(low, high[-1]))
    return others.append_column("text", pa.LargeStringArray.from_buffers(len(wanted), edges, texts.buffers()[2]))


def _sizes(batch: pa.Table) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), -1))


def _amount(sizes: np.ndarray) -> tuple[int, int]:
    """Count the texts and their bytes."""
    texts = sizes[sizes > 0]
    return len(texts), int(texts.sum())


def _batches(
    opened: OpenedSource, shard: int, row: int, room: _Backpressure
) -> Generator[tuple[int, pa.Table | None], None, None]:
    size = 0
    for place in range(shard, len(opened.shards)):
        batches = iter(opened.read(place, row if place == shard else 0))
        while room.wait() and (batch := next(batches, None)) is not None:
            sizes = _sizes(batch)
            room.add(sizes)
            yield place, batch
            del batch
            size += _amount(sizes)[1]
            if size > _RELEASE_BYTES:
                size = 0
                give_back_arrow()
        if not room.wait():
            if isinstance(batches, Generator):
                batches.close()
            return
        yield place, None
