"""Comparison of gigatoken and `tokenizers` character by character, since their tables are of different versions of Unicode.

Both engines get the normalizer and pre-tokenizer of a tokenizer with a small vocabulary, in which a token of two bytes shows
that two neighbours belong to one word. If a character has different classes in the engines, or only one normalizer changes it,
the ids differ.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import pairwise, product
from typing import Any

import numpy as np
import xxhash

from lightning_lance.messages.escaping import logger
from lightning_lance.tokenization.tokenizer_json import UNUSED, byte_characters
from lightning_lance.tokenization.unicode_tables import BLOCK, COMPARED, COMPARED_WITH, KNOWN, POINTS, Differing

_log = logger(__name__)

# Parts without Unicode tables.
_BLIND = {"Sequence", "Prepend", "Replace", "Split", "Metaspace"}

_SURROGATES = range(0xD800, 0xE000)

# ASCII texts with characters of all kinds, which reveal other readings of a regular expression or an option.
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


# A character among those of other classes. Each class in the regular expressions that gigatoken knows has an effect here.
_AMONG = "{0}{0}{0}{0}  {0}\u4e00 '{0}A 1{0}Aa \u4e00{0} a'{0}a .{0}\n{0}"
_NEIGHBOURS = sorted({*_AMONG.replace("{0}", "").encode()})

# Accents of the first, middle and last combining classes: a normalizer moves a character that is out of order beside them.
_ACCENTS = "\u0334\u0327\u0301\u0345"
# Blocks after which the fast engines are created again.
_AT_MOST = 400

# Scripts with composed characters have all of them in one stretch of this size.
_STRETCH = 128


class EngineComparison:
    """Both engines with the normalizer and pre-tokenizer of a parsed tokenizer.json, and a small vocabulary.

    Raises:
        Exception: If either engine cannot load it.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        import tokenizers

        self._joined = json.dumps(_small(fields, joined=True), ensure_ascii=False)
        self._plain = json.dumps(_small(fields, joined=False), ensure_ascii=False)
        self._reference = tokenizers.Tokenizer.from_str(self._joined)
        self._composes = '"NFC"' in json.dumps(fields.get("normalizer"))
        self._make_fast()

    def _make_fast(self) -> None:
        """Create the fast engines, without the cache of words that old ones have collected."""
        import gigatoken

        self._fast = gigatoken.Tokenizer.from_json(self._joined)
        # Its ids are the bytes of the normalized text.
        self._bytes = gigatoken.Tokenizer.from_json(self._plain)
        self._seen = 0

    def differing(self, blocks: Sequence[int]) -> np.ndarray:
        """Return the code points of some blocks that the engines treat differently, sorted."""
        found = [np.empty(0, np.int64)]
        for block in blocks:
            self._seen += 1
            if self._seen > _AT_MOST:
                self._make_fast()
            points = _characters(block * BLOCK, (block + 1) * BLOCK)
            found.append(self._unlike_in(_AMONG, points))
            if self._composes:
                found += [self._sorted(points), self._composed(points)]
        return np.unique(np.concatenate(found))

    def agrees(self) -> bool:
        """Return whether the engines agree on ASCII, alone and in words, numbers and lines."""
        texts = [*_PLAIN, *_filled(_AMONG, range(0x80))]
        return not self._unlike(texts).any()

    def _sorted(self, points: Sequence[int]) -> np.ndarray:
        """Return the characters that the engines sort differently among accents."""
        pattern = "a".join(f"{{0}}{mark}a{mark}{{0}}" for mark in _ACCENTS)
        return self._unlike_in(pattern, points)

    def _composed(self, points: Sequence[int]) -> np.ndarray:
        """Return the characters that only one engine composes with another.

        Only late ones are compared: early characters are composed in the same way in all versions of Unicode.
        """
        low = min(points, default=0) // _STRETCH * _STRETCH
        near = _characters(low, low + _STRETCH)
        texts: list[str] = []
        late_one: list[int] = []
        for point in points:
            if not _is_late(point):
                continue
            pairs = [chr(point) + chr(second) for second in [*_seconds(), *near]]
            pairs += [chr(other) + chr(point) for other in near]
            texts += pairs
            late_one += [point] * len(pairs)
        changed = np.flatnonzero(self._changes(texts))
        unlike = changed[self._unlike([texts[i] for i in changed])]
        return np.unique(np.asarray(late_one, np.int64)[unlike])

    def _unlike_in(self, pattern: str, points: Sequence[int]) -> np.ndarray:
        """Return the code points that the engines encode differently in a pattern."""
        found: np.ndarray = np.asarray(points, np.int64)[self._unlike(_filled(pattern, points))]
        return found

    def _unlike(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts that the engines encode differently, as (n,) bool."""
        if not texts:
            return np.zeros(0, bool)
        ours = _encoded(self._fast, texts)
        theirs = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.asarray([not np.array_equal(ids, row.ids) for ids, row in zip(ours, theirs, strict=True)], bool)

    def _changes(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts that gigatoken's normalizer changes, as (n,) bool."""
        if not texts:
            return np.zeros(0, bool)
        written = _encoded(self._bytes, texts)
        return np.asarray(
            [bytes(ids.tolist()) != text.encode() for ids, text in zip(written, texts, strict=True)], bool
        )


def _filled(pattern: str, points: Sequence[int]) -> list[str]:
    """Return a pattern with each of some characters."""
    return [pattern.format(chr(point)) for point in points]


def _characters(low: int, high: int) -> list[int]:
    return [point for point in range(low, high) if point not in _SURROGATES]


def differing_characters(fields: Mapping[str, Any]) -> Differing | None:
    """Return the characters that the engines treat differently with a tokenizer.json that both can load.

    None if they disagree on ASCII.
    """
    parts = _steps_before_model(fields)
    parts["model"] = {"byte_fallback": bool(fields["model"].get("byte_fallback"))}
    return _of_pipeline(json.dumps(parts, sort_keys=True))


@lru_cache(maxsize=32)
def _of_pipeline(pipeline: str) -> Differing | None:
    fields = json.loads(pipeline)
    try:
        comparison = EngineComparison(fields)
        agrees = comparison.agrees()
    except Exception as error:  # either library may load the tokenizer, and not the small one
        _log.info("gigatoken cannot be compared with the tokenizers library on this tokenizer: %s", error)
        return None
    if not agrees:
        return None
    parts = {*telling_apart(fields)}
    if not parts:
        return Differing(np.empty(0, np.int64))
    same_versions = all(version(name) == compared for name, compared in COMPARED_WITH.items())
    if same_versions and parts <= COMPARED:
        return KNOWN
    return Differing(np.empty(0, np.int64), comparison.differing)


def telling_apart(part: Any) -> Iterator[str]:
    """Yield the parts of a normalizer or pre-tokenizer with Unicode tables: hashes of expressions, and other types."""
    if isinstance(part, list):
        for inner in part:
            yield from telling_apart(inner)
    elif isinstance(part, dict):
        pattern = part.get("pattern")
        only_bytes = part.get("type") == "ByteLevel" and not part.get("use_regex", True)
        if isinstance(pattern, dict) and "Regex" in pattern:
            yield xxhash.xxh3_64_hexdigest(str(pattern["Regex"]).encode())
        elif part.get("type", "Sequence") not in _BLIND and not only_bytes:
            yield str(part["type"])
        for name in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
            yield from telling_apart(part.get(name))


def _encoded(engine: Any, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Return an iterator over the ids of texts from a gigatoken engine, in this thread."""
    layout = engine.encode_batch(list(texts), parallel=False).layout
    borders = np.asarray(layout.offsets.data)
    ids = np.asarray(layout.content.data)
    return (ids[low:high] for low, high in pairwise(borders.tolist()))


@cache
def _seconds() -> list[int]:
    """Return the second parts of all characters that Python decomposes into two."""
    found = set()
    for point in range(POINTS):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) == 2 and not parts[0].startswith("<") and unicodedata.is_normalized("NFC", chr(point)):
            found.add(int(parts[1], 16))
    return sorted(found)


def _is_late(point: int) -> bool:
    """Return whether a character is newer than the oldest Unicode tables of any engine."""
    return unicodedata.ucd_3_2_0.category(chr(point)) == "Cn"


def _small(fields: Mapping[str, Any], joined: bool) -> dict[str, Any]:
    """Return a byte tokenizer.json with the normalizer and pre-tokenizer of another one.

    If it is `joined`, it has tokens of the last byte of a character and the first of the next.
    """
    fallback = bool(fields["model"].get("byte_fallback"))
    names = byte_characters()
    if fallback:
        names = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {name: byte for byte, name in enumerate(names)}
    firsts = range(0xC2, 0xF5)
    lasts = range(0x80, 0xC0)
    merges: list[tuple[int, int]] = []
    if joined and not fallback:
        merges += product((*_NEIGHBOURS, *lasts), firsts)
        merges += product((*lasts, *_NEIGHBOURS), _NEIGHBOURS)
    pairs = [(names[last], names[first]) for last, first in dict.fromkeys(merges)]
    vocabulary |= {one + other: 256 + place for place, (one, other) in enumerate(pairs)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "byte_fallback": fallback, "unk_token": None}
    if fallback:
        vocabulary["<unk>"] = 256
        model["unk_token"] = "<unk>"
    kept = _steps_before_model(fields)
    return {"version": "1.0", "added_tokens": [], **kept, **UNUSED, "decoder": None, "model": model}


def _steps_before_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields.get(name) for name in ("normalizer", "pre_tokenizer")}
