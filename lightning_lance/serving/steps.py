"""Batches by number: which windows a step of a run serves, past or to come."""

from __future__ import annotations

from collections.abc import Mapping
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
from lightning_lance.serving.mixture import WindowLocations
from lightning_lance.serving.options import Remainder
from lightning_lance.serving.packing import Pieces
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.skips import Skip
from lightning_lance.serving.states import MOST
from lightning_lance.store.token_store import TokenStore

# Columns of `documents` that say where a document is, and not what it is.
_PLACE = ("window", "begin", "end")


class StepSizes(NamedTuple):
    """How an epoch is cut into steps.

    Attributes:
        batch_size: Windows of a batch, on each rank.
        world_size: The number of ranks.
        remainder: What happens to the windows at an epoch's end that fill no step; see `WindowLoader`.
    """

    batch_size: int
    world_size: int
    remainder: Remainder

    @property
    def windows(self) -> int:
        """Windows of a whole step, on all ranks."""
        return self.batch_size * self.world_size

    def steps(self, windows: int) -> int:
        """Return the number of steps of some windows up to the end of an epoch."""
        whole, rest = divmod(windows, self.windows)
        if self.remainder == "drop":
            return whole
        least = 1 if self.remainder == "wrap" else self.world_size
        return whole + (rest >= least)


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
        channels: What the channels of the stores have for the tokens, in their shape, by name; mostly none.
    """

    step: int
    rank: int
    found: WindowLocations
    tokens: np.ndarray
    serving: WindowSelection
    make: Collator
    pieces: list[Pieces] | None = None
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
                about = [str(value) for name, value in row.items() if name not in _PLACE and value]
                sources.append(f"{row['begin']}:{row['end']} {' · '.join(about)}")
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
        together = Pieces(*(np.concatenate(parts) for parts in zip(*tables, strict=True)))
        windows = np.repeat(mine, [len(table.size) for table in tables])
        part = store.documents(together.source, 1, self.serving.split)
        end = together.column + together.size
        return _with_columns(part, {"window": windows, "begin": together.column, "end": end})

    @cached_property
    def batch(self) -> Batch:
        """The batch as the model gets it."""
        windows = WindowBatch(self.tokens, channels=self.channels)
        return self.make.batch(self.make.describe(windows), 0, len(self.tokens))

    @cached_property
    def text(self) -> list[str]:
        """The text of each window, by the tokenizer beside the first store."""
        texts: list[str] = next(iter(self.serving.stores.values())).decode(self.tokens)
        return texts


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


def next_step(cursor: Cursor, sizes: StepSizes) -> int:
    """Return the number of the step that begins at a cursor, in steps of these sizes since the begin of the run."""
    whole = sizes.steps(cursor.num_windows)
    epoch, begin = cursor.epoch, cursor.epoch_start
    position = cursor.epoch_end if cursor.ended else cursor.skips.next(cursor.value)
    # As `WindowLoader.roll_over` does, where an epoch has nothing left to serve.
    while whole and not sizes.steps(cursor.skips.served(position, begin + cursor.num_windows)):
        epoch, begin = epoch + 1, begin + cursor.num_windows
        position = cursor.skips.next(begin)
    return epoch * whole + (position - begin) // sizes.windows


def steps_left(position: int, end: int, cursor: Cursor, sizes: StepSizes) -> int:
    """Return the number of steps from a position up to the end of its epoch."""
    left = sizes.steps(cursor.skips.served(position, cursor.bounded(end)))
    if cursor.last is None or sizes.remainder != "wrap":
        return left
    # Behind the end of a mixture, nothing fills a batch.
    return min(left, cursor.skips.served(position, cursor.last) // sizes.windows)


def positions_of(step: int, rank: int, cursor: Cursor, sizes: StepSizes) -> Any:
    """Return the positions of a rank's windows in a step, (n,) int64, in the cursor's count.

    Raises:
        ConfigError: If there is no such step.
        StoreError: If the step was served from another mixture than the cursor's.
    """
    position, end = _first_position(step, cursor, sizes)
    if position < cursor.origin or end - cursor.num_windows < 0:
        raise StoreError(
            f"Step {step:,} was served before the data, the weights or context_length changed in this run, at window "
            f"{cursor.origin:,}: load a checkpoint from before, with the settings of that time, to see it."
        )
    size = sizes.batch_size
    is_left_out = cursor.skips.holds(position)
    if is_left_out:
        left = max(0, cursor.bounded(end) - position)
        is_there = sizes.steps(left) > 0
    else:
        left = cursor.skips.served(position, cursor.bounded(end))
        is_there = steps_left(position, end, cursor, sizes) > 0
    if not is_there and cursor.bounded(end) < end:
        raise ConfigError(f"There is no step {step:,}: the mixture ends at window {cursor.last:,} (max_epochs).")
    if not is_there:
        raise ConfigError(f"There is no step {step:,}: its epoch ends before, since a resume moved its steps.")
    if left < sizes.windows and sizes.remainder == "short":
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
    in_epoch = sizes.steps(cursor.num_windows)
    epochs = (positions - cursor.epoch_start) // cursor.num_windows
    begins = cursor.epoch_start + epochs * cursor.num_windows
    numbers = cursor.skips.numbers(positions)
    # Batches are cut from what is served, on both sides of the anchor.
    anchors = np.where(epochs == 0, _anchor(cursor), begins)
    inner = (numbers - cursor.skips.numbers(anchors)) % sizes.windows
    firsts = numbers - inner
    size = np.full(len(positions), sizes.batch_size)
    ends = begins + cursor.num_windows
    if cursor.last is not None:
        ends = np.minimum(ends, cursor.last)
    left = cursor.skips.numbers(ends) - firsts
    in_none = firsts < cursor.skips.numbers(begins)
    if sizes.remainder == "short":
        size = np.where(left < sizes.windows, left // sizes.world_size, size)
        in_none |= inner >= size * sizes.world_size
    elif sizes.remainder == "drop":
        in_none |= left < sizes.windows
    rank, window = np.divmod(inner, np.maximum(size, 1))
    within = (cursor.skips.at(firsts) - begins) // sizes.windows
    step = np.where(in_none, -1, (cursor.epoch + epochs) * in_epoch + within)
    return step, rank, window


def range_of(first: int, last: int, cursor: Cursor, sizes: StepSizes) -> Skip:
    """Return the positions of the steps from `first` up to, not including, `last`, to be left out.

    Raises:
        ConfigError: If these are more than the steps of an epoch.
    """
    in_epoch = sizes.steps(cursor.num_windows)
    if last - first > in_epoch:
        raise ConfigError(
            f"skip_steps has [{first:,}, {last:,}]: expected at most the {pluralize(in_epoch, 'step')} of an epoch."
        )
    begin, _ = _first_position(first, cursor, sizes)
    end, _ = _first_position(last, cursor, sizes)
    return Skip(first, last, max(begin, 0), max(end, 0))


def first_position(step: int, cursor: Cursor, sizes: StepSizes) -> int:
    """Return the position of the first window of a step. ConfigError for a negative step."""
    return max(_first_position(step, cursor, sizes)[0], 0)


def _first_position(step: int, cursor: Cursor, sizes: StepSizes) -> tuple[int, int]:
    """Return the position of the first window of a step, and the end of its epoch. ConfigError for a negative step."""
    whole = sizes.steps(cursor.num_windows)
    if step < 0 or not whole:
        raise ConfigError(f"step is {step}: expected a number of a batch, from 0.")
    if step * sizes.windows > MOST:
        raise ConfigError(f"step is {step:,}: expected a number of a batch, at most {MOST // sizes.windows:,}.")
    epoch, within = divmod(step, whole)
    begin = cursor.epoch_start + (epoch - cursor.epoch) * cursor.num_windows
    end = begin + cursor.num_windows
    position = begin + within * sizes.windows
    anchor = _anchor(cursor) if epoch == cursor.epoch else begin
    skips = cursor.skips
    if not skips.ranges or position < 0:
        return position + (anchor - begin) % sizes.windows, end
    # A step is the batch that begins among as many positions as it has windows. Where a range is left out that is no
    # multiple of them, as after a resume with other sizes, the batches behind it begin elsewhere.
    ahead = (skips.served(0, anchor) - skips.served(0, position)) % sizes.windows
    first = skips.after(position, ahead + 1) - 1
    if first < position + sizes.windows:
        return first, end
    shifted = position + (anchor - begin) % sizes.windows
    if skips.holds(shifted):
        return shifted, end
    held = skips.next_held(position)
    if held is None:
        return first, end
    return held, end


def _anchor(cursor: Cursor) -> int:
    """Return a position at which a batch of the cursor's epoch begins, or would."""
    # After a resume with other sizes, steps begin where the earlier ones ended.
    if cursor.ended or cursor.value >= cursor.epoch_end:
        return cursor.epoch_start
    return cursor.value
