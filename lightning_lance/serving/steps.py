"""Batches by number: which windows a step of a run serves, past or to come."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.messages.formatting import pluralize
from lightning_lance.messages.html import html_table
from lightning_lance.serving.batches import Batch, Collator, WindowBatch
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.ordering.mixture import WindowLocations
from lightning_lance.serving.ordering.packing import Pieces
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.skips import Skip
from lightning_lance.serving.states import MOST
from lightning_lance.serving.step_sizes import Segment, StepSizes
from lightning_lance.store.token_store import TokenStore

# Columns of `documents` that say where a document is, and not what it is.
_PLACE = ("window", "begin", "end")


@dataclass(frozen=True, eq=False)
class ServedWindows:
    """The windows of one batch of one rank.

    Attributes:
        step: Number of the batch.
        rank: Whose batch.
        found: Where the windows are.
        tokens: (batch_size, context_length + 1) tokens, rearranged where the loader does so (`fim`).
        serving: The selection that they are of.
        make: What makes batches of them.
        pieces: What packed windows are made of, a table for each; None for windows that are pieces of the streams.
        rows: Rows of the batch that each window is, one after the other.
        channels: What the channels of the stores have for the tokens, in their shape, by name; mostly none.
    """

    step: int
    rank: int
    found: WindowLocations
    tokens: np.ndarray
    serving: WindowSelection
    make: Collator
    pieces: list[Pieces] | None = None
    rows: int = 1
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"ServedWindows(step={self.step}, rank={self.rank}, starts={self.starts.tolist()})"

    def __len__(self) -> int:
        return len(self.tokens)

    def _repr_html_(self) -> str:
        """Return the windows for notebooks: their documents side by side, each with where it is from."""
        rows = []
        for number, text in enumerate(self.text):
            mine = self.documents.filter(pc.equal(self.documents.column("window"), number))
            sources = []
            for row in mine.to_pylist():
                sources.append(f"{row['begin']}:{row['end']} {' · '.join(_about(row))}")
            rows.append([str(number), "\n".join(sources), text])
        return html_table(f"step {self.step}, rank {self.rank}", ["window", "documents", "text"], rows)

    @property
    def starts(self) -> np.ndarray:
        """Offsets of the windows among the tokens of their split and store, (batch_size,) int64."""
        return self.found.start

    @property
    def stores(self) -> list[str]:
        """Name of each window's store."""
        names = [*self.serving.stores]
        return [names[place] for place in self.found.store.tolist()]

    @cached_property
    def documents(self) -> pa.Table:
        """The documents in the windows, as `TokenStore.documents` gives them: `window` counts within this batch."""
        parts = []
        for place, store in enumerate(self.serving.stores.values()):
            mine = np.flatnonzero(self.found.store == place)
            if len(mine):
                parts.append(self._documents_of(store, mine))
        together: pa.Table = pa.concat_tables(parts, promote_options="default")
        return together.take(pa.array(np.argsort(together.column("window").to_numpy(), kind="stable")))

    def _documents_of(self, store: TokenStore, mine: np.ndarray) -> pa.Table:
        """Return the documents of some windows, all of one store."""
        if self.pieces is None:
            part = store.documents(self.starts[mine], self.serving.context_length + 1, self.serving.split)
            return _with_columns(part, {"window": mine[part.column("window").to_numpy()]})
        # Each piece is of one document.
        tables = [self.pieces[number] for number in mine.tolist()]
        together = Pieces.joined(tables)
        windows = np.repeat(mine, [len(table.size) for table in tables])
        part = store.documents(together.source, 1, self.serving.split)
        end = together.column + together.size
        return _with_columns(part, {"window": windows, "begin": together.column, "end": end})

    @cached_property
    def batch(self) -> Batch:
        """The batch as the model gets it."""
        windows = WindowBatch(self.tokens, self.channels).cut(self.rows)
        return self.make.batch(self.make.describe(windows), 0, len(windows.tokens))

    @cached_property
    def text(self) -> list[str]:
        """The text of each window, by the tokenizer beside the first store."""
        texts: list[str] = next(iter(self.serving.stores.values())).decode(self.tokens)
        return texts


def _about(row: Mapping[str, Any]) -> list[str]:
    """Return what is known of a document, but for its place."""
    about = []
    for name, value in row.items():
        if name not in _PLACE and value:
            about.append(str(value))
    return about


def _with_columns(table: pa.Table, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """Return a table with other values in some of its columns."""
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array(values, field.type))
    return table


def extents(found: WindowLocations, cursor: Cursor, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which tokens of windows are those from `begin` to `end` of a split: the first, and the one after the last."""
    pieces = cursor.pieces(found)
    length = cursor.serving.context_length + 1
    if pieces is None:
        return np.maximum(begin - found.start, 0), np.minimum(end - found.start, length)
    low, high = [], []
    for table in pieces:
        hit = (table.source < end) & (table.source + table.size > begin)
        first = table.column[hit] + np.maximum(begin - table.source[hit], 0)
        last = table.column[hit] + np.minimum(end - table.source[hit], table.size[hit])
        low.append(int(first.min()))
        high.append(int(last.max()))
    return np.asarray(low, np.int64), np.asarray(high, np.int64)


class StepRun(NamedTuple):
    """Steps of one size that follow each other.

    Attributes:
        steps: The number of steps.
        size: Windows of a batch, on each rank.
        rows: Rows of a batch that a window is cut into.
    """

    steps: int
    size: int
    rows: int


class EpochSteps:
    """Where the steps of an epoch begin, before and behind the position of a cursor.

    The batches of an epoch follow each other, and each has the size of the segment in which it begins. Where nothing is left
    out, a number is a position.

    Args:
        cursor: The cursor, which may be in another epoch.
        sizes: The sizes of the steps.
        epoch: The number of the epoch.
    """

    def __init__(self, cursor: Cursor, sizes: StepSizes, epoch: int) -> None:
        self._skips = cursor.skips
        self._sizes = sizes
        self.begin = cursor.epoch_start + (epoch - cursor.epoch) * cursor.num_windows
        self.end = self.begin + cursor.num_windows
        step, place = sizes.begin_of(epoch, cursor.num_windows)
        self.segments = sizes.segments(step, cursor.num_windows - place)
        #: The position at which each segment begins.
        self.positions: list[int] = []
        self._steps: list[int] = []
        # Windows of a step of each segment, on all ranks.
        self._windows: list[int] = []
        for segment in self.segments:
            self.positions.append(self.begin + place + segment.begin)
            self._steps.append(segment.step)
            self._windows.append(segment.size * sizes.world_size)
        self._anchor = max(_anchor(epoch, cursor, sizes), self.positions[0])

    @cached_property
    def numbers(self) -> list[int]:
        """How many served positions are before each segment."""
        numbers: list[int] = self._skips.numbers(np.asarray(self.positions)).tolist()
        return numbers

    @cached_property
    def firsts(self) -> list[int]:
        """The number of the first window of the first batch of each segment."""
        # After a resume with other sizes, batches begin where the earlier ones ended.
        anchor = self._number(self._anchor)
        here = self.index(self._anchor)
        windows = self._windows
        firsts = [*self.numbers]
        firsts[here] += (anchor - firsts[here]) % windows[here]
        for i in range(here + 1, len(firsts)):
            firsts[i] += max(firsts[i - 1] - firsts[i], (firsts[i - 1] - firsts[i]) % windows[i - 1])
        for i in reversed(range(here)):
            firsts[i] += (firsts[i + 1] - firsts[i]) % windows[i]
        return firsts

    def _number(self, position: int) -> int:
        return int(self._skips.numbers(np.asarray([position]))[0])

    def index(self, position: int) -> int:
        """Return the index of the segment with a position."""
        return max(bisect_right(self.positions, position) - 1, 0)

    def step_at(self, position: int) -> int:
        """Return the number of the step that begins at a position, or would."""
        index = self.index(position)
        return self._steps[index] + (position - self.positions[index]) // self._windows[index]

    def steps_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the numbers of the steps that begin at some positions, (n,) int64; see `step_at`."""
        index = np.maximum(np.searchsorted(self.positions, positions, side="right") - 1, 0)
        ahead = (positions - np.asarray(self.positions)[index]) // np.asarray(self._windows)[index]
        numbers: np.ndarray = np.asarray(self._steps)[index] + ahead
        return numbers

    def segment_of(self, step: int) -> Segment:
        """Return the segment with a step."""
        return self.segments[self._index_of(step)]

    def begins_at(self, position: int) -> bool:
        """Return whether a batch begins at a position where all batches of the epoch have these sizes."""
        index = self.index(position)
        return (self._number(position) - self.numbers[index]) % self._windows[index] == 0

    def is_before(self, step: int) -> bool:
        """Return whether a step was before the place that steps are counted from."""
        return step < self.segments[0].step

    def _index_of(self, step: int) -> int:
        return max(bisect_right(self._steps, step) - 1, 0)

    def first_position(self, step: int) -> int:
        """Return the position of the first window of a step."""
        index = self._index_of(step)
        windows = self._windows[index]
        position = self.positions[index] + (step - self._steps[index]) * windows
        here = self.index(self._anchor)
        shift = (self._anchor - self.positions[here]) % self._windows[here] % windows
        skips = self._skips
        if not skips.ranges or position < 0:
            return position + shift
        # A step is the batch that begins among as many positions as it has windows. Where a range is left out that is no
        # multiple of them, as after a resume with other sizes, the batches behind it begin elsewhere.
        ahead = (self.firsts[index] - self._number(position)) % windows
        first = skips.after(position, ahead + 1) - 1
        if first < position + windows:
            return first
        if skips.holds(position + shift):
            return position + shift
        held = skips.next_held(position)
        return first if held is None else held

    def runs(self, position: int, end: int, last: int | None = None) -> Iterator[StepRun]:
        """Yield the steps from a position up to the end of the epoch.

        Args:
            position: Where the first one begins.
            end: The end of the epoch, or of the mixture.
            last: The end of the mixture. Behind it, nothing fills a batch.
        """
        number = self._number(position)
        there = self._number(end)
        for segment, windows, stop in zip(self.segments, self._windows, [*self.numbers[1:], there], strict=True):
            wanted = -(-(min(stop, there) - number) // windows)
            if wanted <= 0:
                continue
            whole = min(wanted, (there - number) // windows)
            if whole:
                yield StepRun(whole, segment.size, segment.rows)
            number += whole * windows
            if whole < wanted:
                size = self._size_of_rest(there - number, segment)
                fits = last is None or self._number(last) - number >= windows
                if size and (self._sizes.remainder != "wrap" or fits):
                    yield StepRun(1, size, segment.rows)
                return

    def _size_of_rest(self, windows: int, segment: Segment) -> int:
        """Return the size of the last batch of the epoch, which some windows do not fill; 0 if there is none."""
        if self._sizes.remainder == "drop":
            return 0
        if self._sizes.remainder == "wrap":
            return segment.size
        return windows // self._sizes.world_size

    def places(self, positions: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the steps, ranks and numbers in the batch of the windows at some positions; step -1 for none.

        Args:
            positions: (n,) int64, of this epoch, none of which is left out.
            end: The end of the epoch, or of the mixture.
        """
        numbers = self._skips.numbers(positions)
        of = np.searchsorted(self.firsts, numbers, side="right") - 1
        in_none = of < 0
        of = np.maximum(of, 0)
        windows = np.asarray(self._windows)[of]
        size = windows // self._sizes.world_size
        inner = (numbers - np.asarray(self.firsts)[of]) % windows
        firsts = numbers - inner
        # What the sizes of earlier batches have left before a segment.
        in_none |= firsts >= np.asarray([*self.numbers[1:], MOST + self.end])[of]
        left = self._number(end) - firsts
        if self._sizes.remainder == "short":
            size = np.where(left < windows, left // self._sizes.world_size, size)
            in_none |= inner >= size * self._sizes.world_size
        elif self._sizes.remainder == "drop":
            in_none |= left < windows
        rank, window = np.divmod(inner, np.maximum(size, 1))
        within = (self._skips.at(firsts) - np.asarray(self.positions)[of]) // windows
        step = np.where(in_none, -1, np.asarray(self._steps)[of] + within)
        return step, rank, window


def next_step(cursor: Cursor, sizes: StepSizes) -> int:
    """Return the number of the step that begins at a cursor, in steps of these sizes since the begin of the run."""
    epoch = EpochSteps(cursor, sizes, cursor.epoch)
    number = cursor.epoch
    position = cursor.epoch_end if cursor.ended else cursor.skips.next(cursor.value)
    has_steps = sizes.steps_of(sizes.batch_size, cursor.num_windows) > 0
    # As `WindowLoader.roll_over` does, where an epoch has nothing left to serve.
    while has_steps and not any(epoch.runs(position, epoch.end)):
        number += 1
        epoch = EpochSteps(cursor, sizes, number)
        position = cursor.skips.next(epoch.begin)
    return epoch.step_at(position)


def first_known_step(cursor: Cursor, sizes: StepSizes) -> int:
    """Return the number of the first step that a cursor knows the windows of: that at which its mixture begins."""
    epoch = cursor.epoch + (cursor.origin - cursor.epoch_start) // max(cursor.num_windows, 1)
    return EpochSteps(cursor, sizes, max(epoch, 0)).step_at(cursor.origin)


def runs_left(cursor: Cursor, epoch: EpochSteps) -> Iterator[StepRun]:
    """Yield the steps that are left of a cursor's epoch."""
    return epoch.runs(cursor.value, cursor.bounded(epoch.end), cursor.last)


def steps_left(cursor: Cursor, sizes: StepSizes) -> int:
    """Return the number of steps that are left of a cursor's epoch."""
    epoch = EpochSteps(cursor, sizes, cursor.epoch)
    return sum(run.steps for run in runs_left(cursor, epoch))


def positions_of(step: int, rank: int, cursor: Cursor, sizes: StepSizes) -> Any:
    """Return the positions of a rank's windows in a step, (n,) int64, in the cursor's count.

    Raises:
        ConfigError: If there is no such step.
        StoreError: If the step was served from another mixture than the cursor's.
    """
    epoch = _epoch_with(step, cursor, sizes)
    position, end = epoch.first_position(step), epoch.end
    if position < cursor.origin or end - cursor.num_windows < 0 or epoch.is_before(step):
        raise StoreError(
            f"Step {step:,} was served before the data, the weights or context_length changed in this run, at window "
            f"{cursor.origin:,}: load a checkpoint from before, with the settings of that time, to see it."
        )
    size = epoch.segment_of(step).size
    windows = size * sizes.world_size
    is_left_out = cursor.skips.holds(position)
    if is_left_out:
        left = max(0, cursor.bounded(end) - position)
        is_there = sizes.steps_of(size, left) > 0
    else:
        left = cursor.skips.served(position, cursor.bounded(end))
        is_there = any(epoch.runs(position, cursor.bounded(end), cursor.last))
    if not is_there and cursor.bounded(end) < end:
        raise ConfigError(f"There is no step {step:,}: the mixture ends at window {cursor.last:,} (max_epochs).")
    if not is_there:
        raise ConfigError(f"There is no step {step:,}: its epoch ends before, since a resume moved its steps.")
    if left < windows and sizes.remainder == "short":
        size = left // sizes.world_size
    if is_left_out:
        return np.arange(position + rank * size, position + (rank + 1) * size)
    return cursor.skips.take(position, size * sizes.world_size)[rank * size : (rank + 1) * size]


class Sightings(NamedTuple):
    """Windows that have some tokens, in the order of serving, (n,) int64 each.

    Attributes:
        step: Number of the batch; -1 for a window that is in none: it is dropped at the end of its epoch, or was served in a
            batch of another size at the begin of this one.
        rank: Whose batch.
        window: Number in the batch.
        begin: The first of the tokens in the window, before any rearrangement.
        end: The one after the last.
        epoch: Epoch of the window's component.
        position: Its place in the order of the run.
    """

    step: np.ndarray
    rank: np.ndarray
    window: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    epoch: np.ndarray
    position: np.ndarray


def places_of(positions: np.ndarray, cursor: Cursor, sizes: StepSizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps, ranks and numbers in the batch of the windows at some positions: the inverse of `positions_of`."""
    step = np.empty(len(positions), np.int64)
    rank = np.empty(len(positions), np.int64)
    window = np.empty(len(positions), np.int64)
    epochs = cursor.epoch + (positions - cursor.epoch_start) // max(cursor.num_windows, 1)
    for number in np.unique(epochs).tolist():
        mine = np.flatnonzero(epochs == number)
        epoch = EpochSteps(cursor, sizes, number)
        step[mine], rank[mine], window[mine] = epoch.places(positions[mine], cursor.bounded(epoch.end))
    return step, rank, window


def range_of(first: int, last: int, cursor: Cursor, sizes: StepSizes) -> Skip:
    """Return the positions of the steps from `first` up to, not including, `last`, to be left out.

    Raises:
        ConfigError: If these are more than the steps of an epoch.
    """
    in_epoch = sizes.steps_in(cursor.epoch, cursor.num_windows)
    if last - first > in_epoch:
        raise ConfigError(
            f"skip_steps has [{first:,}, {last:,}]: expected at most the {pluralize(in_epoch, 'step')} of an epoch."
        )
    return Skip(first, last, first_position(first, cursor, sizes), first_position(last, cursor, sizes))


def first_position(step: int, cursor: Cursor, sizes: StepSizes) -> int:
    """Return the position of the first window of a step. ConfigError for a negative step."""
    epoch = _epoch_with(step, cursor, sizes)
    if epoch.is_before(step):
        return epoch.positions[0]
    return max(epoch.first_position(step), 0)


def _epoch_with(step: int, cursor: Cursor, sizes: StepSizes) -> EpochSteps:
    """Return the epoch of a step. ConfigError if there is none."""
    if step < 0 or not sizes.steps_of(sizes.batch_size, cursor.num_windows):
        raise ConfigError(f"step is {step}: expected a number of a batch, from 0.")
    if step * sizes.windows > MOST:
        raise ConfigError(f"step is {step:,}: expected a number of a batch, at most {MOST // sizes.windows:,}.")
    return EpochSteps(cursor, sizes, sizes.epoch_of(step, cursor.num_windows))


def _anchor(epoch: int, cursor: Cursor, sizes: StepSizes) -> int:
    """Return a position at which a batch of an epoch begins, or would; 0 for its begin."""
    # After a resume with other sizes, steps begin where the earlier ones ended.
    if epoch == cursor.epoch and not cursor.ended and cursor.value < cursor.epoch_end:
        return cursor.value
    if epoch in sizes.begins:
        return sizes.begins[epoch]
    if epoch == cursor.epoch and sizes.remainder == "drop":
        # No batch is smaller than others, or goes on in the next epoch, so the last one ended here.
        return cursor.value
    return 0
