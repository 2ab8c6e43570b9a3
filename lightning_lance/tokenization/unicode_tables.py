"""Characters that the engines may see differently: where texts hold some, their words are left to `tokenizers`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.arrow import offsets_and_bytes

# Characters come in blocks of so many, which share all but the last byte of their UTF-8.
BLOCK = 64
POINTS = 0x110000

# Code points that these versions see differently, of all planes, and what they were compared on: hashes of the regular
# expressions that gigatoken knows, and other parts. Made by benchmarks/compare_engines.py.
COMPARED_WITH = {"gigatoken": "0.10.0", "tokenizers": "0.23.3"}
COMPARED = {
    "09de0269b3889e1c",
    "539d1ef26f5b9115",
    "547af4c57ac1a239",
    "705deb98021fc413",
    "7247e569a8bd17c0",
    "ByteLevel",
    "NFC",
    "a0f80db84d7eeb73",
    "c05c70800727725b",
    "daa1038f26c762f8",
}
NEWER = (
    "295 7EB-7F1 7F3 7FD 88F 897-89F 8CA-8E1 8E3-8FF 9FE C3C C5C CDC D3B-D3C EBA 1715 1AB0-1ABD 1ABF-1ADD 1AE0-1AEB "
    "1DC0-1DFF 20C1 2B96 A7CE-A7CF A7D2 A7D4 A7F1 A82C FBC3-FBD2 FD90-FD91 FDC8-FDCE 105D2 105DA 10940-10959 10D24-10D27 "
    "10D69-10D6D 10EAB-10EAC 10EC5-10EC7 10ED0-10ED8 10EFA-10EFB 10EFD-10EFF 10F46-10F50 10F82-10F85 11070 1133B 1134D "
    "11366-1136C 11370-11374 11382 11384 1138B 11390 113B8 113BB 113C2 113C5 113C7-113C9 113CE-113D0 11442 11446 1145E "
    "11839-1183A 11930 11935 1193D-1193E 11943 119E0 11A34 11A47 11A99 11B60-11B67 11D42 11D44-11D45 11D97 11DB0-11DDB "
    "11DE0-11DE9 11F41-11F42 1611E-16129 1612F 16D63 16D67-16D69 16EA0-16EB8 16EBB-16ED3 16FF0-16FF6 187F8-187FF "
    "18D09-18D1E 18D80-18DF2 1CCFA-1CCFC 1CEBA-1CED0 1CEE0-1CEF0 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF "
    "1E5EE-1E5EF 1E6C0-1E6DE 1E6E0-1E6F5 1E6FE-1E6FF 1F6D8 1F777-1F77A 1F8D0-1F8D8 1FA54-1FA57 1FA8A 1FA8E 1FAC8 1FACD "
    "1FAEA 1FAEF 1FBFA 2B73A-2B73F 2CEA2-2CEAD 323B0-33479 "
)
# End of what is made.

# Blocks that are compared for one batch of texts, some milliseconds each; what others hold is left to `tokenizers` meanwhile.
_AT_ONCE = 32

_SPACE, _DELETE = 0x20, 0x7F
_NOT_ASCII = np.uint64(0x8080808080808080)
# First bytes of characters that are, or may be, white space.
_SPACE_LEADS = (0xC2, 0xE1, 0xE2, 0xE3)


def points_of(ranges: str) -> np.ndarray:
    """Return the code points of ranges such as `7FD 897-89F`, sorted."""
    found = []
    for part in ranges.split():
        low, _, high = part.partition("-")
        found.append(np.arange(int(low, 16), int(high or low, 16) + 1))
    return np.concatenate([np.empty(0, np.int64), *found])


class Differing:
    """Which characters the engines may see differently; of some it is found out when the first text holds one.

    Several threads may ask at a time.

    Args:
        points: Code points that are known to differ.
        compare: Gives those of some blocks that differ; None if all are known.
    """

    def __init__(self, points: np.ndarray, compare: Callable[[Sequence[int]], np.ndarray] | None = None) -> None:
        self._compare, self._comparing = compare, threading.Lock()
        self._differs = np.zeros(POINTS, bool)
        self._differs[points] = True
        self._known: np.ndarray = np.full(POINTS // BLOCK, compare is None)
        self._known[: 0x80 // BLOCK] = True
        self._set_beginnings()

    def _set_beginnings(self) -> None:
        """Return with which two bytes such characters begin in UTF-8: few texts have any of them."""
        some = np.asarray(self._differs.reshape(-1, BLOCK).any(axis=1))
        suspect = some | ~self._known
        begins = np.zeros((256, 256), bool)
        for block in np.flatnonzero(suspect).tolist():
            if not 0xD800 <= block * BLOCK < 0xE000:
                first = chr(block * BLOCK).encode()
                # Of two bytes, the second is the one in which the characters of a block differ.
                begins[first[0], slice(0x80, 0xC0) if len(first) == 2 else first[1]] = True
        self._leads: np.ndarray = np.asarray(begins.any(axis=1))
        self._beginnings = begins

    def find(self, texts: pa.Array) -> np.ndarray | None:
        """Return which of some large_string texts hold such a character, as (n,) bool; None if none does."""
        borders, data = offsets_and_bytes(texts)
        places = self._candidates(borders, data)
        if not len(places):
            return None
        codes = _decoded(data, places)
        self._learn(codes)
        unlike = np.asarray(self._differs[codes] | ~self._known[codes // BLOCK])
        places = places[unlike]
        if not len(places):
            return None
        apart = np.zeros(len(texts), bool)
        apart[np.searchsorted(borders, places, side="right") - 1] = True
        return apart

    def _candidates(self, borders: np.ndarray, data: np.ndarray) -> np.ndarray:
        """Find where characters begin that may be among them."""
        leads, beginnings = self._leads, self._beginnings
        low, high = int(borders[0]), int(borders[-1])
        # Eight bytes at a time, then each byte of those that are not all ASCII.
        words = data[low : high - (high - low) % 8].view(np.uint64)
        other = np.flatnonzero((words & _NOT_ASCII) != 0)
        leading: np.ndarray = leads[words[other].view(np.uint8)]
        found = np.flatnonzero(leading)
        places = np.concatenate([low + other[found // 8] * 8 + found % 8, np.arange(low + 8 * len(words), high)])
        places = places[places < high - 1]
        begins: np.ndarray = beginnings[data[places], data[places + 1]]
        return np.asarray(places[begins])

    def _learn(self, codes: np.ndarray) -> None:
        """Compare the engines on the blocks of some characters that are not known yet, on the first ones if they are many."""
        blocks = codes // BLOCK
        if self._compare is None or self._known[blocks].all():
            return
        with self._comparing:
            asked = np.unique(blocks[~self._known[blocks]])[:_AT_ONCE].tolist()
            self._differs[self._compare(asked)] = True
            self._known[asked] = True
            self._set_beginnings()


def _decoded(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the code points of the characters of UTF-8 that begin at some places; none of them is ASCII."""
    lead = data[places].astype(np.int64)
    length = 2 + (lead >= 0xE0) + (lead >= 0xF0)
    codes = lead & np.where(length == 2, 0x1F, np.where(length == 3, 0x0F, 0x07))
    for following in range(1, 4):
        more = length > following
        codes[more] = codes[more] << 6 | data[places[more] + following] & 0x3F
    return np.asarray(codes)


# As the versions that were compared see them.
KNOWN = Differing(points_of(NEWER))


def newer_characters(texts: pa.Array, differing: Differing = KNOWN) -> np.ndarray | None:
    """Return which of some texts hold a character that the engines may see differently, as (n,) bool; None if none does."""
    return differing.find(texts)


class SplitTexts(NamedTuple):
    """Texts, cut so that what holds newer characters stands apart.

    Attributes:
        pieces: (m,) large_string, over the memory of the texts.
        newer: (m,) bool, which of them hold such characters.
        firsts: (n + 1,) the first piece of each text, and m.
    """

    pieces: pa.Array
    newer: np.ndarray
    firsts: np.ndarray


def split_at_new_characters(texts: pa.Array, at_spaces: bool, differing: Differing = KNOWN) -> SplitTexts | None:
    """Cut texts near where newer characters begin and end; None if there are none.

    Args:
        texts: (n,) large_string without nulls.
        at_spaces: Whether a text may be cut before a space that stands between two visible characters; else it stays whole.
        differing: The characters.
    """
    newer = differing.find(texts)
    if newer is None or not at_spaces:
        return None if newer is None else SplitTexts(texts, newer, np.arange(len(texts) + 1))
    borders, data = offsets_and_bytes(texts)
    cuts = [low + _cuts(data[low:high]) for low, high in zip(borders[:-1][newer], borders[1:][newer], strict=True)]
    # Empty texts share their border with the next, so the cuts go in by position, not as a set.
    inserted = np.concatenate(cuts)
    places = np.searchsorted(borders, inserted)
    edges, whole = np.insert(borders, places, inserted), np.insert(np.ones(len(borders), bool), places, False)
    words = differing.find(_over(edges, texts))
    if words is None:  # no cut takes a character away
        words = np.zeros(len(edges) - 1, bool)
    # Neighbours of one kind stay together.
    kept = whole.copy()
    kept[1:-1] |= words[1:] != words[:-1]
    return SplitTexts(_over(edges[kept], texts), words[kept[:-1]], np.flatnonzero(whole[kept]))


def _over(edges: np.ndarray, texts: pa.Array) -> pa.Array:
    """Make texts between some edges in the memory of others."""
    return pa.LargeStringArray.from_buffers(len(edges) - 1, pa.py_buffer(edges), texts.buffers()[2])


def _cuts(text: np.ndarray) -> np.ndarray:
    """Return the places before which a text, (n,) uint8, may be cut."""
    spaces = np.flatnonzero(text[1:-1] == _SPACE) + 1
    # What begins behind a space, and the first byte of what ends before it.
    behind, before = text[spaces + 1], text[spaces - 1]
    for further in (2, 3, 4):
        within = (before >= 0x80) & (before < 0xC0)
        before = np.where(within, text[np.maximum(spaces - further, 0)], before)
    return np.asarray(spaces[_VISIBLE[behind] & _VISIBLE[before]])


def _visible() -> np.ndarray:
    """Tell of each first byte of a character whether it surely is no white space, nor a control character."""
    visible = np.zeros(256, bool)
    visible[_SPACE + 1 : _DELETE] = True
    visible[0xC3:0xF5] = True
    visible[list(_SPACE_LEADS)] = False
    return visible


_VISIBLE = _visible()
