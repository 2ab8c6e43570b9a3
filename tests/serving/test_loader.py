import json
import weakref
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.serving.loader import Remainder
from lightning_lance.serving.ordering.order import Order
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents

MakeStore = Callable[..., TokenStore]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Two languages, so that windows must stay within their stream; every token encodes its place."""
    made = (
        *documents(*["".join(chr(i) for i in range(1, 120))] * 5),
        *documents("".join(chr(i) for i in range(60, 100)), language="Rust"),
    )
    return prepare(ListSource(made), ByteTokenizer(), data_dir=tmp_path_factory.mktemp("data"), val_fraction=0.0)


def rows(loader: WindowLoader, batches: int | None = None) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in islice(loader, batches)]


def test_a_literal_epoch(byte_store: MakeStore):
    store = byte_store("abcdefghijk", "lmno")
    loader = WindowLoader(store, 4, 2, order="sequential", remainder="short")
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    assert repr(loader) == f"WindowLoader({store.uri!r}, context_length=4, batch_size=2, split='train', step=2)"
    text = [["".join(map(chr, row)).replace("\u0100", "$") for row in batch["input_ids"].tolist()] for batch in batches]
    assert text == [["abcd", "efgh"], ["ijk$", "lmno"]]
    assert batches[1]["targets"].tolist() == [[*b"jk", 256, ord("l")], [*b"mno", 256]]
    for batch in batches:
        assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
            "input_ids": (torch.int64, (2, 4)),
            "targets": (torch.int64, (2, 4)),
        }
        # Both are views of the same memory.
        assert batch["targets"].data_ptr() == batch["input_ids"].data_ptr() + 8


contexts, batch_sizes, world_sizes = st.integers(1, 40), st.integers(1, 5), st.integers(1, 4)
orders = st.sampled_from(["shuffle", "random", "sequential", "fixed"])


@examples(24)
@given(
    contexts,
    batch_sizes,
    world_sizes,
    st.sampled_from(["shuffle", "sequential", "fixed"]),
    st.sampled_from(["drop", "short"]),
)
def test_ranks_are_disjoint_and_complete(
    store: TokenStore, context_length: int, batch_size: int, world_size: int, order: Order, remainder: Remainder
):
    """Together the ranks serve every window once, except the remainder; each serves `len` batches."""
    options: dict[str, Any] = {"order": order, "remainder": remainder}
    alone = WindowLoader(store, context_length, 1, **options)
    everything = [row for batch in rows(alone) for row in batch]
    assert len(everything) == alone.num_windows
    if alone.num_windows < world_size * (batch_size if remainder == "drop" else 1):
        with pytest.raises(ConfigError, match="too few for one batch"):
            WindowLoader(store, context_length, batch_size, world_size=world_size, **options)
        return
    loaders = [
        WindowLoader(store, context_length, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    served = [rows(loader) for loader in loaders]
    assert {len(batches) for batches in served} == {len(loaders[0])}
    merged = [row for step in zip(*served, strict=True) for batch in step for row in batch]
    assert merged == everything[: len(merged)]
    assert len(everything) - len(merged) < (world_size * batch_size if remainder == "drop" else world_size)


@examples(24)
@given(contexts, batch_sizes, orders, st.integers(0, 60), st.integers(0, 60))
def test_a_state_continues_with_the_batches_that_would_have_come(
    store: TokenStore, context_length: int, batch_size: int, order: Order, first: int, second: int
):
    """Over ends of epochs, and twice in a row."""

    def make() -> WindowLoader:
        return WindowLoader(store, context_length, batch_size, order=order, seed=3)

    def take(loader: WindowLoader, count: int) -> list[list[list[int]]]:
        taken: list[list[list[int]]] = []
        while len(taken) < count:
            more = rows(loader, count - len(taken))
            assert more, "an epoch without batches"
            taken += more
        return taken

    try:
        whole = take(make(), first + second + 9)
    except ConfigError:
        return
    interrupted, resumed, again = make(), make(), make()
    parts = take(interrupted, first)
    resumed.load_state_dict(interrupted.state_dict())
    parts += take(resumed, second)
    again.load_state_dict(resumed.state_dict())
    assert len(again) == len(interrupted)
    assert parts + take(again, 9) == whole


@examples(20)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4))
def test_another_world_size_and_batch_size_continue_the_same_order(
    store: TokenStore, steps: int, batch_size: int, world_size: int, new_world_size: int
):
    before = WindowLoader(store, 3, 2, world_size=world_size)
    everything = [row for batch in rows(WindowLoader(store, 3, 1)) for row in batch]
    # An ended epoch is not continued; see below.
    steps = len(rows(before, min(steps, len(before) - 1)))
    after = [WindowLoader(store, 3, batch_size, rank=r, world_size=new_world_size) for r in range(new_world_size)]
    for loader in after:
        loader.load_state_dict(before.state_dict())
    done = steps * 2 * world_size
    left = (len(everything) - done) // (batch_size * new_world_size) * batch_size * new_world_size
    if not left:
        return
    served = [rows(loader) for loader in after]
    merged = [row for step in zip(*served, strict=True) for batch in step for row in batch]
    assert merged == everything[done : done + left]


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"remainder": "wrap"}, {"remainder": "short"}])
def test_what_an_epoch_left_over_is_not_served_after_a_resume(store: TokenStore, changes: dict[str, Any]):
    before = WindowLoader(store, 4, 8)
    rows(before)
    assert before.num_windows % 8
    after = WindowLoader(store, 4, **{"batch_size": 8, **changes})
    after.load_state_dict(before.state_dict())
    served = [row for batch in rows(after, 8) for row in batch]
    expected = [row for batch in rows(before) for row in batch]
    assert served[: len(expected)] == expected[: len(served)]


def test_another_context_length_continues_after_as_many_tokens(store: TokenStore):
    before = WindowLoader(store, 4, 5, order="sequential")
    rows(before, 3)
    after = WindowLoader(store, 10, 1, order="sequential")
    after.load_state_dict(before.state_dict())
    assert after.state_dict()["cursor"] == 6
    assert rows(after, 1) == [[store.read(np.array([60]), 10)[0].tolist()]]


def test_iterating_goes_on_where_it_stopped_unless_it_is_for_validation(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    first, second = rows(loader, 2), rows(loader, 3)
    assert first + second == rows(WindowLoader(store, 4, 8), 5)
    validation = WindowLoader(store, 4, 8, order="sequential", resumable=False)
    assert rows(validation, 2) == rows(validation, 2) == rows(validation)[:2]
    validation.load_state_dict(loader.state_dict())
    assert rows(validation, 2) == rows(WindowLoader(store, 4, 8, order="sequential"), 2)


def test_epochs_differ_and_have_the_same_length(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    first, second = rows(loader), rows(loader)
    assert len(first) == len(second) == len(loader)
    assert first != second
    assert loader.state_dict()["cursor"] // loader.num_windows == 1


def test_a_grown_store_is_continued_at_the_version_of_the_state(tmp_path: Path):
    source = ListSource(documents(*["".join(chr(97 + i % 26) for i in range(500))] * 4))
    small = prepare(source, ByteTokenizer(), data_dir=tmp_path, max_documents=2, val_fraction=0.0)
    loader = WindowLoader(small, 8, 4)
    before = rows(loader, 3)
    large = prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    resumed = WindowLoader(large, 8, 4)
    resumed.load_state_dict(loader.state_dict())
    assert (resumed.stores[""].version, large.version) == (small.version, small.version + 1)
    assert before + rows(resumed) == rows(WindowLoader(small, 8, 4))


def test_a_state_is_plain(store: TokenStore, tmp_path: Path):
    state = WindowLoader(store, 4, 8, where={"language": ["Python"]}, mix={"Python": 1}).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == json.loads(json.dumps(state)) == state


def test_the_two_parts_of_a_checkpoint_must_say_the_same(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    rows(loader, 2)
    resumed = WindowLoader(store, 4, 8)
    resumed.load_state_dict(loader.state_dict())
    resumed.expected = loader.state_dict()
    rows(loader, 1)
    with pytest.raises(StoreError, match=r"disagree about the position in the data \(cursor, digest\)"):
        resumed.load_state_dict(loader.state_dict())


@examples(20)
@given(contexts, batch_sizes, world_sizes, st.integers(1, 3))
def test_wrapped_batches_are_whole_and_their_windows_come_again(
    store: TokenStore, context_length: int, batch_size: int, world_size: int, epochs: int
):
    """All ranks have equally many whole batches; the last is filled with the begin of the next epoch."""
    alone = WindowLoader(store, context_length, 1)
    loaders = [
        WindowLoader(store, context_length, batch_size, rank=rank, world_size=world_size, remainder="wrap")
        for rank in range(world_size)
    ]
    # As many windows as two epochs of the order, wherever a last batch ends.
    ahead = [row for _ in range(epochs + 2 + batch_size * world_size) for batch in rows(alone) for row in batch]
    for epoch in range(epochs):
        served = [rows(loader) for loader in loaders]
        assert {len(batches) for batches in served} == {len(loaders[0])}
        merged = [row for step in zip(*served, strict=True) for batch in step for row in batch]
        assert len(merged) == len(loaders[0]) * batch_size * world_size
        assert merged == ahead[epoch * alone.num_windows :][: len(merged)]
        assert {loader.state_dict()["cursor"] for loader in loaders} == {(epoch + 1) * alone.num_windows}


def test_numbers_of_numpy_become_plain(store: TokenStore):
    loader = WindowLoader(store, np.int64(4), np.int32(2), shuffle_block=np.int64(2))  # type: ignore[arg-type]
    state = loader.state_dict()
    assert {name: type(state[name]) for name in ("context_length", "shuffle_block")} == {
        "context_length": int,
        "shuffle_block": int,
    }


def test_validation_may_have_no_batch(store: TokenStore):
    loader = WindowLoader(store, 4, 8, split="val", order="sequential", remainder="short", resumable=False)
    assert (len(loader), list(loader)) == (0, [])
    few = WindowLoader(store, 4, 8, order="sequential", remainder="short", resumable=False, world_size=10**6)
    assert (len(few), list(few)) == (0, [])


def test_arguments_that_cannot_be_are_refused(store: TokenStore):
    for wrong in (0, 2.5, "8", True, None, float("nan")):
        with pytest.raises(ConfigError, match=f"batch_size is {wrong!r}: expected a whole number from 1 on"):
            WindowLoader(store, 4, wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="There is no store to serve"):
        WindowLoader({}, 4, 1)
    with pytest.raises(StoreError, match="The state lacks context_length, cursor, digest"):
        WindowLoader(store, 4, 1).load_state_dict({"foo": 1})
    with pytest.raises(ConfigError, match="rank is 2 of 2"):
        WindowLoader(store, 4, 1, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="batch_format is 'hf': expected one of default, huggingface"):
        WindowLoader(store, 4, 1, batch_format="hf")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"The selection from split 'val' of .* has 0 tokens"):
        WindowLoader(store, 4, 1, split="val")
    with pytest.raises(ConfigError, match="remainder is 'keep': expected one of drop, wrap, short"):
        WindowLoader(store, 4, 1, remainder="keep")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_data_change is 'ignore': expected one of error, restart, continue"):
        WindowLoader(store, 4, 1, on_data_change="ignore")  # type: ignore[arg-type]


def test_a_loader_that_is_left_leaves_nothing_behind(store: TokenStore):
    loader = WindowLoader(store, 4, 8)
    iterator = iter(loader)
    next(iterator)
    gone = weakref.ref(loader)
    del loader, iterator
    assert gone() is None


def test_epochs_with_a_short_last_batch_are_whole(store: TokenStore):
    options: dict[str, Any] = {"remainder": "short"}
    alone = next(rows(WindowLoader(store, 4, 1, **options)) for _ in range(1))
    loader = WindowLoader(store, 4, 8, **options)
    assert loader.num_windows % 8
    for epoch in range(3):
        served = [row for batch in rows(loader) for row in batch]
        assert len(served) == loader.num_windows == len(alone)
        assert loader.state_dict()["cursor"] == (epoch + 1) * loader.num_windows


def test_the_order_does_not_know_how_a_build_was_cut_into_commits(tmp_path: Path):
    """Nodes that build their own stores commit at other moments, and must still serve one order."""
    source = ListSource(documents(*["".join(chr(97 + i % 26) for i in range(500))] * 20))
    whole = prepare(source, ByteTokenizer(), data_dir=tmp_path / "a", val_fraction=0.0)
    parts = prepare(source, ByteTokenizer(), data_dir=tmp_path / "b", val_fraction=0.0, commit_tokens=1000)
    assert whole.version != parts.version
    one, other = WindowLoader(whole, 8, 4), WindowLoader(parts, 8, 4)
    first = rows(one, 3)
    other.load_state_dict(one.state_dict())
    assert first + rows(other) == rows(WindowLoader(whole, 8, 4))
    with pytest.raises(StoreError, match="was trained on the first 77 tokens of the store, but no version"):
        one.load_state_dict({**one.state_dict(), "stores": [{**one.state_dict()["stores"][0], "tokens": 77}]})
