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
        return Fraction(self.tokens, self.documents) if self.documents and self.tokens else Fraction(1)


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
    return {name: Fraction(str(weight)) * counts[name].mean for name, weight in weights.items()}


def means_sentence(counts: Mapping[str, Counts]) -> str:
    """Return what the weights go by, in a sentence."""
    means = [f"{float(count.mean):,.1f} tokens ({name})" for name, count in counts.items()]
    return f"Weights count documents (mix_by): one has {', '.join(means)} on average."
