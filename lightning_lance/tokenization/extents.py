"""Where tokens lie in their texts, exactly.

No engine tells that, or only slowly. But a byte-level tokenizer takes a text apart into the bytes of its tokens, so their
lengths say where each begins; that the bytes are those of the text is checked. Where they are not, as with a normalizer or
SentencePiece, the text is encoded once more by the `tokenizers` library, which gives offsets, and the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.arrow import offsets_and_bytes
from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.gigatoken import Encoded
from lightning_lance.tokenization.long_texts import cut_points
from lightning_lance.tokenization.tokenizer import Pieces, Tokenizer


class Extents(NamedTuple):
    """Where the tokens of n texts lie, in bytes of the texts laid end to end.

    Attributes:
        begins: (total,) the first byte of each token.
        ends: (total,) the byte after its last one.
    """

    begins: np.ndarray
    ends: np.ndarray


class Characters:
    """Where the characters of n texts begin, in bytes of the texts laid end to end.

    Attributes:
        counts: (n,) characters of each text.
        borders: (n + 1,) borders of the texts.
        data: The bytes.
    """

    def __init__(self, texts: pa.Array) -> None:
        borders, data = offsets_and_bytes(texts)
        self.borders = borders - borders[0]
        self.data = data[borders[0] : borders[-1]]
        # In UTF-8, only the first byte of a character differs from 0b10xxxxxx.
        self._begins = np.append(np.flatnonzero((self.data & 0xC0) != 0x80), len(self.data))
        self._before = np.searchsorted(self._begins, self.borders)
        self.counts = np.diff(self._before)

    def bytes_at(self, texts: np.ndarray, characters: np.ndarray) -> np.ndarray:
        """Return the places of characters of some texts; of their end, the place after the last one."""
        places: np.ndarray = self._begins[self._before[texts] + characters]
        return places


def extents_of(tokenizer: Tokenizer, characters: Characters, encoded: Encoded, max_bytes: int) -> Extents:
    """Return where the tokens of texts lie.

    Args:
        tokenizer: The tokenizer.
        characters: The texts.
        encoded: Their ids.
        max_bytes: Longest text that is encoded at once.

    Raises:
        ConfigError: If the tokenizer does not say where the tokens of a text lie.
    """
    total = len(encoded.ids)
    begins = np.zeros(total, np.int64)
    ends = np.zeros(total, np.int64)
    others = np.arange(len(characters.counts))
    pieces = tokenizer.pieces
    if pieces is not None:
        sizes = pieces.sizes[encoded.ids]
        sums = np.append(0, np.cumsum(sizes))
        of_text = np.repeat(others, np.diff(encoded.offsets))
        begins = sums[:-1] - sums[encoded.offsets[:-1]][of_text] + characters.borders[:-1][of_text]
        ends = begins + sizes
        others = _differing(pieces, encoded, np.diff(sums[encoded.offsets]), characters)
    for text in others.tolist():
        mine = slice(int(encoded.offsets[text]), int(encoded.offsets[text + 1]))
        ids: list[int] = []
        offsets = [np.empty((0, 2), np.int64)]
        for some, their_offsets in _by_reference(tokenizer, characters, text, max_bytes):
            ids += some
            offsets.append(their_offsets)
        if ids != encoded.ids[mine].tolist():
            raise ConfigError(
                f"The tokenizer does not say where the tokens of a text lie ({len(ids):,} of them by its offsets, "
                f"{mine.stop - mine.start:,} stored): choose another, or leave out source.loss_mask_column."
            )
        places = np.concatenate(offsets)
        numbers = np.full(len(places), text)
        begins[mine] = characters.bytes_at(numbers, places[:, 0])
        ends[mine] = characters.bytes_at(numbers, places[:, 1])
    return Extents(begins, ends)


def _differing(pieces: Pieces, encoded: Encoded, sizes: np.ndarray, characters: Characters) -> np.ndarray:
    """Return the texts that are not the bytes of their tokens, which are so many: (m,) numbers of texts."""
    lengths = np.diff(characters.borders)
    same = sizes == lengths
    ids, data = encoded.ids, characters.data
    if not same.all():
        ids = ids[np.repeat(same, np.diff(encoded.offsets))]
        data = data[np.repeat(same, lengths)]
    joined = pieces.spelled.take(pa.array(ids))
    spelled = offsets_and_bytes(joined)[1][: len(data)]
    wrong = np.flatnonzero(spelled != data)
    if len(wrong):
        kept = np.flatnonzero(same)
        same[kept[np.searchsorted(np.cumsum(lengths[kept]), wrong, side="right")]] = False
    return np.flatnonzero(~same)


def _by_reference(
    tokenizer: Tokenizer, characters: Characters, text: int, max_bytes: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield the ids of the pieces of a text, and their offsets in characters of the text, (tokens, 2)."""
    low, high = characters.borders[text : text + 2].tolist()
    data = characters.data[low:high]
    first = 0
    for begin, end in pairwise([0, *cut_points(data, max_bytes), len(data)]):
        piece = data[begin:end].tobytes().decode()
        ids, offsets = tokenizer.offsets(piece)
        yield ids, np.asarray(offsets, np.int64).reshape(-1, 2) + first
        first += len(piece)


def trained_tokens(
    characters: Characters, extents: Extents, offsets: np.ndarray, of: np.ndarray, spans: np.ndarray
) -> np.ndarray:
    """Return which tokens are trained on, the EOS behind each text included: (total + n,) bool.

    A token is if a span has any of its bytes; EOS, if a span has the last character of the text.

    Args:
        characters: The texts.
        extents: Where their tokens lie.
        offsets: (n + 1,) borders of the texts among the tokens.
        of: (m,) the text of each span.
        spans: (m, 2) the characters from which and up to which it goes.
    """
    begins = characters.bytes_at(of, spans.T)
    first, last = begins[:, begins[0] < begins[1]]
    order = np.argsort(first, kind="stable")
    first = first[order]
    reached = np.maximum.accumulate(last[order]) if len(order) else last
    # Tokens that have no bytes of their own count as the byte that follows.
    trained = _touch(extents.begins, np.maximum(extents.ends, extents.begins + 1), first, reached)
    ends = characters.borders[1:]
    of_eos = _touch(ends - 1, ends, first, reached) & (np.diff(characters.borders) > 0)
    return np.insert(trained, offsets[1:], of_eos)


def _touch(begins: np.ndarray, ends: np.ndarray, first: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Return which ranges have a byte of a span; `first` are the spans' begins, and `reached` how far those so far go."""
    # The first span that goes beyond the begin: all that do begin no earlier.
    span = np.searchsorted(reached, begins, side="right")
    found = np.append(first, np.iinfo(np.int64).max)[span]
    touched: np.ndarray = found < ends
    return touched
