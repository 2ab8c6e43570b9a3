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
from itertools import compress, pairwise, product
from typing import Any

import numpy as np
import xxhash

from lightning_lance.messages.escaping import logger
from lightning_lance.tokenization.tokenizer_json import UNUSED, byte_characters, byte_pieces, numbered
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

# A character among accents of the first, middle and last combining classes: a normalizer moves one that is out of order.
_AMONG_ACCENTS = "{0}\u0334a\u0334{0}a{0}\u0327a\u0327{0}a{0}\u0301a\u0301{0}a{0}\u0345a\u0345{0}"
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
                found.append(self._unlike_in(_AMONG_ACCENTS, points))
                found.append(self._composed(points))
        return np.unique(np.concatenate(found))

    def agrees(self) -> bool:
        """Return whether the engines agree on ASCII, alone and in words, numbers and lines."""
        texts = [*_PLAIN, *_filled(_AMONG, range(0x80))]
        return not self._unlike(texts).any()

    def _composed(self, points: Sequence[int]) -> np.ndarray:
        """Return the characters that only one engine composes with another.

        Only late ones are compared: early characters are composed in the same way in all versions of Unicode.
        """
        low = min(points, default=0) // _STRETCH * _STRETCH
        near = list(map(chr, _characters(low, low + _STRETCH)))
        seconds = [*map(chr, _seconds()), *near]
        texts: list[str] = []
        late_one: list[int] = []
        for point in filter(_is_late, points):
            pairs = [*product([chr(point)], seconds), *product(near, [chr(point)])]
            texts += map("".join, pairs)
            late_one += [point] * len(pairs)
        changed = self._changes(texts)
        unlike = self._unlike(list(compress(texts, changed)))
        return np.unique(np.asarray(late_one, np.int64)[changed][unlike])

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
        unlike: list[bool] = []
        for ids, row in zip(ours, theirs, strict=True):
            unlike.append(not np.array_equal(ids, row.ids))
        return np.asarray(unlike)

    def _changes(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts that gigatoken's normalizer changes, as (n,) bool."""
        if not texts:
            return np.zeros(0, bool)
        changed: list[bool] = []
        for ids, text in zip(_encoded(self._bytes, texts), texts, strict=True):
            changed.append(bytes(ids.tolist()) != text.encode())
        return np.asarray(changed)


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
    versions = list(map(version, COMPARED_WITH))
    if versions == list(COMPARED_WITH.values()) and parts <= COMPARED:
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
    """Yield the ids of each text from a gigatoken engine, in this thread."""
    layout = engine.encode_batch(list(texts), parallel=False).layout
    borders = np.asarray(layout.offsets.data)
    ids = np.asarray(layout.content.data)
    for low, high in pairwise(borders.tolist()):
        yield ids[low:high]


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
        names = byte_pieces()
    firsts = range(0xC2, 0xF5)
    lasts = range(0x80, 0xC0)
    merges: list[tuple[int, int]] = []
    if joined and not fallback:
        merges += product((*_NEIGHBOURS, *lasts), firsts)
        merges += product((*lasts, *_NEIGHBOURS), _NEIGHBOURS)
    pairs = [(names[last], names[first]) for last, first in dict.fromkeys(merges)]
    vocabulary = numbered([*names, *map("".join, pairs)])
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "byte_fallback": fallback, "unk_token": None}
    if fallback:
        vocabulary["<unk>"] = 256
        model["unk_token"] = "<unk>"
    kept = _steps_before_model(fields)
    return {"version": "1.0", "added_tokens": [], **kept, **UNUSED, "decoder": None, "model": model}


def _steps_before_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"normalizer": fields.get("normalizer"), "pre_tokenizer": fields.get("pre_tokenizer")}
