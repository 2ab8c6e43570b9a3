"""Steps that are left out: all others come, each once, whatever the ranks, the sizes and the resumes."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.serving.skips import Skip, Skips
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

SOURCE = ListSource(
    (
        *documents(*(f"go {i:03d} " * 9 for i in range(9)), language="Go"),
        *documents(*["rust " * 20] * 3, language="Rust"),
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def make(store: TokenStore, batch_size: int = 2, ranks: int = 1, **options: Any) -> list[WindowLoader]:
    """Return a loader of each rank."""
    options = {"context_length": 16, "remainder": "short", **options}
    return [WindowLoader(store, batch_size=batch_size, rank=rank, world_size=ranks, **options) for rank in range(ranks)]


def steps(loaders: list[WindowLoader], epochs: int = 1) -> Iterator[list[list[int]]]:
    """Yield the windows of each step of some epochs, those of all ranks together."""
    for _ in range(epochs):
        for batches in zip(*loaders, strict=True):
            yield [window for batch in batches for window in batch["input_ids"].tolist()]


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=5)


@given(ranges, st.integers(0, 90), st.integers(0, 90))
def test_positions_that_are_left_out_are_taken_by_none(spans: list[tuple[int, int]], begin: int, count: int):
    skips = Skips(tuple(Skip(0, 1, low, low + size) for low, size in spans))
    gone = {place for low, size in spans for place in range(low, low + size)}
    expected = [place for place in range(begin, begin + count + 200) if place not in gone]
    assert skips.take(begin, count).tolist() == expected[:count]
    assert skips.next(begin) == expected[0]
    assert skips.after(begin, count) == (expected[count - 1] + 1 if count else begin)
    assert skips.served(begin, begin + count) == len([place for place in expected if place < begin + count])
    assert [skips.holds(place) for place in range(90)] == [place in gone for place in range(90)]
    assert Skips.of(skips.described()) == skips


@examples(10)
@given(data=st.data())
def test_every_other_step_comes_once_after_any_kill_on_any_ranks(store: TokenStore, data: st.DataObject):
    """The first sizes name the steps; what a checkpoint says holds for other sizes too."""
    batch_size, ranks = data.draw(st.sampled_from([(2, 1), (1, 2), (2, 2), (3, 1)]))
    mix = data.draw(st.sampled_from([{}, {"Go": 2, "Rust": 1}]))
    options: dict[str, Any] = {"mix": mix, "remainder": data.draw(st.sampled_from(["short", "drop"]))}
    plain = make(store, batch_size, ranks, **options)
    in_epoch = len(plain[0])
    every = [*steps(plain, 2)]
    pairs = []
    for _ in range(data.draw(st.integers(1, 2))):
        first = data.draw(st.integers(0, 2 * in_epoch - 2))
        pairs.append([first, data.draw(st.integers(first + 1, min(first + in_epoch, 2 * in_epoch)))])
    gone = {step for first, last in pairs for step in range(first, last)}
    expected = [windows for number, windows in enumerate(every) if number not in gone]

    loaders = make(store, batch_size, ranks, skip_steps=pairs, **options)
    served: list[list[int]] = []
    for _ in range(4):
        served += [window for step in steps(loaders) for window in step]
        if loaders[0].state_dict()["epoch"] >= 2:
            break
    flat = [window for step in expected for window in step]
    assert served[: len(flat)] == flat

    # Killed after some steps, and continued on other sizes with the same global batch.
    loaders = make(store, batch_size, ranks, skip_steps=pairs, **options)
    stop = data.draw(st.integers(0, len(expected) - 1))
    served = []
    iterators = [iter(loader) for loader in loaders]
    while len(served) < stop * batch_size * ranks:
        batches = [next(iterator, None) for iterator in iterators]
        if batches[0] is None:
            iterators = [iter(loader) for loader in loaders]
            continue
        served += [window for batch in batches for window in batch["input_ids"].tolist()]
    state = loaders[0].state_dict()
    total = batch_size * ranks
    # A short batch depends on the number of ranks.
    now = data.draw(st.sampled_from([size for size in range(1, total + 1) if total % size == 0]))
    now = ranks if options["remainder"] == "short" else now
    resumed = make(store, total // now, now, skip_steps=pairs, **options)
    for loader in resumed:
        loader.load_state_dict(state)
    for _ in range(4):
        served += [window for step in steps(resumed) for window in step]
    assert served[: len(flat)] == flat


def test_steps_are_left_out_after_a_resume(store: TokenStore):
    [plain] = make(store)
    every = [*steps([plain])]
    [before] = make(store)
    batches = iter(before)
    for _ in range(3):
        next(batches)
    [loader] = make(store, skip_steps=[[5, 8]])
    loader.load_state_dict(before.state_dict())
    batches = iter(loader)
    assert [next(batches)["input_ids"].tolist() for _ in range(3)] == [every[3], every[4], every[8]]
    assert loader.step == 9
    assert loader.state_dict()["skips"] == [{"steps": [5, 8], "begin": 10, "end": 16}]
    # What was left out can be looked at.
    assert loader.windows(6).tokens[:, :-1].tolist() == every[6]
    assert loader.windows(9).tokens[:, :-1].tolist() == every[9]
    # The windows that were left out do not count as served.
    assert loader.components()[""]["windows"] == 6 * 2

    # Half the batches, of twice the size: the same windows are left out.
    [larger] = make(store, 4, skip_steps=[[5, 8]])
    larger.load_state_dict(before.state_dict() | {"skips": [{"steps": [5, 8], "begin": 10, "end": 16}]})
    first, second = (next(iter(larger))["input_ids"].tolist() for _ in range(2))
    assert first == every[3] + every[4]
    assert second == every[8] + every[9]


def test_a_range_of_small_batches_stays_out_of_an_epoch_of_fewer_larger_ones(store: TokenStore):
    [before] = make(store, 1, skip_steps=[[5, 30]])
    next(iter(before))
    [larger] = make(store, 8, skip_steps=[[5, 30]])
    assert len(larger) < 25
    larger.load_state_dict(before.state_dict())
    assert larger.state_dict()["skips"] == [{"steps": [5, 30], "begin": 5, "end": 30}]


def test_steps_that_are_no_longer_asked_for_come(store: TokenStore):
    [loader] = make(store, skip_steps=[[5, 8]])
    state = loader.state_dict()
    assert state["skips"]
    [without] = make(store)
    without.load_state_dict(state)
    assert len([*without]) == len(without)
    assert "skips" not in without.state_dict()


def test_what_was_left_out_stays_in_the_state_of_later_epochs_and_other_lengths(store: TokenStore):
    [loader] = make(store, skip_steps=[[1, 3]])
    assert len([*loader]) == len(loader) - 2
    [other] = make(store, context_length=8, skip_steps=[[1, 3]])
    other.load_state_dict(loader.state_dict())
    assert other.state_dict()["skips"] == [{"steps": [1, 3], "begin": 0, "end": 0}]
    other.roll_over()
    assert len([*other]) == len(other)


def test_a_whole_epoch_may_be_left_out(store: TokenStore):
    [plain] = make(store)
    every = [*steps([plain], 2)]
    [loader] = make(store, skip_steps=[[0, len(plain)]])
    assert [*steps([loader])] == every[len(plain) :]


def test_what_cannot_be_left_out_is_refused(store: TokenStore):
    [loader] = make(store)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = loader.state_dict()
    [late] = make(store, skip_steps=[[1, 3]])
    with pytest.raises(StoreError, match=r"skip_steps has \[1, 3\], but these steps were served before"):
        late.load_state_dict(state)
    [part] = make(store, skip_steps=[[1, 6]])
    part.load_state_dict(state)
    assert part.state_dict()["skips"] == [{"steps": [1, 6], "begin": 8, "end": 12}]
    with pytest.raises(ConfigError, match=r"skip_steps has \[0, 10,000\]: expected at most the \d+ steps of an epoch"):
        next(iter(make(store, skip_steps=[[0, 10_000]])[0]))
    [ahead] = make(store, skip_steps=[[6, 8]])
    [shorter] = make(store, context_length=8, skip_steps=[[6, 8]])
    with pytest.raises(StoreError, match="still leaves out steps 6 to 7, which have no place among other windows"):
        shorter.load_state_dict(ahead.state_dict())


@pytest.mark.parametrize("given", [5, "12", [5], [[3]], [[3, 3]], [[-1, 2]], [["a", "b"]], [[True, 2]]], ids=str)
def test_what_is_no_range_of_steps_is_named(store: TokenStore, given: Any):
    with pytest.raises(ConfigError, match="skip_steps"):
        make(store, skip_steps=given)


def test_validation_leaves_nothing_out(store: TokenStore):
    [loader] = make(store, resumable=False, skip_steps=[[0, 2]])
    assert len([*loader]) == len(loader)
    assert loader.state_dict().keys().isdisjoint({"skips"})
