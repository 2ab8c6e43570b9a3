"""The canonical form of a `tokenizer.json`: the digest of a tokenizer, and the differences between two."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import xxhash

from lightning_lance.tokenization.sorted_json import sorted_json

# Parts that are not used for documents: a template that adds tokens, and lengths of a fine-tuning run.
UNUSED = {"post_processor": None, "truncation": None, "padding": None}

# Fields that older versions of `tokenizers` did not write, with their defaults.
_MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "BPE": {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    },
    "Unigram": {"byte_fallback": False},
}
# Fields of a model with signs around the pieces of a word.
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
# The decoder of byte-level tokenizers. It ignores its options.
_BYTES_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

Fields = dict[str, Any]


def byte_characters() -> list[str]:
    """Return the characters that byte-level tokenizers use for the bytes 0 to 255.

    A printable byte stands for itself, the others, in order, for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    written = []
    following = 0x100
    for byte in range(256):
        if byte in printable:
            written.append(chr(byte))
        else:
            written.append(chr(following))
            following += 1
    return written


def bytes_of_characters() -> dict[str, int]:
    """Return the byte that each of the `byte_characters` is for."""
    return numbered(byte_characters())


def byte_pieces() -> list[str]:
    """Return the pieces for the bytes 0 to 255 in a vocabulary with byte fallback."""
    return list(map("<0x{:02X}>".format, range(256)))


def numbered(pieces: Iterable[str]) -> dict[str, int]:
    """Return a vocabulary of some pieces, whose ids are their positions."""
    return {piece: place for place, piece in enumerate(pieces)}


def pieces_of(vocabulary: Any) -> list[str]:
    """Return the pieces in the vocabulary of a model. That of Unigram is a list of pieces with their scores."""
    if isinstance(vocabulary, dict):
        return list(vocabulary)
    return [piece for piece, _ in vocabulary]


def added_tokens(fields: Mapping[str, Any]) -> list[Fields]:
    """Return the added tokens of a tokenizer."""
    return fields.get("added_tokens") or []


def plain_added_tokens(fields: Mapping[str, Any]) -> list[Fields]:
    """Return the added tokens that are not special."""
    return [token for token in added_tokens(fields) if not token["special"]]


def special_spellings(fields: Mapping[str, Any]) -> list[str]:
    """Return the spellings of the special tokens among the added tokens."""
    return [token["content"] for token in added_tokens(fields) if token["special"]]


def spellings_of(tokens: Iterable[Fields]) -> list[str]:
    """Return the spellings of some added tokens."""
    return [token["content"] for token in tokens]


def by_spelling(tokens: Iterable[Fields]) -> dict[str, Fields]:
    """Return some added tokens by their spellings."""
    return {token["content"]: token for token in tokens}


def has_affixes(model: Mapping[str, Any]) -> bool:
    """Return whether the pieces of a model have signs for their place in a word."""
    return any(map(model.get, _AFFIXES))


def typed(fields: Mapping[str, Any]) -> Fields:
    """Return a tokenizer with the type of its model, which early files such as that of GPT-2 leave out."""
    model = fields["model"]
    if "type" in model:
        return dict(fields)
    if "merges" in model:
        kind = "BPE"
    elif "max_input_chars_per_word" in model:
        kind = "WordPiece"
    elif isinstance(model.get("vocab"), dict):
        kind = "WordLevel"
    else:
        kind = "Unigram"
    return {**fields, "model": {"type": kind, **model}}


def fields_in_use(fields: Mapping[str, Any]) -> Fields:
    """Return the fields of a parsed `tokenizer.json` for documents: without added tokens, truncation and random dropout."""
    used = {**typed(fields), **UNUSED}
    if used["model"].get("dropout"):
        used["model"] = {**used["model"], "dropout": None}
    return used


def canonical(fields: Mapping[str, Any]) -> Fields:
    """Return the fields of a tokenizer in canonical form, so that different spellings of one tokenizer are equal.

    Files come from many versions of `tokenizers`, and `transformers` rewrites them. The form is that of its classes for GPT-2,
    GPT-NeoX and Qwen, and of `tokenizers` 0.23 for all others. The digest in a store is that of this form.
    """
    made: Fields = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "decoder": None}
    made |= {**fields, **UNUSED}
    made["added_tokens"] = sorted(made["added_tokens"] or [], key=lambda token: int(token["id"]))
    made["model"] = _model(fields["model"])
    made["pre_tokenizer"] = _pre_tokenizer(made["pre_tokenizer"])
    if (made["decoder"] or {}).get("type") == "ByteLevel":
        made["decoder"] = _BYTES_DECODER
    return made


def _model(model: Mapping[str, Any]) -> Fields:
    made = {**_MODEL_DEFAULTS.get(model["type"], {}), **model}
    if model["type"] == "BPE":
        made["merges"] = split_merges(model)
        if "ignore_merges" not in model:
            # For an old file, the classes of transformers write a missing affix as an empty one.
            for affix in _AFFIXES:
                made[affix] = made[affix] or ""
    return made


def split_merges(model: Mapping[str, Any]) -> list[Any]:
    """Return the merges of a BPE as pairs, which older files write as text with a space."""
    merges: list[Any] = model["merges"]
    if str in {*map(type, merges)}:
        return list(map(_as_pair, merges))
    return list(merges)


def _as_pair(merge: Any) -> Any:
    if isinstance(merge, str):
        return merge.split(" ", 1)
    return merge


def _pre_tokenizer(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Sequence":
        return {**part, "pretokenizers": list(map(_pre_tokenizer, part["pretokenizers"]))}
    if part.get("type") == "ByteLevel":
        # trim_offsets only changes offsets, which are not used.
        return {"use_regex": True, **part, "trim_offsets": True}
    if part.get("type") == "Metaspace":
        return {"split": True, **part}
    return part


def digest_of(fields: Mapping[str, Any], eos_id: int) -> str:
    """Return the hash of the fields as they are, with the EOS id."""
    return xxhash.xxh3_128_hexdigest(f"{eos_id}\0{sorted_json(fields)}".encode())


def other_digests(fields: Mapping[str, Any], rewritten: str, eos_id: int) -> list[str]:
    """Return other digests that stores of the same tokenizer may have; `rewritten` is the file as `tokenizers` writes it.

    Earlier versions hashed the file itself, or its form in `transformers`.
    """
    found = [digest_of({**fields, **UNUSED}, eos_id), digest_of({**json.loads(rewritten), **UNUSED}, eos_id)]
    one = canonical(fields)
    if one["model"]["type"] == "BPE" and not has_affixes(one["model"]):
        for empty in (None, ""):
            form = {**one, "model": {**one["model"], **dict.fromkeys(_AFFIXES, empty)}}
            found.append(digest_of(form, eos_id))
    return found


def differences_in_texts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the parts in which two tokenizers may give other ids; empty if they give the same ids for every text.

    Special tokens do not count, since no text is encoded to them.
    """
    parts = _meaning(one)
    others = _meaning(other)
    return [name for name in parts if parts[name] != others[name]]


def _meaning(fields: Mapping[str, Any]) -> Fields:
    """Return the parts of a tokenizer that determine the ids of texts."""
    made = canonical(fields)
    model = dict(made["model"])
    vocabulary = model.pop("vocab", None)
    merges = model.pop("merges", None)
    for affix in _AFFIXES:
        model[affix] = model.get(affix) or None
    if model.get("byte_fallback"):
        # Each byte has a token, so nothing is unknown.
        model |= {"unk_token": None, "fuse_unk": None, "unk_id": None}
    return {
        "normalizer": normalizers_of(made),
        "pre_tokenizer": pre_tokenizers_of(made),
        "model": model,
        "vocabulary": vocabulary,
        "merges": merges,
        "added tokens": by_spelling(plain_added_tokens(made)),
    }


def is_byte_level(fields: Mapping[str, Any]) -> bool:
    """Return whether the normalizer or the pre-tokenizer of a tokenizer writes bytes as `byte_characters`."""
    steps = chain(normalizers_of(fields), pre_tokenizers_of(fields))
    return any(step["type"] == "ByteLevel" for step in steps)


def normalizers_of(fields: Mapping[str, Any]) -> list[Any]:
    """Return the steps of the normalizer of a tokenizer."""
    return list(_steps_of(fields.get("normalizer"), "normalizers"))


def pre_tokenizers_of(fields: Mapping[str, Any]) -> list[Any]:
    """Return the steps of the pre-tokenizer of a tokenizer."""
    return list(_steps_of(fields.get("pre_tokenizer"), "pretokenizers"))


def _steps_of(part: Any, inner: str) -> Iterator[Any]:
    """Yield the steps of a part, which may be a sequence of sequences; `inner` is the field with their steps."""
    if isinstance(part, dict) and part.get("type") == "Sequence":
        for step in part[inner]:
            yield from _steps_of(step, inner)
    elif part is not None:
        yield part
