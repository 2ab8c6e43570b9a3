"""Packed windows, weights that change, bounds on epochs and steps that are left out, all together: any kills and resumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
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
            windows += [window for batch in whole for window in batch["input_ids"].tolist()]
        except StoreError:
            break
    return windows


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

    def served(self, begin: int, end: int) -> list[int]:
        return [position for position in range(begin, min(end, self.end)) if position not in self.gone]

    def steps(self, begin: int, size: int, ranks: int) -> Iterator[list[int]]:
        """Yield the positions of the batches from a position, which may be the end of an epoch, up to the end of its epoch."""
        end = (begin // self.in_epoch + 1) * self.in_epoch
        left = self.served(begin, end)
        while len(left) >= size * ranks:
            yield left[: size * ranks]
            left = left[size * ranks :]
        if left and self.remainder == "wrap":
            more = self.served(left[0], end + 10 * size * ranks)
            if len(more) >= size * ranks:
                yield more[: size * ranks]
        if len(left) >= ranks and self.remainder == "short":
            yield left[: len(left) // ranks * ranks]


def shown(loaders: list[WindowLoader], step: int) -> list[list[list[int]]]:
    """Return what loaders say of a step, those of each rank; nothing if there is no such step."""
    try:
        return [loader.windows(step).tokens[:, :-1].tolist() for loader in loaders]
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
    size, ranks = data.draw(st.sampled_from(SIZES))
    steps = len(make(store, size, ranks, **options)[0])
    options["skip_steps"] = []
    gone: set[int] = set()
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, 2 * steps - 1))
        options["skip_steps"].append([first, data.draw(st.integers(first + 1, first + steps))])
        begin, end = (step // steps * in_epoch + step % steps * size * ranks for step in options["skip_steps"][-1])
        gone |= {*range(begin, end)}
    run = Run(in_epoch, len(every) if len(every) < 9 * in_epoch else 10**9, gone, options["remainder"])
    position, state = 0, None
    for _ in range(data.draw(st.integers(1, 3))):
        loaders = make(store, size, ranks, **options)
        for loader in loaders if state is not None else ():
            loader.load_state_dict(state)
        begun = loaders[0].step
        ahead = {step: shown(loaders, step) for step in range(begun, begun + 9)}
        killed_after = data.draw(st.integers(0, 9))
        while killed_after and position < 4 * in_epoch:
            next_epoch = (position // in_epoch + 1) * in_epoch
            iterators = [iter(loader) for loader in loaders]
            # What is left of the epoch may fill no batch.
            left = [*run.steps(position, size, ranks)]
            position = position if left else next_epoch
            seen = {}
            for count, positions in enumerate(left[:killed_after], 1):
                number, share = loaders[0].step, len(positions) // ranks
                batches = [next(iterator)["input_ids"].tolist() for iterator in iterators]
                here = [every[place] for place in positions]
                assert batches == [here[rank * share : (rank + 1) * share] for rank in range(ranks)]
                assert number == loaders[0].last_step
                assert number >= begun + 9 or ahead[number] == batches
                seen[number] = batches
                if count < len(left):
                    position = positions[-1] + 1
                    assert {step: shown(loaders, step) for step in seen} == seen
                else:
                    position = next_epoch
            killed_after -= len(left[:killed_after])
            if position >= run.end:
                return
        state = loaders[0].state_dict()
        size, ranks = data.draw(st.sampled_from(SIZES))
