import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import ConfigError
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.ordering.order import Order, WindowOrder, windows_of
from lightning_lance.serving.ordering.permutation import key_words, lowbias32, permute, splitmix64, unpermute
from tests.support.laws import examples

KEY = ("fingerprint", 1, 0)


def extents(*sizes: int) -> list[StreamExtent]:
    starts = np.cumsum([0, *sizes])
    return [StreamExtent(str(i), int(start), size) for i, (start, size) in enumerate(zip(starts, sizes, strict=False))]


def all_starts(order: WindowOrder, epoch: int = 0) -> np.ndarray:
    return order.starts(epoch, np.arange(order.num_windows))


@given(st.integers(1, 5000), st.integers(0, 2**32))
def test_a_permutation_gives_each_place_once(size: int, seed: int):
    places = permute(np.arange(size), size, key_words(seed, count=8))
    assert np.array_equal(np.sort(places), np.arange(size))


@given(st.integers(1, 2**61), st.integers(0, 2**32), st.data())
def test_a_permutation_is_evaluated_anywhere_in_no_memory(size: int, seed: int, data: st.DataObject):
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True)))
    keys = key_words(seed, count=8)
    places = permute(positions, size, keys)
    assert ((places >= 0) & (places < size)).all()
    assert len(set(places.tolist())) == len(positions)
    assert unpermute(places, size, keys).tolist() == positions.tolist()
    assert [permute(positions[i : i + 1], size, keys)[0] for i in range(len(positions))] == places.tolist()


def test_literal_orders():
    """Checkpoints depend on these: they may never change."""
    assert key_words("a", 1).tolist() == [3033163118918412480]
    assert splitmix64(np.array([1], np.uint64)).tolist() == [6238072747940578789]
    assert lowbias32(np.array([1], np.uint32)).tolist() == [1753845952]
    assert permute(np.arange(10), 10, key_words("k", count=8)).tolist() == [4, 1, 2, 6, 8, 5, 7, 3, 9, 0]
    shuffle = WindowOrder(extents(41, 22), 4, "shuffle", KEY)
    assert all_starts(shuffle, 0).tolist() == [50, 6, 46, 10, 22, 2, 58, 34, 14, 30, 18, 54, 26]
    assert all_starts(shuffle, 1).tolist() == [1, 5, 44, 33, 29, 25, 13, 17, 52, 56, 48, 21, 9]
    assert all_starts(WindowOrder(extents(41, 22), 4, "random", KEY)).tolist() == [
        5,
        11,
        25,
        13,
        18,
        18,
        26,
        8,
        47,
        51,
        21,
        12,
        7,
    ]
    assert all_starts(WindowOrder(extents(41, 22), 4, "fixed", KEY)).tolist() == [
        53, 24, 20, 57, 32, 12, 0, 41, 49, 4, 45, 28, 16, 36, 8,
    ]  # fmt: skip
    assert all_starts(WindowOrder(extents(41, 22), 4, "sequential", KEY)).tolist() == [
        *range(0, 40, 4),
        *range(41, 61, 4),
    ]


def test_all_permutations_of_three_come_about_equally_often():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(6000):
        places = tuple(permute(np.arange(3), 3, key_words(seed, count=8)).tolist())
        counts[places] = counts.get(places, 0) + 1
    assert len(counts) == 6
    assert all(850 < count < 1150 for count in counts.values())


def test_the_order_has_nothing_to_do_with_the_storage():
    places = permute(np.arange(100_000), 100_000, key_words("x", count=8))
    assert abs(np.corrcoef(np.arange(100_000), places)[0, 1]) < 0.02
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02
    # Neighbours stay neighbours twice in a random permutation, whatever its size.
    assert (np.abs(np.diff(places)) == 1).sum() < 15


sizes = st.lists(st.integers(0, 60), min_size=1, max_size=4)
context_lengths = st.integers(1, 9)
orders = st.sampled_from(["shuffle", "random", "sequential", "fixed"])


@given(sizes, context_lengths, orders, st.integers(0, 5))
def test_every_window_lies_in_one_stream(lengths: list[int], context_length: int, order: Order, epoch: int):
    streams = extents(*lengths)
    windows = WindowOrder(streams, context_length, order, KEY)
    starts = all_starts(windows, epoch)
    assert len(starts) == windows.num_windows
    for start in starts.tolist():
        assert any(s.start <= start and start + context_length + 1 <= s.start + s.num_tokens for s in streams)


@given(sizes, context_lengths, orders, st.sampled_from([None, 3]), st.integers(0, 5), st.data())
def test_the_windows_with_a_token_are_found(
    lengths: list[int], context: int, order: Order, block: int | None, epoch: int, data: st.DataObject
):
    """The inverse of the order, against a search."""
    streams = extents(*lengths)
    windows = WindowOrder(streams, context, order, KEY, block if order == "shuffle" else None)
    number = data.draw(st.integers(0, len(streams) - 1))
    begin = data.draw(st.integers(0, lengths[number])) + streams[number].start
    end = begin + data.draw(st.integers(0, 20))
    end = min(end, streams[number].start + lengths[number])
    of, starts = windows.locate(epoch, np.arange(windows.num_windows))
    hits = (of == number) & (starts < end) & (starts + context >= begin) & (begin < end)
    assert windows.find(epoch, number, begin, end).tolist() == np.flatnonzero(hits).tolist()


@given(sizes, context_lengths, st.sampled_from(["shuffle", "sequential", "fixed"]), st.integers(0, 5))
def test_no_token_is_a_target_twice(lengths: list[int], context_length: int, order: Order, epoch: int):
    starts = np.sort(all_starts(WindowOrder(extents(*lengths), context_length, order, KEY), epoch))
    assert all(high - low >= context_length for low, high in pairwise(starts.tolist()))


@given(st.integers(2, 60), context_lengths)
def test_every_token_has_its_turn(size: int, context_length: int):
    """All tokens but the first, which nothing precedes, are targets in some of many epochs."""
    windows = WindowOrder(extents(size), context_length, "shuffle", KEY)
    targets: set[int] = set()
    for epoch in range(300):
        for start in all_starts(windows, epoch).tolist():
            targets.update(range(start + 1, start + 1 + context_length))
        if len(targets) == size - 1:
            break
    assert targets == (set(range(1, size)) if size > context_length else set())


@given(sizes, context_lengths)
def test_sequential_windows_tile_the_streams(lengths: list[int], context_length: int):
    streams = extents(*lengths)
    expected = [
        stream.start + low
        for stream in streams
        for low in range(0, max(stream.num_tokens - context_length, 0), context_length)
    ]
    assert all_starts(WindowOrder(streams, context_length, "sequential", KEY)).tolist() == expected


@given(sizes, context_lengths, st.integers(0, 5))
def test_fixed_windows_are_those_of_the_sequential_order_in_one_order(
    lengths: list[int], context_length: int, epoch: int
):
    streams = extents(*lengths)
    fixed = WindowOrder(streams, context_length, "fixed", KEY)
    starts = all_starts(fixed, epoch)
    assert sorted(starts.tolist()) == all_starts(WindowOrder(streams, context_length, "sequential", KEY)).tolist()
    assert np.array_equal(starts, all_starts(fixed, 0))


def test_the_first_fixed_windows_are_a_sample_of_all_streams():
    streams = extents(*[400] * 10)
    stream, _ = WindowOrder(streams, 4, "fixed", KEY).locate(0, np.arange(100))
    assert len(set(stream.tolist())) == 10


@pytest.mark.parametrize(
    ("num_tokens", "shuffle", "sequential"),
    [(0, 0, 0), (1, 0, 0), (4, 0, 0), (5, 1, 1), (8, 1, 1), (9, 1, 2), (12, 2, 2), (13, 2, 3), (1000, 249, 249)],
)
def test_how_many_windows(num_tokens: int, shuffle: int, sequential: int):
    assert windows_of(num_tokens, 4, "shuffle") == windows_of(num_tokens, 4, "random") == shuffle
    assert windows_of(num_tokens, 4, "sequential") == windows_of(num_tokens, 4, "fixed") == sequential


def test_epochs_and_seeds_and_versions_differ():
    streams = extents(2000)
    seen = [
        all_starts(WindowOrder(streams, 8, "shuffle", (fingerprint, version, seed)), epoch).tolist()
        for fingerprint, version, seed, epoch in [
            ("a", 1, 0, 0),
            ("b", 1, 0, 0),
            ("a", 2, 0, 0),
            ("a", 1, 1, 0),
            ("a", 1, 0, 1),
        ]
    ]
    assert len({tuple(starts) for starts in seen}) == len(seen)
    # Seed 1 in epoch 0 is not seed 0 in epoch 1, as it would be with seed + epoch.
    assert seen[3] != seen[4]
    assert len({min(starts) % 8 for starts in seen}) > 1


@examples(10)
@given(st.integers(0, 1000))
def test_random_windows_are_drawn_evenly_from_all_offsets(seed: int):
    windows = WindowOrder(extents(30, 4, 30), 4, "random", ("f", 1, seed))
    starts = windows.starts(0, np.arange(26_000))
    counts = np.bincount(starts, minlength=64)
    possible = [*range(26), *range(34, 60)]
    assert set(np.flatnonzero(counts).tolist()) == set(possible)
    assert counts[possible].min() > 350
    assert counts[possible].max() < 660


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ConfigError, match="context_length is 0"):
        WindowOrder(extents(9), 0, "shuffle", KEY)
    with pytest.raises(ConfigError, match="order is 'shufle': expected one of shuffle, random, sequential"):
        WindowOrder(extents(9), 4, "shufle", KEY)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=3), context_lengths, st.integers(1, 40), st.integers(0, 9))
def test_blocks_stay_together_and_each_window_comes_once(sizes: list[int], context: int, block: int, epoch: int):
    blocks = WindowOrder(extents(*sizes), context, "shuffle", KEY, block)
    plain = WindowOrder(extents(*sizes), context, "shuffle", KEY)
    starts = all_starts(blocks, epoch)
    assert sorted(starts.tolist()) == sorted(all_starts(plain, epoch).tolist())
    # In units of windows, each block lies within as many neighbours, possibly around the end of the storage.
    order = np.sort(starts)
    places, size = np.searchsorted(order, starts), max(len(starts), 1)
    for low in range(0, len(starts) - len(starts) % min(block, size), min(block, size)):
        mine = np.sort(places[low : low + block])
        assert (np.diff(mine, append=mine[0] + size) > 1).sum() <= 1


def test_a_literal_order_in_blocks():
    blocks = WindowOrder(extents(41, 22), 4, "shuffle", KEY, 3)
    assert all_starts(blocks).tolist() == [34, 30, 46, 58, 54, 50, 2, 10, 6, 26, 22, 18, 14]


def test_positions_are_uniform_and_have_nothing_to_do_with_the_order_of_storage():
    """10^5 windows: every tenth of an epoch has a tenth of every tenth of the storage, in each epoch another."""
    seen = {}
    for seed in (1, 2):
        windows = WindowOrder(extents(100_000 * 8 + 1), 8, "shuffle", ("f", 1, seed))
        for epoch in (1, 2):
            places = windows.starts(epoch, np.arange(windows.num_windows)) // 8
            # Both are ranks, so their correlation is Spearman's.
            assert abs(np.corrcoef(np.arange(len(places)), places)[0, 1]) < 0.02
            counts = np.histogram2d(np.arange(len(places)), places, bins=10)[0]
            expected = len(places) / 100
            # Of 81 degrees of freedom; 130 is beyond 0.9995 of what chance gives.
            assert ((counts - expected) ** 2 / expected).sum() < 130
            seen[seed, epoch] = places
    for one, other in [((1, 1), (1, 2)), ((1, 2), (2, 1)), ((1, 1), (2, 1))]:
        assert abs(np.corrcoef(seen[one], seen[other])[0, 1]) < 0.02
        assert (seen[one] == seen[other]).mean() < 0.001


def test_an_order_of_a_trillion_windows_takes_no_memory():
    tracemalloc.start()
    windows = WindowOrder(extents(10**15), 1000, "shuffle", KEY)
    starts = windows.starts(3, np.arange(10**11, 10**11 + 64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert windows.num_windows == 10**12 - 1
    assert len({*starts.tolist()}) == 64
    assert peak < 1_000_000
