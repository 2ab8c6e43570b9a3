"""The schedule of a mixture: the component of each position, by weights."""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lightning_lance.errors import ConfigError

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
        weights: Name to weight, above 0, in any scale. A weight counts as the decimal number that it is printed as; a
            fraction is exact.

    Raises:
        ConfigError: If a weight is not a positive number.
    """

    def __init__(self, weights: Mapping[str, float | Fraction]) -> None:
        exact: list[Fraction] = []
        for name, weight in weights.items():
            if not isinstance(weight, Fraction):
                _weight(name, weight)
            exact.append(Fraction(str(weight)))
        total = sum(exact)
        shares = _whole([weight / total for weight in exact])
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
