"""Mixtures that change: other weights from some token on, and components that end after some epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_lance.errors import ConfigError, described, integer
from lightning_lance.serving.ordering.schedule import Schedule, check_weights

AtMaxEpochs = Literal["redistribute", "error"]

_Ints = npt.NDArray[np.int64]


class Phase(NamedTuple):
    """Weights from a position on.

    Attributes:
        begin: The position.
        weights: Name to weight; components that are not named are not served.
    """

    begin: int
    weights: Mapping[str, float | Fraction]


class _Part(NamedTuple):
    """Positions with the same weights of the same components."""

    begin: int
    components: _Ints
    schedule: Schedule
    before: _Ints  # windows of each component before


def check_mix_schedule(given: Any) -> list[list[Any]]:
    """Return `mix_schedule` in plain types.

    Raises:
        ConfigError: If it is not a list of pairs of a token and weights, the first from token 0 on, ascending.
    """
    example = (
        "expected [[0, {code: 1}], [1_000_000_000, {code: 1, prose: 2}]]: weights, and the token from which they count"
    )
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise ConfigError(f"mix_schedule is {described(given)}: {example}.")
    plain: list[list[Any]] = []
    begins: list[int] = []
    for entry in given:
        if isinstance(entry, (str, bytes)) or not isinstance(entry, Sequence) or len(entry) != 2:
            raise ConfigError(f"mix_schedule has {described(entry)}: {example}.")
        tokens, weights = entry
        if not isinstance(weights, Mapping) or not weights:
            raise ConfigError(f"mix_schedule has the weights {described(weights)}: {example}.")
        begin = integer("mix_schedule", tokens)
        plain.append([begin, check_weights(weights)])
        begins.append(begin)
    if plain and (begins[0] != 0 or begins != sorted({*begins})):
        raise ConfigError(f"mix_schedule begins at the tokens {begins}: expected 0 first, and then larger ones.")
    return plain


def check_max_epochs(given: Any, components: Sequence[str]) -> dict[str, float]:
    """Return `max_epochs` in plain types.

    Raises:
        ConfigError: If it is not a mapping of components to numbers above 0.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"max_epochs is {described(given)}: expected a mapping, such as {{code: 4}}.")
    plain: dict[str, float] = {}
    for name, epochs in given.items():
        if isinstance(epochs, bool) or not isinstance(epochs, (int, float, np.number)) or not 0 < epochs < 1e9:
            raise ConfigError(f"max_epochs.{name} is {epochs!r}: expected a number of epochs above 0.")
        if name not in components:
            raise ConfigError(f"max_epochs has {name!r}, which has no weight in mix: expected {', '.join(components)}.")
        plain[str(name)] = float(epochs)
    return plain


def mix_with(mix: Mapping[str, float] | None, schedule: Any) -> Mapping[str, float]:
    """Return the weights of all components; those of a schedule are the ones that they begin with.

    Raises:
        ConfigError: If the schedule is invalid, or a state has other components.
    """
    plain = check_mix_schedule(() if schedule is None else schedule)
    if not plain:
        return {} if mix is None else mix
    scheduled: dict[str, float] = {}
    for _, weights in plain:
        for name, weight in weights.items():
            scheduled.setdefault(name, weight)
    if mix and {**mix} != scheduled:
        raise ConfigError("mix and mix_schedule are both given: give one of them.")
    return scheduled


def _full(counts: _Ints, left: Sequence[int | None]) -> set[int]:
    """Return the components that have had all the windows that they may have."""
    full = set()
    for number, most in enumerate(left):
        if most is not None and counts[number] >= most:
            full.add(number)
    return full


class PhasedSchedule:
    """Deals positions to components, as `Schedule` does, with weights that change.

    Each phase begins a schedule anew, so its own prefixes are exact. A component that has had its windows is left out from
    there on, and the others share its part in the ratio of their weights.

    Args:
        names: The components.
        phases: Their weights, from some positions on; the first from 0 or before.
        left: The windows that each component may still have; None for no bound.
        redistribute: Whether the others go on where a component has ended; otherwise all end there.

    Attributes:
        end: The position at which the mixture ends; None if it goes on for ever.
        ended: The component that ends it.
    """

    def __init__(
        self, names: Sequence[str], phases: Sequence[Phase], left: Sequence[int | None], redistribute: bool
    ) -> None:
        self._names = [*names]
        self._parts: list[_Part] = []
        self.end: int | None = None
        self.ended = ""
        position = 0
        counts = np.zeros(len(names), np.int64)
        full = _full(counts, left)
        self._note_end(full)
        ahead = [*phases]
        while self.end is None:
            while len(ahead) > 1 and ahead[1].begin <= position:
                ahead.pop(0)
            weights = self._without(full, ahead[0].weights)
            if not weights:
                # Until another component has a weight, there is nothing to serve.
                self.end = position
                break
            components = np.asarray([*map(self._names.index, weights)], np.int64)
            part = _Part(position, components, Schedule(weights), counts.copy())
            self._parts.append(part)
            stops: set[int] = set()
            if len(ahead) > 1:
                stops.add(ahead[1].begin)
            for place, number in enumerate(components.tolist()):
                most = left[number]
                if most is not None:
                    last = np.asarray([most - int(counts[number]) - 1])
                    stops.add(position + int(part.schedule.find(place, last)[0]) + 1)
            if not stops:
                break
            stop = min(stops)
            counts[components] += part.schedule.counts(stop - position)
            position = stop
            full = _full(counts, left)
            if full and not redistribute:
                self._note_end(full)
                self.end = position
        self._begins = np.asarray([part.begin for part in self._parts], np.int64)

    def _without(self, full: set[int], weights: Mapping[str, float | Fraction]) -> dict[str, float | Fraction]:
        """Return the weights of components that may have more windows."""
        left: dict[str, float | Fraction] = {}
        for name, weight in weights.items():
            if self._names.index(name) not in full:
                left[name] = weight
        return left

    def _note_end(self, full: set[int]) -> None:
        if full and not self.ended:
            self.ended = self._names[min(full)]

    def deal(self, positions: _Ints) -> tuple[_Ints, _Ints]:
        """Return each position's component, and the number of that component's windows before it: (n,) int64 each."""
        component = np.empty(len(positions), np.int64)
        index = np.empty(len(positions), np.int64)
        of = np.searchsorted(self._begins, positions, side="right") - 1
        for number in np.unique(of).tolist():
            part = self._parts[number]
            mine = np.flatnonzero(of == number)
            place, within = part.schedule.deal(positions[mine] - part.begin)
            component[mine] = part.components[place]
            index[mine] = within + part.before[component[mine]]
        return component, index

    def find(self, component: int, numbers: _Ints) -> _Ints:
        """Return the positions at which some windows of a component, by number, come: the inverse of `deal`, (n,) int64."""
        positions = np.empty(len(numbers), np.int64)
        before = np.asarray([part.before[component] for part in self._parts], np.int64)
        of = np.searchsorted(before, numbers, side="right") - 1
        for number in np.unique(of).tolist():
            part = self._parts[number]
            mine = np.flatnonzero(of == number)
            place = int(np.flatnonzero(part.components == component)[0])
            positions[mine] = part.begin + part.schedule.find(place, numbers[mine] - before[number])
        return positions

    def counts(self, positions: int) -> _Ints:
        """Return the number of windows of each component among the first `positions`: (components,) int64."""
        counts = np.zeros(len(self._names), np.int64)
        if not self._parts:
            return counts
        if self.end is not None:
            positions = min(positions, self.end)
        part = self._parts[max(int(np.searchsorted(self._begins, positions, side="right")) - 1, 0)]
        counts += part.before
        counts[part.components] += part.schedule.counts(max(positions - part.begin, 0))
        return counts
