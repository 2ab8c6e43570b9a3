"""An epoch that goes on with what was appended: no window twice, none lost, for any ranks."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import StoreError
from lightning_lance.format.layout import StreamExtent
from lightning_lance.inspection.resume import verify_resume
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.serving.ordering.growth import GrownOrder, grown_order
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


def order_of(sizes: list[int], context_length: int, order: Any, block: int | None) -> WindowOrder:
    starts = np.cumsum([0, *sizes])
    streams = [
        StreamExtent(str(i), int(start), size) for i, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]
    return WindowOrder(streams, context_length, order, ("key", sum(sizes)), block if order == "shuffle" else None)


def grown(before: Any, now: WindowOrder, epoch: int, place: int) -> Any:
    names = [[stream.language for stream in order.streams] for order in (before, now)]
    return grown_order(before, now, *names, epoch, place)


def within_streams(order: Any, epoch: int, first: int, last: int) -> list[tuple[str, int]]:
    """The stream, and the offset within it, of each window from one place to another."""
    of, starts = order.locate(epoch, np.arange(first, last))
    found = []
    for number, start in zip(of.tolist(), starts.tolist(), strict=True):
        stream = order.streams[number]
        assert stream.start <= start
        assert start + order.context_length + 1 <= stream.start + stream.num_tokens
        found.append((stream.language, start - stream.start))
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=3, max_size=3), min_size=3, max_size=3),
    st.integers(1, 9),
    st.sampled_from(["shuffle", "fixed", "sequential"]),
    st.sampled_from([None, 3]),
    st.integers(0, 3),
    st.data(),
)
def test_each_window_of_an_epoch_that_grew_twice_comes_once(
    growths: list[list[int]], length: int, order: Any, block: int | None, epoch: int, data: st.DataObject
):
    """Three streams, of which some are empty at first. The law holds whatever was served before each growth."""
    sizes = np.cumsum(growths, axis=0).tolist()
    place, now = 0, order_of(sizes[0], length, order, block)
    served: list[tuple[str, int]] = []
    due: list[tuple[str, int]] = []  # of an epoch that had begun, all windows have to come
    for later in sizes[1:]:
        first = place
        place = data.draw(st.integers(first, now.num_windows))
        served += within_streams(now, epoch, first, place)
        due += served and within_streams(now, epoch, place, now.num_windows)
        now = grown(now, order_of(later, length, order, block), epoch, place)
        place = now.first_place if isinstance(now, GrownOrder) else place
        if isinstance(now, GrownOrder):
            assert len(served) + now.left <= now.num_windows
    whole = served + within_streams(now, epoch, place, now.num_windows)
    assert len(set(whole)) == len(whole)
    assert {*due} <= {*whole}
    for name in "012":
        starts = sorted(start for stream, start in whole if stream == name)
        assert all(high - low == length for low, high in pairwise(starts))
        if starts and served:
            left_over = sizes[-1][int(name)] - 1 - starts[-1] - length
            assert left_over < 2 * length
    # Later epochs are those of the grown streams.
    later_epoch = within_streams(now, epoch + 1, 0, now.num_windows)
    assert later_epoch == within_streams(order_of(sizes[-1], length, order, block), epoch + 1, 0, now.num_windows)


def text(i: int) -> str:
    return "".join(random.Random(i).choices("abcdefghij", k=90))


LANGUAGES = ["Go", "Python", "Rust"]
SOURCE = ListSource(
    tuple(entry for i in range(36) for entry in documents(text(i), language=LANGUAGES[i % 3 if i > 9 else 1]))
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[TokenStore]:
    """A store of one language, then of three, then with more of each."""
    uri = str(tmp_path_factory.mktemp("data") / "x.lance")
    made = []
    for budget in (10, 24, None):
        store = prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0, max_documents=budget)
        store.keep(f"kept-{budget}")
        made.append(store)
    return made


def loaders(store: TokenStore, ranks: int, size: int, state: Any, **options: Any) -> list[WindowLoader]:
    made = [
        WindowLoader(store, 8, size, rank=rank, world_size=ranks, remainder="short", extend="now", **options)
        for rank in range(ranks)
    ]
    for loader in made:
        if state is not None:
            loader.load_state_dict(state)
    return made


def take(made: list[WindowLoader], steps: int | None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Take batches on all ranks, to the end of the epoch for None. Not at once, so they cannot agree."""
    monkeypatch.setattr("lightning_lance.serving.loader.check_ranks_agree", lambda _: None)
    found = []
    for loader in made:
        for number, batch in enumerate(loader, start=1):
            found += [tuple(window) for window in batch["input_ids"].tolist()]
            if number == steps:
                break
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"order": "fixed"}, {"shuffle_block": 4}, {"mix": {"Python": 1}}, {"where": {"language": ["Python", "Go"]}}],
    ids=str,
)
@pytest.mark.parametrize("ranks", [(1, 1, 1), (2, 3, 1)])
def test_a_resume_adopts_what_was_appended_within_its_epoch(
    stores: list[TokenStore],
    ranks: tuple[int, int, int],
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    served: list[tuple[int, ...]] = []
    state: Any = None
    for store, world_size, steps in zip(stores, ranks, (7, 9, 5), strict=True):
        if "where" in options and store is stores[0]:
            continue  # it has only one language yet
        made = loaders(store, world_size, 3, state, **options)
        served += take(made, steps, monkeypatch)
        state = made[0].state_dict()
        assert all(loader.state_dict() == state for loader in made)
    # Once more in the middle, with nothing new.
    served += take(loaders(stores[2], 2, 2, state, **options), 2, monkeypatch)
    loader = loaders(stores[2], 2, 2, state, **options)[0]
    [*_] = take([loader], 2, monkeypatch)
    state = loader.state_dict()
    torch.save({"LanceDataModule": state}, tmp_path / "x.ckpt")
    assert "digest OK" in verify_resume(str(tmp_path / "x.ckpt"), {})
    last = loaders(stores[2], 1, 2, state, **options)
    served += take(last, None, monkeypatch)
    assert len(set(served)) == len(served)
    # As many as an epoch has, but for a window of each stream that may not fit.
    assert 0 <= last[0].num_windows - len(served) <= 3
    assert last[0].state_dict()["epoch"] == 0
    whole = take(last, None, monkeypatch)
    assert len({*whole}) == len(whole) == last[0].num_windows
    assert "grown" not in last[0].state_dict()


def test_each_component_of_a_mixture_goes_on_with_what_it_got(
    stores: list[TokenStore], monkeypatch: pytest.MonkeyPatch
):
    mix = {"Python": 3, "Go": 1}
    first = loaders(stores[1], 1, 4, None, mix=mix)
    served = take(first, 4, monkeypatch)
    second = loaders(stores[2], 2, 4, first[0].state_dict(), mix=mix)
    sizes = second[0].num_windows
    assert sizes > first[0].num_windows
    epoch = second[0].components()
    assert epoch["Python"]["windows"] >= 12
    steps = 0
    seen = [*served]
    while all(part["epochs"] < 1 for part in second[0].components().values()) and steps < 6:
        seen += take(second, 1, monkeypatch)
        steps += 1
    assert len({*seen}) == len(seen)


def test_what_cannot_be_continued_is_refused_or_left_to_the_next_epoch(
    stores: list[TokenStore], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    first = loaders(stores[1], 1, 3, None)
    take(first, 3, monkeypatch)
    state = first[0].state_dict()
    grown_state = loaders(stores[2], 1, 3, state)[0].state_dict()
    [growth] = grown_state["grown"]
    for wrong in (
        {"places": [10**6]},
        {"streams": [{"Python": 10**9}]},
        {"streams": [{"Cobol": 100}]},
        {"epochs": []},
        {"tokens": "many"},
    ):
        with pytest.raises(StoreError, match="The state"):
            loaders(stores[2], 1, 3, {**grown_state, "grown": [{**growth, **wrong}]})
    with pytest.raises(StoreError, match=r"grown is .*: expected a list of growths"):
        loaders(stores[2], 1, 3, {**grown_state, "grown": []})
    uri = str(tmp_path / "y.lance")
    store = prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0, max_documents=24)
    store.keep("mine")
    made = loaders(store, 1, 3, None)
    take(made, 3, monkeypatch)
    prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0)
    forget(uri, {"id": "0:0"})
    resumed = loaders(TokenStore.open(uri), 1, 3, made[0].state_dict())[0]
    assert "adopted by the next epoch" in caplog.text
    assert resumed.stores[""].commit.tokens == store.commit.tokens
