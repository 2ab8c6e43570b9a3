"""Steps that a run leaves out: ranges of positions that are taken out of the order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_lance.errors import ConfigError, described, integer

_Ints = npt.NDArray[np.int64]


class Skip(NamedTuple):
    """A range of steps that is left out.

    Attributes:
        first_step: Its first step, as it was asked for.
        last_step: The step after its last one.
        begin: The position of its first window.
        end: The position after its last window.
    """

    first_step: int
    last_step: int
    begin: int
    end: int

    @property
    def steps(self) -> tuple[int, int]:
        """The steps that were asked for."""
        return self.first_step, self.last_step


def skipped_steps(state: Mapping[str, Any]) -> list[list[int]]:
    """Return the ranges of steps that a checked state leaves out, as `skip_steps` gives them."""
    return [skip["steps"] for skip in state.get("skips", ())]


def check_steps(given: Any) -> list[list[int]]:
    """Return `skip_steps` in plain types.

    Raises:
        ConfigError: If it is not a list of pairs of steps, the first below the second.
    """
    example = "expected ranges of steps, such as [[12000, 12040]], which leaves out step 12,000 to step 12,039"
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigError(f"skip_steps is {described(given)}: {example}.")
    pairs = []
    for pair in given:
        if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ConfigError(f"skip_steps has {described(pair)}: {example}.")
        begin, end = integer("skip_steps", pair[0]), integer("skip_steps", pair[1])
        if not 0 <= begin < end:
            raise ConfigError(
                f"skip_steps has [{begin}, {end}]: expected a first step from 0, and a larger second one."
            )
        pairs.append([begin, end])
    return pairs


@dataclass(frozen=True)
class Skips:
    """The positions that are left out, and those that are served in their place.

    Attributes:
        ranges: What is left out; ranges may overlap.
    """

    ranges: tuple[Skip, ...] = ()
    _begins: _Ints = field(init=False, repr=False, compare=False)
    _ends: _Ints = field(init=False, repr=False, compare=False)
    _before: _Ints = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spans: list[tuple[int, int]] = []
        for skip in self.ranges:
            if skip.begin < skip.end:
                spans.append((skip.begin, skip.end))
        merged: list[list[int]] = []
        for begin, end in sorted(spans):
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([begin, end])
        table = np.asarray(merged, np.int64).reshape(-1, 2)
        object.__setattr__(self, "_begins", table[:, 0])
        object.__setattr__(self, "_ends", table[:, 1])
        # Positions left out before each range, and before the end of all.
        object.__setattr__(
            self, "_before", np.concatenate([[0], np.cumsum(table[:, 1] - table[:, 0])]).astype(np.int64)
        )

    def knows(self, steps: tuple[int, int]) -> bool:
        """Return whether a range of steps that was asked for is among those left out."""
        return any(skip.steps == steps for skip in self.ranges)

    def unfinished(self, position: int) -> list[Skip]:
        """Return the ranges that end after a position."""
        return [skip for skip in self.ranges if skip.end > position]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The begins and ends of what is left out, ascending and disjoint."""
        return [*zip(self._begins.tolist(), self._ends.tolist(), strict=True)]

    def skipped(self, begin: int, end: int) -> int:
        """Return the number of positions from `begin` to `end` that are left out."""
        return int(np.maximum(np.minimum(self._ends, end) - np.maximum(self._begins, begin), 0).sum())

    def served(self, begin: int, end: int) -> int:
        """Return the number of positions from `begin` to `end` that are served."""
        return max(end - begin, 0) - self.skipped(begin, end)

    def holds(self, position: int) -> bool:
        """Return whether a position is left out."""
        return bool(self.holding(np.asarray([position]))[0])

    def holding(self, positions: _Ints) -> npt.NDArray[np.bool_]:
        """Return which of some positions are left out, (n,) bool."""
        ranges = np.searchsorted(self._begins, positions, side="right")
        held: npt.NDArray[np.bool_] = positions < np.append(0, self._ends)[ranges]
        return held & (ranges > 0)

    def take(self, begin: int, count: int) -> _Ints:
        """Return the first `count` served positions from `begin` on, ascending: (count,) int64."""
        if not len(self._begins):
            return np.arange(begin, begin + count)
        return self.at(self.served(0, begin) + np.arange(count))

    def numbers(self, positions: _Ints) -> _Ints:
        """Return how many served positions are before some positions, (n,) int64."""
        if not len(self._begins):
            return positions
        ranges = np.searchsorted(self._begins, positions, side="right")
        inside = np.where(ranges > 0, np.maximum(self._ends[ranges - 1] - positions, 0), 0)
        numbers: _Ints = positions - self._before[ranges] + inside
        return numbers

    def at(self, numbers: _Ints) -> _Ints:
        """Return served positions by their numbers, (n,) int64: the inverse of `numbers`."""
        ranges = np.searchsorted(self._begins - self._before[:-1], numbers, side="right")
        positions: _Ints = numbers + self._before[ranges]
        return positions

    def next_held(self, position: int) -> int | None:
        """Return the first position that is left out, from a position on; None if there is none."""
        ahead = np.flatnonzero(self._ends > position)
        return max(int(self._begins[ahead[0]]), position) if len(ahead) else None

    def next(self, position: int) -> int:
        """Return the first served position from a position on."""
        if not len(self._begins):
            return position
        return int(self.take(position, 1)[0])

    def after(self, begin: int, count: int) -> int:
        """Return the position after the first `count` served ones from `begin` on."""
        if not count:
            return begin
        if not len(self._begins):
            return begin + count
        last = self.served(0, begin) + count - 1
        return int(self.at(np.asarray([last]))[0]) + 1

    def described(self) -> list[dict[str, Any]]:
        """Return the ranges in plain types, for a checkpoint."""
        return [{"steps": [*skip.steps], "begin": skip.begin, "end": skip.end} for skip in self.ranges]

    @classmethod
    def of(cls, described: Sequence[dict[str, Any]]) -> Skips:
        """Return what `described` gave."""
        ranges = []
        for entry in described:
            first, last = entry["steps"]
            ranges.append(Skip(first, last, entry["begin"], entry["end"]))
        return cls(tuple(ranges))
