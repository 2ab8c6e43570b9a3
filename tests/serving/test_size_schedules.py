"""Batch sizes and context lengths that grow: literal tables, the arithmetic of steps, and what is in a batch."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import LanceDataModule, TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.inspection import open_run, show_step, verify_resume
from lightning_lance.inspection.runs import RUN
from lightning_lance.inspection.where import find_steps
from lightning_lance.serving.batches import in_rows
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.size_schedules import SizePhase, size_phases
from lightning_lance.serving.step_sizes import StepSizes
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

SOURCE = ListSource(
    (
        *documents(*(f"go {i:03d} " * 9 for i in range(20)), language="Go"),
        *documents(*(f"rust {i} " * 5 for i in range(20)), language="Rust"),
    )
)
BATCHES = [[0, 1], [2, 3], [4, 6]]
LENGTHS = [[0, 4], [3, 8], [5, 16]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def make(store: TokenStore, **options: Any) -> WindowLoader:
    growing = {"batch_size_schedule": BATCHES, "context_length_schedule": LENGTHS}
    return WindowLoader(store, **{"context_length": 16, "batch_size": 6, **growing, **options})


def windows_of(store: TokenStore, **options: Any) -> list[list[int]]:
    """The windows of an epoch, with their last targets."""
    loader = WindowLoader(store, 16, 1, remainder="short", **options)
    rows = [torch.cat([batch["input_ids"], batch["targets"][:, -1:]], dim=1) for batch in loader]
    found: list[list[int]] = torch.cat(rows).tolist()
    return found


def test_a_literal_schedule(store: TokenStore):
    """Step, windows, and length of the rows."""
    table = [(0, 1, 4), (1, 1, 4), (2, 3, 4), (3, 3, 8), (4, 6, 8), (5, 6, 16), (6, 6, 16)]
    every = windows_of(store)
    loader = make(store)
    batches = iter(loader)
    begin = 0
    for step, windows, length in table:
        assert loader.step == step
        assert loader.rows_of(step) == 16 // length
        batch = next(batches)
        rows = [(window, at) for window in range(begin, begin + windows) for at in range(0, 16, length)]
        assert batch["input_ids"].tolist() == [every[window][at : at + length] for window, at in rows]
        assert batch["targets"].tolist() == [every[window][at + 1 : at + length + 1] for window, at in rows]
        begin += windows
        assert loader.state_dict()["cursor"] == begin
    assert loader.epochs_of(5) == {"": 14 / loader.num_windows}
    assert not {"batch_size_schedule", "context_length_schedule"} & {*loader.state_dict()}
    assert loader.batching["batch_size_schedule"] == BATCHES
    assert loader.batching["context_length_schedule"] == LENGTHS
    assert "batch_size_schedule" not in WindowLoader(store, 16, 6).batching


def ascending(values: list[int], steps: list[int]) -> list[SizePhase]:
    return [SizePhase(step, size, 1) for step, size in zip([0, *steps], sorted(values), strict=True)]


phases = st.sets(st.integers(1, 12), min_size=1, max_size=4).flatmap(
    lambda sizes: st.sets(st.integers(1, 60), min_size=len(sizes) - 1, max_size=len(sizes) - 1).map(
        lambda steps: ascending([*sizes], sorted(steps))
    )
)


@given(phases, st.integers(1, 3), st.sampled_from(["drop", "wrap", "short"]), st.integers(0, 100))
def test_the_arithmetic_of_steps_is_that_of_a_walk(found: list[SizePhase], ranks: int, remainder: Any, more: int):
    windows = found[-1].size * ranks + more
    sizes = StepSizes(found[-1].size, ranks, remainder, tuple(found))
    step = before = 0
    for epoch in range(9):
        assert sizes.first_step(epoch, windows) == step
        first, position = step, 0
        while position < windows:
            [size] = [phase.size for phase in found if phase.step <= step][-1:]
            rest = windows - position
            if rest < size * ranks and (remainder == "drop" or (remainder == "short" and rest < ranks)):
                break
            assert sizes.epoch_of(step, windows) == epoch
            assert sizes.phase_of(step).size == size
            assert sizes.windows_before(step) == before
            [segment] = [one for one in sizes.segments(first, windows) if one.step <= step][-1:]
            assert (segment.begin + (step - segment.step) * size * ranks, segment.size) == (position, size)
            position += size * ranks
            before += size * ranks
            step += 1
        assert sizes.steps(first, windows) == step - first


def test_phases_of_both_schedules_are_told_apart():
    assert size_phases([], [], 8, 64) == ()
    assert size_phases([[0, 2], [5, 8]], [], 8, 64) == ((0, 2, 1), (5, 8, 1))
    assert size_phases([[0, 2], [5, 8]], [[0, 16], [3, 64]], 8, 64) == ((0, 2, 4), (3, 2, 1), (5, 8, 1))


def serve(loader: WindowLoader, steps: int) -> list[list[list[int]]]:
    found: list[list[list[int]]] = []
    while len(found) < steps:
        for batch in loader:
            found.append(batch["input_ids"].tolist())
            if len(found) == steps:
                break
    return found


@examples(10)
@given(st.integers(1, 30), st.integers(0, 30), st.sampled_from([1, 2]))
def test_a_later_phase_changes_nothing_before_it_and_a_resume_takes_a_new_one(
    store: TokenStore, change: int, killed: int, ranks: int
):
    """A schedule that goes on otherwise after `change`, known from the begin on or only at a resume before."""
    killed = min(killed, change)
    before = {"batch_size_schedule": [[0, 1], [change, 6]], "context_length_schedule": [[0, 4], [change, 16]]}
    after = {
        "batch_size_schedule": [[0, 1], [change, 2], [change + 3, 6]],
        "context_length_schedule": [[0, 4], [change + 2, 16]],
    }
    first, second = (make(store, world_size=ranks, **options) for options in (before, after))
    known = serve(second, change + 5)
    assert serve(make(store, world_size=ranks, **before), change) == known[:change]
    served = serve(first, killed)
    resumed = make(store, world_size=ranks, **after)
    resumed.load_state_dict(first.state_dict())
    assert served + serve(resumed, change + 5 - killed) == known


def test_twice_the_ranks_with_half_the_sizes_are_the_same_run(store: TokenStore):
    one = {"batch_size": 8, "batch_size_schedule": [[0, 2], [4, 4], [6, 8]]}
    two = {"batch_size": 4, "batch_size_schedule": [[0, 1], [4, 2], [6, 4]]}
    whole = serve(make(store, **one), 20)
    first = make(store, **one)
    serve(first, 5)
    ranks = [make(store, rank=rank, world_size=2, **two) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
    assert ranks[0].step == 5
    halves = [serve(loader, 15) for loader in ranks]
    assert [left + right for left, right in zip(*halves, strict=True)] == whole[5:]


@pytest.mark.parametrize("windows", ["stream", "packed"])
def test_each_token_is_a_target_once_per_epoch(store: TokenStore, windows: Any):
    def targets(loader: WindowLoader) -> Counter[int]:
        """With the input that each is predicted from."""
        found: Counter[Any] = Counter()
        for batch in loader:
            found.update(zip(batch["input_ids"].flatten().tolist(), batch["targets"].flatten().tolist(), strict=True))
        return found

    whole = targets(WindowLoader(store, 16, 6, remainder="short", windows=windows))
    assert targets(make(store, remainder="short", windows=windows)) == whole


@pytest.mark.parametrize("batch_format", ["default", "huggingface"])
@pytest.mark.parametrize(
    "options", [{}, {"windows": "packed"}, {"fim": FillInTheMiddle(1, 2, 3, seed=0, fim_rate=1.0)}], ids=str
)
def test_a_row_is_a_window_of_its_own(store: TokenStore, batch_format: Any, options: dict[str, Any]):
    """Documents, positions and masks by a walk through the tokens of each row."""
    eos = store.commit.eos_id
    extras = {"document_ids": True, "position_ids": True, "cu_seqlens": True, "mask_boundary_targets": True}
    loader = make(store, batch_format=batch_format, **extras, **options)
    for step, batch in zip(range(6), loader, strict=False):
        served = loader.windows(step)
        length = 16 // served.rows
        rows = [window[at : at + length + 1] for window in served.tokens.tolist() for at in range(0, 16, length)]
        assert {name: values.tolist() for name, values in served.batch.items()} == {
            name: values.tolist() for name, values in batch.items()
        }
        borders = []
        for row, tokens in enumerate(rows):
            assert batch["input_ids"][row].tolist() == tokens[:-1]
            document = position = 0
            for place, (token, target) in enumerate(pairwise(tokens)):
                if not position:
                    borders.append(row * length + place)
                assert batch["document_ids"][row, place] == document
                assert batch["position_ids"][row, place] == position
                if batch_format == "default":
                    assert batch["targets"][row, place] == (-100 if token == eos else target)
                elif place + 1 < length:
                    assert batch["labels"][row, place + 1] == (-100 if token == eos else target)
                position += 1
                if token == eos:
                    document, position = document + 1, 0
        size = len(rows) * length
        assert batch["cu_seqlens"].tolist() == borders + [size] * (size + 1 - len(borders))
        assert batch["max_seqlen"] == max(np.diff([*borders, size]))


def test_windows_are_cut_into_rows_that_share_a_token():
    windows = np.arange(18).reshape(2, 9)
    assert in_rows(windows, 1) is windows
    assert in_rows(windows, 2).tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [9, 10, 11, 12, 13], [13, 14, 15, 16, 17]]
    assert in_rows(windows[:1], 4).tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]


@pytest.mark.parametrize("batch_format", ["default", "huggingface"])
def test_a_run_is_looked_at_with_its_schedules(store: TokenStore, tmp_path: Path, batch_format: Any):
    loader = make(store, mask_boundary_targets=True, batch_format=batch_format)
    ahead = serve(make(store), 20)
    serve(loader, 4)
    torch.save({"loader": loader.state_dict(), RUN: loader.batching}, tmp_path / "x.ckpt")
    assert "digest OK: 8 windows" in verify_resume(str(tmp_path / "x.ckpt"), {})
    opened = open_run(str(tmp_path / "x.ckpt"))
    assert (opened.step, opened.rows_of(3), opened.rows_of(5)) == (4, 2, 1)
    assert [opened.windows(step).batch["input_ids"].tolist() for step in range(20)] == ahead
    for step in (0, 3, 5):
        batch = opened.windows(step).batch
        # Models shift labels themselves, within a row.
        targets = batch["targets"] if "targets" in batch else batch["labels"][:, 1:]
        trained = 0
        for window in show_step(opened, step):
            pieces = [piece for document in window.documents for piece in document.pieces if piece.trained]
            trained += sum(len(piece.text) if piece.kind == "text" else 1 for piece in pieces)
        assert trained == (targets >= 0).sum()
    # As if all its batches had one size.
    assert open_run(str(tmp_path / "x.ckpt"), batch_size=4).step == 2
    seen = find_steps(opened, {"id": "0:2"})
    assert seen.until == len(opened)
    for one in seen.sightings:
        assert one.step is None or one.step < len(opened)


def test_a_step_in_another_place_of_the_window_is_found(store: TokenStore):
    """The numbers of the windows of a document, whatever the rows."""
    [document] = store.find_documents({"id": "0:2"}).to_pylist()
    loader, plain = make(store), make(store, context_length_schedule=())
    found, expected = (one.find("", document["begin"], document["end"], 12) for one in (loader, plain))
    assert [column.tolist() for column in found] == [column.tolist() for column in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size_schedule": 4},
            r"batch_size_schedule is 4: expected pairs of a step and a batch_size, such as \[\[0, 3\]",
        ),
        ({"batch_size_schedule": "[[0, 6]]"}, "batch_size_schedule is "),
        ({"batch_size_schedule": {0: 6}}, "batch_size_schedule is "),
        ({"batch_size_schedule": [6]}, "batch_size_schedule has 6: expected pairs"),
        ({"batch_size_schedule": [[0, 2, 6]]}, "batch_size_schedule has "),
        ({"batch_size_schedule": [[0, 2], [1.5, 6]]}, "batch_size_schedule is 1.5"),
        ({"batch_size_schedule": [[0, 0], [1, 6]]}, "batch_size_schedule is 0"),
        ({"batch_size_schedule": [[1, 6]]}, r"batch_size_schedule begins at the steps \[1\]: expected 0 first"),
        ({"batch_size_schedule": [[0, 2], [0, 6]]}, "expected 0 first, and then larger ones"),
        ({"batch_size_schedule": [[0, 8], [1, 6]]}, r"has the sizes \[8, 6\]: expected each to be larger"),
        (
            {"batch_size_schedule": [[0, 2], [1, 4]]},
            "batch_size_schedule ends with 4, and batch_size is 6: expected the same",
        ),
        (
            {"context_length_schedule": [[0, 6], [1, 16]]},
            "context_length_schedule has 6: expected lengths that divide the context_l",
        ),
        (
            {"context_length_schedule": [[0, 4], [1, 8]]},
            "context_length_schedule ends with 8, and context_length is 16",
        ),
        ({"batch_size": 900, "batch_size_schedule": [[0, 2], [9, 900]]}, "too few for one batch of 900 on 1 rank"),
        (
            {"batch_size": 900, "batch_size_schedule": [[0, 2], [9, 900]], "resumable": False},
            "too few for one batch of 900 on 1 rank",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_a_store_is_there(store: TokenStore, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make(store, **options)
    if "too few" not in message:
        growing = {"batch_size_schedule": BATCHES, "context_length_schedule": LENGTHS}
        with pytest.raises(ConfigError, match=message):
            LanceDataModule("nowhere.lance", **{"context_length": 16, "batch_size": 6, **growing, **options})


def test_null_and_empty_are_no_schedule_and_tuners_are_told(store: TokenStore):
    for nothing in (None, [], ()):
        loader = make(store, batch_size_schedule=nothing, context_length_schedule=nothing)
        assert len(loader) == len(WindowLoader(store, 16, 6))
    data = LanceDataModule(store.uri, 16, 6, batch_size_schedule=np.asarray(BATCHES).tolist())
    with pytest.raises(ConfigError, match="batch_size_schedule ends with 6, and batch_size is 12"):
        data.batch_size = 12


def test_epochs_have_as_many_steps_as_fit(store: TokenStore):
    loader = make(store)
    assert loader.steps_of(1) == len(loader) == len([*loader])
    loader.roll_over()
    assert len(loader) == loader.num_windows // 6 < loader.steps_of(1)
    assert loader.step == loader.steps_of(1)
    assert loader.epoch_end_step == loader.steps_of(2) == loader.steps_of(1) + len([*loader])
    other = make(store, batch_size_schedule=())
    assert (loader.step, other.step) == (loader.steps_of(2), 0)


def test_ranks_with_other_schedules_are_told_by_their_position(store: TokenStore):
    one, two = make(store), make(store, context_length_schedule=[[0, 8], [9, 16]])
    assert one._position() != two._position()
    assert "batch_size_schedule" not in WindowLoader(store, 16, 6)._position()


def test_a_checkpoint_of_one_size_goes_on_with_a_schedule(store: TokenStore):
    """As from before these options; the schedule counts from the begin of the run."""
    plain = WindowLoader(store, 16, 2)
    serve(plain, 4)
    loader = make(store)
    loader.load_state_dict(plain.state_dict())
    # Eight windows are the first four steps of 1, 1, 3 and 3.
    assert loader.step == 4
    assert serve(loader, 1) == serve(make(store), 5)[4:]
    # In the middle of what would be a step.
    plain.restart()
    serve(plain, 3)
    loader = make(store)
    loader.load_state_dict(plain.state_dict())
    assert loader.step == 3
    every = windows_of(store)
    [rows] = serve(loader, 1)
    assert rows == [window[at : at + 8] for window in every[6:9] for at in (0, 8)]
    with pytest.raises(StoreError, match="state has the unknown field"):
        loader.load_state_dict({**plain.state_dict(), "batch_size_schedule": BATCHES})


@pytest.mark.parametrize("extend", ["next_epoch", "now"])
@pytest.mark.parametrize("mix", [{}, {"Go": 2, "Rust": 1}], ids=["alone", "mixture"])
def test_sizes_go_by_the_steps_that_were_served_though_the_store_grows(tmp_path: Path, extend: Any, mix: Any):
    """Three lives, each with a larger store, of whose windows those before were a small part."""
    sizes, lengths = [[0, 1], [70, 2], [110, 3]], [[0, 4], [80, 16]]
    options = {"batch_size_schedule": sizes, "context_length_schedule": lengths, "mix": mix, "extend": extend}
    number = 0
    state: dict[str, Any] = {}
    for budget, until in ((23, 40), (30, 80), (None, 240)):
        store = prepare(SOURCE, ByteTokenizer(), tmp_path / "x.lance", val_fraction=0.0, max_documents=budget)
        loader = WindowLoader(store, 16, 3, **options)
        if state:
            loader.load_state_dict(state)
            assert loader.step == number
        while number < until:
            first = number
            for batch in loader:
                size = [size for step, size in sizes if step <= number][-1]
                length = [length for step, length in lengths if step <= number][-1]
                assert (loader.last_step, batch["input_ids"].shape) == (number, (size * 16 // length, length))
                assert loader.windows(number).batch["input_ids"].equal(batch["input_ids"])
                number += 1
                if number == until:
                    break
            else:
                assert loader.step == number
                assert number - first <= len(loader)
        assert (loader.step, loader.rows_of(number)) == (number, 4 if number < 80 else 1)
        state = loader.state_dict()
        assert ("counted_from" in state) == (loader.num_windows > 84)
    with pytest.raises(StoreError, match="Step 3 was served before the data"):
        loader.windows(3)
    with pytest.raises(StoreError, match="these steps were served before"):
        next(iter(WindowLoader(store, 16, 3, skip_steps=[[2, 5]], **options).load_state_dict(state) or loader))
    # Without sizes that change, steps are counted by their position, as ever.
    plain, other = (WindowLoader(store, 16, 3, mix=mix, extend=extend) for _ in range(2))
    plain.load_state_dict(state)
    other.load_state_dict({name: value for name, value in state.items() if name != "counted_from"})
    assert plain.step == other.step
    with pytest.raises(StoreError, match="contradicts itself: steps are counted from"):
        plain.load_state_dict({**state, "counted_from": {**state["counted_from"], "epoch": 99}})
