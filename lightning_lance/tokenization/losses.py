"""What of a text a tokenizer loses, told for each document: most lose nothing, and are not asked."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.tokenization.gigatoken import Encoded
from lightning_lance.tokenization.special_tokens import unknown_token
from lightning_lance.tokenization.tokenizer_json import byte_characters
from lightning_lance.tokenization.unicode_tables import COMPARED

# Parts of a normalizer that write the same characters in another way, and those after which the text can be had back.
_SAME, _REVERSIBLE = {"NFC", "NFD"}, {"Prepend", "ByteLevel"}
# What SentencePiece writes for a space: the two cannot be told apart.
_SPACE = "\u2581"
_BYTES = byte_characters()


class Losses:
    """Finds the documents of which some text would not come back.

    Args:
        fields: A parsed tokenizer.json.
        reference: It, as the `tokenizers` library has loaded it.
    """

    def __init__(self, fields: Mapping[str, Any], reference: Any) -> None:
        import tokenizers

        complete = _knows_all_bytes(fields)
        unknown = None if complete else unknown_token(fields["model"])
        self._unknown = None if unknown is None else reference.token_to_id(unknown)
        steps, splits = [*_steps(fields.get("normalizer"))], [*_steps(fields.get("pre_tokenizer"))]
        changing = [step for step in steps if step["type"] not in _REVERSIBLE and not _writes_spaces(step)]
        self._normalizer = None
        if any(step["type"] not in _SAME for step in changing):
            sequence = {"type": "Sequence", "normalizers": changing}
            model = {"type": "BPE", "vocab": {}, "merges": []}
            self._normalizer = tokenizers.Tokenizer.from_str(
                json.dumps({"version": "1.0", "added_tokens": [], "normalizer": sequence, "model": model})
            ).normalizer
        self._space = any(map(_writes_spaces, [*steps, *splits]))
        # A BPE without a token for the unknown leaves out what it does not know, without a word.
        silent = fields["model"]["type"] == "BPE" and unknown is None and not complete
        self._letters = _letters(fields) if silent else None
        self._in_bytes = any(part["type"] == "ByteLevel" for part in [*steps, *splits])
        self._reference = reference
        self._removes = any(map(_removes, splits))

    @property
    def possible(self) -> bool:
        """Whether any text may be lost."""
        asked = self._normalizer is not None or self._letters is not None or self._unknown is not None
        return asked or self._removes or self._space

    def find(self, texts: pa.Array, encoded: Encoded, pieces: Iterable[tuple[int, str]]) -> dict[str, np.ndarray]:
        """Return which documents have lost what. White space does not count: many tokenizers know words only.

        Args:
            texts: (n,) large_string without nulls.
            encoded: Their ids.
            pieces: (document, text) pairs that make up the texts, none of them too large to be looked at alone.

        Returns:
            Remark to (n,) bool: `unk` (some text became the token for the unknown), `dropped` (some visible characters have no
            token), `changed` (the normalizer changed or took away some text, or it holds what is written for a space),
            `no_tokens` (nothing is stored of it but EOS).
        """
        found = {name: np.zeros(len(texts), bool) for name in ("unk", "dropped", "changed")}
        if self._unknown is not None:
            places = np.flatnonzero(encoded.ids == self._unknown)
            found["unk"][np.searchsorted(encoded.offsets, places, side="right") - 1] = True
        if self._space:
            found["changed"] |= np.asarray(pc.match_substring(texts, _SPACE))
        if self._normalizer is not None or self._letters is not None or self._removes:
            for document, text in pieces:
                lost = [*self._left_out(text), *self._removed(text)]
                found["changed"][document] |= self._is_changed(text)
                found["dropped"][document] |= any(not character.isspace() for character in lost)
        return {**found, "no_tokens": np.diff(encoded.offsets) == 0}

    def _is_changed(self, text: str) -> bool:
        if self._normalizer is None:
            return False
        written = str(self._normalizer.normalize_str(text))
        return written != text and unicodedata.normalize("NFC", written) != unicodedata.normalize("NFC", text)

    def _left_out(self, text: str) -> Iterator[str]:
        """Return characters of a text that a model without a token for the unknown leaves out."""
        if self._letters is None:
            return
        normalizer = self._reference.normalizer
        written = text if normalizer is None else str(normalizer.normalize_str(text))
        for character in {*written}:
            parts = [_BYTES[byte] for byte in character.encode()] if self._in_bytes else [character]
            if self._space and character == " ":
                parts = [_SPACE]
            if not self._letters.issuperset(parts):
                yield character

    def _removed(self, text: str) -> Iterator[str]:
        """Return characters of a text that a pre-tokenizer takes away."""
        if not self._removes:
            return
        covered = np.zeros(len(text) + 1, np.int64)
        spans = np.asarray(self._reference.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        np.add.at(covered, spans[:, 0], 1)
        np.add.at(covered, spans[:, 1], -1)
        for place in np.flatnonzero(np.cumsum(covered)[:-1] <= 0).tolist():
            yield text[place]


def _letters(fields: Mapping[str, Any]) -> set[str]:
    """Return the single characters that a BPE has tokens for, within a word or at its beginning, and added tokens' own."""
    prefix = fields["model"].get("continuing_subword_prefix") or ""
    suffix = fields["model"].get("end_of_word_suffix") or ""
    pieces = (piece.removeprefix(prefix).removesuffix(suffix) for piece in fields["model"]["vocab"])
    added = (token["content"] for token in fields.get("added_tokens") or [] if not token["special"])
    return {piece for piece in [*pieces, *added] if len(piece) == 1}


def _knows_all_bytes(fields: Mapping[str, Any]) -> bool:
    """Return whether a model has a token for each byte, which it is given or falls back on."""
    model = fields["model"]
    vocabulary = model.get("vocab") or {}
    pieces = {*vocabulary} if isinstance(vocabulary, dict) else {piece[0] for piece in vocabulary}
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in pieces for byte in range(256)):
        return True
    parts = [*_steps(fields.get("normalizer")), *_steps(fields.get("pre_tokenizer"))]
    in_bytes = any(part["type"] == "ByteLevel" for part in parts)
    return in_bytes and model["type"] == "BPE" and pieces.issuperset(_BYTES)


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, which may be a sequence of sequences."""
    if isinstance(part, dict):
        if part.get("type") == "Sequence":
            for inner in part.get("normalizers") or part.get("pretokenizers") or []:
                yield from _steps(inner)
        else:
            yield part


def _writes_spaces(step: Mapping[str, Any]) -> bool:
    """Return whether a step writes spaces as SentencePiece does."""
    if step["type"] == "Metaspace":
        return True
    return step["type"] == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == _SPACE


def _removes(split: Mapping[str, Any]) -> bool:
    """Return whether a pre-tokenizer may take text away."""
    if split["type"] == "CharDelimiterSplit":
        return True
    if split.get("behavior") != "Removed":
        return False
    # The regular expressions of well-known tokenizers match all text, and what they do not match is removed.
    known = xxhash.xxh3_64_hexdigest(str(split.get("pattern", {}).get("Regex")).encode()) in COMPARED
    return not (known and split.get("invert"))
