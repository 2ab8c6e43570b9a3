"""Mixtures: the component of each window, and its place within the component, as pure functions of the position."""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from lightning_lance.errors import ConfigError
from lightning_lance.messages.formatting import pluralize
from lightning_lance.serving.growth import Ordered

# The longest table of a schedule. Weights of four decimals need no more than 10,000.
_LONGEST_PERIOD = 1 << 17


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Return weights as plain numbers. A float32 counts as the decimal number that it is printed as.

    Raises:
        ConfigError: If a weight is not a positive number.
    """
    return {name: _weight(name, weight) for name, weight in weights.items()}


def _weight(name: str, weight: Any) -> float:
    plain: int | float | None = None
    if isinstance(weight, (int, np.integer)) and not isinstance(weight, bool):
        plain = int(weight)
    elif isinstance(weight, np.floating):
        plain = float(str(weight))
    elif isinstance(weight, float):
        plain = float(weight)
    # A whole number may be too large for the float in a checkpoint.
    if plain is None or not 0 < plain <= sys.float_info.max:
        raise ConfigError(
            f"mix.{name} is {weight!r}: expected a weight above 0; remove components that you do not want."
        )
    return plain


class Schedule:
    """Deals positions to components. In every prefix, each component's share is within one window of its weight.

    Component i with weight w is due once in each of the intervals [floor((m - 1) / w), ceil(m / w)), m = 1, 2, ...; serving
    the earliest deadline first meets them all (Tijdeman 1980; Baruah et al. 1996, "proportionate progress"). Weights are
    ratios of whole numbers, so the schedule repeats after their common denominator, and only one period is stored.

    Args:
        weights: Name to weight, above 0, in any scale. A weight counts as the decimal number that it is printed as.

    Raises:
        ConfigError: If a weight is not a positive number.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        check_weights(weights)
        exact = [Fraction(str(weight)) for weight in weights.values()]
        shares = _whole([weight / sum(exact) for weight in exact])
        #: Positions after which the schedule repeats.
        self.period = sum(shares)
        self._shares = np.asarray(shares, np.int64)
        self._component = _earliest_deadline_first(shares)
        self._before = np.zeros(self.period, np.int64)
        for component in range(len(shares)):
            mine = np.flatnonzero(self._component == component)
            self._before[mine] = np.arange(len(mine))

    def deal(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each position's component, and the number of that component's windows before it: both (n,) int64."""
        period, place = np.divmod(positions, self.period)
        component = self._component[place]
        return component, period * self._shares[component] + self._before[place]

    def find(self, component: int, numbers: np.ndarray) -> np.ndarray:
        """Return the positions at which some windows of a component, by number, come: the inverse of `deal`, (n,) int64."""
        period, number = np.divmod(numbers, self._shares[component])
        positions: np.ndarray = period * self.period + np.flatnonzero(self._component == component)[number]
        return positions

    def counts(self, positions: int) -> np.ndarray:
        """Return the number of windows of each component among the first `positions`: (components,) int64."""
        period, rest = divmod(positions, self.period)
        return period * self._shares + np.bincount(self._component[:rest], minlength=len(self._shares))


def _whole(shares: Sequence[Fraction]) -> list[int]:
    """Return whole numbers in the ratio of the shares: exact, or as near as the longest period allows."""
    common = math.lcm(*(share.denominator for share in shares))
    if common > _LONGEST_PERIOD:
        return [max(round(share * _LONGEST_PERIOD), 1) for share in shares]
    return [int(share * common) for share in shares]


def _earliest_deadline_first(shares: Sequence[int]) -> np.ndarray:
    period = sum(shares)
    served = [0] * len(shares)
    waiting = [(0, i) for i in range(len(shares))]  # (begin of the interval, component)
    due: list[tuple[int, int]] = []  # (end of the interval, component)
    order = np.empty(period, np.int64)
    for place in range(period):
        while waiting and waiting[0][0] <= place:
            _, i = heapq.heappop(waiting)
            heapq.heappush(due, (-(-(served[i] + 1) * period // shares[i]), i))
        _, i = heapq.heappop(due)
        order[place] = i
        served[i] += 1
        heapq.heappush(waiting, (served[i] * period // shares[i], i))
    return order


class WindowLocations(NamedTuple):
    """Located windows: store, start in its split, epoch of the component, and component, (n,) int64 each."""

    store: np.ndarray
    start: np.ndarray
    epoch: np.ndarray
    component: np.ndarray


class Mixture:
    """The windows of one or more components, in the order of serving.

    Each component has an order and epochs of its own, independent of the others.

    Args:
        orders: The order of each component, by name.
        stores: For each component, the index of the store of each of its streams.
        weights: Weight of each component.
        taken: Windows that each component has served before; 0 by default.

    Raises:
        ConfigError: If one of several components has no window, or a weight is not a positive number.
    """

    def __init__(
        self,
        orders: Mapping[str, Ordered],
        stores: Sequence[Sequence[int]],
        weights: Mapping[str, float],
        taken: Sequence[int] | None = None,
    ) -> None:
        #: The order of each component, by name.
        self.orders = dict(orders)
        self._stores = [np.asarray(places, np.int64) for places in stores]
        for name, order in orders.items():
            if not order.num_windows and len(orders) > 1:
                tokens = sum(stream.num_tokens for stream in order.streams)
                raise ConfigError(
                    f"mix.{name} has {pluralize(tokens, 'token')}, too few for a window of {order.context_length} + 1: remove "
                    "it from mix, or lower context_length."
                )
        self._schedule = Schedule(weights)
        #: Windows of an epoch of each component: (components,) int64.
        self.sizes = np.asarray([order.num_windows for order in orders.values()], np.int64)
        #: Windows of all components together.
        self.num_windows = int(self.sizes.sum())
        self.taken = np.zeros(len(orders), np.int64) if taken is None else np.asarray(taken, np.int64)

    def consumed(self, positions: int) -> np.ndarray:
        """Return the windows that each component has served in total after `positions` of this mixture."""
        consumed: np.ndarray = self.taken + self._schedule.counts(positions)
        return consumed

    def epochs_of(self, positions: int) -> dict[str, float]:
        """Return the epochs of each component that as many positions make from the begin of a run."""
        epochs = self._schedule.counts(positions) / np.maximum(self.sizes, 1)
        return dict(zip(self.orders, epochs.tolist(), strict=True))

    def find(self, store: int, begin: int, end: int, positions: range) -> np.ndarray:
        """Return the positions, of some, whose windows have one of the tokens from `begin` to `end` of a store's split.

        Args:
            store: Index of the store.
            begin: Offset of the first token.
            end: Offset after the last one. All of them lie in one stream.
            positions: Where to look: a range from 0 on.

        Returns:
            (n,) int64, ascending.
        """
        found = [np.empty(0, np.int64)]
        counts = zip(self.consumed(positions.start).tolist(), self.consumed(positions.stop).tolist(), strict=True)
        for component, (order, (first, last)) in enumerate(zip(self.orders.values(), counts, strict=True)):
            of_store = self._stores[component] == store
            starts = np.asarray([stream.start for stream in order.streams], np.int64)
            ends = starts + np.asarray([stream.num_tokens for stream in order.streams], np.int64)
            [streams] = np.nonzero(of_store & (starts <= begin) & (begin < ends))
            if not len(streams) or not order.num_windows:
                continue
            for epoch in range(first // order.num_windows, -(-last // order.num_windows)):
                numbers = order.find(epoch, int(streams[0]), begin, end) + epoch * order.num_windows
                numbers = numbers[(first <= numbers) & (numbers < last)] - self.taken[component]
                found.append(numbers if len(self.orders) == 1 else self._schedule.find(component, numbers))
        return np.sort(np.concatenate(found))

    def locate(self, positions: np.ndarray) -> WindowLocations:
        """Return the windows at some positions.

        Args:
            positions: (n,) int64, at least 0, unbounded.
        """
        if len(self.orders) == 1:
            component = np.zeros(len(positions), np.int64)
            index = positions + self.taken[0]
        else:
            component, index = self._schedule.deal(positions)
            index += self.taken[component]
        store = np.empty(len(positions), np.int64)
        start = np.empty(len(positions), np.int64)
        epoch = np.empty(len(positions), np.int64)
        for i, order in enumerate(self.orders.values()):
            mine = np.flatnonzero(component == i) if len(self.orders) > 1 else np.arange(len(positions))
            epochs, places = np.divmod(index[mine], order.num_windows)
            # Positions mostly lie within one epoch, which needs no sorting.
            one_epoch = not (epochs != epochs[:1]).any()
            for now in epochs[:1] if one_epoch else np.unique(epochs):
                these = mine[epochs == now]
                stream, start[these] = order.locate(int(now), places[epochs == now])
                store[these] = self._stores[i][stream]
            epoch[mine] = epochs
        return WindowLocations(store, start, epoch, component)
