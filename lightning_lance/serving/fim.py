"""Fill-in-the-middle: rearrange some documents of a window, so that a model learns to fill gaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_lance.errors import ConfigError, described, integer
from lightning_lance.serving.ordering.permutation import key_words, splitmix64
from lightning_lance.tokenization.tokenizer import Tokenizer

_Ints = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]
_Draws = npt.NDArray[np.float64]

# Tokens that a rearranged document grows by: its sentinels.
_GROWTH = 3
# A document of fewer tokens, EOS not counted, is not rearranged: it would have more sentinels than text.
_SHORTEST = 3
# The arguments of `named`: the tokens in the order of the constructor, and the shares.
_SENTINELS = ("prefix_token", "middle_token", "suffix_token")
_RATES = ("fim_rate", "spm_rate")


def check_names(named: Mapping[str, Any]) -> None:
    """Check the arguments of `FillInTheMiddle.named`, without a tokenizer.

    Raises:
        ConfigError: If a sentinel is missing, a key is unknown, or a rate is not between 0 and 1.
    """
    if not isinstance(named, Mapping):
        raise ConfigError(f"fim is {described(named)}: expected a mapping with {', '.join(_SENTINELS)}.")
    if not {*_SENTINELS} <= {*named} <= {*_SENTINELS, *_RATES, "seed"}:
        raise ConfigError(
            f"fim has {', '.join(map(str, named))}: expected {', '.join(_SENTINELS)}, and optionally {', '.join(_RATES)}."
        )
    for name in _RATES:
        _check_rate(name, named.get(name, 0))
    integer("fim.seed", named.get("seed", 0))


def _check_rate(name: str, rate: Any) -> None:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 0 <= rate <= 1:
        raise ConfigError(f"{name} is {rate!r}: expected a number between 0 and 1.")


class Arranged(NamedTuple):
    """Rearranged windows, and where their tokens come from.

    Attributes:
        tokens: (n, length) int64.
        source: (n * length,) the place of each token in the windows laid end to end before; from n * length on, a sentinel.
        begins: (documents,) where the documents began, through all windows.
        counts: (documents, pieces) tokens of the pieces that each document is of now.
    """

    tokens: _Ints
    source: _Ints
    begins: _Ints
    counts: _Ints

    def any_in_document(self, flags: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return whether one of the tokens that each token's document had was flagged, (n * length,)."""
        of_documents = np.logical_or.reduceat(flags.reshape(-1), self.begins)
        found: npt.NDArray[Any] = np.repeat(of_documents, self.counts.sum(axis=1))
        return found

    def move(self, values: npt.NDArray[Any], at_sentinels: Any) -> npt.NDArray[Any]:
        """Return the values of tokens, (n, length), as the tokens are; `at_sentinels` are those of sentinels."""
        flat = values.reshape(-1)
        is_sentinel = self.source >= flat.size
        moved = flat[np.where(is_sentinel, 0, self.source)]
        moved[is_sentinel] = np.broadcast_to(at_sentinels, is_sentinel.shape)[is_sentinel]
        arranged: npt.NDArray[Any] = moved.reshape(values.shape)
        return arranged


@dataclass(frozen=True)
class FillInTheMiddle:
    """Rearranges documents for fill-in-the-middle (Bavarian et al. 2022, arXiv:2207.14255), cut between tokens.

    A document is cut into three at two places. Both are drawn uniformly, so any of the three parts may be empty. With
    their sentinels, the parts become one of the two forms that the paper trains on together:

        PSM: prefix_id, prefix, suffix_id, suffix, middle_id, middle
        SPM: prefix_id, suffix_id, suffix, middle_id, prefix, middle

    EOS stays at the end. Rearranging never crosses documents; the first and last piece of a window count as documents
    too. A window keeps its length: the tokens at its end that would not fit beside the sentinels are dropped before
    anything is cut, so no rearranged document lacks a part.

    The result depends on the seed, the epoch and the offset of a document's first token in the window alone, so it is the
    same on any rank, in any batch, and after a resume.

    Attributes:
        prefix_id: Sentinel before the prefix. The three ids must not occur in documents; ids of added tokens do not.
        middle_id: Sentinel before the middle.
        suffix_id: Sentinel before the suffix.
        seed: Seed of all draws.
        fim_rate: Share of documents that are rearranged.
        spm_rate: Share of rearranged documents in the form SPM.

    Raises:
        ConfigError: If the sentinels are not three different ids, or a rate is not between 0 and 1.
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
                f"prefix_id, middle_id and suffix_id are {ids}: expected three different ids from 0 on; use the ids of the "
                "tokenizer's own fill-in-the-middle tokens."
            )
        for name in _RATES:
            _check_rate(name, getattr(self, name))
        # The draws hash the seed as text.
        object.__setattr__(self, "seed", integer("fim.seed", self.seed))

    @classmethod
    def named(
        cls, tokenizer: Tokenizer, prefix_token: str, middle_token: str, suffix_token: str, **options: Any
    ) -> FillInTheMiddle:
        """Return an instance with the ids of a tokenizer's sentinels. ConfigError if the tokenizer lacks one."""
        return cls(
            prefix_id=tokenizer.id_of(prefix_token),
            middle_id=tokenizer.id_of(middle_token),
            suffix_id=tokenizer.id_of(suffix_token),
            **options,
        )

    def check(self, eos_id: int) -> None:
        """Check that no sentinel ends a document.

        Raises:
            ConfigError: If a sentinel is `eos_id`.
        """
        for name in ("prefix_id", "middle_id", "suffix_id"):
            if getattr(self, name) == eos_id:
                raise ConfigError(
                    f"{name} is {eos_id}, the id that ends documents (EOS): expected another id; add a token."
                )

    def arrange(self, windows: npt.NDArray[Any], starts: _Ints, epochs: _Ints, eos_id: int) -> Arranged:
        """Rearrange the drawn documents of windows.

        Args:
            windows: (n, length) integers.
            starts: (n,) offsets of the first tokens among the tokens of the split.
            epochs: (n,) epoch of each window.
            eos_id: The id that ends every document.

        Returns:
            The windows, with where their tokens come from.
        """
        length = windows.shape[1]
        flat = windows.reshape(-1)
        # Documents: their begins in the windows laid end to end, and their lengths with EOS.
        after_eos = np.flatnonzero(flat == eos_id) + 1
        inner = after_eos[after_eos % length != 0]
        of_windows = np.arange(0, flat.size, length)
        begins = np.sort(np.concatenate([inner, of_windows]))
        lengths = np.diff(begins, append=flat.size)
        with_eos = flat[begins + lengths - 1] == eos_id
        row, column = np.divmod(begins, length)
        rearrange, spm, first, second = self._draws(starts[row] + column, epochs[row])
        rearrange &= lengths - with_eos >= _SHORTEST

        # Their new places in the window. At most one document crosses the end of a window; those behind it are dropped.
        grown = np.cumsum(_GROWTH * rearrange) - _GROWTH * rearrange
        places = column + grown - grown[np.searchsorted(begins, of_windows)][row]
        room = length - places
        whole = lengths + _GROWTH * rearrange <= room
        # Without room for sentinels, a document is left as it was, as are those that follow: without sentinels, all may fit.
        rearrange &= room >= _GROWTH + _SHORTEST
        taken = np.where(whole, lengths, np.maximum(room - _GROWTH * rearrange, 0))
        text = taken - (rearrange & whole & with_eos)
        low, high = np.sort([_below(first, text + 1), _below(second, text + 1)], axis=0)
        # An unchanged document is all prefix, without sentinels. SPM has prefix and middle in one piece, the middle's.
        prefix = np.where(rearrange, np.where(spm, 0, low), text)
        high = np.where(rearrange, high, text)

        # Each document has seven pieces, in the order of PSM. `sources` are their offsets in `tokens`, sentinels appended.
        tokens = np.append(flat.astype(np.int64), [self.prefix_id, self.suffix_id, self.middle_id])
        sentinel = np.broadcast_to(flat.size, begins.shape)
        sources = [sentinel, begins, sentinel + 1, begins + high, sentinel + 2, begins + prefix, begins + text]
        counts = [rearrange, prefix, rearrange, text - high, rearrange, high - prefix, taken - text]
        source = np.stack(sources, axis=1).reshape(-1)
        of_pieces = np.stack(counts, axis=1)
        count = of_pieces.reshape(-1)
        places_of_pieces = np.cumsum(count) - count
        gather = np.repeat(source - places_of_pieces, count)
        gather += np.arange(flat.size)
        return Arranged(tokens[gather].reshape(windows.shape), gather, begins, of_pieces)

    def _draws(self, offsets: _Ints, epochs: _Ints) -> tuple[_Flags, _Flags, _Draws, _Draws]:
        """Return the draws for documents at some offsets: rearrange or not, SPM or not, and two cuts in [0, 1)."""
        each, of_document = np.unique(epochs, return_inverse=True)
        keys = np.stack([key_words("fill-in-the-middle", self.seed, epoch, count=4) for epoch in each.tolist()])
        words = splitmix64(offsets.astype(np.uint64)[:, None] + keys[of_document])
        chosen, form, first, second = ((words >> np.uint64(11)) * 2.0**-53).T
        return chosen < self.fim_rate, form < self.spm_rate, first, second

    def undo(self, windows: _Ints, eos_id: int) -> list[_Ints]:
        """Return the original text of rearranged windows, to inspect the input of a model.

        Args:
            windows: (n, length) int64, from `apply`.
            eos_id: The id that ends every document.

        Returns:
            The first tokens of each window before `apply`: those that fitted beside the sentinels.
        """
        restored = []
        for window in windows:
            documents = np.split(window, np.flatnonzero(window == eos_id) + 1)
            restored.append(np.concatenate([self._undo(document, eos_id) for document in documents]))
        return restored

    def _undo(self, document: _Ints, eos_id: int) -> _Ints:
        if not len(document) or document[0] != self.prefix_id:
            return document
        end = len(document) - (document[-1] == eos_id)
        suffix = int(np.flatnonzero(document == self.suffix_id)[0])
        middle = int(np.flatnonzero(document == self.middle_id)[0])
        # In SPM, the first two sentinels are adjacent, and the prefix lies with the middle.
        pieces = document[1:suffix], document[middle + 1 : end], document[suffix + 1 : middle], document[end:]
        return np.concatenate(pieces)


def _below(draws: _Draws, bounds: _Ints) -> _Ints:
    """Scale draws in [0, 1) to integers below some bounds."""
    return (draws * bounds).astype(np.int64)
