"""Weights by documents: shares of documents, in place of shares of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple, cast, get_args

from lightning_lance.errors import ConfigError, one_of

MixBy = Literal["tokens", "documents"]


class Counts(NamedTuple):
    """What the stores hold of a component, in both splits.

    Attributes:
        documents: Its documents.
        tokens: Their tokens, EOS included.
    """

    documents: int
    tokens: int

    @property
    def mean(self) -> Fraction:
        """Tokens of a document, exactly; 1 where there is none."""
        if not self.documents or not self.tokens:
            return Fraction(1)
        return Fraction(self.tokens, self.documents)


def check_mix_by(mix_by: Any, mix: Mapping[str, float]) -> MixBy:
    """Return what weights are shares of.

    Raises:
        ConfigError: If it is unknown, or there are no weights.
    """
    chosen = cast(MixBy, one_of("mix_by", mix_by, get_args(MixBy)))
    if chosen == "documents" and not mix:
        raise ConfigError("mix_by is 'documents', but there are no weights: give mix or mix_schedule, or leave it out.")
    return chosen


def by_tokens(weights: Mapping[str, float], counts: Mapping[str, Counts]) -> dict[str, Fraction]:
    """Return the weights, as shares of tokens, that give each component its share of documents.

    Windows have one length, so a component whose documents are twice as long needs twice the windows for as many documents.

    Args:
        weights: Shares of documents, by component. A weight counts as the decimal number that it is printed as.
        counts: What the stores hold of each component.
    """
    shares: dict[str, Fraction] = {}
    for name, weight in weights.items():
        shares[name] = Fraction(str(weight)) * counts[name].mean
    return shares


def means_sentence(counts: Mapping[str, Counts]) -> str:
    """Return what the weights go by, in a sentence."""
    means = []
    for name, count in counts.items():
        means.append(f"{float(count.mean):,.1f} tokens ({name})")
    return f"Weights count documents (mix_by): one has {', '.join(means)} on average."
