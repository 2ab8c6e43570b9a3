"""The EOS token and other special tokens: which one ends documents, and that no text of a document makes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_lance.errors import ConfigError

# What ends a document in the tokenizers that people pre-train with, most common spelling first.
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

# A spelling alone and among others: pre-tokenizers and models look at the neighbours.
_AROUND = ("{}", " {}", "{} ", " {} ", "\n{}\n", "a{}", "{}a", "a{}a", "a {} a", "1{}1", ".{}.", "{}{}")
# Characters that few models know: where a model has a token for all that it does not know, they become that.
_RARE = "\0 \x7f \u0378 \u4e00 \ue000 \U0001f9ff \U0010fffd"


def find_eos(asked: str | None, vocabulary: Mapping[str, int], special: Iterable[str]) -> str:
    """Return the token that ends a document: the one that was asked for, or the first usual spelling that there is.

    Raises:
        ConfigError: If there is none.
    """
    spellings = [asked] if asked is not None else EOS_SPELLINGS
    for token in spellings:
        if token in vocabulary:
            return token
    raise ConfigError(
        f"The tokenizer has no EOS token {asked or ' or '.join(EOS_SPELLINGS)!r}: set tokenizer.eos_token to one of its "
        f"special tokens, {_some(special)}."
    )


def check_special_tokens(reference: Any, fields: Mapping[str, Any], vocabulary: Mapping[str, int], eos: str) -> None:
    """Check that a tokenizer makes no special token, nor the EOS token, of plain text.

    Args:
        reference: The `tokenizers.Tokenizer`, which takes the spelling of special tokens as text.
        fields: Its parsed file.
        vocabulary: Token to id, added tokens included.
        eos: The token that ends a document.

    Raises:
        ConfigError: Naming the token.
    """
    unknown = unknown_token(fields["model"])
    added = fields.get("added_tokens") or []
    for token in added:
        if token["special"] and token["content"] != unknown:
            ids = _ids(reference, token["content"])
            if vocabulary[token["content"]] in ids:
                raise ConfigError(
                    f"The tokenizer makes its special token {token['content']!r} of a text that spells it, since it is a "
                    "piece of its model too: choose a tokenizer without such a piece."
                )
    _check_eos_id(added, vocabulary, eos)
    _check_eos_text(reference, added, vocabulary, eos, unknown)


def unknown_token(model: Mapping[str, Any]) -> str | None:
    """Return the token that stands for what a model does not know; None if it has none.

    Raises:
        ConfigError: If the model names a place beyond its pieces.
    """
    # Unigram models know it by its place.
    place = model.get("unk_id") if model["type"] == "Unigram" else None
    pieces = model.get("vocab") or []
    if place is not None and not 0 <= place < len(pieces):
        raise ConfigError(f"The tokenizer has {len(pieces)} pieces, and an unk_id of {place}: give one that is whole.")
    token = model.get("unk_token") if place is None else pieces[place][0]
    return None if token is None else str(token)


def _check_eos_id(added: Iterable[Mapping[str, Any]], vocabulary: Mapping[str, int], eos: str) -> None:
    """Check that an EOS token shares its id with no other token, as the library or the file has it."""
    eos_id = vocabulary[eos]
    declared = {entry["content"]: entry["id"] for entry in added}
    shared = [token for token, number in vocabulary.items() if number == eos_id]
    shared += [token for token, number in declared.items() if number == declared.get(eos)]
    for token in shared:
        if token != eos:
            raise ConfigError(
                f"The tokenizer gives its EOS token {eos!r} and its token {token!r} one id, {declared.get(eos, eos_id)}, so "
                "documents would seem to end where the other stands: choose another token by tokenizer.eos_token, or repair "
                "the file."
            )


def _check_eos_text(
    reference: Any, added: Iterable[Mapping[str, Any]], vocabulary: Mapping[str, int], eos: str, unknown: str | None
) -> None:
    """Check that an EOS token does not come from text: a store would seem to have documents end there."""
    special = {token["content"] for token in added if token["special"]}
    others = _some(token for token in special if token != eos)
    if eos == unknown and vocabulary[eos] in _ids(reference, _RARE):
        raise ConfigError(
            f"The tokenizer's EOS token {eos!r} also stands for text that it does not know: choose another one by "
            f"tokenizer.eos_token, such as one of its other special tokens, {others}."
        )
    # As a word of a byte-level or SentencePiece vocabulary is spelled, and as it reads.
    spellings = dict.fromkeys(
        [eos, reference.decode([vocabulary[eos]], skip_special_tokens=False), eos.strip("\u2581\u0120#")]
    )
    for spelling in filter(None, spellings):
        for around in _AROUND:
            text = around.replace("{}", spelling)
            if vocabulary[eos] in _ids(reference, text):
                why = "" if eos in special else ", since it is not marked as special"
                raise ConfigError(
                    f"The tokenizer makes its EOS token {eos!r} of the text {text!r}{why}, so documents that hold it would "
                    "seem to end there: choose another one by tokenizer.eos_token, such as one of its special tokens, "
                    f"{others}."
                )


def _ids(reference: Any, text: str) -> list[int]:
    """Encode a text; a model that cannot, since it has no token for the unknown, makes no EOS of it."""
    try:
        return list(reference.encode(text, add_special_tokens=False).ids)
    except Exception:  # the Rust library raises bare Exception
        return []


def _some(tokens: Iterable[str]) -> str:
    return ", ".join(sorted(tokens)[:20]) or "of which it has none"
