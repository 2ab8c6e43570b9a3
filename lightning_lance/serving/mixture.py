"""Which component of a mixture each window comes from, and which of its windows: pure functions of the position."""

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
from lightning_lance.serving.order import WindowOrder

# The longest table of a schedule. Weights of four decimals need no more than 10,000.
_LONGEST_PERIOD = 1 << 17


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Return weights as plain numbers; a float32 is taken for the decimal that it is written as.

    Raises:
        ConfigError: If one is no positive number.
    """
    return {name: _weight(name, weight) for name, weight in weights.items()}


def _weight(name: str, weight: Any) -> float:
    plain: int | float | None = None
    if isinstance(weight, np.integer):
        plain = int(weight)
    elif isinstance(weight, np.floating):
        plain = float(str(weight))
    elif isinstance(weight, (int, float)) and not isinstance(weight, bool):
        plain = int(weight) if isinstance(weight, int) else float(weight)
    # A whole number may be too large for the float that a checkpoint keeps.
    if plain is None or not 0 < plain <= sys.float_info.max:
        raise ConfigError(f"mix.{name} is {weight!r}: expected a weight above 0; leave out what is not wanted.")
    return plain


class Schedule:
    """Deals positions out to components so that every prefix holds each of them by its weight, to less than one window.

    Component i with weight w is due once in each of the intervals [floor((m - 1) / w), ceil(m / w)), m = 1, 2, ...; serving
    whoever's interval ends first meets them all (Tijdeman 1980; Baruah et al. 1996, "proportionate progress"). Weights
    are ratios of whole numbers, so the schedule repeats after their common denominator, and one period is all that is kept.

    Args:
        weights: Name to weight, above 0; they need not add up to 1. Read as the decimal numbers that they are written as.

    Raises:
        ConfigError: If a weight is no positive number.
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
        """Give each position's component, and how many of that component came before it: both (n,) int64."""
        period, place = np.divmod(positions, self.period)
        component = self._component[place]
        return component, period * self._shares[component] + self._before[place]

    def counts(self, positions: int) -> np.ndarray:
        """Count the windows of each component among the first `positions`: (components,) int64."""
        period, rest = divmod(positions, self.period)
        return period * self._shares + np.bincount(self._component[:rest], minlength=len(self._shares))


def _whole(shares: Sequence[Fraction]) -> list[int]:
    """Give whole numbers in the ratio of the shares: exactly, or as near as the longest period lets them be."""
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
    """Windows found: (n,) int64 each of the store, the start in its split, the component's epoch, and the component."""

    store: np.ndarray
    start: np.ndarray
    epoch: np.ndarray
    component: np.ndarray


class Mixture:
    """The windows of one or several components, in the order in which they are served, from some point on.

    Each component walks through an order of its own, and begins its next epoch when it has come to its end, whatever the
    others do.

    Args:
        orders: The order of each component, by name.
        stores: For each component, the place of the store of each of its streams.
        weights: Weight of each component; needed for more than one.
        taken: Windows that each component has given before.

    Raises:
        ConfigError: If a component has no window, or a weight is wrong.
    """

    def __init__(
        self,
        orders: Mapping[str, WindowOrder],
        stores: Sequence[Sequence[int]],
        weights: Mapping[str, float],
        taken: Sequence[int] | None = None,
    ) -> None:
        self.names = list(orders)
        #: The order of each component.
        self.orders = list(orders.values())
        self._stores = [np.asarray(places, np.int64) for places in stores]
        for name, order in orders.items():
            if not order.num_windows and len(orders) > 1:
                tokens = sum(stream.num_tokens for stream in order.streams)
                raise ConfigError(
                    f"mix.{name} has {pluralize(tokens, 'token')}, not one window of {order.context_length} + 1: leave it out."
                )
        self._schedule = Schedule(weights)
        #: Windows of an epoch of each component: (components,) int64.
        self.sizes = np.asarray([order.num_windows for order in self.orders], np.int64)
        #: Windows of all components together.
        self.num_windows = int(self.sizes.sum())
        self.taken = np.asarray(taken if taken is not None else [0] * len(orders), np.int64)

    def consumed(self, positions: int) -> np.ndarray:
        """Count the windows that each component has given, ever, after `positions` of this mixture: (components,) int64."""
        consumed: np.ndarray = self.taken + self._schedule.counts(positions)
        return consumed

    def epochs(self, positions: int) -> list[float]:
        """Tell how often each component has been gone through after `positions` of this mixture."""
        return [float(epochs) for epochs in self.consumed(positions) / self.sizes]

    def locate(self, positions: np.ndarray) -> WindowLocations:
        """Find the windows at some positions.

        Args:
            positions: (n,) int64, from 0 on, without end.
        """
        if len(self.orders) == 1:
            component, index = np.zeros(len(positions), np.int64), positions + self.taken[0]
        else:
            component, index = self._schedule.deal(positions)
            index += self.taken[component]
        store, start, epoch = (np.empty(len(positions), np.int64) for _ in range(3))
        for i, order in enumerate(self.orders):
            mine = np.flatnonzero(component == i) if len(self.orders) > 1 else np.arange(len(positions))
            epochs, places = np.divmod(index[mine], order.num_windows)
            # Positions mostly ascend within one epoch.
            for now in np.unique(epochs) if len(epochs) and (epochs != epochs[0]).any() else epochs[:1]:
                these = mine[epochs == now]
                stream, start[these] = order.locate(int(now), places[epochs == now])
                store[these] = self._stores[i][stream]
            epoch[mine] = epochs
        return WindowLocations(store, start, epoch, component)
