"""Reading ahead of a training loop: the next windows, in chunks of several batches, and the threads that read them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from lightning_lance.serving import steps
from lightning_lance.serving.batches import WindowBatch
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.ordering.mixture import WindowLocations
from lightning_lance.serving.step_sizes import StepSizes
from lightning_lance.store.token_store import TokenStore

# Just below the largest allocation that raises glibc's threshold when it is freed (M_MMAP_THRESHOLD in mallopt(3)).
_LARGEST_PIECE = 31 << 20
# Windows located at a time: the order costs the least per window when it is computed for many.
_LOCATED_AT_ONCE = 1 << 14


class Reads(NamedTuple):
    """How windows are read ahead: by how many threads, how many chunks, and the tokens of a chunk."""

    threads: int
    chunks: int
    tokens: int


# Handing over a chunk takes time of both threads, whatever its size. With larger or more chunks, the tokens that are read no
# longer fit into the cache of the processor.
_MAPPED = Reads(threads=1, chunks=3, tokens=1 << 21)
# Of stores that are not mapped, most of a read is waiting for the network.
_TAKEN = Reads(threads=4, chunks=4, tokens=1 << 20)


def reads_of(stores: Iterable[TokenStore]) -> Reads:
    """Return how the windows of some stores are read ahead."""
    for store in stores:
        if store.reader != "mapped":
            return _TAKEN
    return _MAPPED


class Chunk(NamedTuple):
    """A rank's windows of some batches, `size` of each, in `rows` each.

    Of each global batch, it has the number, the position behind its last window, and the digest of its windows.
    """

    found: WindowLocations
    size: int
    rows: int
    steps: Sequence[int]
    ends: Sequence[int]
    digests: Sequence[int]

    def cut(self, low: int, high: int) -> Chunk:
        """Return the batches [low, high) of these."""
        found = self.found.cut(low * self.size, high * self.size)
        return Chunk(found, self.size, self.rows, self.steps[low:high], self.ends[low:high], self.digests[low:high])


def chunks_left(cursor: Cursor, sizes: StepSizes, rank: int, tokens: int) -> Iterator[Chunk]:
    """Locate a rank's windows from a cursor to the end of the epoch, in chunks of up to so many tokens."""
    begin = cursor.value
    length = cursor.serving.context_length + 1
    # The first chunk is one batch, so that it comes at once. The next ones grow.
    located = together = 1
    # Laid out once: for each batch of the epoch it would take as long as all else.
    epoch = steps.EpochSteps(cursor, sizes, cursor.epoch)
    for run in steps.runs_left(cursor, epoch):
        global_size = run.size * sizes.world_size
        most = max(1, tokens // (run.size * length))
        ahead = run.steps
        while ahead:
            located = min(located, ahead)
            batches = _located(cursor, epoch, sizes.world_size, rank, begin, run._replace(steps=located))
            begin = cursor.skips.after(begin, located * global_size)
            ahead -= located
            low = 0
            while low < located:
                high = min(low + min(together, most), located)
                yield batches.cut(low, high)
                low = high
                together *= 2
            located = max(1, _LOCATED_AT_ONCE // global_size)


def _located(
    cursor: Cursor, epoch: steps.EpochSteps, world_size: int, rank: int, begin: int, run: steps.StepRun
) -> Chunk:
    """Find a rank's windows of some global batches."""
    global_size = world_size * run.size
    positions = cursor.skips.take(begin, run.steps * global_size)
    found = cursor.locate(positions)
    numbers = epoch.steps_at(positions[::global_size])
    ends = positions[global_size - 1 :: global_size] + 1
    digests = cursor.digests(positions, found).reshape(run.steps, global_size).sum(axis=1, dtype=np.uint64)
    mine = (part.reshape(run.steps, world_size, run.size)[:, rank].reshape(-1) for part in found)
    return Chunk(WindowLocations(*mine), run.size, run.rows, numbers.tolist(), ends.tolist(), digests.tolist())


def read_ahead(
    chunks: Iterator[Chunk], read_later: Callable[[Chunk], Callable[[], WindowBatch]], reads: Reads
) -> Generator[tuple[Chunk, WindowBatch], None, None]:
    """Yield chunks with their windows, which threads read ahead.

    Args:
        chunks: The chunks.
        read_later: Returns a function that reads a chunk. It is called here, and what it returns, in a thread.
        reads: How many threads and chunks.
    """
    # Bound here: a generator that is still open when the interpreter exits ends after the modules.
    process_now = os.getpid
    process = process_now()
    # Without this, glibc returns the memory of used batches to the system and has it cleared again page by page for the next
    # ones: a fifth of the time of a batch. The allocation is never touched, so it costs nothing.
    np.empty(_LARGEST_PIECE, np.uint8)
    pool = ThreadPoolExecutor(reads.threads, thread_name_prefix="windows")
    ahead: deque[tuple[Chunk, Future[WindowBatch]]] = deque()
    try:
        # Reads share a disk or a network. The first one has it alone, so that the first batch comes sooner.
        for first in islice(chunks, 1):
            ahead.append((first, _begun(pool, read_later, first)))
        while ahead:
            chunk, reading = ahead.popleft()
            windows = reading.result()
            for following in islice(chunks, reads.chunks - len(ahead)):
                ahead.append((following, _begun(pool, read_later, following)))
            yield chunk, windows
    finally:
        # In a fork, the pool has no threads to wait for.
        if process == process_now():
            pool.shutdown()


def _begun(
    pool: ThreadPoolExecutor, read_later: Callable[[Chunk], Callable[[], WindowBatch]], chunk: Chunk
) -> Future[WindowBatch]:
    """Begin to read a chunk. An error is told when the chunk is asked for: those before it are served."""
    done: Future[WindowBatch] = Future()
    try:
        read = read_later(chunk)
    except Exception as error:
        done.set_exception(error)
        return done
    try:
        return pool.submit(read)
    except RuntimeError:
        # While the interpreter exits, no new thread can start, but a training thread may still run: it reads by itself.
        done.set_result(read())
        return done
