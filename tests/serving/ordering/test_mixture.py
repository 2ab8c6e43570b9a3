from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import ConfigError
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.ordering.mixture import Mixture
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.serving.ordering.schedule import Schedule
from tests.support.laws import examples

weights_of = st.lists(st.decimals("0.01", "20", places=2).map(float), min_size=1, max_size=6)


def named(values: list[float]) -> dict[str, float]:
    return {str(i): value for i, value in enumerate(values)}


@given(weights_of)
def test_every_prefix_holds_each_component_by_its_weight_to_less_than_one_window(values: list[float]):
    schedule = Schedule(named(values))
    length = min(schedule.period + 10, 5000)
    component, index = schedule.deal(np.arange(length))
    shares = [Fraction(str(value)) / sum(Fraction(str(v)) for v in values) for value in values]
    for i, share in enumerate(shares):
        counts = np.cumsum(component == i)
        positions = np.arange(1, length + 1)
        # In whole numbers, |count - n * share| < 1.
        assert (np.abs(counts * share.denominator - positions * share.numerator) < share.denominator).all()
        assert np.array_equal(index[component == i], np.arange(counts[-1]))
        assert schedule.counts(length)[i] == counts[-1]


def test_a_literal_schedule():
    component, index = Schedule({"a": 0.7, "b": 0.3}).deal(np.arange(12))
    assert component.tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert index.tolist() == [0, 1, 0, 2, 3, 1, 4, 5, 6, 2, 7, 8]
    assert Schedule({"a": 2, "b": 1}).period == 3


def test_weights_without_a_short_period_are_rounded():
    schedule = Schedule({"a": 0.123456789, "b": 0.5, "c": 1e-12})
    component, _ = schedule.deal(np.arange(schedule.period))
    assert schedule.period <= 1 << 18
    assert np.bincount(component)[1] / schedule.period == pytest.approx(0.5 / 0.623456789, abs=1e-5)
    assert (component == 2).sum() == 1


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "much"])
def test_a_weight_that_is_none_is_refused(weight: float):
    with pytest.raises(ConfigError, match="expected a weight above 0; remove"):
        Schedule({"a": weight, "b": 1})


def order(start: int, num_tokens: int, name: str) -> WindowOrder:
    return WindowOrder([StreamExtent(name, start, num_tokens)], 4, "shuffle", ("fingerprint", 1, 0, name))


@examples(20)
@given(weights_of.filter(lambda values: len(values) > 1), st.integers(0, 50), st.integers(0, 50), st.data())
def test_each_component_walks_its_own_order_over_and_over(
    values: list[float], taken: int, first: int, data: st.DataObject
):
    sizes = [data.draw(st.integers(9, 40)) for _ in values]
    orders = {str(i): order(100 * i, size, str(i)) for i, size in enumerate(sizes)}
    stores = [[i % 2] for i in range(len(values))]
    mixture = Mixture(orders, stores, named(values), [taken] * len(values))
    found = mixture.locate(np.arange(120))
    part = mixture.locate(np.arange(first, 120))
    assert all(np.array_equal(one, other[first:]) for one, other in zip(part, found, strict=True))
    for i, walk in enumerate(orders.values()):
        mine = found.component == i
        positions = taken + np.arange(mine.sum())
        epochs, places = np.divmod(positions, walk.num_windows)
        walked = [walk.starts(epoch, places[epochs == epoch]) for epoch in np.unique(epochs).tolist()]
        assert found.start[mine].tolist() == [start for starts in walked for start in starts.tolist()]
        assert found.epoch[mine].tolist() == epochs.tolist()
        assert (found.store[mine] == i % 2).all()
        assert mixture.consumed(120)[i] == taken + mine.sum()
    # And back: where the tokens of a component are served, from some position to another.
    for i, size in enumerate(sizes):
        begin = 100 * i + data.draw(st.integers(0, size - 1))
        end = min(begin + data.draw(st.integers(1, 9)), 100 * i + size)
        hits = (found.component == i) & (found.start < end) & (found.start + 4 >= begin)
        expected = [position for position in np.flatnonzero(hits).tolist() if position >= first]
        assert mixture.find(i % 2, begin, end, range(first, 120)).tolist() == expected
    assert mixture.num_windows == sum(walk.num_windows for walk in orders.values())


def test_a_component_without_a_window_is_refused():
    with pytest.raises(ConfigError, match=r"mix.b has 3 tokens, too few for a window of 4 \+ 1"):
        Mixture({"a": order(0, 40, "a"), "b": order(40, 3, "b")}, [[0], [0]], {"a": 1, "b": 1})
