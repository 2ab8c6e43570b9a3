"""Batch sizes and context lengths that grow during a run: from which step on which size counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError, described, integer, whole_number


class SizePhase(NamedTuple):
    """The sizes of batches from a step on.

    Attributes:
        step: The step.
        size: Windows of a batch, on each rank.
        rows: Rows of a batch that a window is cut into.
    """

    step: int
    size: int
    rows: int


def check_batch_size_schedule(given: Any, batch_size: int) -> list[list[int]]:
    """Return `batch_size_schedule` in plain types; empty for none.

    Raises:
        ConfigError: If it is not a list of pairs of a step and a size, both ascending from step 0 up to `batch_size`.
    """
    return _checked("batch_size_schedule", given, "batch_size", batch_size)


def check_context_length_schedule(given: Any, context_length: int) -> list[list[int]]:
    """Return `context_length_schedule` in plain types; empty for none.

    Raises:
        ConfigError: If it is not a list of pairs of a step and a length, both ascending from step 0 up to `context_length`,
            which all lengths divide.
    """
    plain = _checked("context_length_schedule", given, "context_length", context_length)
    for _, length in plain:
        if context_length % length:
            raise ConfigError(
                f"context_length_schedule has {length:,}: expected lengths that divide the context_length, "
                f"{context_length:,}."
            )
    return plain


def _checked(name: str, given: Any, last_name: str, last: int) -> list[list[int]]:
    """Return a schedule in plain types, whose last size is that of another argument."""
    example = f"expected pairs of a step and a {last_name}, such as [[0, {max(last // 2, 1)}], [1000, {last}]]"
    if given is None:
        return []
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise ConfigError(f"{name} is {described(given)}: {example}.")
    plain: list[list[int]] = []
    begins: list[int] = []
    sizes: list[int] = []
    for entry in given:
        if isinstance(entry, (str, bytes)) or not isinstance(entry, Sequence) or len(entry) != 2:
            raise ConfigError(f"{name} has {described(entry)}: {example}.")
        begin = integer(name, entry[0])
        size = whole_number(name, entry[1])
        plain.append([begin, size])
        begins.append(begin)
        sizes.append(size)
    if not plain:
        return []
    if begins[0] != 0 or begins != sorted({*begins}):
        raise ConfigError(f"{name} begins at the steps {begins}: expected 0 first, and then larger ones.")
    if sizes != sorted({*sizes}):
        raise ConfigError(f"{name} has the sizes {sizes}: expected each to be larger than the one before.")
    if sizes[-1] != last:
        raise ConfigError(
            f"{name} ends with {sizes[-1]:,}, and {last_name} is {last:,}: expected the same, since {last_name} is the "
            "largest."
        )
    return plain


def size_phases(
    batch_sizes: Sequence[Sequence[int]],
    context_lengths: Sequence[Sequence[int]],
    batch_size: int,
    context_length: int,
) -> tuple[SizePhase, ...]:
    """Return the sizes of batches by checked schedules of both; empty without any.

    Args:
        batch_sizes: A step and the windows of a batch from there on.
        context_lengths: A step and the length of rows from there on.
        batch_size: The largest of the sizes.
        context_length: The largest of the lengths.
    """
    begins: set[int] = set()
    for begin, _ in (*batch_sizes, *context_lengths):
        begins.add(begin)
    phases = []
    for step in sorted(begins):
        size = _at(batch_sizes, step, batch_size)
        rows = context_length // _at(context_lengths, step, context_length)
        phases.append(SizePhase(step, size, rows))
    return tuple(phases)


def _at(schedule: Sequence[Sequence[int]], step: int, default: int) -> int:
    """Return the value of a schedule at a step."""
    for begin, value in reversed(schedule):
        if begin <= step:
            return value
    return default
