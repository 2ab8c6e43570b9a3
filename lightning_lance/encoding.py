"""Documents of a source read and encoded, ahead of who packs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
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


def encoded_batches(
    opened: OpenedSource,
    tokenizer: Tokenizer,
    shard: int,
    row: int,
    max_documents: int | None = None,
    known: KnownTexts | None = None,
) -> Generator[tuple[int, EncodedBatch | None], None, None]:
    """Read and encode from a cursor on, in the source's order.

    Args:
        opened: The source.
        tokenizer: The tokenizer.
        shard: Place of the first shard to read.
        row: First row to read of it.
        max_documents: Documents to encode; None for all.
        known: Texts not to encode again; those read are added, and their documents get a column `hash`. None keeps all.

    Yields:
        (shard, batch) pairs, and (shard, None) after the last batch of each shard.
    """
    left = max_documents
    ahead: deque[tuple[int, Future[EncodedBatch] | None]] = deque()

    def oldest() -> tuple[int, EncodedBatch | None]:
        shard, encoding = ahead.popleft()
        return shard, None if encoding is None else encoding.result()

    with (
        closing(read_ahead(_batches(opened, shard, row), _READ_AHEAD)) as batches,
        ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode") as encoders,
    ):
        for place, batch in batches:
            if batch is None:
                ahead.append((place, None))
            else:
                sizes = np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), -1))
                new = sizes > 0
                if known is not None:
                    # Before they are encoded, which is what takes the time; here, since here they come in order.
                    hashes = text_hashes(batch.column("text"))
                    batch = batch.append_column("hash", pa.array(hashes))
                    new[new] = known.add(hashes[new])
                wanted = np.flatnonzero(new)[:left]
                left = None if left is None else left - len(wanted)
                ahead.append((place, encoders.submit(_encode, tokenizer, batch, sizes, new, wanted)))
            if len(ahead) > _ENCODERS:
                yield oldest()
        while ahead:
            yield oldest()


def _encode(
    tokenizer: Tokenizer, batch: pa.Table, sizes: np.ndarray, new: np.ndarray, wanted: np.ndarray
) -> EncodedBatch:
    documents = batch if len(wanted) == len(batch) else batch.take(pa.array(wanted))
    encoded = tokenizer.encode_batch(one_array(documents.column("text")))
    return EncodedBatch(batch, sizes, (sizes > 0) & ~new, wanted, documents, encoded)


def _batches(opened: OpenedSource, shard: int, row: int) -> Iterator[tuple[int, pa.Table | None]]:
    for place in range(shard, len(opened.shards)):
        for batch in opened.read(place, row if place == shard else 0):
            yield place, batch
        yield place, None
