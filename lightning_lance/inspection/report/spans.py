"""Which tokens of a store are read: all of a small one, and of a large one spans that are spread over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, described, is_count, whole_number
from lightning_lance.messages.formatting import format_number, pluralize
from lightning_lance.store.token_store import TokenStore

#: Tokens that are read unless the user says otherwise. Stores up to here are read whole.
DEFAULT_SAMPLE = 20_000_000
# Tokens in memory at a time.
_AT_ONCE = 1 << 17
# Tokens of a span of a sample: long enough for a disk or a bucket, short enough for hundreds of places.
_SPAN = 1 << 14
# Spans of the smallest samples, and the tokens of each.
_FEWEST_SPANS = 64
_SHORTEST_SPAN = 64


class Spans(NamedTuple):
    """Spans of equal length, which are read at once: (n,) offsets of their first tokens among those of a split."""

    split: str
    starts: np.ndarray
    length: int


@dataclass(frozen=True)
class Reading:
    """How much of a store is read.

    Attributes:
        store: The store.
        most: Most tokens to read; None for all.
        seed: Seed of the sample.
    """

    store: TokenStore
    most: int | None = DEFAULT_SAMPLE
    seed: int = 0

    @property
    def total(self) -> int:
        """Tokens of the store."""
        return sum(map(self.store.num_tokens, SPLITS))

    @property
    def is_exact(self) -> bool:
        """Whether all tokens are read."""
        return self.most is None or self.total <= self.most

    def spans(self) -> Iterator[Spans]:
        """Yield what is read, a bounded number of tokens at a time."""
        draw = np.random.default_rng(self.seed)
        for split in SPLITS:
            tokens = self.store.num_tokens(split)
            if tokens and self.is_exact:
                yield from _all(split, tokens)
            elif tokens:
                yield from _sampled(split, tokens, self._share(tokens), draw)

    def _share(self, tokens: int) -> int:
        """Return the tokens that a split of so many gets of the sample."""
        return max(int((self.most or 0) * tokens / self.total), 1)


def _all(split: str, tokens: int) -> Iterator[Spans]:
    for start in range(0, tokens, _AT_ONCE):
        yield Spans(split, np.asarray([start]), min(_AT_ONCE, tokens - start))


def _sampled(split: str, tokens: int, wanted: int, draw: np.random.Generator) -> Iterator[Spans]:
    """Yield one span of each of equal parts of a split, at a random place in it. No token is in two spans."""
    length = min(max(wanted // _FEWEST_SPANS, _SHORTEST_SPAN), _SPAN, tokens)
    places = tokens // length
    count = min(max(wanted // length, 1), places)
    borders = np.arange(count + 1) * places // count
    starts = draw.integers(borders[:-1], borders[1:]) * length + int(draw.integers(tokens % length + 1))
    together = max(_AT_ONCE // length, 1)
    for first in range(0, count, together):
        yield Spans(split, starts[first : first + together], length)


def basis_of(read: int, total: int, noun: str, is_exact: bool) -> str:
    """Return what a figure rests on: `exact`, or the size of the sample, for tokens or windows."""
    if is_exact:
        return f"exact, of all {pluralize(total, noun)}"
    return f"from a sample of {format_number(read)} of {format_number(total)} {noun}s"


def checked_sample(sample: Any) -> int | None:
    """Return the most tokens to read; None for all.

    Raises:
        ConfigError: If it is neither a number of tokens nor `all`.
    """
    if sample is None or sample == "all":
        return None
    if not is_count(sample):
        raise ConfigError(f"sample is {described(sample)}: expected a number of tokens, such as 20_000_000, or all.")
    return whole_number("sample", sample)
