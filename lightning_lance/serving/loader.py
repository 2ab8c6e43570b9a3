"""`WindowLoader`: batches of windows, read ahead in threads, resumable to the window."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from copy import copy
from dataclasses import asdict
from typing import Any, NoReturn, cast, get_args

import numpy as np
import torch

from lightning_lance.errors import ConfigError, StoreError, described, flag, integer, one_of, whole_number, word
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_list, pluralize
from lightning_lance.process.ranks import check_ranks_agree
from lightning_lance.serving import steps
from lightning_lance.serving.batches import Batch, Collator, WindowBatch
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.iterator import BatchIterator
from lightning_lance.serving.options import BatchFormat, Extend, OnDataChange, Remainder, check_extend
from lightning_lance.serving.ordering.document_weights import MixBy
from lightning_lance.serving.ordering.mixture import WindowLocations
from lightning_lance.serving.ordering.order import Order
from lightning_lance.serving.ordering.packing import Windows
from lightning_lance.serving.ordering.phases import AtMaxEpochs, mix_with
from lightning_lance.serving.read_ahead import Chunk, chunks_left, read_ahead, reads_of
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.size_schedules import (
    check_batch_size_schedule,
    check_context_length_schedule,
    size_phases,
)
from lightning_lance.serving.skips import check_steps
from lightning_lance.serving.states import checked_begins, checked_state
from lightning_lance.serving.step_sizes import CountedFrom, StepSizes
from lightning_lance.serving.steps import ServedWindows, Sightings
from lightning_lance.serving.unserved import TooShort, too_short, warn_of_absent_channels, warn_of_unserved_text
from lightning_lance.store.token_store import TokenStore, uris_of
from lightning_lance.type_hints import not_a_store, refusing

_log = logger(__name__)


class WindowLoader:
    """An endless-epoch, resumable iterable of batches of windows. No worker processes: nothing to fork or to pickle.

    Global batch s of an epoch is the windows at positions [s * W * B, (s + 1) * W * B) of the order, for W ranks and
    batches of B; each rank takes its B of them. The only state is the cursor, one global integer: the windows consumed by
    all ranks in all epochs.

    `iter` continues where the last iteration stopped, or with the next epoch if that iteration finished its epoch. So a
    training loop that cuts epochs short, or that was killed, repeats no window. A newer iterator takes over from an older
    one, whose next use raises.

    A copy, by `copy` or `pickle`, is an independent loader at the same position.

    Args:
        store: The token store, or a mapping of names to several stores built with one tokenizer.
        context_length: Tokens that the model sees.
        batch_size: Windows per batch and rank.
        split: `train` or `val`.
        order: `shuffle`, `random`, `sequential` or `fixed`; see `WindowOrder`.
        seed: Seed of the random orders.
        shuffle_block: Windows that stay together in `shuffle`; see `WindowOrder`.
        windows: `stream` cuts the streams into windows, so most documents are cut too; `packed` puts whole documents into
            windows, by best fit, and cuts those that are longer, or that would leave a hole. See `PackedOrder`.
        where: Streams to serve, such as `{"language": ["Python"]}`; see `WindowSelection`.
        mix: Weights of languages, or of stores where there are several; see `WindowSelection` and `Schedule`.
        mix_schedule: Weights that change, in place of `mix`: `[[0, {"a": 1}], [1_000_000_000, {"a": 1, "b": 2}]]` are those
            from the first token of the run on, of all ranks, and those from a billion tokens on.
        max_epochs: Epochs that components may have, such as `{"b": 4}`.
        at_max_epochs: What happens then: `redistribute` lets the others go on; `error` ends the run.
        mix_by: What weights are shares of: `tokens`, or `documents`, by the mean length of each component's documents.
        batch_size_schedule: Sizes that grow up to `batch_size`, and the steps from which on they count, such as
            `[[0, 8], [1000, 16]]`. Steps are counted as `step` does.
        context_length_schedule: Lengths that grow up to `context_length`, which they divide, and the steps from which on they
            count, such as `[[0, 512], [2000, 1024]]`. Windows stay those of `context_length`: each becomes several rows of the
            batch, which follow each other and share a token as windows do, so a step has as many tokens as ever.
        rank: This process in the data-parallel group.
        world_size: Processes in that group.
        remainder: How to treat windows at the end of an epoch that do not fill a global batch. `drop` skips them; `wrap`
            fills the batch with the first windows of the next epoch, which repeats them; `short` makes one smaller batch,
            equal on all ranks, and skips at most `world_size - 1` windows.
        resumable: False starts each `iter` at the first window of epoch 0, for validation; there may be no batch then.
        extend: Adopt appended tokens: `never`; `next_epoch`, at the beginning of each epoch; `now`, also when a state is
            loaded: the rest of its epoch has them too, each window once. True means `next_epoch`.
        on_data_change: How to treat a state of other data: `error`; `restart` at the first window; `continue` each
            remaining component at its position, and begin each new one at its first window.
        skip_steps: Ranges of steps to leave out: `[[12000, 12040]]` leaves out the batches 12,000 to 12,039, as `step` counts
            them; their numbers are not given to others. A state has the windows left out, so batch size and ranks may change.
        batch_format: `default` or `huggingface`; this and what follows, see `Collator`.
        document_ids: Add the number of each token's document.
        position_ids: Add the position of each token in its document.
        cu_seqlens: Add the borders of documents for attention kernels.
        mask_boundary_targets: Do not train on the first token of another document.
        fim: Rearranges documents for fill-in-the-middle.
        channels: What batches have even if no store does, such as `["loss_mask"]`: then all tokens are trained on. A
            `LanceDataModule` asks for those of any of its stores, so that the batches of all of its loaders are alike.

    Raises:
        ConfigError: If an argument cannot be used, or the selection is too short for a single batch.
    """

    @refusing()
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
        windows: Windows = "stream",
        where: Mapping[str, Sequence[str]] | None = None,
        mix: Mapping[str, float] | None = None,
        mix_schedule: Sequence[Sequence[Any]] = (),
        max_epochs: Mapping[str, float] | None = None,
        at_max_epochs: AtMaxEpochs = "redistribute",
        mix_by: MixBy = "tokens",
        batch_size_schedule: Sequence[Sequence[int]] = (),
        context_length_schedule: Sequence[Sequence[int]] = (),
        rank: int = 0,
        world_size: int = 1,
        remainder: Remainder = "drop",
        resumable: bool = True,
        extend: Extend | bool = "never",
        on_data_change: OnDataChange = "error",
        skip_steps: Sequence[Sequence[int]] = (),
        batch_format: BatchFormat = "default",
        document_ids: bool = False,
        position_ids: bool = False,
        cu_seqlens: bool = False,
        mask_boundary_targets: bool = False,
        fim: FillInTheMiddle | None = None,
        channels: Sequence[str] = (),
    ) -> None:
        batch_size = whole_number("batch_size", batch_size)
        rank = integer("rank", rank)
        world_size = integer("world_size", world_size)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}: expected 0 <= rank < world_size.")
        stores = _named_stores(store)
        serving = WindowSelection(
            stores,
            split,
            context_length,
            order,
            seed,
            shuffle_block,
            where or {},
            mix_with(mix, mix_schedule),
            windows,
            mix_schedule,
            {} if max_epochs is None else max_epochs,
            at_max_epochs,
            mix_by,
            channels,
        )
        if rank == 0:
            warn_of_absent_channels(serving)
        if serving.without_weight and rank == 0:
            _log.warning(
                "mix has no weight for %s, so it is not served: add a weight, or exclude it with %s.",
                format_list([*map(repr, serving.without_weight)]),
                "corpus" if len(stores) > 1 else "where",
            )
        self.context_length = serving.context_length
        self.batch_size = batch_size
        self.remainder = cast(Remainder, one_of("remainder", remainder, get_args(Remainder)))
        self.resumable = flag("resumable", resumable)
        self.extend = extend if isinstance(extend, str) else ("next_epoch" if flag("extend", extend) else "never")
        one_of("extend", self.extend, get_args(Extend))
        check_extend(self.extend, serving.windows)
        batch_sizes = check_batch_size_schedule(batch_size_schedule, batch_size)
        context_lengths = check_context_length_schedule(context_length_schedule, serving.context_length)
        self._phases = size_phases(batch_sizes, context_lengths, batch_size, serving.context_length)
        self._rank = rank
        self._world_size = world_size
        extras: dict[str, Any] = {
            "batch_format": batch_format,
            "document_ids": document_ids,
            "position_ids": position_ids,
            "cu_seqlens": cu_seqlens,
            "mask_boundary_targets": mask_boundary_targets,
        }
        self._make = Collator(next(iter(stores.values())).commit.eos_id, **extras, fim=fim)
        #: How windows become batches, in plain types: the arguments from `batch_size` on that are not part of a state.
        self.batching: dict[str, Any] = {
            "batch_size": batch_size,
            "world_size": world_size,
            "remainder": self.remainder,
            **extras,
            "fim": None if fim is None else asdict(fim),
        }
        if batch_sizes:
            self.batching["batch_size_schedule"] = batch_sizes
        if context_lengths:
            self.batching["context_length_schedule"] = context_lengths
        if serving.more_channels:
            self.batching["channels"] = [*serving.more_channels]
        self._told: set[tuple[int, int]] = set()
        # Epochs within which this loader went on, and earlier ones of the same run: see `begins`.
        self._begins: dict[int, int] = {}
        skipped = check_steps(skip_steps) if self.resumable else []
        self._cursor = Cursor(serving, on_data_change, grows=self.extend == "now", skip_steps=skipped)
        #: If set, `load_state_dict` accepts no other state. Lightning saves the states of loader and datamodule apart and
        #: loads the datamodule's first.
        self.expected: Mapping[str, Any] | None = None
        #: Number of the batch that was handed out last; -1 before the first. See `windows`.
        self.last_step = -1
        #: Seconds that training loops have waited for batches of this loader.
        self.waited = 0.0
        self._process = self._made_in = os.getpid()
        self._lock = threading.RLock()
        #: Identifies the iterator that was begun last, the only one that may continue.
        self._turn: object = None
        self._check_size(self._cursor)
        # A state that is loaded may know these steps, as those of another batch size. If none is, they are refused at the
        # first batch.
        with suppress(ConfigError):
            self._leave_out(self._cursor)
        if rank == 0:
            warn_of_unserved_text(serving)

    def _check_size(self, cursor: Cursor) -> None:
        may_be_empty = not self.resumable and not self._phases
        if may_be_empty or self._sizes_of(cursor).steps_of(self.batch_size, cursor.num_windows):
            return
        serving = cursor.serving
        uris = uris_of(serving.stores.values())
        raise ConfigError(
            f"The selection from split {serving.split!r} of {uris} has {pluralize(serving.num_tokens, 'token')}, enough for "
            f"{pluralize(cursor.num_windows, 'window')} of {self.context_length} + 1: too few for one batch of "
            f"{self.batch_size} on {pluralize(self._world_size, 'rank')}; lower batch_size or context_length, or store more "
            "documents."
        )

    def __repr__(self) -> str:
        places = uris_of(self.stores.values())
        sizes = f"context_length={self.context_length}, batch_size={self.batch_size}"
        return f"{type(self).__name__}({places}, {sizes}, split={self.split!r}, step={self.step})"

    @property
    def stores(self) -> dict[str, TokenStore]:
        """The stores, at the versions that are read."""
        return dict(self._cursor.serving.stores)

    @property
    def rank(self) -> int:
        """Whose batches these are."""
        return self._rank

    @property
    def split(self) -> str:
        """`train` or `val`."""
        return self._cursor.serving.split

    @property
    def is_packed(self) -> bool:
        """Whether windows hold whole documents side by side, and are not pieces of the streams."""
        return self._cursor.serving.windows == "packed"

    @property
    def num_windows(self) -> int:
        """Windows per epoch, over all ranks, before the remainder is dropped."""
        return self._cursor.num_windows

    def __len__(self) -> int:
        """Return the batches of this whole epoch: equal on all ranks, and the same after a resume.

        Epochs have equally many, unless the size of the batches changes (`batch_size_schedule`).
        """
        return self._sizes.steps_in(self._cursor.epoch, self._cursor.num_windows)

    def _leave_out(self, cursor: Cursor) -> None:
        """Leave out the steps of `skip_steps` that the cursor does not know yet."""
        if not self.resumable:
            return
        asked = cursor.steps_to_leave_out()
        sizes = self._sizes_of(cursor)
        ranges = []
        for first, last in asked:
            ranges.append(steps.range_of(first, last, cursor, sizes))
        cursor.leave_out(ranges)

    def _tell_skips(self) -> None:
        """Log, once, which steps will be left out."""
        for skip in self._cursor.skips.unfinished(self._cursor.value):
            if self._rank == 0 and skip.steps not in self._told:
                self._told.add(skip.steps)
                _log.warning(
                    "Steps %s to %s are left out (skip_steps).", f"{skip.first_step:,}", f"{skip.last_step - 1:,}"
                )

    @property
    def step(self) -> int:
        """Number of the next batch, counted from the first one of the run in batches of this size on as many ranks."""
        return steps.next_step(self._cursor, self._sizes)

    @property
    def first_known_step(self) -> int:
        """Number of the first step whose windows are known: those before had other data, weights or `context_length`."""
        with self._alone():
            cursor = copy(self._cursor)
        return steps.first_known_step(cursor, self._sizes_of(cursor))

    @property
    def epoch_end_step(self) -> int:
        """Number of the first batch of the epoch after that of `step`."""
        windows = self._cursor.num_windows
        return self._sizes.first_step(self._sizes.epoch_of(self.step, windows) + 1, windows)

    def windows(self, step: int, rank: int | None = None) -> ServedWindows:
        """Return the windows of a batch, past or to come, with their documents and text. Moves nothing.

        Args:
            step: Number of the batch, from 0: of the run, if all its batches had this size on as many ranks. The next batch
                is `step` of the loader. Without accumulation of gradients, the Trainer's `global_step` counts the same.
            rank: Whose batch; None for this process.

        Raises:
            ConfigError: If there is no such step or rank.
            StoreError: If the step was before the data, the weights or `context_length` changed in this run.
        """
        step = integer("step", step)
        rank = self._rank if rank is None else integer("rank", rank)
        found, cursor = self._found([step], rank)
        windows = self._read_later(found, cursor)()
        pieces = cursor.pieces(found)
        rows = self.rows_of(step)
        return ServedWindows(
            step, rank, found, windows.tokens, cursor.serving, self._make, pieces, rows, channels=windows.channels
        )

    def rows_of(self, step: int) -> int:
        """Return how many rows of its batch a window of a step is (`context_length_schedule`)."""
        return self._sizes.phase_of(step).rows

    def streams_of(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """Return the store and language of each window of some batches of this process, batch by batch. Reads no tokens.

        Args:
            numbers: Of the batches, as in `windows`.
        """
        found, cursor = self._found(numbers, self._rank)
        return cursor.serving.reader.streams_of(found)

    def _found(self, numbers: Sequence[int], rank: int) -> tuple[WindowLocations, Cursor]:
        if not 0 <= rank < self._world_size:
            raise ConfigError(f"rank is {rank} of {self._world_size}: expected 0 <= rank < world_size.")
        cursor = self._cursor_now()
        sizes = self._sizes_of(cursor)
        positions = [np.empty(0, np.int64)]
        for step in numbers:
            positions.append(steps.positions_of(step, rank, cursor, sizes))
        return cursor.locate(np.concatenate(positions)), cursor

    def too_short(self) -> TooShort | None:
        """Count the streams that are shorter than a window, and so never served; None if there are none."""
        return too_short(self._cursor.serving)

    def leaves_out(self, step: int) -> bool:
        """Return whether a step is left out (`skip_steps`)."""
        cursor = self._cursor_now()
        return cursor.skips.holds(steps.first_position(step, cursor, self._sizes_of(cursor)))

    def find(self, store: str, begin: int, end: int, until: int) -> Sightings:
        """Return where some tokens of a stream are served, in the past and the future. Moves nothing.

        O(1) for each window, whatever the size of the store; in `random` order it looks through all windows.

        Args:
            store: Name of the store; "" for a single one.
            begin: Offset of the first token among those of the split; see `TokenStore.find_documents`.
            end: Offset after the last one, in the same stream.
            until: The step, of all ranks, up to which is looked. What was before the data, the weights or `context_length`
                changed in this run is not known.
        """
        cursor = self._cursor_now()
        stores = [*cursor.serving.stores]
        last = steps.first_position(until, cursor, self._sizes_of(cursor))
        positions = cursor.find(stores.index(store), begin, end, last)
        found = cursor.locate(positions)
        low, high = steps.extents(found, cursor, begin, end)
        places = steps.places_of(positions, cursor, self._sizes_of(cursor))
        return Sightings(*places, low, high, found.epoch, positions)

    @property
    def _sizes(self) -> StepSizes:
        return self._sizes_of(self._cursor)

    def _sizes_of(self, cursor: Cursor) -> StepSizes:
        # Steps of one size are counted by their position alone, as ever.
        origin = cursor.counted_from if self._phases else None
        return StepSizes(self.batch_size, self._world_size, self.remainder, self._phases, origin, self._begins)

    @property
    def begins(self) -> list[list[int]]:
        """Epochs whose batches do not begin where those of this size would, since the run went on within them in other sizes.

        Each comes with the position of one of its batches. No state has them, since nothing resumes from them. A loader that
        takes them shows the steps of these epochs as they were served; see `take_begins`.
        """
        sizes = self._sizes_of(self._cursor)
        found = []
        for epoch, position in self._begins.items():
            # Steps from before the origin are not shown.
            known = position >= self._cursor.origin
            if known and not steps.EpochSteps(self._cursor, sizes, epoch).begins_at(position):
                found.append([epoch, position])
        return found

    def take_begins(self, begins: Any) -> None:
        """Take what `begins` said of the same run.

        Raises:
            StoreError: If it is damaged.
        """
        self._begins = {**checked_begins(begins), **self._begins}

    @property
    def epochs_differ(self) -> bool:
        """Whether later epochs have another number of batches than this one, since batches grow."""
        return self._sizes.steps_of(self.batch_size, self._cursor.num_windows) != len(self)

    def steps_of(self, epochs: int) -> int:
        """Return the batches of the first epochs of a run."""
        return self._sizes.first_step(epochs, self._cursor.num_windows)

    def epochs_of(self, steps: int) -> dict[str, float]:
        """Return the epochs of each component of the mixture that a run has had once it has made some steps.

        Without a mixture, the component is named "".

        Args:
            steps: From the begin of the run on, as `step` counts.
        """
        windows = self._sizes.windows_before(steps)
        return self._cursor.epochs_of(windows, windows - self._sizes.windows_before(self.step))

    @property
    def most_steps(self) -> int | None:
        """Batches of a whole run up to the end of the mixture (`max_epochs`); None if it goes on for ever."""
        last = self._cursor.last
        if last is None:
            return None
        windows = self._cursor.num_windows
        epochs, rest = divmod(last - self._cursor.epoch_start, windows)
        first, place = self._sizes.begin_of(self._cursor.epoch + epochs, windows)
        return first + self._sizes.steps(first, max(rest - place, 0))

    @property
    def epoch(self) -> float:
        """Epochs served so far, of all windows together: 1.25 is a quarter into the second one."""
        with self._alone():
            cursor = self._cursor
            return cursor.epoch + cursor.position / max(cursor.num_windows, 1)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of this epoch that the models of all ranks have been given so far."""
        with self._alone():
            return self._cursor.position * self.context_length

    @property
    def num_consumed(self) -> int:
        """Windows of all ranks so far, in all epochs, with those at the ends of epochs that fill no batch."""
        with self._alone():
            return self._cursor.skips.served(0, self._cursor.value)

    @property
    def num_tokens(self) -> int:
        """Tokens of the streams that are served."""
        return self._cursor.serving.num_tokens

    @property
    def means(self) -> str:
        """The mean lengths of documents that weights go by (`mix_by`), in a sentence; empty where they do not."""
        return self._cursor.serving.means

    def components(self) -> dict[str, dict[str, float]]:
        """Return how far each component of the mixture has come: its windows so far, and its epochs.

        Once a store has grown, each component begins its next epoch, and its windows are those of as many epochs of today.
        """
        return self._cursor.components()

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch that was handed out: plain types, the same on all ranks."""
        with self._alone():
            return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the tokens that the stores had then (see `extend`); takes effect at the next `iter`.

        World size and batch size may differ. With another `context_length` the epoch continues after the same number of
        tokens (in `sequential` order, of the very stream). With other weights of `mix` each component continues at its
        position. A state that is refused changes nothing; an accepted one ends the iterators begun before.

        Raises:
            StoreError: If the state is damaged; if its data or order differs and `on_data_change` is `error`; or if the
                stores never had its tokens.
        """
        if not self.resumable:
            # Lightning saves and loads the state of any train loader, even in an overfitting run.
            return
        state = checked_state(state)
        fields = _differing(state, self.expected or state)
        if fields:
            raise StoreError(
                f"The checkpoint's datamodule and loop disagree about the position in the data ({', '.join(fields)}): it was "
                "combined from two checkpoints; use an unmodified one."
            )
        with self._alone():
            cursor = copy(self._cursor)
            cursor.load_state_dict(state)
            if self._phases and self.extend == "now":
                self._count_on(cursor, self._cursor.without_growth(state))
            self._check_size(cursor)
            self._leave_out(cursor)
            self._cursor = cursor
            self._turn = None
            begins: dict[int, int] = {}
            for epoch, position in self._begins.items():
                if epoch <= cursor.epoch:
                    begins[epoch] = position
            self._begins = begins
            if not cursor.ended and cursor.value < cursor.epoch_end:
                self._begins[cursor.epoch] = cursor.value

    def _count_on(self, cursor: Cursor, before: Cursor) -> None:
        """Let the steps of a cursor go on in number with those of another one, of which it has grown."""
        if cursor.serving.content() == before.serving.content():
            return
        sizes = self._sizes_of(before)
        first = sizes.first_step(before.epoch, before.num_windows)
        cursor.counted_from = CountedFrom(cursor.epoch, first, steps.next_step(before, sizes), cursor.position)

    def restart(self) -> None:
        """Go to the first window of epoch 0; takes effect at the next `iter`."""
        self._cursor.restart()
        self._begins = {}
        self._leave_out(self._cursor)

    def roll_over(self) -> None:
        """Begin the next epoch if the last one has ended; unless `extend` is `never`, adopt appended tokens."""
        with self._alone():
            cursor = self._cursor
            before = cursor.serving
            step = self.step if self._phases else 0
            adopts = self.extend != "never"
            if cursor.ended or not self._steps_left(cursor):
                cursor.next_epoch(adopts)
            # All that an epoch has may be left out.
            while cursor.skips.skipped(cursor.value, cursor.epoch_end) and not self._steps_left(cursor):
                cursor.next_epoch(adopts)
            if self._phases and cursor.serving is not before:
                # Sizes go by the steps that were served, and not by those that the changed stores would have had.
                cursor.counted_from = CountedFrom(cursor.epoch, step, step, 0)

    def __iter__(self) -> BatchIterator:
        """Return an iterator to the end of the epoch, which reads the cursor at its first `next`; see `BatchIterator`."""
        return BatchIterator(self)

    def __getitem__(self, index: Any) -> NoReturn:
        """Raise for a DataLoader that takes this loader for a dataset."""
        raise ConfigError(
            "A WindowLoader iterates over batches and has no index: iterate it in place of a DataLoader, or give the "
            "DataLoader a TokenWindows."
        )

    def _alone(self) -> threading.RLock:
        """Return the lock that a thread holds while it moves or reads the cursor."""
        if self._process != os.getpid():
            # In a fork, the lock may be held by a thread of the parent and would never be released.
            self._process = os.getpid()
            self._lock = threading.RLock()
        return self._lock

    def _cursor_now(self) -> Cursor:
        """Return a copy of the cursor, which moves on while batches are served."""
        with self._alone():
            return copy(self._cursor)

    def __getstate__(self) -> dict[str, Any]:
        with self._alone():
            state = {**vars(self), "_cursor": copy(self._cursor)}
        for name in ("_lock", "_process", "_turn"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._turn = None

    def _begin(self, iterator: BatchIterator) -> Generator[Batch, None, None]:
        """Begin or continue an epoch for an iterator at its first use."""
        self._check_not_in_workers()
        if not self.resumable:
            # Each iterator has a cursor of its own, at the first window.
            self._cursor = copy(self._cursor)
            self._cursor.restart()
        self._turn = iterator._turn
        self._leave_out(self._cursor)
        self.roll_over()
        self._cursor.check_not_over()
        self._tell_skips()
        if self._world_size > 1 and self.resumable:
            check_ranks_agree(self._position())
        return self._serve(self._cursor)

    def _steps_left(self, cursor: Cursor) -> int:
        """Return the batches that are left of a cursor's epoch."""
        return steps.steps_left(cursor, self._sizes_of(cursor))

    def _check_turn(self, iterator: BatchIterator) -> None:
        if self.resumable and self._turn is not iterator._turn:
            raise StoreError(
                "This iterator is out of date: a newer iterator or a loaded state has moved the WindowLoader on, and this one "
                "would repeat windows; use the newer iterator, or copy the loader for a second pass."
            )

    def _check_not_in_workers(self) -> None:
        worker = torch.utils.data.get_worker_info()
        if worker is None or self._made_in == os.getpid() or (worker.num_workers == 1 and not self.resumable):
            return
        raise StoreError(
            f"A WindowLoader was passed to {pluralize(worker.num_workers, 'worker')} of a DataLoader: each would return all "
            "windows, and its state would count none; iterate the loader itself, which reads ahead in threads, or give the "
            "DataLoader a TokenWindows."
        )

    def _serve(self, cursor: Cursor) -> Generator[Batch, None, None]:
        remaining = self._steps_left(cursor)
        reads = reads_of(cursor.serving.stores.values())
        chunks = chunks_left(cursor, self._sizes_of(cursor), self._rank, reads.tokens)
        # The cursor itself moves on while its windows are read.
        reader = copy(cursor)

        def read_later(chunk: Chunk) -> Callable[[], WindowBatch]:
            read = self._read_later(chunk.found, reader)
            return lambda: read().cut(chunk.rows)

        with closing(read_ahead(chunks, read_later, reads)) as served:
            for chunk, windows in served:
                described = self._make.describe(windows)
                rows = chunk.size * chunk.rows
                low = 0
                for step, end, digest in zip(chunk.steps, chunk.ends, chunk.digests, strict=True):
                    batch = self._make.batch(described, low, low + rows)
                    low += rows
                    remaining -= 1
                    self.last_step = step
                    # Counted once it is complete: a batch that an interruption keeps from the training loop comes again.
                    cursor.advance_to(end, digest)
                    cursor.ended = remaining == 0
                    yield batch

    def _position(self) -> dict[str, Any]:
        """Return the position and data of this rank. All ranks must agree, but each may have its own copy of a store."""
        state = self.state_dict()
        stores = state.pop("stores")
        position = {}
        for field in ("fingerprint", "tokens", "forgotten"):
            position[f"{field} of stores"] = [store[field] for store in stores]
        first = self._cursor.locate(np.asarray([self._cursor.value]))
        own: dict[str, Any] = {"batch_size": self.batch_size, "len": len(self), "first window": int(first.start[0])}
        for name in ("batch_size_schedule", "context_length_schedule"):
            if name in self.batching:
                own[name] = self.batching[name]
        return {**position, **state, **own}

    def _read_later(self, found: WindowLocations, cursor: Cursor) -> Callable[[], WindowBatch]:
        """Return a function that reads windows as the model gets them, with their channels."""
        read = cursor.read_later(found)

        def read_and_rearrange() -> WindowBatch:
            tokens, channels = read()
            return self._make.rearrange(tokens, found.start, found.epoch, channels)

        return read_and_rearrange


def _differing(state: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that two states do not have in common, sorted."""
    fields = []
    for name in sorted({*state, *expected}):
        if state.get(name) != expected.get(name):
            fields.append(name)
    return fields


def _named_stores(store: Any) -> dict[str, TokenStore]:
    stores = {"": store} if isinstance(store, TokenStore) else store
    # A `datasets.DatasetDict` is a mapping too.
    if not isinstance(stores, Mapping) or type(stores).__module__.startswith("datasets."):
        raise not_a_store("store", stores)
    named: dict[str, TokenStore] = {}
    for name, value in stores.items():
        if not isinstance(name, str):
            raise ConfigError(f"store has the name {described(name)}: expected text.")
        if not isinstance(value, TokenStore):
            raise not_a_store(f"store[{name!r}]", value)
        named[word(name)] = value
    return named
