"""What a token id stands for: its bytes, and a text that shows them without a trick."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lance.errors import LightningLanceError
from lightning_lance.location import given_place
from lightning_lance.store.kept_tokenizer import kept_tokenizer
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.tokenizer import Tokenizer
from lightning_lance.tokenization.tokenizer_json import bytes_of_characters

#: Shown for white space that is not a space.
LINE_END = "\u21b5"
_SHAPES = {"\n": LINE_END, "\t": "\u21e5"}

# A byte, in vocabularies with a fallback to bytes.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Stands for a space in vocabularies of SentencePiece.
_SPACE = "\u2581"
# What cannot be seen, or changes what is beside it: controls, marks of direction and other formats, halves of pairs,
# private characters, ends of lines and paragraphs, and places without a character.
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


class Spelling:
    """The tokens of a tokenizer, by id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import tokenizers

        fields = json.loads(tokenizer.to_json())
        vocabulary = tokenizers.Tokenizer.from_str(tokenizer.to_json()).get_vocab(with_added_tokens=True)
        self._tokens: dict[int, str] = {number: token for token, number in vocabulary.items()}
        self._added = {token["content"] for token in fields.get("added_tokens") or []}
        kinds = _decoders(fields.get("decoder"))
        self._is_byte_level = "ByteLevel" in kinds
        self._is_plain = bool(kinds & {"ByteFallback", "Metaspace"})
        self._bytes_of_characters = bytes_of_characters()

    def token(self, number: int) -> str | None:
        """Return a token as the vocabulary spells it; None for an id without a token."""
        return self._tokens.get(number)

    def content(self, number: int) -> bytes | None:
        """Return the bytes of text that a token stands for; None if the tokenizer does not tell."""
        token = self._tokens.get(number)
        if token is None:
            return None
        if token in self._added:
            return token.encode("utf-8", "surrogatepass")
        if self._is_byte_level:
            return b"".join(map(self._byte, token))
        if not self._is_plain:
            return None
        byte = _BYTE.fullmatch(token)
        if byte:
            return bytes([int(byte[1], 16)])
        return token.replace(_SPACE, " ").encode("utf-8", "surrogatepass")

    def text(self, number: int) -> str | None:
        """Return the text of a token; None if its bytes are no text by themselves."""
        content = self.content(number)
        if content is None:
            return self.token(number)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return None

    def shown(self, number: int, most: int = 40) -> str:
        """Return a token for people: its text, or its bytes as hexadecimal digits; a long one is cut."""
        text = self.text(number)
        if text is None:
            content = self.content(number) or b""
            return cut("".join(map("\\x{:02x}".format, content)), most)
        return cut("".join(map(_shape, text)), most)

    def _byte(self, character: str) -> bytes:
        byte = self._bytes_of_characters.get(character)
        if byte is None:
            return character.encode("utf-8", "surrogatepass")
        return bytes([byte])


def tokenizer_of(store: TokenStore, file: str | os.PathLike[str] | None) -> tuple[Tokenizer | None, str]:
    """Return the tokenizer in a file or, where none is given, beside a store; None if there is none, and why.

    Raises:
        ConfigError: If there is no such file.
        StoreError: If it is not the tokenizer that made the store.
    """
    if file is not None:
        return kept_tokenizer(store.uri, [Path(given_place(file, "tokenizer"))], store.commit), ""
    try:
        return store.tokenizer, ""
    except LightningLanceError as error:
        return None, str(error)


def _decoders(decoder: Any) -> set[str]:
    """Return the kinds of decoders in the `decoder` of a tokenizer.json."""
    if not isinstance(decoder, Mapping):
        return set()
    kinds = {str(decoder.get("type"))}
    for part in decoder.get("decoders") or []:
        kinds |= _decoders(part)
    return kinds


def visible(text: str) -> str:
    """Return a text in which all that cannot be seen is spelled out, such as a mark of direction or a control character."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _shape(character: str) -> str:
    """Return what is shown of a character; white space that is not a space has shapes of its own."""
    return _SHAPES.get(character) or _visible(character)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def cut(text: str, most: int) -> str:
    """Return a text of at most so many characters."""
    if len(text) <= most:
        return text
    return f"{text[: most - 1]}\u2026"
