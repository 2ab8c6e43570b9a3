"""Batches of windows: `WindowLoader`, which reads ahead in a thread, and `TokenWindows` for your own DataLoader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.store import TokenStore
from lightning_lance.windows import Order, WindowOrder

Batch = dict[str, torch.Tensor]
BatchFormat = Literal["default", "huggingface"]

# Tokens read at a time in the thread: handing over less costs as much as reading it.
_CHUNK_TOKENS = 1 << 20
# Chunks read ahead of the training loop.
_CHUNKS_AHEAD = 2
# Starts drawn at a time: the order is cheapest per window when it is worked out for many.
_STARTS_AT_ONCE = 1 << 14


def make_batch(windows: torch.Tensor, batch_format: BatchFormat) -> Batch:
    """Name the parts of some windows; the tensors are views of the same memory, so clone one before you change it.

    Args:
        windows: (..., context_length + 1) int64.
        batch_format: `default` gives `input_ids` and `targets`, (..., context_length) each, `targets[i] = input_ids[i + 1]`;
            `huggingface` gives `input_ids` and the same, unshifted, as `labels`: its models shift by themselves, and so
            do not learn from the last token of a window.
    """
    input_ids = windows[..., :-1]
    if batch_format == "huggingface":
        return {"input_ids": input_ids, "labels": input_ids}
    return {"input_ids": input_ids, "targets": windows[..., 1:]}


def _check_format(batch_format: str) -> None:
    if batch_format not in get_args(BatchFormat):
        raise ConfigError(f"batch_format is {batch_format!r}: expected one of {', '.join(get_args(BatchFormat))}.")


class WindowLoader:
    """An endless-epoch, resumable iterable of batches of windows. No worker processes: nothing to fork or to pickle.

    Global batch s of an epoch is the windows at positions [s * W * B, (s + 1) * W * B) of the order, for W ranks and
    batches of B; each rank takes its B of them. The only state is the cursor, one global integer: windows consumed by all
    ranks in all epochs.

    `iter` goes on where the last iteration stopped, and with the next epoch where that had ended its epoch. So a training
    loop that cuts epochs short, or that was killed, repeats no window.

    Args:
        store: The token store.
        context_length: Tokens that the model sees.
        batch_size: Windows per batch and rank.
        split: `train` or `val`.
        order: `shuffle`, `random` or `sequential`; see `WindowOrder`.
        seed: Of the random orders.
        rank: This process in the data-parallel group.
        world_size: Processes in that group.
        batch_format: See `make_batch`.
        drop_last: Leave out the last windows of an epoch where they fill no global batch. Without, they make one smaller
            batch, equal on all ranks, and at most `world_size - 1` windows are left out.
        resumable: False starts each `iter` at the first window of epoch 0, as validation wants it.

    Raises:
        ConfigError: If an argument cannot be used, or the split is too short for a single batch.
    """

    def __init__(
        self,
        store: TokenStore,
        context_length: int,
        batch_size: int,
        *,
        split: str = "train",
        order: Order = "shuffle",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_format: BatchFormat = "default",
        drop_last: bool = True,
        resumable: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: expected 1 or more windows.")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}: expected 0 <= rank < world_size.")
        _check_format(batch_format)
        self.context_length = context_length
        self.batch_size = batch_size
        self.split = split
        self.order: Order = order
        self.seed = seed
        self._rank, self._world_size = rank, world_size
        self._batch_format: BatchFormat = batch_format
        self._drop_last, self.resumable = drop_last, resumable
        self._cursor = 0
        self._use(store)

    def _use(self, store: TokenStore) -> None:
        self.store = store
        key = (store.fingerprint, store.commit.tokens, self.seed)
        self._windows = WindowOrder(store.streams(self.split), self.context_length, self.order, key)
        if not len(self):
            raise ConfigError(
                f"Split {self.split!r} of {store.uri!r} has {store.num_tokens(self.split):,} tokens, which make "
                f"{self.num_windows} windows of {self.context_length} + 1: too few for one batch of {self.batch_size} on "
                f"{self._world_size} rank(s); lower batch_size or context_length, or store more documents."
            )

    @property
    def num_windows(self) -> int:
        """Windows per epoch, over all ranks, before the remainder is dropped."""
        return self._windows.num_windows

    @property
    def _global_batch(self) -> int:
        return self._world_size * self.batch_size

    def __len__(self) -> int:
        """Batches in a whole epoch: equal on all ranks, and the same after a resume."""
        return self._steps(0)

    def _steps(self, position: int) -> int:
        """Count the batches from a position of an epoch to its end."""
        steps, rest = divmod(self.num_windows - position, self._global_batch)
        return steps + (not self._drop_last and rest >= self._world_size)

    def state_dict(self) -> dict[str, Any]:
        """Give the state after the last batch that was handed out; plain types, the same on all ranks."""
        return {
            "cursor": self._cursor,
            "context_length": self.context_length,
            "num_windows": self.num_windows,
            "fingerprint": self.store.fingerprint,
            "tokens": self.store.commit.tokens,
            "order": self.order,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, with the tokens that the store had when it was taken; read at the next `iter`.

        World size and batch size may differ. With another `context_length` the epoch goes on after as many tokens.

        Raises:
            StoreError: If the state is of another store, order or seed: it would continue another sequence.
        """
        if not self.resumable:
            raise StoreError("This loader starts anew at every iteration: it takes no state.")
        mine = self.state_dict()
        for name in ("fingerprint", "order", "seed"):
            if state[name] != mine[name]:
                raise StoreError(
                    f"The checkpoint continues {name} {state[name]!r}, but this run has {mine[name]!r}: set it as it was, or "
                    "start without the checkpoint."
                )
        self._use(self.store.at_tokens(state["tokens"]))
        epoch, position = divmod(state["cursor"], state["num_windows"])
        if state["context_length"] != self.context_length:
            position = -(-position * state["context_length"] // self.context_length)
        self._cursor = epoch * self.num_windows + min(position, self.num_windows)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate to the end of the epoch; the cursor is read at the first `next`."""
        if not self.resumable:
            self._cursor = 0
        elif not self._steps(self._cursor % self.num_windows):
            self._cursor = (self._cursor // self.num_windows + 1) * self.num_windows
        epoch, position = divmod(self._cursor, self.num_windows)
        pieces = self._starts(epoch, position)
        read = partial(self.store.read, length=self.context_length + 1, split=self.split)
        with ThreadPoolExecutor(1, thread_name_prefix="windows") as thread:
            ahead = deque(thread.submit(read, starts) for starts in islice(pieces, _CHUNKS_AHEAD))
            while ahead:
                tokens = ahead.popleft().result()
                ahead.extend(thread.submit(read, starts) for starts in islice(pieces, 1))
                for low in range(0, len(tokens), self.batch_size):
                    # Widened here and not in the thread: both have half of the work, and the batch is in this core's cache.
                    windows = torch.from_numpy(tokens[low : low + self.batch_size].astype(np.int64))
                    # A short last batch ends the epoch.
                    self._cursor = min(self._cursor + self._global_batch, (epoch + 1) * self.num_windows)
                    yield make_batch(windows, self._batch_format)

    def _starts(self, epoch: int, position: int) -> Iterator[np.ndarray]:
        """Give the starts of this rank's windows from a position to the end of the epoch, some batches at a time."""
        batches_at_once = max(1, _STARTS_AT_ONCE // self.batch_size)
        chunk = max(1, _CHUNK_TOKENS // (self.batch_size * (self.context_length + 1))) * self.batch_size
        whole = (self.num_windows - position) // self._global_batch
        for low in range(0, whole, batches_at_once):
            steps = np.arange(low, min(low + batches_at_once, whole))
            first = position + steps * self._global_batch + self._rank * self.batch_size
            starts = self._windows.starts(epoch, (first[:, None] + np.arange(self.batch_size)).reshape(-1))
            yield from (starts[at : at + chunk] for at in range(0, len(starts), chunk))
        rest = (self.num_windows - position - whole * self._global_batch) // self._world_size
        if rest and not self._drop_last:
            first_left = position + whole * self._global_batch + self._rank * rest
            yield self._windows.starts(epoch, first_left + np.arange(rest))


class TokenWindows(torch.utils.data.Dataset[Batch]):
    """The windows of a split as a map-style dataset, in the order of storage, for your own sampler and DataLoader.

    Works with any start method of worker processes: it travels as an address of a few hundred bytes.

    Args:
        store: The token store.
        context_length: Tokens that the model sees.
        split: `train` or `val`.
        batch_format: See `make_batch`.
    """

    def __init__(
        self, store: TokenStore, context_length: int, split: str = "train", batch_format: BatchFormat = "default"
    ) -> None:
        _check_format(batch_format)
        self.store, self.context_length, self.split = store, context_length, split
        self._batch_format: BatchFormat = batch_format
        self._windows = WindowOrder(store.streams(split), context_length, "sequential", ("", 0, 0))

    def __len__(self) -> int:
        return self._windows.num_windows

    def __getitem__(self, index: int) -> Batch:
        """Give window `index`: tensors of (context_length,) int64."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Give some windows with one read, as a DataLoader asks for them.

        Raises:
            IndexError: If an index is beyond the windows.
        """
        positions = np.asarray(indices, dtype=np.int64)
        positions = np.where(positions < 0, positions + len(self), positions)
        if ((positions < 0) | (positions >= len(self))).any():
            raise IndexError(f"Windows {list(indices)} are asked for, but there are {len(self)}.")
        tokens = self.store.read(self._windows.starts(0, positions), self.context_length + 1, self.split)
        return [make_batch(window, self._batch_format) for window in torch.from_numpy(tokens.astype(np.int64))]
