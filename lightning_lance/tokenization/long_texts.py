"""Long texts are encoded in pieces, so that time and memory stay bounded; each remains one document.

For a text without spaces, tokenizers need n log n steps and 20 to 150 bytes of memory per byte: a line of 50 MB takes minutes
as a whole, and seconds in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa

from lightning_lance.documents.arrow import offsets_and_bytes
from lightning_lance.tokenization.gigatoken import Encoded
from lightning_lance.tokenization.tokenizer import Tokenizer

# Pieces are encoded in batches of this size.
_TOGETHER_BYTES = 16 << 20

_NEWLINE = ord("\n")


def cut_points(text: np.ndarray, max_bytes: int) -> list[int]:
    """Return the cuts of a long text, which depend on the text and the limit only.

    A piece is at least half as long as the limit, and ends at the last place of the best kind: after a line end between two
    characters that are not spaces (most tokenizers return the same ids there as without a cut), after any line end, before a
    space (byte-level tokenizers join it to the following word), or between two characters.

    Args:
        text: (n,) uint8, UTF-8.
        max_bytes: Longest piece, at least 16.

    Returns:
        Offsets of all pieces but the first; empty if the text is not longer than `max_bytes`.
    """
    cuts: list[int] = []
    low = 0
    while len(text) - low > max_bytes:
        low = _cut(text, low + max_bytes // 2, low + max_bytes)
        cuts.append(low)
    return cuts


def _cut(text: np.ndarray, low: int, high: int) -> int:
    """Return the place in (low, high] to cut before; low is at least 8, high below the length."""
    # For each place, the last two bytes before the cut and the first one after it.
    earlier = text[low - 1 : high - 1]
    before = text[low:high]
    after = text[low + 1 : high + 1]
    lines = before == _NEWLINE
    for places in (lines & ~_is_space(earlier) & ~_is_space(after), lines, _is_space(after) & ~_is_space(before)):
        if places.any():
            return low + 1 + int(np.flatnonzero(places)[-1])
    # In UTF-8, only the first byte of a character differs from 0b10xxxxxx.
    return low + 1 + int(np.flatnonzero((after & 0xC0) != 0x80)[-1])


def _is_space(text: np.ndarray) -> np.ndarray:
    return np.asarray((text == ord(" ")) | ((text >= ord("\t")) & (text <= ord("\r"))))


def encode_texts(tokenizer: Tokenizer, texts: pa.Array, max_bytes: int) -> Encoded:
    """Encode texts, long ones in pieces.

    Args:
        tokenizer: The tokenizer.
        texts: (n,) large_string without nulls.
        max_bytes: Longest text that is encoded at once.

    Returns:
        The ids of n texts.
    """
    borders, data = offsets_and_bytes(texts)
    long = np.flatnonzero(np.diff(borders) > max_bytes)
    if not len(long):
        return tokenizer.encode_batch(texts)
    cuts = [borders]
    for i in long.tolist():
        cuts.append(borders[i] + np.asarray(cut_points(data[borders[i] : borders[i + 1]], max_bytes), np.int64))
    # Empty texts share their border with the next one, so the cuts are inserted by position, not as a set.
    inserted = np.concatenate(cuts[1:])
    pieces = np.insert(borders, np.searchsorted(borders, inserted), inserted)
    ids: list[np.ndarray] = []
    counts = [np.zeros(1, np.int64)]
    for part in _encode_pieces(tokenizer, pieces, texts.buffers()[2]):
        ids.append(part.ids)
        counts.append(np.diff(part.offsets))
    ends = np.cumsum(np.concatenate(counts))
    firsts = np.arange(len(borders)) + np.searchsorted(np.sort(inserted), borders, side="left")
    return Encoded(np.concatenate(ids), ends[firsts])


def in_pieces(texts: pa.Array, max_bytes: int) -> Iterator[tuple[int, str]]:
    """Yield the pieces of texts in `encode_texts`, as pairs of the text's position and the piece. Args as there."""
    borders, data = offsets_and_bytes(texts)
    for place in range(len(texts)):
        low, high = int(borders[place]), int(borders[place + 1])
        cuts = [0, *cut_points(data[low:high], max_bytes), high - low]
        for start, end in pairwise(cuts):
            yield place, data[low + start : low + end].tobytes().decode()


def _encode_pieces(tokenizer: Tokenizer, borders: np.ndarray, data: pa.Buffer) -> Iterator[Encoded]:
    # The pieces share the memory of the texts.
    array = pa.LargeStringArray.from_buffers(len(borders) - 1, pa.py_buffer(np.ascontiguousarray(borders)), data)
    group = (borders[:-1] - borders[0]) // _TOGETHER_BYTES
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(array)]
    for low, high in pairwise(starts):
        yield tokenizer.encode_batch(array.slice(low, high - low))
