"""The EOS token and other special tokens: which one ends a document, and that no text is encoded to one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.tokenizer_json import added_tokens, special_spellings

# Tokens that end a document in common tokenizers, the most common spelling first.
EOS_SPELLINGS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<EOS>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)

# A spelling alone and with neighbours, which matter to pre-tokenizers and models.
_AROUND = ("{}", " {}", "{} ", " {} ", "\n{}\n", "a{}", "{}a", "a{}a", "a {} a", "1{}1", ".{}.", "{}{}")
# Characters that few models know: they become the unknown token of a model that has one.
_RARE = "\0 \x7f \u0378 \u4e00 \ue000 \U0001f9ff \U0010fffd"


def find_eos(asked: str | None, vocabulary: Mapping[str, int], special: Iterable[str]) -> str:
    """Return the token that ends a document: the given one, or else the first of `EOS_SPELLINGS` in the vocabulary.

    Raises:
        ConfigError: If the vocabulary has no such token.
    """
    spellings = [asked] if asked is not None else EOS_SPELLINGS
    for token in spellings:
        if token in vocabulary:
            return token
    raise ConfigError(
        f"The tokenizer has no EOS token {asked or ' or '.join(EOS_SPELLINGS)!r}: set tokenizer.eos_token to one of its "
        f"special tokens ({_some(special)})."
    )


def check_special_tokens(reference: Any, fields: Mapping[str, Any], vocabulary: Mapping[str, int], eos: str) -> None:
    """Raise ConfigError if a tokenizer encodes plain text to a special token or to the EOS token.

    `reference` is the `tokenizers.Tokenizer`, which takes the spelling of special tokens as text, `fields` its parsed file.
    """
    unknown = unknown_token(fields["model"])
    added = added_tokens(fields)
    for token in added:
        if token["special"] and token["content"] != unknown:
            ids = _ids(reference, token["content"])
            if vocabulary[token["content"]] in ids:
                raise ConfigError(
                    f"The tokenizer encodes the text {token['content']!r} to its special token, since its model has a piece of "
                    "that spelling: choose a tokenizer without such a piece."
                )
    _check_eos_id(added, vocabulary, eos)
    _check_eos_text(reference, {*special_spellings(fields)}, vocabulary, eos, unknown)


def unknown_token(model: Mapping[str, Any]) -> str | None:
    """Return the unknown token of a model, None if it has none. ConfigError if its index is out of range."""
    token = model.get("unk_token")
    # Unigram models have the index of a piece.
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        place = model["unk_id"]
        pieces = model.get("vocab") or []
        if not 0 <= place < len(pieces):
            raise ConfigError(
                f"The tokenizer has {len(pieces)} pieces, and an unk_id of {place}: its file is damaged, use an intact copy."
            )
        token = pieces[place][0]
    if token is None:
        return None
    return str(token)


def _check_eos_id(added: Iterable[Mapping[str, Any]], vocabulary: Mapping[str, int], eos: str) -> None:
    """Check that no other token has the id of the EOS token, in the library or in the file."""
    eos_id = vocabulary[eos]
    declared = {entry["content"]: entry["id"] for entry in added}
    for token in (*_tokens_with(eos_id, vocabulary), *_tokens_with(declared.get(eos), declared)):
        if token != eos:
            raise ConfigError(
                f"The tokenizer has the same id {declared.get(eos, eos_id)} for its EOS token {eos!r} and its token {token!r}, "
                "so documents would seem to end at the other one: choose another token with tokenizer.eos_token, or repair "
                "the file."
            )


def _tokens_with(number: int | None, vocabulary: Mapping[str, int]) -> list[str]:
    """Return the tokens of an id."""
    return [token for token, its_number in vocabulary.items() if its_number == number]


def _check_eos_text(
    reference: Any, special: Set[str], vocabulary: Mapping[str, int], eos: str, unknown: str | None
) -> None:
    """Check that no text is encoded to the EOS token, since documents would seem to end there."""
    others = _some(special - {eos})
    if eos == unknown and vocabulary[eos] in _ids(reference, _RARE):
        raise ConfigError(
            f"The tokenizer's EOS token {eos!r} is also its unknown token: choose another one with tokenizer.eos_token, such "
            f"as one of its other special tokens ({others})."
        )
    # The spelling in the vocabulary, and without the signs of byte-level, SentencePiece and WordPiece vocabularies.
    spellings = dict.fromkeys(
        [eos, reference.decode([vocabulary[eos]], skip_special_tokens=False), eos.strip("\u2581\u0120#")]
    )
    for spelling in filter(None, spellings):
        for around in _AROUND:
            text = around.replace("{}", spelling)
            if vocabulary[eos] in _ids(reference, text):
                why = "" if eos in special else ", since it is not marked as special"
                raise ConfigError(
                    f"The tokenizer encodes the text {text!r} to its EOS token {eos!r}{why}, so documents with this text would "
                    "seem to end there: choose another one with tokenizer.eos_token, such as one of its special tokens "
                    f"({others})."
                )


def _ids(reference: Any, text: str) -> list[int]:
    """Return the ids of a text, none if the model cannot encode it for lack of an unknown token."""
    try:
        return list(reference.encode(text, add_special_tokens=False).ids)
    except Exception:  # the Rust library raises bare Exception
        return []


def _some(tokens: Iterable[str]) -> str:
    return ", ".join(sorted(tokens)[:20]) or "it has none"
