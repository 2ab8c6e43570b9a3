"""Weights that change and components that end: exact in every phase, on any ranks, and after any resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.inspection import verify_resume
from lightning_lance.serving.ordering.phases import Phase, PhasedSchedule
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

NAMES = ["a", "b", "c"]
weights = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 5), min_size=1)
caps = st.lists(st.none() | st.integers(0, 40), min_size=3, max_size=3)


@given(st.lists(st.tuples(st.integers(1, 30), weights), min_size=1, max_size=4), caps, st.booleans())
def test_each_phase_keeps_its_weights_and_no_component_has_too_much(
    parts: list[tuple[int, dict[str, int]]], left: list[int | None], redistribute: bool
):
    """Against a walk through the positions one by one."""
    begins = np.cumsum([0, *(length for length, _ in parts)]).tolist()
    phases = [Phase(begin, named) for begin, (_, named) in zip(begins, parts, strict=False)]
    schedule = PhasedSchedule(NAMES, phases, left, redistribute)
    last = 150 if schedule.end is None else min(schedule.end, 150)
    positions = np.arange(last)
    component, index = schedule.deal(positions)
    counts = np.zeros(3, int)
    runs: list[tuple[frozenset[str], int]] = []
    for position, (number, before) in enumerate(zip(component.tolist(), index.tolist(), strict=True)):
        assert schedule.counts(position).tolist() == counts.tolist()
        assert before == counts[number]
        counts[number] += 1
        most = left[number]
        assert most is None or counts[number] <= most
        phase = max(phase for phase in range(len(phases)) if phases[phase].begin <= position)
        assert NAMES[number] in phases[phase].weights
        runs.append((frozenset(phases[phase].weights), number))
    # And back.
    for number in range(3):
        mine = positions[component == number]
        assert schedule.find(number, np.arange(len(mine))).tolist() == mine.tolist()
    if schedule.end is not None:
        full = [number for number in range(3) if left[number] is not None and counts[number] >= left[number]]
        assert full or schedule.end > 150
        if not redistribute:
            assert schedule.ended in {NAMES[number] for number in full} or schedule.end > 150


def test_a_literal_schedule():
    phases = [Phase(0, {"a": 1}), Phase(4, {"a": 1, "b": 1})]
    schedule = PhasedSchedule(["a", "b"], phases, [None, 3], redistribute=True)
    assert "".join("ab"[number] for number in schedule.deal(np.arange(14))[0]) == "aaaaabababaaaa"
    assert schedule.end is None
    assert PhasedSchedule(["a", "b"], phases, [None, 3], redistribute=False).end == 10
    both = PhasedSchedule(["a", "b"], phases, [6, 3], redistribute=True)
    assert "".join("ab"[number] for number in both.deal(np.arange(both.end or 0))[0]) == "aaaaababb"


SOURCE = ListSource(
    (
        *documents(*(f"go {i:03d} " * 9 for i in range(9)), language="Go"),
        *documents(*(f"rust {i} " * 9 for i in range(4)), language="Rust"),
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def make(store: TokenStore, ranks: int = 1, batch_size: int = 2, **options: Any) -> list[WindowLoader]:
    given = {"context_length": 16, **options}
    return [WindowLoader(store, batch_size=batch_size, rank=rank, world_size=ranks, **given) for rank in range(ranks)]


def windows(loaders: list[WindowLoader], steps: int) -> list[list[int]]:
    served: list[list[int]] = []
    iterators = [iter(loader) for loader in loaders]
    while steps:
        batches = [next(iterator, None) for iterator in iterators]
        if batches[0] is None:
            iterators = [iter(loader) for loader in loaders]
            continue
        served += [row for batch in batches if batch is not None for row in batch["input_ids"].tolist()]
        steps -= 1
    return served


def exhaust(loader: WindowLoader) -> None:
    """Serve epoch after epoch."""
    while True:
        list(loader)


SCHEDULE = [[0, {"Go": 1}], [20 * 16, {"Go": 1, "Rust": 1}]]


def test_the_epochs_of_a_plan_are_those_that_a_resumed_run_makes(store: TokenStore):
    [before] = make(store, mix_schedule=SCHEDULE)
    windows([before], 7)
    [loader] = make(store, mix={"Go": 1, "Rust": 4}, batch_size=3, skip_steps=[[7, 9]])
    loader.load_state_dict(before.state_dict())
    plan = loader.epochs_of(loader.step + 8)
    windows([loader], 8)
    assert plan == {name: part["epochs"] for name, part in loader.components().items()}
    [fresh] = make(store, mix_schedule=SCHEDULE)
    plan = fresh.epochs_of(12)
    windows([fresh], 12)
    assert plan == {name: part["epochs"] for name, part in fresh.components().items()}


@examples(8)
@given(st.integers(0, 30), st.sampled_from([(1, 2), (2, 1), (1, 1)]), st.sampled_from([{}, {"Rust": 1.5}]))
def test_a_run_with_changing_weights_is_resumed_on_any_ranks(
    store: TokenStore, steps: int, sizes: tuple[int, int], epochs: dict[str, float]
):
    options: dict[str, Any] = {"mix_schedule": SCHEDULE, "max_epochs": epochs, "remainder": "wrap"}
    whole = windows(make(store, **options), 60)
    before = make(store, **options)
    served = windows(before, steps)
    state = before[0].state_dict()
    assert state["consumed"] == [int(part["windows"]) for part in before[0].components().values()]
    resumed = make(store, *sizes, **options)
    for loader in resumed:
        loader.load_state_dict(state)
    served += windows(resumed, 10)
    assert served == whole[: len(served)]


def test_parts_of_the_run_have_their_weights(store: TokenStore):
    [loader] = make(store, mix_schedule=SCHEDULE)
    windows([loader], 10)
    assert loader.components()["Rust"]["windows"] == 0
    windows([loader], 10)
    assert loader.components()["Rust"]["windows"] == 10
    assert loader.components()["Go"]["windows"] == 30


def test_a_component_that_had_its_epochs_leaves_its_part_to_the_others(store: TokenStore):
    [loader] = make(store, mix={"Go": 1, "Rust": 1}, max_epochs={"Rust": 1})
    windows([loader], 60)
    assert loader.components()["Rust"]["epochs"] == 1
    [loader] = make(store, mix={"Go": 1, "Rust": 1}, max_epochs={"Rust": 1}, at_max_epochs="error")
    with pytest.raises(StoreError, match=r"The mixture ends at window \d+, since 'Rust' has had its 1 epochs"):
        exhaust(loader)
    assert loader.components()["Rust"]["epochs"] == 1
    [loader] = make(store, mix={"Go": 1, "Rust": 1}, max_epochs={"Rust": 1, "Go": 1})
    with pytest.raises(StoreError, match="since all components of mix have had their epochs"):
        exhaust(loader)
    assert {part["epochs"] for part in loader.components().values()} <= {1.0}


def test_other_weights_and_caps_go_on_where_each_component_was(store: TokenStore):
    [loader] = make(store, mix_schedule=SCHEDULE)
    windows([loader], 15)
    [other] = make(store, mix={"Go": 1, "Rust": 3}, max_epochs={"Go": 2})
    other.load_state_dict(loader.state_dict())
    assert [part["windows"] for part in other.components().values()] == [
        part["windows"] for part in loader.components().values()
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix_schedule": {"Go": 1}}, "mix_schedule is "),
        ({"mix_schedule": [[5, {"Go": 1}]]}, r"mix_schedule begins at the tokens \[5\]: expected 0 first"),
        ({"mix_schedule": [[0, {"Go": 1}], [0, {"Go": 1}]]}, "expected 0 first, and then larger ones"),
        ({"mix_schedule": [[0, 1]]}, "mix_schedule has the weights "),
        ({"mix_schedule": [[0, {"Go": 0}]]}, "expected a weight above 0"),
        ({"mix_schedule": SCHEDULE, "mix": {"Go": 2}}, "mix and mix_schedule are both given"),
        ({"max_epochs": {"Go": 1}}, "max_epochs has 'Go', which has no weight in mix"),
        ({"mix": {"Go": 1}, "max_epochs": {"Go": 0}}, "max_epochs.Go is 0: expected a number of epochs above 0"),
        ({"mix": {"Go": 1}, "max_epochs": 3}, "max_epochs is "),
        ({"at_max_epochs": "stop"}, "at_max_epochs is 'stop'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(store: TokenStore, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make(store, **options)


def test_a_checkpoint_of_changing_weights_is_verified(store: TokenStore, tmp_path: Path):
    import torch

    [loader] = make(store, mix_schedule=SCHEDULE, max_epochs={"Rust": 2})
    windows([loader], 15)
    torch.save({"loader": loader.state_dict()}, tmp_path / "x.ckpt")
    assert "digest OK: 30 windows" in verify_resume(str(tmp_path / "x.ckpt"), {})
