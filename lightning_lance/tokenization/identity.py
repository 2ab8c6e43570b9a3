"""The identity of a tokenizer in a store, read from its file alone: loading one of 150,000 tokens takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError
from lightning_lance.process.memory import without_collections
from lightning_lance.tokenization.special_tokens import find_eos
from lightning_lance.tokenization.tokenizer_checks import check_form
from lightning_lance.tokenization.tokenizer_json import (
    Fields,
    added_tokens,
    canonical,
    digest_of,
    fields_in_use,
    numbered,
    pieces_of,
    special_spellings,
)


class TokenizerIdentity(NamedTuple):
    """The identity of a tokenizer in a store.

    Attributes:
        digest: Hash of the tokenizer in canonical form, with its EOS id.
        eos_token: The token that ends a document.
        eos_id: Its id.
        vocab_size: Largest id plus one.
    """

    digest: str
    eos_token: str
    eos_id: int
    vocab_size: int


def identity_of_text(spec: str, eos_token: str | None) -> TokenizerIdentity | None:
    """Return the identity of a `tokenizer.json`, given its text, without loading it: the same as that of its `Tokenizer`.

    None for a file that must be loaded to be checked. A build always loads and checks it.
    """
    try:
        with without_collections():
            return _identity_of(json.loads(spec), eos_token)
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _identity_of(fields: Fields, eos_token: str | None) -> TokenizerIdentity:
    check_form(fields)
    used = fields_in_use(fields)
    vocabulary = _vocabulary(used)
    special = special_spellings(used)
    eos = find_eos(eos_token, vocabulary, special)
    digest = digest_of(canonical(used), vocabulary[eos])
    return TokenizerIdentity(digest, eos, vocabulary[eos], max(vocabulary.values()) + 1)


def _vocabulary(fields: Fields) -> Mapping[str, int]:
    """Return all tokens with their ids. ValueError if two have the same spelling, or a token has two ids."""
    given: Any = fields["model"]["vocab"]
    if isinstance(given, dict):
        vocabulary = dict(given)
    else:
        pieces = pieces_of(given)
        vocabulary = numbered(pieces)
        if len(vocabulary) != len(pieces):
            raise ValueError("two pieces have the same spelling")
    for token in added_tokens(fields):
        if vocabulary.setdefault(token["content"], token["id"]) != token["id"]:
            raise ValueError("a token has two ids")
    return vocabulary
