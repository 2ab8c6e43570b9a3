"""A `tokenizer.json` in one form, whoever wrote it: what identifies a tokenizer, and where two of them differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import xxhash

# What no text of a document goes through: a template that adds tokens, and lengths of a fine-tuning run.
UNUSED = {"post_processor": None, "truncation": None, "padding": None}

# Fields that older versions of `tokenizers` did not write, with what they stand for where they are missing.
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
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
# The decoder that belongs to bytes written as characters. It takes no notice of its options.
_BYTES_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

Fields = dict[str, Any]


def byte_characters() -> list[str]:
    """Return the characters as which byte-level tokenizers write the bytes 0 to 255.

    Printable bytes are written as themselves, and the others, in order, as the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    written = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return [written[byte] for byte in range(256)]


def typed(fields: Mapping[str, Any]) -> Fields:
    """Return a tokenizer whose model names its type, which early files leave out, as that of GPT-2 does."""
    model = fields["model"]
    if "type" in model:
        return dict(fields)
    if "merges" in model:
        kind = "BPE"
    elif "max_input_chars_per_word" in model:
        kind = "WordPiece"
    else:
        kind = "WordLevel" if isinstance(model.get("vocab"), dict) else "Unigram"
    return {**fields, "model": {"type": kind, **model}}


def fields_in_use(fields: Mapping[str, Any]) -> Fields:
    """Return the fields of a tokenizer as it encodes documents: nothing is added, nothing cut, and nothing left to chance.

    Args:
        fields: A parsed `tokenizer.json`, as its authors wrote it.
    """
    # A file may come with a template that adds BOS, or with the truncation of a fine-tuning run.
    used = {**typed(fields), **UNUSED}
    if used["model"].get("dropout"):
        used["model"] = {**used["model"], "dropout": None}
    return used


def canonical(fields: Mapping[str, Any]) -> Fields:
    """Return the fields of a tokenizer in one form, so that what is only spelled differently is equal.

    Files come from many versions of `tokenizers`, and `transformers` writes them anew. The form is that in which its classes
    for GPT-2, GPT-NeoX and Qwen write theirs, and in which `tokenizers` 0.23 writes all others: stores are named by it.

    Args:
        fields: A parsed `tokenizer.json`, whose model names its type.
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
        made["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        if "ignore_merges" not in model:
            # An old file: the classes of transformers write no affix as an empty one.
            made |= {affix: made[affix] or "" for affix in _AFFIXES}
    return made


def _pre_tokenizer(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Sequence":
        return {**part, "pretokenizers": [_pre_tokenizer(inner) for inner in part["pretokenizers"]]}
    if part.get("type") == "ByteLevel":
        # Only offsets depend on trim_offsets, and nothing here asks for them.
        return {"use_regex": True, **part, "trim_offsets": True}
    if part.get("type") == "Metaspace":
        return {"split": True, **part}
    return part


def digest_of(fields: Mapping[str, Any], eos_id: int) -> str:
    """Hash the fields as they are, with the id that ends a document."""
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(f"{eos_id}\0{text}".encode())


def other_digests(fields: Mapping[str, Any], rewritten: str, eos_id: int) -> tuple[str, ...]:
    """Return the digests under which stores of the same tokenizer may be known, besides that of its canonical form.

    Earlier versions took the hash of the file as it was, or as `transformers` wrote it anew.

    Args:
        fields: A parsed `tokenizer.json`.
        rewritten: The same as `tokenizers` writes it.
        eos_id: The id that ends a document.
    """
    forms = [{**fields, **UNUSED}, {**json.loads(rewritten), **UNUSED}]
    one = canonical(fields)
    if one["model"]["type"] == "BPE" and not any(one["model"][affix] for affix in _AFFIXES):
        forms += [{**one, "model": {**one["model"], **dict.fromkeys(_AFFIXES, empty)}} for empty in (None, "")]
    digests = [digest_of(form, eos_id) for form in forms]
    return tuple(dict.fromkeys(digests))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the parts in which two tokenizers may give other ids; empty if they give the same for every text."""
    sides = [_meaning(fields) for fields in (one, other)]
    return [name for name in sides[0] if sides[0][name] != sides[1][name]]


def _meaning(fields: Mapping[str, Any]) -> Fields:
    """Return what decides the ids of texts that are encoded without special tokens."""
    made = canonical(fields)
    model = {key: value for key, value in made["model"].items() if key not in ("vocab", "merges")}
    model |= {affix: model.get(affix) or None for affix in _AFFIXES}
    if model.get("byte_fallback"):
        # Each byte has a token, so nothing is unknown.
        model |= {"unk_token": None, "fuse_unk": None, "unk_id": None}
    return {
        "normalizer": _steps(made["normalizer"], "normalizers"),
        "pre_tokenizer": _steps(made["pre_tokenizer"], "pretokenizers"),
        "model": model,
        "vocabulary": made["model"].get("vocab"),
        "merges": made["model"].get("merges"),
        "added tokens": {token["content"]: token for token in made["added_tokens"] if not token["special"]},
        "special tokens": {token["content"]: token["id"] for token in made["added_tokens"] if token["special"]},
    }


def _steps(part: Any, inner: str) -> list[Any]:
    """Return the steps of a part that may be a sequence of sequences."""
    return [*_flat(part, inner)]


def _flat(part: Any, inner: str) -> Iterator[Any]:
    if isinstance(part, dict) and part.get("type") == "Sequence":
        for step in part[inner]:
            yield from _flat(step, inner)
    elif part is not None:
        yield part
