"""Characters that are newer than an engine's tables of Unicode: where texts hold some, they are left to the other engine."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents import string_buffers

# Characters that Unicode has got, or has given a combining class, after the tables that one of the engines has: they disagree
# on what is a letter (Unicode 17) and on the order of accents (since Unicode 10). What holds one goes to `tokenizers`.
NEWER = (
    "7FD 88F 897-89F 8CA-8D3 9FE C3C C5C CDC D3B-D3C EBA 1715 1ABF-1ADD 1AE0-1AEB 1DF6-1DFA A7CE-A7CF A7D2 A7D4 "
    "A7F1 A82C 105C0-105FF 10940-10959 10D24-10D27 10D69-10D6D 10EAB-10EAC 10EC5-10EC7 10EFA-10EFF 10F46-10F50 "
    "10F82-10F85 11070 1133B 11380-113FF 1145E 11839-1183A 11900-1195F 119E0 11A34 11A47 11A99 11B60-11B67 "
    "11D42-11D45 11D97 11DB0-11DE9 11F41-11F42 16100-1613F 16D40-16D7F 16EA0-16ED3 16FF0-16FF6 187F8-187FF "
    "18D09-18D1E 18D80-18DF2 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF 1E6C0-1E6FF 2B73A-2B73F "
    "2CEA2-2CEAD 323B0-33479"
)
_NEWER_CLASS = "[" + re.sub(r"[0-9A-F]+", r"\\x{\g<0>}", NEWER).replace(" ", "") + "]"


def _beginnings() -> np.ndarray:
    """Tell with which two bytes such characters begin in UTF-8, as (256, 256) bool: few texts have any of them."""
    begins = np.zeros((256, 256), bool)
    for part in NEWER.split():
        low, high = (int(code, 16) for code in (part.split("-") * 2)[:2])
        for code in range(low, high + 1):
            begins[tuple(chr(code).encode()[:2])] = True
    return begins


_BEGINNINGS = _beginnings()
_LEADS: np.ndarray = np.logical_or.reduce(_BEGINNINGS, axis=1)
_SPACE, _DELETE = 0x20, 0x7F
_NOT_ASCII = np.uint64(0x8080808080808080)


def newer_characters(texts: pa.Array) -> np.ndarray | None:
    """Tell which of some texts hold a character that the engines may see differently, as (n,) bool; None if none does."""
    borders, data = string_buffers(texts)
    places = _candidates(borders, data)
    if not len(places):
        return None
    some = np.unique(np.searchsorted(borders, places, side="right") - 1)
    newer = np.asarray(pc.match_substring_regex(texts.take(pa.array(some)), _NEWER_CLASS))
    if not newer.any():
        return None
    apart = np.zeros(len(texts), bool)
    apart[some[newer]] = True
    return apart


def _candidates(borders: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Find where characters begin that may be among them."""
    low, high = int(borders[0]), int(borders[-1])
    # Eight bytes at a time, then each byte of those that are not all ASCII: much faster than the expression.
    words = data[low : high - (high - low) % 8].view(np.uint64)
    other = np.flatnonzero((words & _NOT_ASCII) != 0)
    found = np.flatnonzero(_LEADS[words[other].view(np.uint8)])
    places = np.concatenate([low + other[found // 8] * 8 + found % 8, np.arange(low + 8 * len(words), high)])
    places = places[places < high - 1]
    return np.asarray(places[_BEGINNINGS[data[places], data[places + 1]]])


class Parted(NamedTuple):
    """Texts, cut so that what holds newer characters stands apart.

    Attributes:
        pieces: (m,) large_string, over the memory of the texts.
        newer: (m,) bool, which of them hold such characters.
        firsts: (n + 1,) the first piece of each text, and m.
    """

    pieces: pa.Array
    newer: np.ndarray
    firsts: np.ndarray


def parted(texts: pa.Array, at_spaces: bool) -> Parted | None:
    """Cut texts near where newer characters begin and end; None if there are none.

    Args:
        texts: (n,) large_string without nulls.
        at_spaces: Whether a text may be cut before a space that stands between two visible characters of ASCII; else it stays
            whole.
    """
    newer = newer_characters(texts)
    if newer is None or not at_spaces:
        return None if newer is None else Parted(texts, newer, np.arange(len(texts) + 1))
    borders, data = string_buffers(texts)
    cuts = [low + _cuts(data[low:high]) for low, high in zip(borders[:-1][newer], borders[1:][newer], strict=True)]
    # Empty texts share their border with the next, so the cuts go in by position, not as a set.
    inserted = np.concatenate(cuts)
    places = np.searchsorted(borders, inserted)
    edges, whole = np.insert(borders, places, inserted), np.insert(np.ones(len(borders), bool), places, False)
    words = newer_characters(_over(edges, texts))
    if words is None:  # no cut takes a character away
        words = np.zeros(len(edges) - 1, bool)
    # Neighbours of one kind stay together.
    kept = whole.copy()
    kept[1:-1] |= words[1:] != words[:-1]
    return Parted(_over(edges[kept], texts), words[kept[:-1]], np.flatnonzero(whole[kept]))


def _over(edges: np.ndarray, texts: pa.Array) -> pa.Array:
    """Make texts between some edges in the memory of others."""
    return pa.LargeStringArray.from_buffers(len(edges) - 1, pa.py_buffer(edges), texts.buffers()[2])


def _cuts(text: np.ndarray) -> np.ndarray:
    """Give the places before which a text, (n,) uint8, may be cut."""
    visible = (text > _SPACE) & (text < _DELETE)
    return np.flatnonzero((text[1:-1] == _SPACE) & visible[:-2] & visible[2:]) + 1
