"""Text that a tokenizer loses, found per document. Most tokenizers lose nothing and are not checked."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.tokenization.gigatoken import Encoded
from lightning_lance.tokenization.special_tokens import unknown_token
from lightning_lance.tokenization.tokenizer_json import (
    byte_characters,
    byte_pieces,
    is_byte_level,
    normalizers_of,
    pieces_of,
    plain_added_tokens,
    pre_tokenizers_of,
    spellings_of,
)
from lightning_lance.tokenization.unicode_tables import COMPARED

# Normalizers that change the form of characters only.
_SAME = {"NFC", "NFD"}
# Normalizers that a decoder reverses.
_REVERSIBLE = {"Prepend", "ByteLevel"}
# SentencePiece writes this for a space, so a text that holds it cannot be decoded.
_SPACE = "\u2581"
_BYTES = byte_characters()
# The bytes that occur in UTF-8. A vocabulary that was made from text may lack the others.
_IN_UTF8 = (*range(0xC0), *range(0xC2, 0xF5))


class Losses:
    """Finds the documents that cannot be decoded to their whole text; `reference` is the tokenizer in `tokenizers`."""

    def __init__(self, fields: Mapping[str, Any], reference: Any) -> None:
        import tokenizers

        steps = normalizers_of(fields)
        splits = pre_tokenizers_of(fields)
        self._in_bytes = is_byte_level(fields)
        complete = _knows_all_bytes(fields["model"], self._in_bytes)
        unknown = None if complete else unknown_token(fields["model"])
        self._unknown = None if unknown is None else reference.token_to_id(unknown)
        changing = [step for step in steps if not _is_reversed(step)]
        self._normalizer = None
        if any(map(_changes_text, changing)):
            sequence = {"type": "Sequence", "normalizers": changing}
            model = {"type": "BPE", "vocab": {}, "merges": []}
            self._normalizer = tokenizers.Tokenizer.from_str(
                json.dumps({"version": "1.0", "added_tokens": [], "normalizer": sequence, "model": model})
            ).normalizer
        self._space = any(map(_writes_spaces, [*steps, *splits]))
        # A BPE without an unknown token silently drops unknown characters.
        silent = fields["model"]["type"] == "BPE" and unknown is None and not complete
        self._letters = _letters(fields) if silent else None
        # Most characters of most texts are among these, and are left out of the search at once.
        self._kept_ascii = bytes(byte for byte in range(128) if self._has_tokens(chr(byte)))
        self._reference = reference
        self._removes = any(map(_removes, splits))

    @property
    def possible(self) -> bool:
        """Whether any text may be lost."""
        return self._looks_at_texts or self._unknown is not None or self._space

    @property
    def _looks_at_texts(self) -> bool:
        return self._normalizer is not None or self._letters is not None or self._removes

    def find(self, texts: pa.Array, encoded: Encoded, pieces: Iterable[tuple[int, str]]) -> dict[str, np.ndarray]:
        """Return the documents with losses, by kind. White space does not count, since many tokenizers ignore it.

        Args:
            texts: (n,) large_string without nulls.
            encoded: Their ids.
            pieces: (document, text) pairs that make up the texts, each of bounded size.

        Returns:
            Kind to (n,) bool: `unk` (some text became the unknown token), `dropped` (some visible characters have no token),
            `changed` (the normalizer changed or removed some text, or it holds SentencePiece's sign for a space), `no_tokens`
            (only EOS is stored).
        """
        unknown = np.zeros(len(texts), bool)
        dropped = np.zeros(len(texts), bool)
        changed = np.zeros(len(texts), bool)
        if self._unknown is not None:
            places = np.flatnonzero(encoded.ids == self._unknown)
            unknown[np.searchsorted(encoded.offsets, places, side="right") - 1] = True
        if self._space:
            changed |= np.asarray(pc.match_substring(texts, _SPACE))
        if self._looks_at_texts:
            for document, text in pieces:
                lost = "".join([*self._dropped(text), *self._removed(text)])
                dropped[document] |= bool(lost.strip())
                changed[document] |= self._is_changed(text)
        no_tokens = np.diff(encoded.offsets) == 0
        return {"unk": unknown, "dropped": dropped, "changed": changed, "no_tokens": no_tokens}

    def _is_changed(self, text: str) -> bool:
        if self._normalizer is None:
            return False
        written = str(self._normalizer.normalize_str(text))
        return written != text and unicodedata.normalize("NFC", written) != unicodedata.normalize("NFC", text)

    def _dropped(self, text: str) -> Iterator[str]:
        """Yield the characters of a text that a model without an unknown token drops."""
        if self._letters is None:
            return
        normalizer = self._reference.normalizer
        written = text if normalizer is None else str(normalizer.normalize_str(text))
        # Without these bytes, it is UTF-8 still.
        others = written.encode().translate(None, self._kept_ascii).decode()
        for character in {*others}:
            if not self._has_tokens(character):
                yield character

    def _has_tokens(self, character: str) -> bool:
        """Return whether a model without an unknown token has tokens for a character."""
        if self._letters is None:
            return True
        parts = [character]
        if self._space and character == " ":
            parts = [_SPACE]
        elif self._in_bytes:
            parts = [_BYTES[byte] for byte in character.encode()]
        return self._letters.issuperset(parts)

    def _removed(self, text: str) -> Iterator[str]:
        """Yield the characters of a text that a pre-tokenizer removes."""
        if not self._removes:
            return
        covered = np.zeros(len(text) + 1, np.int64)
        spans = np.asarray(self._reference.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        np.add.at(covered, spans[:, 0], 1)
        np.add.at(covered, spans[:, 1], -1)
        for place in np.flatnonzero(np.cumsum(covered)[:-1] <= 0).tolist():
            yield text[place]


def _letters(fields: Mapping[str, Any]) -> set[str]:
    """Return the single characters with a token in a BPE, within a word or at its beginning, including added tokens."""
    prefix = fields["model"].get("continuing_subword_prefix") or ""
    suffix = fields["model"].get("end_of_word_suffix") or ""
    letters: set[str] = set()
    for piece in fields["model"]["vocab"]:
        bare = piece.removeprefix(prefix).removesuffix(suffix)
        if len(bare) == 1:
            letters.add(bare)
    for added in spellings_of(plain_added_tokens(fields)):
        if len(added) == 1:
            letters.add(added)
    return letters


def _knows_all_bytes(model: Mapping[str, Any], in_bytes: bool) -> bool:
    """Return whether a model has a token for each byte of UTF-8, as its input or as a fallback."""
    pieces = {*pieces_of(model.get("vocab") or {})}
    if model.get("byte_fallback") and _has_bytes(pieces, byte_pieces()):
        return True
    return in_bytes and model["type"] == "BPE" and _has_bytes(pieces, _BYTES)


def _has_bytes(pieces: Collection[str], spelled: Sequence[str]) -> bool:
    """Return whether all bytes of UTF-8 are among some pieces, given how each of the 256 bytes is spelled."""
    return all(spelled[byte] in pieces for byte in _IN_UTF8)


def _is_reversed(step: Mapping[str, Any]) -> bool:
    """Return whether a decoder reverses a normalizer."""
    return step["type"] in _REVERSIBLE or _writes_spaces(step)


def _changes_text(step: Mapping[str, Any]) -> bool:
    """Return whether a normalizer changes more than the form of characters."""
    return step["type"] not in _SAME


def _writes_spaces(step: Mapping[str, Any]) -> bool:
    """Return whether a step writes spaces as SentencePiece does."""
    if step["type"] == "Metaspace":
        return True
    return step["type"] == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == _SPACE


def _removes(split: Mapping[str, Any]) -> bool:
    """Return whether a pre-tokenizer may remove text."""
    if split["type"] == "CharDelimiterSplit":
        return True
    if split.get("behavior") != "Removed":
        return False
    # An inverted split removes unmatched text, and the expressions of well-known tokenizers match all text.
    known = xxhash.xxh3_64_hexdigest(str(split.get("pattern", {}).get("Regex")).encode()) in COMPARED
    return not (known and split.get("invert"))
