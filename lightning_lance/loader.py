"""`WindowLoader`: batches of windows, read ahead in a thread, resumable to the window."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, get_args

import numpy as np

from lightning_lance.agreement import agree
from lightning_lance.arguments import check_arguments
from lightning_lance.batches import Batch, BatchMaker
from lightning_lance.cursor import Cursor
from lightning_lance.errors import ConfigError, StoreError, one_of, whole_number
from lightning_lance.escaping import logger
from lightning_lance.figures import counted, listed
from lightning_lance.mixture import Located
from lightning_lance.options import OnDataChange, Remainder
from lightning_lance.serving import Serving, warn_of_unserved_text
from lightning_lance.store import TokenStore
from lightning_lance.windows import Order

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

    found: Located
    size: int
    everyone: int
    digests: Sequence[int]


class WindowLoader:
    """An endless-epoch, resumable iterable of batches of windows. No worker processes: nothing to fork or to pickle.

    Global batch s of an epoch is the windows at positions [s * W * B, (s + 1) * W * B) of the order, for W ranks and
    batches of B; each rank takes its B of them. What moves is the cursor, one global integer: windows consumed by all
    ranks in all epochs.

    `iter` goes on where the last iteration stopped, and with the next epoch where that had ended its epoch. So a training
    loop that cuts epochs short, or that was killed, repeats no window.

    Args:
        store: The token store, or name to store for several; those must have been made with one tokenizer.
        context_length: Tokens that the model sees.
        batch_size: Windows per batch and rank.
        split: `train` or `val`.
        order: `shuffle`, `random`, `sequential` or `fixed`; see `WindowOrder`.
        seed: Of the random orders.
        shuffle_block: Windows that stay together in `shuffle`; see `WindowOrder`.
        where: Streams to serve, such as `{"language": ["Python"]}`; see `Serving`.
        mix: Weights of languages, or of stores where there are several; see `Serving` and `Schedule`.
        rank: This process in the data-parallel group.
        world_size: Processes in that group.
        remainder: What becomes of the windows at the end of an epoch that fill no global batch. `drop` leaves them out;
            `wrap` fills the batch up with the first windows of the next epoch, which come again there; `short` makes one
            smaller batch, equal on all ranks, and leaves out `world_size - 1` windows at most.
        resumable: False starts each `iter` at the first window of epoch 0, as validation wants it, and may have no batch.
        extend: Adopt what was appended to the stores, at the beginning of each epoch.
        on_data_change: What to do about a state of other data: `error`; `restart` at the first window; `continue` at the
            same place of the other data.
        **batch: What a batch has besides its tokens; see `BatchMaker`.

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
        check_arguments(
            WindowLoader, {"store": store, "seed": seed, "rank": rank, "world_size": world_size, "resumable": resumable}
        )
        check_arguments(WindowLoader, {"extend": extend, "on_data_change": on_data_change, "split": split})
        check_arguments(WindowLoader, {"where": where, "mix": mix})
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}: expected 0 <= rank < world_size.")
        one_of("remainder", remainder, get_args(Remainder))
        stores = {"": store} if isinstance(store, TokenStore) else dict(store)
        serving = Serving(stores, split, context_length, order, seed, shuffle_block, where or {}, mix or {})
        if left_out := serving.left_out:
            _log.warning(
                "mix has no weight for %s, so no window shows it: give it one, or leave it out by %s.",
                listed([repr(name) for name in left_out]),
                "uri" if len(stores) > 1 else "where",
            )
        self.context_length, self.batch_size = serving.context_length, batch_size
        self.remainder, self.resumable, self.extend = remainder, resumable, extend
        self._rank, self._world_size = rank, world_size
        self._make = BatchMaker(next(iter(stores.values())).commit.eos_id, **batch)
        self._cursor = Cursor(serving, on_data_change)
        #: Any other state is refused: Lightning keeps the loader's apart from the datamodule's, which is given first.
        self.expected: Mapping[str, Any] | None = None
        self._check_size()
        warn_of_unserved_text(serving)

    def _check_size(self) -> None:
        if self.resumable and not len(self):
            serving = self._cursor.serving
            uris = ", ".join(repr(store.uri) for store in serving.stores.values())
            raise ConfigError(
                f"What is served of split {serving.split!r} of {uris} has {counted(serving.num_tokens, 'token')}, which "
                f"make {counted(self.num_windows, 'window')} of {self.context_length} + 1: too few for one batch of "
                f"{self.batch_size} on {counted(self._world_size, 'rank')}; lower batch_size or context_length, "
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
        return self._steps(0)

    def _steps(self, position: int) -> int:
        """Count the batches from a position of an epoch to its end."""
        steps, rest = divmod(self.num_windows - position, self._world_size * self.batch_size)
        if self.remainder == "drop":
            return steps
        return steps + (rest >= (1 if self.remainder == "wrap" else self._world_size))

    def components(self) -> dict[str, dict[str, float]]:
        """Tell, for each component of the mixture, the windows it has given so far and how often it was gone through."""
        return self._cursor.components()

    def state_dict(self) -> dict[str, Any]:
        """Give the state after the last batch that was handed out; plain types, the same on all ranks."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the tokens that the stores had when it was taken; read at the next `iter`.

        World size and batch size may differ. With another `context_length` the epoch goes on after as many tokens; with
        other weights of `mix` each component goes on where it was.

        Raises:
            StoreError: If the state is of other data or another order, and `on_data_change` is `error`: it would continue
                another sequence. If the stores never had the tokens of the state.
        """
        if not self.resumable:
            # Lightning saves and gives back the state of any train loader, that of an overfitting run too.
            return
        expected = self.expected or state
        if fields := sorted(name for name in self.state_dict() if state.get(name) != expected.get(name)):
            raise StoreError(
                "The checkpoint says two things of the place in the data, in its datamodule and in its loop, about "
                f"{', '.join(fields)}: it was put together from two, take one as it was saved."
            )
        self._cursor.load_state_dict(state)
        self._check_size()

    def restart(self) -> None:
        """Go to the first window of all; read at the next `iter`."""
        self._cursor.restart()

    def roll_over(self) -> None:
        """Begin the next epoch where the last one has ended; with `extend`, adopt what was appended to the stores."""
        if self._cursor.ended or self._steps(self._cursor.position) <= 0:
            self._cursor.next_epoch(self.extend)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate to the end of the epoch; the cursor is read at the first `next`.

        Raises:
            StoreError: On all ranks, if they are not at the same place of the same data.
        """
        cursor = self._cursor
        if not self.resumable:
            cursor.restart()
        self.roll_over()
        if self._world_size > 1 and self.resumable:
            agree(self._place())
        left = self._steps(cursor.position)
        with closing(self._read_ahead()) as served:
            for chunk, tokens in served:
                described = self._make.describe(tokens)
                for step, digest in enumerate(chunk.digests):
                    left -= 1
                    cursor.advance(chunk.everyone, digest)
                    cursor.ended = left == 0
                    yield self._make.batch(described, step * chunk.size, (step + 1) * chunk.size)

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

    def _read_ahead(self) -> Generator[tuple[_Chunk, np.ndarray], None, None]:
        """Read this rank's windows from the cursor to the end of the epoch, some batches at a time, in threads."""
        serving, chunks = self._cursor.serving, self._chunks()

        def read(found: Located) -> np.ndarray:
            return self._make.rearrange(serving.read(found), found.start, found.epoch)

        mapped = all(store.reader == "mapped" for store in serving.stores.values())
        # Otherwise glibc gives the memory of used batches back to the system, and for the next ones has it cleared again page
        # by page: a fifth of the time of a batch. This piece is never touched, so it costs nothing.
        np.empty(_LARGEST_PIECE, np.uint8)
        threads, most = (1, _CHUNKS_AHEAD) if mapped else (_READS_AT_ONCE, _READS_AT_ONCE)
        with ThreadPoolExecutor(threads, thread_name_prefix="windows") as pool:
            # Reads share a disk or a network: the first has it alone, so the first batch is there the sooner.
            ahead = deque((chunk, pool.submit(read, chunk.found)) for chunk in islice(chunks, 1))
            while ahead:
                chunk, reading = ahead.popleft()
                tokens = reading.result()
                ahead.extend((more, pool.submit(read, more.found)) for more in islice(chunks, most - len(ahead)))
                yield chunk, tokens

    def _chunks(self) -> Iterator[_Chunk]:
        """Locate this rank's windows from the cursor to the end of the epoch, some batches at a time."""
        begin, size = self._cursor.value, self.batch_size
        everyone = self._world_size * size
        # Nobody waits for a million tokens to get a batch: the first chunk is one, the next ones grow.
        located, steps, most = 1, 1, max(1, _CHUNK_TOKENS // (size * (self.context_length + 1)))
        whole, rest = divmod(self._cursor.epoch_end - begin, everyone)
        while whole:
            located = min(located, whole)
            found, digests = self._locate(begin, located, size)
            begin, whole, low = begin + located * everyone, whole - located, 0
            while low < located:
                high = min(low + steps, located)
                part = Located(*(column[low * size : high * size] for column in found))
                yield _Chunk(part, size, everyone, digests[low:high])
                low, steps = high, min(2 * steps, most)
            located = max(1, _LOCATED_AT_ONCE // everyone)
        if self._steps(self.num_windows - rest):
            size = size if self.remainder == "wrap" else rest // self._world_size
            found, digests = self._locate(begin, 1, size)
            yield _Chunk(found, size, self._world_size * size, digests)

    def _locate(self, begin: int, steps: int, size: int) -> tuple[Located, Sequence[int]]:
        """Find this rank's windows of some global batches, and the digests of all ranks' in each."""
        everyone = self._world_size * size
        positions = np.arange(begin, begin + steps * everyone)
        found = self._cursor.locate(positions)
        digests = self._cursor.digests(positions, found).reshape(steps, everyone).sum(axis=1, dtype=np.uint64).tolist()
        mine = (part.reshape(steps, self._world_size, size)[:, self._rank].reshape(-1) for part in found)
        return Located(*mine), digests
