"""Fill-in-the-middle: some documents of a window are rearranged so that a model learns to write what is missing between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_lance.errors import ConfigError, integer
from lightning_lance.serving.permutation import key_words, splitmix64
from lightning_lance.tokenization.tokenizer import Tokenizer

_Ints = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]
_Draws = npt.NDArray[np.float64]

# Tokens that a rearranged document is longer by: its sentinels.
_GROWTH = 3
# A document of fewer tokens, EOS not counted, stays as it is: it would be sentinels more than text.
_SHORTEST = 3
# What a user names: the tokens in the order of the constructor, and the shares.
_SENTINELS = ("prefix_token", "middle_token", "suffix_token")
_RATES = ("fim_rate", "spm_rate")


def check_names(named: Mapping[str, Any]) -> None:
    """Refuse arguments that `FillInTheMiddle.named` cannot take, whatever the tokenizer.

    Raises:
        ConfigError: If a sentinel is missing, a key unknown, or a rate no share.
    """
    if not isinstance(named, Mapping) or not {*_SENTINELS} <= {*named} <= {*_SENTINELS, *_RATES, "seed"}:
        found = ", ".join(map(str, named)) if isinstance(named, Mapping) else repr(named)
        raise ConfigError(f"fim has {found}: expected {', '.join(_SENTINELS)}, and perhaps {', '.join(_RATES)}.")
    _check_rates({name: named[name] for name in _RATES if name in named})
    integer("fim.seed", named.get("seed", 0))


def _check_rates(rates: Mapping[str, Any]) -> None:
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 0 <= rate <= 1:
            raise ConfigError(f"{name} is {rate!r}: expected a share between 0 and 1.")


@dataclass(frozen=True)
class FillInTheMiddle:
    """Rearranges documents for fill-in-the-middle (Bavarian et al. 2022, arXiv:2207.14255), cut between tokens.

    A document is cut in three at two places, each drawn evenly from all that there are, so that any of the three may be
    empty. With their sentinels they become, in the two forms that the paper trains on together:

        PSM: prefix_id, prefix, suffix_id, suffix, middle_id, middle
        SPM: prefix_id, suffix_id, suffix, middle_id, prefix, middle

    EOS stays where it was, behind. What is in a window is rearranged, never across documents; the first and the last
    piece of a window count as documents too. A window stays as long as it was: tokens at its end that sentinels take the
    place of are left out before anything is cut, so that no rearranged document misses a part.

    What becomes of a document is a function of the seed, the epoch and the offset of its first token in the window, so it
    is the same on any rank, in any batch, and after a resume.

    Attributes:
        prefix_id: Sentinel before the prefix. The three must be ids that no document has, as those of added tokens are.
        middle_id: Sentinel before the middle.
        suffix_id: Sentinel before the suffix.
        seed: Of all draws.
        fim_rate: Share of the documents that are rearranged.
        spm_rate: Share of these that get the form SPM.

    Raises:
        ConfigError: If the sentinels are not three different ids, or a rate is not within 0 and 1.
    """

    prefix_id: int
    middle_id: int
    suffix_id: int
    seed: int
    fim_rate: float = 0.5
    spm_rate: float = 0.5

    def __post_init__(self) -> None:
        ids = (self.prefix_id, self.middle_id, self.suffix_id)
        if len(set(ids)) < len(ids) or min(ids) < 0:
            raise ConfigError(
                f"prefix_id, middle_id and suffix_id are {ids}: expected three different ids from 0 on; take those of the "
                "tokenizer's own fill-in-the-middle tokens."
            )
        _check_rates({"fim_rate": self.fim_rate, "spm_rate": self.spm_rate})
        # The draws go by how it is spelled.
        object.__setattr__(self, "seed", integer("fim.seed", self.seed))

    @classmethod
    def named(
        cls, tokenizer: Tokenizer, prefix_token: str, middle_token: str, suffix_token: str, **options: Any
    ) -> FillInTheMiddle:
        """Make it with the sentinels that a tokenizer has for it, by their spelling. ConfigError if it has not."""
        tokens = {"prefix_id": prefix_token, "middle_id": middle_token, "suffix_id": suffix_token}
        return cls(**{name: tokenizer.id_of(token) for name, token in tokens.items()}, **options)

    def check(self, eos_id: int) -> None:
        """Refuse sentinels that would end a document.

        Raises:
            ConfigError: If one of them is `eos_id`.
        """
        for name in ("prefix_id", "middle_id", "suffix_id"):
            if getattr(self, name) == eos_id:
                raise ConfigError(f"{name} is {eos_id}, which ends documents (EOS): expected another id; add a token.")

    def apply(self, windows: npt.NDArray[Any], starts: _Ints, epochs: _Ints, eos_id: int) -> _Ints:
        """Rearrange the documents that the draws choose.

        Args:
            windows: (n, length) integers.
            starts: (n,) offsets of the first tokens among the tokens of the split.
            epochs: (n,) epoch of each window.
            eos_id: The id that ends every document.

        Returns:
            (n, length) int64, new.
        """
        length, flat = windows.shape[1], windows.reshape(-1)
        # Documents: where they begin in the windows laid end to end, and how long they are with their EOS.
        after_eos = np.flatnonzero(flat == eos_id) + 1
        inner, of_windows = after_eos[after_eos % length != 0], np.arange(0, flat.size, length)
        begins = np.sort(np.concatenate([inner, of_windows]))
        lengths = np.diff(begins, append=flat.size)
        with_eos = flat[begins + lengths - 1] == eos_id
        row, column = np.divmod(begins, length)
        rearrange, spm, first, second = self._draws(starts[row] + column, epochs[row])
        rearrange &= lengths - with_eos >= _SHORTEST

        # Where they come to lie in their window. One per window at most crosses its end; none behind it has a place.
        grown = np.cumsum(_GROWTH * rearrange) - _GROWTH * rearrange
        places = column + grown - grown[np.searchsorted(begins, of_windows)][row]
        room = length - places
        whole = lengths + _GROWTH * rearrange <= room
        # With too little room to be rearranged, it is left as it was, with all that follows: it may now fit, and they too.
        rearrange &= room >= _GROWTH + _SHORTEST
        taken = np.where(whole, lengths, np.maximum(room - _GROWTH * rearrange, 0))
        text = taken - (rearrange & whole & with_eos)
        low, high = np.sort([_below(first, text + 1), _below(second, text + 1)], axis=0)
        # One that stays is all prefix, without sentinels. SPM has prefix and middle in one piece, which is the middle's.
        prefix = np.where(rearrange, np.where(spm, 0, low), text)
        high = np.where(rearrange, high, text)

        # Seven pieces of each, in the order of PSM: where they are among the tokens, behind which are the sentinels.
        tokens = np.append(flat.astype(np.int64), [self.prefix_id, self.suffix_id, self.middle_id])
        sentinel = np.broadcast_to(flat.size, begins.shape)
        sources = [sentinel, begins, sentinel + 1, begins + high, sentinel + 2, begins + prefix, begins + text]
        counts = [rearrange, prefix, rearrange, text - high, rearrange, high - prefix, taken - text]
        source, count = np.stack(sources, axis=1).reshape(-1), np.stack(counts, axis=1).reshape(-1)
        places_of_pieces = np.cumsum(count) - count
        gather = np.repeat(source - places_of_pieces, count)
        gather += np.arange(flat.size)
        rearranged: _Ints = tokens[gather].reshape(windows.shape)
        return rearranged

    def _draws(self, offsets: _Ints, epochs: _Ints) -> tuple[_Flags, _Flags, _Draws, _Draws]:
        """Draw for documents at some offsets: whether to rearrange, whether as SPM, and two places to cut in [0, 1)."""
        each, of_document = np.unique(epochs, return_inverse=True)
        keys = np.stack([key_words("fill-in-the-middle", self.seed, epoch, count=4) for epoch in each.tolist()])
        words = splitmix64(offsets.astype(np.uint64)[:, None] + keys[of_document])
        chosen, form, first, second = ((words >> np.uint64(11)) * 2.0**-53).T
        return chosen < self.fim_rate, form < self.spm_rate, first, second

    def undo(self, windows: _Ints, eos_id: int) -> list[_Ints]:
        """Put documents together again, for looking at what a model gets.

        Args:
            windows: (n, length) int64, from `apply`.
            eos_id: The id that ends every document.

        Returns:
            The tokens that each window began with: the first ones, as many as there was room for beside the sentinels.
        """
        documents = (np.split(window, np.flatnonzero(window == eos_id) + 1) for window in windows)
        return [np.concatenate([self._undo(document, eos_id) for document in window]) for window in documents]

    def _undo(self, document: _Ints, eos_id: int) -> _Ints:
        if not len(document) or document[0] != self.prefix_id:
            return document
        end = len(document) - (document[-1] == eos_id)
        suffix, middle = (int(np.flatnonzero(document == token)[0]) for token in (self.suffix_id, self.middle_id))
        # In SPM nothing is between the first two sentinels, and the prefix is with the middle.
        pieces = document[1:suffix], document[middle + 1 : end], document[suffix + 1 : middle], document[end:]
        return np.concatenate(pieces)


def _below(draws: _Draws, bounds: _Ints) -> _Ints:
    """Turn draws in [0, 1) into integers below some bounds."""
    return (draws * bounds).astype(np.int64)
