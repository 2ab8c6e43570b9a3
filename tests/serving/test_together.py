"""Packed windows, changing weights, bounds on epochs, steps left out and sizes that grow, together: any kills and resumes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

SOURCE = ListSource(
    (
        *documents(*(f"go {i:03d} " * (1 + i % 7) for i in range(17)), language="Go"),
        *documents(*("rust " * (3 * i + 1) for i in range(4)), language="Rust"),
    )
)
CONTEXT = 16
SCHEDULE = [[0, {"Go": 1}], [10 * CONTEXT, {"Go": 1, "Rust": 3}], [40 * CONTEXT, {"Rust": 1, "Go": 2}]]
MIXES: list[dict[str, Any]] = [{}, {"mix": {"Go": 2, "Rust": 1}}, {"mix_schedule": SCHEDULE}]
EPOCHS: list[dict[str, float]] = [{}, {"Rust": 1}, {"Rust": 1.5, "Go": 2}]
SIZES = [(1, 1), (2, 1), (2, 2), (3, 1), (5, 1), (1, 3), (4, 2)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def make(store: TokenStore, size: int, ranks: int, **options: Any) -> list[WindowLoader]:
    return [WindowLoader(store, CONTEXT, size, rank=rank, world_size=ranks, **options) for rank in range(ranks)]


def every_window(store: TokenStore, epochs: int, options: dict[str, Any]) -> list[list[int]]:
    """Return the windows of some epochs, or all that there are, in order."""
    [epoch] = make(store, 1, 1, **options)
    [whole] = make(store, len(epoch), 1, remainder="short", **options)
    windows = []
    for _ in range(epochs):
        try:
            for batch in whole:
                windows += torch.cat([batch["input_ids"], batch["targets"][:, -1:]], dim=1).tolist()
        except StoreError:
            break
    return windows


class Life(NamedTuple):
    """The sizes of a process of a run.

    Attributes:
        size: Windows of a batch on each rank, the largest.
        ranks: The number of ranks.
        sizes: Steps, and the sizes from there on.
        lengths: Steps, and the context lengths from there on.
    """

    size: int
    ranks: int
    sizes: list[list[int]]
    lengths: list[list[int]]

    def windows(self, step: int) -> int:
        return at(self.sizes, step) * self.ranks

    def rows(self, windows: list[list[int]], step: int) -> list[list[list[int]]]:
        """The inputs and targets of some windows as rows of a step."""
        length = at(self.lengths, step)
        places = range(0, CONTEXT, length)
        return [[w[k + shift : k + shift + length] for w in windows for k in places] for shift in (0, 1)]

    def make(self, store: TokenStore, options: dict[str, Any]) -> list[WindowLoader]:
        growing = {"batch_size_schedule": self.sizes, "context_length_schedule": self.lengths}
        return make(store, self.size, self.ranks, **options, **growing)


def at(schedule: list[list[int]], step: int) -> int:
    return [value for begin, value in schedule if begin <= step][-1]


@st.composite
def lives(draw: st.DrawFn) -> Life:
    size, ranks = draw(st.sampled_from(SIZES))
    schedules = []
    for last, smaller in ((size, [*range(1, size)]), (CONTEXT, [2, 4, 8])):
        values = sorted(draw(st.sets(st.sampled_from(smaller), max_size=2))) if smaller else []
        begins = sorted(draw(st.sets(st.integers(1, 40), min_size=len(values), max_size=len(values))))
        schedules.append([[begin, value] for begin, value in zip([0, *begins], [*values, last], strict=True)])
    return Life(size, ranks, *schedules)


class Run(NamedTuple):
    """A run in plain Python.

    Attributes:
        in_epoch: Windows of an epoch.
        end: The position at which the mixture ends.
        gone: The positions that are left out.
        remainder: What happens to the windows at the end of an epoch that fill no batch.
    """

    in_epoch: int
    end: int
    gone: set[int]
    remainder: str

    def begins(self, life: Life, epochs: int) -> list[int]:
        """The first position of each step, if nothing is left out and no resume has moved it."""
        begins: list[int] = []
        for epoch in range(epochs):
            position, end = epoch * self.in_epoch, (epoch + 1) * self.in_epoch
            while position < end:
                windows = life.windows(len(begins))
                least = {"drop": windows, "wrap": 1, "short": life.ranks}[self.remainder]
                if end - position < min(least, windows):
                    break
                begins.append(position)
                position += windows
        return begins

    def served(self, begin: int, end: int) -> list[int]:
        return [position for position in range(begin, min(end, self.end)) if position not in self.gone]

    def steps(self, begin: int, life: Life, begins: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield the numbers and positions of the batches from a position up to the end of its epoch."""
        end = (begin // self.in_epoch + 1) * self.in_epoch
        left = self.served(begin, end)
        while left:
            number = bisect_right(begins, left[0]) - 1
            # Behind the last step of its epoch.
            number += left[0] >= begins[number] + life.windows(number)
            windows = life.windows(number)
            if len(left) < windows:
                break
            yield number, left[:windows]
            left = left[windows:]
        if left and self.remainder == "wrap":
            # The next ones that are served, which may be epochs away.
            more = self.served(left[0], end + 4 * self.in_epoch)
            if len(more) >= windows:
                yield number, more[:windows]
        if len(left) >= life.ranks and self.remainder == "short":
            yield number, left[: len(left) // life.ranks * life.ranks]


def shown(loaders: list[WindowLoader], step: int) -> list[list[list[int]]]:
    """Return the inputs that loaders say a step has, those of each rank; nothing if there is no such step."""
    try:
        return [loader.windows(step).batch["input_ids"].tolist() for loader in loaders]
    except (ConfigError, StoreError):
        return []


@examples(8)
@given(data=st.data())
def test_windows_that_are_not_left_out_come_in_order_in_steps_that_are_known(store: TokenStore, data: st.DataObject):
    """In up to three lives, each with other batches on other ranks; the first one's sizes name the steps left out."""
    options: dict[str, Any] = {"windows": data.draw(st.sampled_from(["packed", "stream"]))}
    mix = data.draw(st.sampled_from(MIXES))
    if mix:
        bounds = {"max_epochs": data.draw(st.sampled_from(EPOCHS))}
        options |= mix | bounds | {"at_max_epochs": data.draw(st.sampled_from(["redistribute", "error"]))}
    every = every_window(store, 9, options)
    in_epoch = len(make(store, 1, 1, **options)[0])
    options["remainder"] = data.draw(st.sampled_from(["drop", "short", "wrap"]))
    life = data.draw(lives())
    run = Run(in_epoch, len(every) if len(every) < 9 * in_epoch else 10**9, set(), options["remainder"])
    begins = run.begins(life, 9)
    steps = bisect_left(begins, in_epoch)
    assert steps == len(life.make(store, options)[0])
    options["skip_steps"] = []
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, 2 * steps - 1))
        options["skip_steps"].append([first, data.draw(st.integers(first + 1, first + steps))])
        begin, end = (begins[step] for step in options["skip_steps"][-1])
        run.gone.update(range(begin, end))
    position, state = 0, None
    for _ in range(data.draw(st.integers(1, 3))):
        begins = run.begins(life, 9)
        loaders = life.make(store, options)
        for loader in loaders if state is not None else ():
            loader.load_state_dict(state)
        begun = loaders[0].step
        ahead = {step: shown(loaders, step) for step in range(begun, begun + 9)}
        killed_after = data.draw(st.integers(0, 9))
        while killed_after and position < 4 * in_epoch:
            next_epoch = (position // in_epoch + 1) * in_epoch
            iterators = [iter(loader) for loader in loaders]
            # What is left of the epoch may fill no batch.
            left = [*run.steps(position, life, begins)]
            position = position if left else next_epoch
            seen = {}
            for count, (number, positions) in enumerate(left[:killed_after], 1):
                share = len(positions) // life.ranks
                assert number == loaders[0].step
                batches = [next(iterator) for iterator in iterators]
                inputs = [batch["input_ids"].tolist() for batch in batches]
                here = [every[place] for place in positions]
                rows = [life.rows(here[rank * share : (rank + 1) * share], number) for rank in range(life.ranks)]
                assert [[ids, batch["targets"].tolist()] for ids, batch in zip(inputs, batches, strict=True)] == rows
                assert number == loaders[0].last_step
                assert number >= begun + 9 or ahead[number] == inputs
                seen[number] = inputs
                if count < len(left):
                    position = positions[-1] + 1
                    assert {step: shown(loaders, step) for step in seen} == seen
                else:
                    position = next_epoch
            killed_after -= len(left[:killed_after])
            if position >= run.end:
                return
        state = loaders[0].state_dict()
        life = data.draw(lives())
