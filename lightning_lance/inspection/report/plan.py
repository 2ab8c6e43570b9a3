"""How much of a store a planned run sees, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_lance.errors import whole_number
from lightning_lance.messages.formatting import pluralize
from lightning_lance.serving.ordering.order import windows_of
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.store.token_store import TokenStore


@dataclass(frozen=True)
class Plan:
    """A planned run.

    Attributes:
        max_steps: Steps of the optimizer, each with one batch of each rank.
        batch_size: Windows per batch and rank.
        world_size: Ranks.
        mix: Weight of each language; empty serves all windows alike.

    Raises:
        ConfigError: If a number is not a whole number from 1 on.
    """

    max_steps: int
    batch_size: int
    world_size: int = 1
    mix: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "world_size"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))

    @property
    def windows(self) -> int:
        """Windows that the run takes."""
        return self.max_steps * self.batch_size * self.world_size

    def __str__(self) -> str:
        steps = pluralize(self.max_steps, "step")
        ranks = f" on each of {self.world_size:,} ranks"
        if self.world_size == 1:
            ranks = ""
        return f"{steps} of {pluralize(self.batch_size, 'window')}{ranks}"


class Repetition(NamedTuple):
    """What a run takes of a component.

    Attributes:
        name: A language, or empty for all.
        windows: Windows of an epoch.
        taken: Windows that the run takes, on average where languages are not mixed by weights.
        epochs: How often it sees each window.
        coverage: The share of windows that it sees at all.
    """

    name: str
    windows: int
    taken: float
    epochs: float
    coverage: float


def repetitions(store: TokenStore, context_length: int, plan: Plan, seed: int) -> list[Repetition]:
    """Return what a run with `order=shuffle` takes: of each component of its mixture; else of all and of each language.

    Raises:
        ConfigError: If `mix` names what is not there, or has other weights than positive numbers.
    """
    selection = WindowSelection({"": store}, "train", context_length, "shuffle", seed, None, {}, plan.mix)
    mixture = selection.mixture()
    epochs = mixture.epochs_of(plan.windows)
    sizes = dict(zip(mixture.orders, mixture.sizes.tolist(), strict=True))
    if not mixture.num_windows:
        return []
    if plan.mix:
        return [_repetition(name, sizes[name], epochs[name]) for name in epochs]
    [all_of_them] = epochs.values()
    found = [_repetition("", mixture.num_windows, all_of_them)]
    for stream in store.streams("train"):
        count = windows_of(stream.num_tokens, context_length, "shuffle")
        found.append(_repetition(stream.language, count, all_of_them if count else 0.0))
    return found


def _repetition(name: str, windows: int, epochs: float) -> Repetition:
    return Repetition(name, windows, windows * epochs, epochs, min(epochs, 1.0))
