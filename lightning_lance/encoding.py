"""Documents of a source read and encoded, ahead of who packs them."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.dedup import KnownTexts, text_hashes
from lightning_lance.documents import one_array
from lightning_lance.read_ahead import read_ahead
from lightning_lance.sources import OpenedSource
from lightning_lance.tokenization import Encoded, Tokenizer

# Batches read ahead, and encoded at once: enough to keep the cores busy (with one, a core idles at the end of each
# batch), few enough for memory.
_READ_AHEAD = 1
_ENCODERS = 2


class EncodedBatch(NamedTuple):
    """A document batch, the sizes of its texts (-1 for null), which are duplicates, and the documents wanted of it, encoded."""

    batch: pa.Table
    sizes: np.ndarray
    duplicate: np.ndarray
    wanted: np.ndarray
    documents: pa.Table
    encoded: Encoded


class _Room:
    """Lets the reading run ahead only as far as the budget will need, so that no more is fetched.

    How many tokens a text will be is estimated from those before it; before there are any, a byte is taken for a token.
    """

    def __init__(self, max_documents: int | None, max_tokens: int | None) -> None:
        self._limits = np.asarray([math.inf if limit is None else limit for limit in (max_documents, max_tokens)])
        self._changed = threading.Condition()
        self._batches = 0
        # Documents and bytes of text that were read and not yet taken; documents, bytes and tokens that were.
        self._ahead, self._taken = np.zeros(2), np.zeros(3)
        self._closed = False

    def is_tight(self) -> bool:
        """Whether what is read already may be enough."""
        documents, size, tokens = self._taken
        ahead, ahead_size = self._ahead
        expected = tokens + ahead + ahead_size * (tokens / size if size else 1.0)
        return bool(documents + ahead >= self._limits[0] or expected >= self._limits[1])

    def wait(self) -> bool:
        """Wait until more may be read; False if no more is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._batches or not self.is_tight())
            return not self._closed

    def add(self, batch: pa.Table) -> None:
        """A batch was read."""
        with self._changed:
            sizes = _sizes(batch)
            self._batches += 1
            self._ahead += ((sizes > 0).sum(), sizes[sizes > 0].sum())

    def take(self, made: EncodedBatch) -> None:
        """A batch was not enough."""
        with self._changed:
            count, size = int((made.sizes > 0).sum()), int(made.sizes[made.sizes > 0].sum())
            self._batches -= 1
            self._ahead -= (count, size)
            # Of duplicates nothing is taken.
            kept = len(made.wanted)
            self._taken += (kept, int(made.sizes[made.wanted].sum()), len(made.encoded.ids) + kept)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is wanted."""
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
    known: KnownTexts | None = None,
) -> Generator[tuple[int, EncodedBatch | None], None, None]:
    """Read and encode from a cursor on, in the source's order.

    Args:
        opened: The source.
        tokenizer: The tokenizer.
        shard: Place of the first shard to read.
        row: First row to read of it.
        max_documents: Documents to encode; None for all.
        max_tokens: Tokens, EOS included, after which no more will be asked for; None for no bound.
        known: Texts not to encode again; those read are added, and their documents get a column `hash`. None keeps all.

    Yields:
        (shard, batch) pairs, and (shard, None) after the last batch of each shard.
    """
    left = max_documents
    room = _Room(max_documents, max_tokens)
    ahead: deque[tuple[int, Future[EncodedBatch] | None]] = deque()

    def oldest() -> Generator[tuple[int, EncodedBatch | None], None, None]:
        shard, encoding = ahead.popleft()
        made = None if encoding is None else encoding.result()
        yield shard, made
        if made is not None:
            room.take(made)

    with (
        closing(read_ahead(_batches(opened, shard, row, room), _READ_AHEAD)) as batches,
        ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode") as encoders,
        closing(room),
    ):
        for place, batch in batches:
            if batch is None:
                ahead.append((place, None))
            else:
                sizes = _sizes(batch)
                new = sizes > 0
                if known is not None:
                    # Before they are encoded, which is what takes the time; here, since here they come in order.
                    hashes = text_hashes(batch.column("text"))
                    batch = batch.append_column("hash", pa.array(hashes))
                    new[new] = known.add(hashes[new])
                wanted = np.flatnonzero(new)[:left]
                left = None if left is None else left - len(wanted)
                ahead.append((place, encoders.submit(_encode, tokenizer, batch, sizes, new, wanted)))
            while len(ahead) > _ENCODERS or (ahead and room.is_tight()):
                yield from oldest()
        while ahead:
            yield from oldest()


def _sizes(batch: pa.Table) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), -1))


def _encode(
    tokenizer: Tokenizer, batch: pa.Table, sizes: np.ndarray, new: np.ndarray, wanted: np.ndarray
) -> EncodedBatch:
    documents = batch if len(wanted) == len(batch) else batch.take(pa.array(wanted))
    encoded = tokenizer.encode_batch(one_array(documents.column("text")))
    return EncodedBatch(batch, sizes, (sizes > 0) & ~new, wanted, documents, encoded)


def _batches(
    opened: OpenedSource, shard: int, row: int, room: _Room
) -> Generator[tuple[int, pa.Table | None], None, None]:
    for place in range(shard, len(opened.shards)):
        batches = opened.read(place, row if place == shard else 0)
        while room.wait() and (batch := next(batches, None)) is not None:
            room.add(batch)
            yield place, batch
        if not room.wait():
            if isinstance(batches, Generator):
                batches.close()
            return
        yield place, None
