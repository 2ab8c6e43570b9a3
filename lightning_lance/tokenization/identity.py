"""What names a tokenizer in a store, read from its file alone: loading one of 150,000 tokens takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.special_tokens import find_eos
from lightning_lance.tokenization.tokenizer_checks import check_form
from lightning_lance.tokenization.tokenizer_json import Fields, canonical, digest_of, fields_in_use


class TokenizerIdentity(NamedTuple):
    """What a store knows of its tokenizer.

    Attributes:
        digest: Hash of the tokenizer in one form, with the id that ends a document.
        eos_token: The token that ends a document.
        eos_id: Its id.
        vocab_size: Largest id plus one.
    """

    digest: str
    eos_token: str
    eos_id: int
    vocab_size: int


def identity_of_text(spec: str, eos_token: str | None) -> TokenizerIdentity | None:
    """Return what names the tokenizer of a `tokenizer.json`, as `Tokenizer` has it, without loading it.

    Args:
        spec: Text of the file.
        eos_token: The token that ends a document; None finds it.

    Returns:
        None for a file that only loading can judge. Whoever builds a store loads the tokenizer, with all checks.
    """
    try:
        fields = json.loads(spec)
        check_form(fields)
        fields = fields_in_use(fields)
        vocabulary = _vocabulary(fields)
        special = [token["content"] for token in fields.get("added_tokens") or [] if token["special"]]
        eos = find_eos(eos_token, vocabulary, special)
        return TokenizerIdentity(
            digest_of(canonical(fields), vocabulary[eos]), eos, vocabulary[eos], max(vocabulary.values()) + 1
        )
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _vocabulary(fields: Fields) -> Mapping[str, int]:
    """Return all tokens with their ids.

    Raises:
        ValueError: If two pieces are spelled alike, or a token is added under another id than that of its piece.
    """
    pieces: Any = fields["model"]["vocab"]
    if isinstance(pieces, dict):
        vocabulary = dict(pieces)
    else:
        # Unigram: pieces with their scores, by place.
        vocabulary = {piece: place for place, (piece, _) in enumerate(pieces)}
        if len(vocabulary) != len(pieces):
            raise ValueError("two pieces are spelled alike")
    for token in fields.get("added_tokens") or []:
        if vocabulary.setdefault(token["content"], token["id"]) != token["id"]:
            raise ValueError("a token has two ids")
    return vocabulary
