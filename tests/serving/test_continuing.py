"""A run that resumes with another context length, other weights or other data: each component continues at its position."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore
from lightning_lance.errors import StoreError
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import ListSource, documents
from tests.support.walks import walk


def text(letters: str, seed: int, size: int = 90) -> str:
    return "".join(random.Random(seed).choices(letters, k=size))


CODE = ListSource(
    (
        *documents(*(text("abc", i) for i in range(8)), language="A"),
        *documents(*(text("def", i) for i in range(5)), language="B"),
        *documents(*(text("ghi", i) for i in range(3)), language="C"),
    )
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    """Three languages in one store, and two more stores."""
    folder = tmp_path_factory.mktemp("data")
    sources = {
        "code": CODE,
        "prose": ListSource(documents(*(text("xyz", i) for i in range(6))), name="prose"),
        "new prose": ListSource(documents(*(text("uvw", i) for i in range(9))), name="prose"),
    }
    return {
        name: prepare(source, ByteTokenizer(), data_dir=folder, val_fraction=0.0) for name, source in sources.items()
    }


def cursor(stores: dict[str, TokenStore], on_data_change: Any = "continue", **changes: Any) -> Cursor:
    options = {"split": "train", "context_length": 8, "order": "shuffle", "seed": 0, "shuffle_block": None}
    return Cursor(WindowSelection(**{"stores": stores, "where": {}, "mix": {}, **options, **changes}), on_data_change)


def windows(place: Cursor) -> dict[str, int]:
    return {name: int(part["windows"]) for name, part in place.components().items()}


def resumed(place: Cursor, before: Cursor) -> Cursor:
    place.load_state_dict(before.state_dict())
    # Its own state can be loaded again.
    Cursor(place.serving).load_state_dict(place.state_dict())
    return place


@examples(13)
@given(st.integers(0, 300), st.integers(1, 200), st.booleans())
def test_a_new_component_begins_and_the_others_go_on(
    stores: dict[str, TokenStore], before: int, after: int, weights_too: bool
):
    """With one store, the served and remaining windows are the same as without the change."""
    code = {"": stores["code"]}
    place = cursor(code, mix={"A": 2, "B": 1})
    served = walk(place, before)
    mix = {"C": 1, "B": 5, "A": 0.5} if weights_too else {"A": 2, "B": 1, "C": 1}
    more = resumed(cursor(code, mix=mix), place)
    assert windows(more) == {**dict.fromkeys(mix, 0), **windows(place)}
    served += walk(more, after)
    streams = {stream.language: stream for stream in stores["code"].streams()}
    for name, stream in streams.items():
        mine = [start for start in served if stream.start <= start < stream.start + stream.num_tokens]
        assert mine == walk(cursor(code, mix={name: 1}), len(mine))


def test_a_component_that_was_removed_is_left_out_and_the_others_go_on(stores: dict[str, TokenStore]):
    code = {"": stores["code"]}
    place = cursor(code, mix={"A": 2, "B": 1, "C": 1})
    walk(place, 100)
    fewer = resumed(cursor(code, mix={"C": 1, "A": 1}), place)
    assert windows(fewer) == {name: count for name, count in windows(place).items() if name != "B"}


def test_components_keep_their_place_under_another_seed(stores: dict[str, TokenStore]):
    code = {"": stores["code"]}
    place = cursor(code, mix={"A": 2, "B": 1})
    walk(place, 130)
    changed = resumed(cursor(code, mix={"A": 2, "B": 1}, seed=1), place)
    assert windows(changed) == windows(place)
    assert (changed.value, changed.epoch, changed.position) == (place.value, place.epoch, place.position)


def test_a_new_component_and_another_context_length_at_once(stores: dict[str, TokenStore]):
    code = {"": stores["code"]}
    place = cursor(code, mix={"A": 2, "B": 1})
    walk(place, 60)
    more = resumed(cursor(code, mix={"A": 2, "B": 1, "C": 1}, context_length=16), place)
    assert windows(more) == {"A": 20, "B": 10, "C": 0}


def test_stores_keep_their_place_when_one_is_added_removed_or_renamed(stores: dict[str, TokenStore]):
    code, prose = stores["code"], stores["prose"]
    place = cursor({"code": code, "prose": prose}, mix={"code": 3, "prose": 1})
    walk(place, 100)
    assert windows(place) == {"code": 75, "prose": 25}
    added = resumed(
        cursor({"code": code, "new": stores["new prose"], "prose": prose}, mix={"new": 1, "prose": 1, "code": 1}), place
    )
    assert windows(added) == {"new": 0, "prose": 25, "code": 75}
    renamed = resumed(cursor({"python": code, "prose": prose}, mix={"python": 3, "prose": 1}), place)
    assert windows(renamed) == {"python": 75, "prose": 25}
    exchanged = resumed(cursor({"code": code, "prose": stores["new prose"]}, mix={"code": 3, "prose": 1}), place)
    assert windows(exchanged) == {"code": 75, "prose": 25}
    # With a single store left, its component is everything.
    alone = resumed(cursor({"": code}), place)
    assert windows(alone) == {"": 75}


def test_a_store_to_which_another_one_comes_keeps_its_place(stores: dict[str, TokenStore]):
    place = cursor({"": stores["code"]})
    walk(place, place.num_windows + 50)
    more = resumed(cursor({"code": stores["code"], "prose": stores["prose"]}, mix={"code": 3, "prose": 1}), place)
    assert windows(more) == {"code": place.num_windows + 50, "prose": 0}


def test_languages_that_were_served_as_one_begin_the_epoch(stores: dict[str, TokenStore]):
    place = cursor({"": stores["code"]})
    walk(place, 2 * place.num_windows + 50)
    mixed = resumed(cursor({"": stores["code"]}, mix={"A": 1, "B": 1}), place)
    assert {name: part["epochs"] for name, part in mixed.components().items()} == {"A": 2, "B": 2}
    one = resumed(cursor({"": stores["code"]}), mixed)
    assert (one.epoch, one.position) == (2, 50)


def test_a_store_that_grew_is_continued_with_the_tokens_that_it_had(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("growing")
    options: dict[str, Any] = {"data_dir": folder, "val_fraction": 0.0}
    small = prepare(CODE, ByteTokenizer(), max_documents=13, **options)
    place = cursor({"": small}, mix={"A": 1, "B": 1})
    served = walk(place, 40)
    whole = prepare(CODE, ByteTokenizer(), **options)
    more = resumed(cursor({"": whole}, mix={"B": 1, "A": 1}, shuffle_block=4), place)
    assert more.serving.stores[""].commit.tokens == small.commit.tokens
    assert windows(more) == windows(place)
    assert len(served) == 40


def test_an_epoch_that_has_ended_stays_so_in_other_units(stores: dict[str, TokenStore]):
    code = {"": stores["code"]}
    for changes in ({"context_length": 30}, {"context_length": 3}, {"seed": 1}, {"mix": {"A": 1}}):
        place = cursor(code)
        walk(place, 3)
        place.ended = True
        changed = resumed(cursor(code, **changes), place)
        assert changed.ended
        assert changed.value == changed.epoch_end


sizes = st.lists(st.integers(0, 70), min_size=1, max_size=6)
lengths = st.integers(1, 25)


def extents(*counts: int) -> list[StreamExtent]:
    starts = np.cumsum([0, *counts])
    return [StreamExtent(str(i), int(start), size) for i, (start, size) in enumerate(zip(starts, counts, strict=False))]


@given(sizes, lengths, lengths, st.data())
def test_sequential_orders_go_on_in_the_very_stream(counts: list[int], first: int, then: int, data: st.DataObject):
    """The law: no token after the last target is skipped, and less than one window repeats.

    Exceptions are tokens at the end of a stream that fill no window: of the first length in earlier streams, and of the second.
    """
    streams = extents(*counts)
    before, now = WindowOrder(streams, first, "sequential", ()), WindowOrder(streams, then, "sequential", ())
    consumed = data.draw(st.integers(0, before.num_windows))
    position = now.after(consumed, before)
    assert 0 <= position <= now.num_windows
    if consumed in (0, before.num_windows):
        assert position == (now.num_windows if consumed else 0)
        return
    last, start = before.locate(0, np.array([consumed - 1]))
    stream, end = streams[int(last[0])], int(start[0]) + first  # `end` was the last target
    coming_streams, coming = now.locate(0, np.arange(position, now.num_windows))
    targets = {token for begin in coming.tolist() for token in range(begin + 1, begin + then + 1)}
    again = {token for token in targets if token <= end}
    assert len(again) < then
    assert all(token > stream.start for token in again)
    # All windows of this order with a target after `end` are served.
    every = now.locate(0, np.arange(now.num_windows))[1]
    assert {begin for begin in every.tolist() if begin + then > end} == {*coming.tolist()}
    assert (coming_streams >= last[0]).all()
    assert before.after(consumed, before) == consumed


@given(sizes, lengths, lengths, st.sampled_from(["shuffle", "random"]), st.data())
def test_other_orders_go_on_after_as_many_tokens(
    counts: list[int], first: int, then: int, order: Any, data: st.DataObject
):
    """The law: a position covers the tokens of the windows before, and less than one window more; an end stays an end."""
    streams = extents(*counts)
    before, now = WindowOrder(streams, first, order, ()), WindowOrder(streams, then, order, ())
    consumed = data.draw(st.integers(0, before.num_windows))
    position = now.after(consumed, before)
    if consumed == before.num_windows:
        assert position == (now.num_windows if consumed else 0)
    elif position < now.num_windows:
        assert 0 <= position * then - consumed * first < then
    else:
        assert now.num_windows * then <= consumed * first + then - 1


@examples(13)
@given(st.integers(2, 59), st.sampled_from([(64, 32), (32, 64), (40, 15), (15, 40)]), st.booleans())
def test_many_short_streams_are_neither_passed_over_nor_served_again(
    many: TokenStore, consumed: int, pair: tuple[int, int], two_stores: bool
):
    """60 languages of 100 tokens each, in one component, and in a mixture of two stores: the law above holds for each."""
    first, then = pair
    served = {"a": many, "b": many} if two_stores else {"": many}
    mix = {"a": 1, "b": 1} if two_stores else {}
    place = cursor(served, order="sequential", context_length=first, mix=mix)
    before = place.locate(np.arange(consumed))
    walk(place, consumed)
    changed = resumed(cursor(served, "error", order="sequential", context_length=then, mix=mix), place)
    coming = changed.locate(np.arange(changed.value, changed.value + 2))
    every = [100 * i + begin for i in range(60) for begin in range(0, 100 - then, then)]
    for number in range(len(served)):
        end = before.start[before.store == number].max() + first
        expected = min(begin for begin in every if begin + then > end)
        assert coming.start[coming.store == number][0] == expected


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    texts = [documents(f"{i:03d}" * 33, language=f"L{i:03d}")[0] for i in range(60)]
    return prepare(
        ListSource(tuple(texts)), ByteTokenizer(), data_dir=tmp_path_factory.mktemp("many"), val_fraction=0.0
    )


def test_each_short_component_of_a_mixture_goes_on_where_it_was(many: TokenStore):
    """Epochs of a single window: their leftovers must not add up."""
    mix = {f"L{i:03d}": 1 for i in range(20)}
    place = cursor({"": many}, order="sequential", context_length=64, mix=mix)
    walk(place, 20 * 7)
    shorter = resumed(cursor({"": many}, "error", order="sequential", context_length=32, mix=mix), place)
    assert {part["epochs"] for part in shorter.components().values()} == {7.0}
    back = resumed(cursor({"": many}, "error", order="sequential", context_length=64, mix=mix), shorter)
    assert windows(back) == windows(place)


def test_a_place_too_far_to_count_is_refused(stores: dict[str, TokenStore]):
    code = {"": stores["code"]}
    place = cursor(code, context_length=200)
    state = place.state_dict()
    size, epoch = state["num_windows"], 2**59
    later = {**state, "cursor": epoch * size, "epoch": epoch, "epoch_start": epoch * size, "digest_from": epoch * size}
    if epoch * size > 2**60:
        epoch = 2**60 // size
        later |= {"cursor": epoch * size, "epoch": epoch, "epoch_start": epoch * size, "digest_from": epoch * size}
    cursor(code, context_length=200).load_state_dict(later)
    with pytest.raises(StoreError, match=r"windows: expected 2\*\*60 at most"):
        cursor(code, context_length=2).load_state_dict(later)
