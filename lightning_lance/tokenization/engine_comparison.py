"""Which characters gigatoken and `tokenizers` see alike, asked of both: their tables are of different versions of Unicode.

The engines get a small vocabulary under the normalizer and the pre-tokenizer of a tokenizer, in which a token of two bytes
shows wherever two neighbours are of one word. So characters of another class show as other ids, and so do those that a
normalizer knows in one engine only.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from lightning_lance.messages.escaping import logger
from lightning_lance.tokenization.tokenizer_json import UNUSED, byte_characters
from lightning_lance.tokenization.unicode_tables import BLOCK, COMPARED, COMPARED_WITH, KNOWN, POINTS, Differing

_log = logger(__name__)

# Parts that know the characters that they are given, and no others.
_BLIND = {"Sequence", "Prepend", "Replace", "Split", "Metaspace"}

_SURROGATES = range(0xD800, 0xE000)

# What shows that an engine reads a regular expression, or an option, in another way; ASCII has characters of all kinds.
_PLAIN = (
    "12345 1234567 a1b22c333 1,234.56",
    "I'll DON'T we'RE o'clock 's 'S 'llama x'sy",
    "one  two   three\n\n  four\t\tfive \n \n\n\tsix \r\n\r\n seven\n",
    "camelCase HTTPServer ABCdef aB Ab snake_case //\n///\n/ ...\n\n!!! (a) [b] {c}; d-e=f",
    " leading",
    "trailing ",
    "trailing \n ",
    "\n\n",
    "",
)


# A character among those of other classes. Of all regular expressions that gigatoken knows, each class of characters that they
# tell apart shows in one of these.
_AMONG = "{0}{0}{0}{0}  {0}\u4e00 '{0}A 1{0}Aa \u4e00{0} a'{0}a .{0}\n{0}"
_NEIGHBOURS = sorted({*_AMONG.replace("{0}", "").encode()})

# Accents of the first, a middle and the last class by which a normalizer sorts them: a character stands before or behind one of
# them if it is in order, and is moved if not.
_ACCENTS = "\u0334\u0327\u0301\u0345"
# Blocks after which the fast engines are made anew.
_AT_MOST = 400

# Scripts that put new characters together have all of them in one stretch.
_STRETCH = 128


class EngineComparison:
    """Both engines with a small vocabulary, and the normalizer and pre-tokenizer of a tokenizer.

    Args:
        fields: A parsed tokenizer.json.

    Raises:
        Exception: Of either engine, if it cannot load that.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        import tokenizers

        self._joined, self._plain = (json.dumps(_small(fields, joined), ensure_ascii=False) for joined in (True, False))
        self._reference = tokenizers.Tokenizer.from_str(self._joined)
        self._composes = '"NFC"' in json.dumps(fields.get("normalizer"))
        self._make_fast()

    def _make_fast(self) -> None:
        """Make the fast engines anew: they remember all words that they have seen."""
        import gigatoken

        self._fast = gigatoken.Tokenizer.from_json(self._joined)
        # Its ids are the bytes of the text, as normalized.
        self._bytes = gigatoken.Tokenizer.from_json(self._plain)
        self._seen = 0

    def differing(self, blocks: Sequence[int]) -> np.ndarray:
        """Return the code points of some blocks that the engines see differently, sorted."""
        found = []
        for block in blocks:
            self._seen += 1
            if self._seen > _AT_MOST:
                self._make_fast()
            points = [point for point in range(block * BLOCK, (block + 1) * BLOCK) if point not in _SURROGATES]
            found.append(self._among_others(points))
            if self._composes:
                found += [self._sorted(points), self._composed(points)]
        return np.unique(np.concatenate([np.empty(0, np.int64), *found]))

    def agrees(self) -> bool:
        """Return whether the engines see ASCII alike, alone and in words, numbers and lines."""
        return not self._unlike([*_PLAIN, *(_AMONG.format(chr(point)) for point in range(0x80))]).any()

    def _among_others(self, points: Sequence[int]) -> np.ndarray:
        unlike = self._unlike([_AMONG.format(chr(point)) for point in points])
        return np.asarray([point for point, differs in zip(points, unlike, strict=True) if differs], np.int64)

    def _sorted(self, points: Sequence[int]) -> np.ndarray:
        """Return those of some characters that the engines sort differently among accents."""
        texts = ["a".join(f"{chr(point)}{mark}a{mark}{chr(point)}" for mark in _ACCENTS) for point in points]
        unlike = self._unlike(texts)
        return np.asarray([point for point, differs in zip(points, unlike, strict=True) if differs], np.int64)

    def _composed(self, points: Sequence[int]) -> np.ndarray:
        """Return those of some characters that one engine only puts together with another.

        What was in Unicode early is put together in all its versions in the same way.
        """
        late = [point for point in points if _is_late(point)]
        low = min(points, default=0) // _STRETCH * _STRETCH
        near = [point for point in range(low, low + _STRETCH) if point not in _SURROGATES]
        texts, late_one = [], []
        for point in late:
            new = [chr(point) + chr(second) for second in _seconds()]
            new += [pair for other in near for pair in (chr(point) + chr(other), chr(other) + chr(point))]
            texts += new
            late_one += [point] * len(new)
        changed = np.flatnonzero(self._changes(texts)).tolist()
        unlike = np.flatnonzero(self._unlike([texts[i] for i in changed])).tolist()
        return np.unique(np.asarray([late_one[changed[i]] for i in unlike], np.int64))

    def _unlike(self, texts: Sequence[str]) -> np.ndarray:
        """Return for which of some texts the engines give different ids, as (n,) bool."""
        if not texts:
            return np.zeros(0, bool)
        ours = _encoded(self._fast, texts)
        theirs = [row.ids for row in self._reference.encode_batch_fast(list(texts), add_special_tokens=False)]
        return np.asarray([not np.array_equal(ids, row) for ids, row in zip(ours, theirs, strict=True)], bool)

    def _changes(self, texts: Sequence[str]) -> np.ndarray:
        """Return which of some texts gigatoken's normalizer changes, as (n,) bool."""
        if not texts:
            return np.zeros(0, bool)
        written = _encoded(self._bytes, texts)
        return np.asarray(
            [bytes(ids.tolist()) != text.encode() for ids, text in zip(written, texts, strict=True)], bool
        )


def differing_characters(fields: Mapping[str, Any]) -> Differing | None:
    """Return which characters the engines see differently with a tokenizer; None if they differ in ASCII already.

    Args:
        fields: A parsed tokenizer.json that both can load.
    """
    parts = {name: fields.get(name) for name in ("normalizer", "pre_tokenizer")}
    fallback = bool(fields["model"].get("byte_fallback"))
    return _of_pipeline(json.dumps({**parts, "model": {"byte_fallback": fallback}}, sort_keys=True))


@lru_cache(maxsize=32)
def _of_pipeline(pipeline: str) -> Differing | None:
    fields = json.loads(pipeline)
    try:
        comparison = EngineComparison(fields)
        agrees = comparison.agrees()
    except Exception as error:  # of either library, which may know the one tokenizer and not the small one
        _log.info("gigatoken cannot be compared with the tokenizers library on this tokenizer: %s", error)
        return None
    if not agrees:
        return None
    parts = {*telling_apart(fields)}
    if not parts:
        return Differing(np.empty(0, np.int64))
    known = {name: version(name) for name in COMPARED_WITH} == COMPARED_WITH
    return KNOWN if known and parts <= COMPARED else Differing(np.empty(0, np.int64), comparison.differing)


def telling_apart(part: Any) -> Iterator[str]:
    """Yield what tells characters apart in a normalizer or pre-tokenizer: hashes of expressions, and names of other parts."""
    if isinstance(part, list):
        for inner in part:
            yield from telling_apart(inner)
    elif isinstance(part, dict):
        pattern = part.get("pattern")
        if isinstance(pattern, dict) and "Regex" in pattern:
            yield xxhash.xxh3_64_hexdigest(str(pattern["Regex"]).encode())
        elif part.get("type", "Sequence") not in _BLIND and (
            part["type"] != "ByteLevel" or part.get("use_regex", True)
        ):
            yield str(part["type"])
        for name in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
            yield from telling_apart(part.get(name))


def _encoded(engine: Any, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Encode texts by a gigatoken engine, in this thread."""
    layout = engine.encode_batch(list(texts), parallel=False).layout
    borders, ids = np.asarray(layout.offsets.data), np.asarray(layout.content.data)
    return (ids[low:high] for low, high in pairwise(borders.tolist()))


@cache
def _seconds() -> list[int]:
    """Return the second parts of all characters that this Python knows to be put together of two."""
    found = set()
    for point in range(POINTS):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<") and unicodedata.is_normalized("NFC", chr(point)):
            found.add(int(parts[1], 16))
    return sorted(found)


def _is_late(point: int) -> bool:
    """Return whether a character came into Unicode after the first version that any engine may have tables of."""
    return unicodedata.ucd_3_2_0.category(chr(point)) == "Cn"


def _small(fields: Mapping[str, Any], joined: bool) -> dict[str, Any]:
    """Return a tokenizer.json of bytes with the normalizer and pre-tokenizer of another.

    Args:
        fields: The other.
        joined: Whether to have tokens for the last byte of a character and the first of the next.
    """
    fallback = bool(fields["model"].get("byte_fallback"))
    names = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else byte_characters()
    vocabulary = {name: byte for byte, name in enumerate(names)}
    firsts, lasts = range(0xC2, 0xF5), range(0x80, 0xC0)
    merges = []
    if joined and not fallback:
        merges += [(last, first) for last in (*_NEIGHBOURS, *lasts) for first in firsts]
        merges += [(last, first) for last in (*lasts, *_NEIGHBOURS) for first in _NEIGHBOURS]
    pairs = [(names[last], names[first]) for last, first in dict.fromkeys(merges)]
    vocabulary |= {one + other: 256 + place for place, (one, other) in enumerate(pairs)}
    if fallback:
        vocabulary["<unk>"] = 256
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "byte_fallback": fallback}
    model["unk_token"] = "<unk>" if fallback else None
    kept = {name: fields.get(name) for name in ("normalizer", "pre_tokenizer")}
    return {"version": "1.0", "added_tokens": [], **kept, **UNUSED, "decoder": None, "model": model}
