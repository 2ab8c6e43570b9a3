"""`WindowLoader`: batches of windows, read ahead in a thread, resumable to the window."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from copy import copy
from itertools import islice
from typing import Any, NamedTuple, NoReturn, get_args

import numpy as np
import torch

from lightning_lance.errors import ConfigError, StoreError, described, flag, integer, one_of, whole_number, word
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_list, pluralize
from lightning_lance.process.ranks import check_ranks_agree
from lightning_lance.serving.batches import Batch, Collator
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.mixture import WindowLocations
from lightning_lance.serving.options import OnDataChange, Remainder
from lightning_lance.serving.order import Order
from lightning_lance.serving.selection import WindowSelection, warn_of_unserved_text
from lightning_lance.serving.states import checked_state
from lightning_lance.store.token_store import TokenStore
from lightning_lance.type_hints import not_a_store

_log = logger(__name__)

# Tokens read at a time in the thread: handing over less costs as much as reading it.
_CHUNK_TOKENS = 1 << 20
# Chunks read ahead of the training loop.
_CHUNKS_AHEAD = 2
# The same, and as many threads, where stores are not mapped: most of a read is waiting for the network.
_READS_AT_ONCE = 4
# Just below the largest piece of memory from whose coming and going glibc learns (M_MMAP_THRESHOLD in mallopt(3)).
_LARGEST_PIECE = 31 << 20
# Windows located at a time: the order is cheapest per window when it is worked out for many.
_LOCATED_AT_ONCE = 1 << 14


class _Chunk(NamedTuple):
    """This rank's windows of some batches of `size`, and the digest of each of the global batches of `everyone`."""

    found: WindowLocations
    size: int
    everyone: int
    digests: Sequence[int]


class BatchIterator(Iterator[Batch]):
    """The batches from where a loader stands to the end of the epoch. Several threads may share it: each batch comes once.

    It begins at its first `next`, and from then on the loader's place is its own: an older iterator of a resumable loader
    would give the same windows again, and is refused at its next use.
    """

    def __init__(self, loader: WindowLoader) -> None:
        self._loader = loader
        self._process = os.getpid()
        self._batches: Generator[Batch, None, None] | None = None
        self._turn = object()
        self._ended = False
        self._failure: BaseException | None = None

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            StoreError: If the windows cannot be read, the ranks are not at the same place, a newer iterator of the loader has
                gone on from here, or this process is a fork of the one that began it.
        """
        if self._process != os.getpid():
            raise StoreError(
                f"This iterator was begun by process {self._process}, of which this one, {os.getpid()}, is a fork: the threads "
                "that read for it are there only; call iter() on the loader here."
            )
        with self._loader._alone():
            if self._ended:
                raise StopIteration
            if self._failure is not None:
                cause = " ".join(f"{type(self._failure).__name__}: {self._failure}".split())
                raise StoreError(
                    f"This iterator has failed before ({cause}): "
                    "call iter() on the loader, which goes on after the last batch that it gave."
                ) from self._failure
            return self._next()

    def _next(self) -> Batch:
        try:
            if self._batches is None:
                self._batches = self._loader._begin(self)
            self._loader._check_turn(self)
            return next(self._batches)
        except StopIteration:
            self._ended = True
            raise
        except BaseException as error:
            self._failure = error
            if self._batches is not None:
                self._batches.close()
            raise

    def close(self) -> None:
        """End the iterator, and the threads that read for it."""
        if self._process != os.getpid():
            return
        with self._loader._alone():
            self._ended = True
            if self._batches is not None:
                self._batches.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise StoreError("An iterator of a WindowLoader cannot be copied: copy the loader, or its state_dict().")


class WindowLoader:
    """An endless-epoch, resumable iterable of batches of windows. No worker processes: nothing to fork or to pickle.

    Global batch s of an epoch is the windows at positions [s * W * B, (s + 1) * W * B) of the order, for W ranks and
    batches of B; each rank takes its B of them. What moves is the cursor, one global integer: windows consumed by all
    ranks in all epochs.

    `iter` goes on where the last iteration stopped, and with the next epoch where that had ended its epoch. So a training
    loop that cuts epochs short, or that was killed, repeats no window. A newer iterator takes over from an older one, which is
    refused at its next use.

    A copy, by `copy` or `pickle`, is a loader of its own at the same place.

    Args:
        store: The token store, or name to store for several; those must have been made with one tokenizer.
        context_length: Tokens that the model sees.
        batch_size: Windows per batch and rank.
        split: `train` or `val`.
        order: `shuffle`, `random`, `sequential` or `fixed`; see `WindowOrder`.
        seed: Of the random orders.
        shuffle_block: Windows that stay together in `shuffle`; see `WindowOrder`.
        where: Streams to serve, such as `{"language": ["Python"]}`; see `WindowSelection`.
        mix: Weights of languages, or of stores where there are several; see `WindowSelection` and `Schedule`.
        rank: This process in the data-parallel group.
        world_size: Processes in that group.
        remainder: What becomes of the windows at the end of an epoch that fill no global batch. `drop` leaves them out;
            `wrap` fills the batch up with the first windows of the next epoch, which come again there; `short` makes one
            smaller batch, equal on all ranks, and leaves out `world_size - 1` windows at most.
        resumable: False starts each `iter` at the first window of epoch 0, as validation wants it, and may have no batch.
        extend: Adopt what was appended to the stores, at the beginning of each epoch.
        on_data_change: What to do about a state of other data: `error`; `restart` at the first window; `continue`, each
            component that is still there where it was, and each new one at its first window.
        **batch: What a batch has besides its tokens; see `Collator`.

    Raises:
        ConfigError: If an argument cannot be used, or what is served is too short for a single batch.
    """

    def __init__(
        self,
        store: TokenStore | Mapping[str, TokenStore],
        context_length: int,
        batch_size: int,
        *,
        split: str = "train",
        order: Order = "shuffle",
        seed: int = 0,
        shuffle_block: int | None = None,
        where: Mapping[str, Sequence[str]] | None = None,
        mix: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
        remainder: Remainder = "drop",
        resumable: bool = True,
        extend: bool = False,
        on_data_change: OnDataChange = "error",
        **batch: Any,
    ) -> None:
        batch_size = whole_number("batch_size", batch_size)
        rank, world_size = integer("rank", rank), integer("world_size", world_size)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}: expected 0 <= rank < world_size.")
        stores = _named_stores(store)
        serving = WindowSelection(stores, split, context_length, order, seed, shuffle_block, where or {}, mix or {})
        if left_out := serving.left_out:
            _log.warning(
                "mix has no weight for %s, so no window shows it: give it one, or leave it out by %s.",
                format_list([repr(name) for name in left_out]),
                "uri" if len(stores) > 1 else "where",
            )
        self.context_length, self.batch_size = serving.context_length, batch_size
        self.remainder = one_of("remainder", remainder, get_args(Remainder))
        self.resumable = flag("resumable", resumable)
        self.extend = flag("extend", extend)
        self._rank, self._world_size = rank, world_size
        self._make = Collator(next(iter(stores.values())).commit.eos_id, **batch)
        self._cursor = Cursor(serving, on_data_change)
        #: Any other state is refused: Lightning keeps the loader's apart from the datamodule's, which is given first.
        self.expected: Mapping[str, Any] | None = None
        self._process = self._made_in = os.getpid()
        self._lock = threading.RLock()
        #: What tells the iterator that was begun last, which alone may go on.
        self._turn: object = None
        self._check_size(self._cursor)
        warn_of_unserved_text(serving)

    def _check_size(self, cursor: Cursor) -> None:
        if self.resumable and not self._steps(0, cursor):
            serving = cursor.serving
            uris = ", ".join(repr(store.uri) for store in serving.stores.values())
            raise ConfigError(
                f"What is served of split {serving.split!r} of {uris} has {pluralize(serving.num_tokens, 'token')}, which "
                f"make {pluralize(cursor.num_windows, 'window')} of {self.context_length} + 1: too few for one batch of "
                f"{self.batch_size} on {pluralize(self._world_size, 'rank')}; lower batch_size or context_length, "
                "or store more documents."
            )

    @property
    def stores(self) -> dict[str, TokenStore]:
        """The stores that are read, at the versions that are read."""
        return dict(self._cursor.serving.stores)

    @property
    def num_windows(self) -> int:
        """Windows per epoch, over all ranks, before the remainder is dropped."""
        return self._cursor.num_windows

    def __len__(self) -> int:
        """Batches in a whole epoch: equal on all ranks, and the same after a resume."""
        return self._steps(0, self._cursor)

    def _steps(self, position: int, cursor: Cursor) -> int:
        """Count the batches from a position of an epoch to its end."""
        steps, rest = divmod(cursor.num_windows - position, self._world_size * self.batch_size)
        if self.remainder == "drop":
            return steps
        return steps + (rest >= (1 if self.remainder == "wrap" else self._world_size))

    def components(self) -> dict[str, dict[str, float]]:
        """Tell, for each component of the mixture, the windows it has given so far and how often it was gone through."""
        return self._cursor.components()

    def state_dict(self) -> dict[str, Any]:
        """Give the state after the last batch that was handed out; plain types, the same on all ranks."""
        with self._alone():
            return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the tokens that the stores had when it was taken; read at the next `iter`.

        World size and batch size may differ. With another `context_length` the epoch goes on after as many tokens (in
        `sequential` order, of the very stream); with other weights of `mix` each component goes on where it was. A state that
        is refused changes nothing; one that is taken ends the iterators that were begun before.

        Raises:
            StoreError: If it is no state that can be. If it is of other data or another order, and `on_data_change` is
                `error`: it would continue another sequence. If the stores never had the tokens of the state.
        """
        if not self.resumable:
            # Lightning saves and gives back the state of any train loader, that of an overfitting run too.
            return
        state = checked_state(state)
        expected = self.expected or state
        if fields := sorted(name for name in state if state[name] != expected.get(name)):
            raise StoreError(
                "The checkpoint says two things of the place in the data, in its datamodule and in its loop, about "
                f"{', '.join(fields)}: it was put together from two, take one as it was saved."
            )
        with self._alone():
            cursor = copy(self._cursor)
            cursor.load_state_dict(state)
            self._check_size(cursor)
            self._cursor, self._turn = cursor, None

    def restart(self) -> None:
        """Go to the first window of all; read at the next `iter`."""
        self._cursor.restart()

    def roll_over(self) -> None:
        """Begin the next epoch where the last one has ended; with `extend`, adopt what was appended to the stores."""
        with self._alone():
            if self._cursor.ended or self._steps(self._cursor.position, self._cursor) <= 0:
                self._cursor.next_epoch(self.extend)

    def __iter__(self) -> BatchIterator:
        """Iterate to the end of the epoch; the cursor is read at the first `next`. See `BatchIterator` for what it raises."""
        return BatchIterator(self)

    def __getitem__(self, index: Any) -> NoReturn:
        """Refuse what a DataLoader asks of a dataset."""
        raise ConfigError(
            "A WindowLoader gives whole batches, one after another, and none by its number: iterate it in place of a "
            "DataLoader, or give the DataLoader a TokenWindows."
        )

    def _alone(self) -> threading.RLock:
        """Return the lock that one thread at a time has while it moves the cursor, or reads it."""
        if self._process != os.getpid():
            # In a fork, a thread of the parent may have the lock, and never gives it back here.
            self._process, self._lock = os.getpid(), threading.RLock()
        return self._lock

    def __getstate__(self) -> dict[str, Any]:
        with self._alone():
            kept = {name: value for name, value in vars(self).items() if name not in ("_lock", "_process", "_turn")}
            return {**kept, "_cursor": copy(self._cursor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._process, self._lock, self._turn = os.getpid(), threading.RLock(), None

    def _begin(self, iterator: BatchIterator) -> Generator[Batch, None, None]:
        """Begin an epoch, or go on with one, for an iterator that is used for the first time."""
        self._refuse_workers()
        if not self.resumable:
            # Each iterator goes its own way from the first window on.
            self._cursor = copy(self._cursor)
            self._cursor.restart()
        self._turn = iterator._turn
        self.roll_over()
        if self._world_size > 1 and self.resumable:
            check_ranks_agree(self._place())
        return self._serve(self._cursor)

    def _check_turn(self, iterator: BatchIterator) -> None:
        if self.resumable and self._turn is not iterator._turn:
            raise StoreError(
                "This iterator is out of date: a newer iterator of the same WindowLoader, or a state that was loaded, has gone "
                "on from its place, and it would give windows twice; use the newer one, or copy the loader for a second pass."
            )

    def _refuse_workers(self) -> None:
        worker = torch.utils.data.get_worker_info()
        if worker is None or self._made_in == os.getpid() or (worker.num_workers == 1 and not self.resumable):
            return
        raise StoreError(
            f"A WindowLoader of another process was given to {pluralize(worker.num_workers, 'worker')} of a DataLoader: each "
            "would give all windows, and none would be counted in its state; iterate the loader itself, which reads ahead in "
            "threads, or give a TokenWindows to the DataLoader."
        )

    def _serve(self, cursor: Cursor) -> Generator[Batch, None, None]:
        left = self._steps(cursor.position, cursor)
        with closing(self._read_ahead(cursor)) as served:
            for chunk, tokens in served:
                described = self._make.describe(tokens)
                for step, digest in enumerate(chunk.digests):
                    batch = self._make.batch(described, step * chunk.size, (step + 1) * chunk.size)
                    left -= 1
                    # Counted when it is there: what an interruption keeps from the training loop comes again.
                    cursor.advance(chunk.everyone, digest)
                    cursor.ended = left == 0
                    yield batch

    def _place(self) -> dict[str, Any]:
        """Tell where this rank is, of what; the same on all ranks, though their copies of a store may lie elsewhere."""
        state = self.state_dict()
        first = self._cursor.locate(np.asarray([self._cursor.value]))
        stores = state.pop("stores")
        return {
            **{
                f"{field} of stores": [store[field] for store in stores]
                for field in ("fingerprint", "tokens", "forgotten")
            },
            **state,
            "batch_size": self.batch_size,
            "len": len(self),
            "first window": int(first.start[0]),
        }

    def _read_ahead(self, cursor: Cursor) -> Generator[tuple[_Chunk, np.ndarray], None, None]:
        """Read this rank's windows from the cursor to the end of the epoch, some batches at a time, in threads."""
        serving, chunks, process = cursor.serving, self._chunks(cursor), os.getpid()

        def read(found: WindowLocations) -> np.ndarray:
            return self._make.rearrange(serving.read(found), found.start, found.epoch)

        mapped = all(store.reader == "mapped" for store in serving.stores.values())
        # Otherwise glibc gives the memory of used batches back to the system, and for the next ones has it cleared again page
        # by page: a fifth of the time of a batch. This piece is never touched, so it costs nothing.
        np.empty(_LARGEST_PIECE, np.uint8)
        threads, most = (1, _CHUNKS_AHEAD) if mapped else (_READS_AT_ONCE, _READS_AT_ONCE)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="windows")
        try:
            # Reads share a disk or a network: the first has it alone, so the first batch is there the sooner.
            ahead = deque((chunk, _submit(pool, read, chunk.found)) for chunk in islice(chunks, 1))
            while ahead:
                chunk, reading = ahead.popleft()
                tokens = reading.result()
                ahead.extend((more, _submit(pool, read, more.found)) for more in islice(chunks, most - len(ahead)))
                yield chunk, tokens
        finally:
            if process == os.getpid():  # in a fork its threads are not there to be waited for
                pool.shutdown()

    def _chunks(self, cursor: Cursor) -> Iterator[_Chunk]:
        """Locate this rank's windows from the cursor to the end of the epoch, some batches at a time."""
        begin, size = cursor.value, self.batch_size
        everyone = self._world_size * size
        # Nobody waits for a million tokens to get a batch: the first chunk is one, the next ones grow.
        located, steps, most = 1, 1, max(1, _CHUNK_TOKENS // (size * (self.context_length + 1)))
        whole, rest = divmod(cursor.epoch_end - begin, everyone)
        while whole:
            located = min(located, whole)
            found, digests = self._locate(cursor, begin, located, size)
            begin, whole, low = begin + located * everyone, whole - located, 0
            while low < located:
                high = min(low + steps, located)
                part = WindowLocations(*(column[low * size : high * size] for column in found))
                yield _Chunk(part, size, everyone, digests[low:high])
                low, steps = high, min(2 * steps, most)
            located = max(1, _LOCATED_AT_ONCE // everyone)
        if self._steps(cursor.num_windows - rest, cursor):
            size = size if self.remainder == "wrap" else rest // self._world_size
            found, digests = self._locate(cursor, begin, 1, size)
            yield _Chunk(found, size, self._world_size * size, digests)

    def _locate(self, cursor: Cursor, begin: int, steps: int, size: int) -> tuple[WindowLocations, Sequence[int]]:
        """Find this rank's windows of some global batches, and the digests of all ranks' in each."""
        everyone = self._world_size * size
        positions = np.arange(begin, begin + steps * everyone)
        found = cursor.locate(positions)
        digests = cursor.digests(positions, found).reshape(steps, everyone).sum(axis=1, dtype=np.uint64).tolist()
        mine = (part.reshape(steps, self._world_size, size)[:, self._rank].reshape(-1) for part in found)
        return WindowLocations(*mine), digests


def _submit(
    pool: ThreadPoolExecutor, read: Callable[[WindowLocations], np.ndarray], found: WindowLocations
) -> Future[np.ndarray]:
    try:
        return pool.submit(read, found)
    except RuntimeError:
        # While the interpreter ends, a thread that trains may go on, and no other one may begin: it reads by itself.
        done: Future[np.ndarray] = Future()
        done.set_result(read(found))
        return done


def _named_stores(store: Any) -> dict[str, TokenStore]:
    stores = {"": store} if isinstance(store, TokenStore) else store
    # Splits of `datasets` come as a mapping too.
    if not isinstance(stores, Mapping) or type(stores).__module__.startswith("datasets."):
        raise not_a_store("store", stores)
    for name, value in stores.items():
        if not isinstance(name, str):
            raise ConfigError(f"store has the name {described(name)}: expected text.")
        if not isinstance(value, TokenStore):
            raise not_a_store(f"store[{name!r}]", value)
    return {word(name): value for name, value in stores.items()}
