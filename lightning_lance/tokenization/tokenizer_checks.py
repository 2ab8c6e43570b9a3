"""Checks of a `tokenizer.json`, whoever wrote it: its form, and ids that are unique and dense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# The largest id is limited to 2 per token, plus 65,536: models and engines have a row for every id, so an id of a billion would
# need gigabytes. Real tokenizers skip some hundreds of ids.
_IDS_PER_TOKEN = 2
_IDS_BESIDES = 1 << 16


def check_form(fields: Any) -> None:
    """Check the parsed text of a `tokenizer.json`.

    Raises:
        ValueError: If it, its model, a part of it or an added token has another form.
    """
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("type", ""), str):
        raise ValueError("expected an object with a model")
    for token in fields.get("added_tokens") or []:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ValueError("expected added_tokens that are objects with a content")
        if not token["content"]:
            raise ValueError("it has an added token that is empty")
    _check_part("normalizer", fields.get("normalizer"), "normalizers")
    _check_part("pre_tokenizer", fields.get("pre_tokenizer"), "pretokenizers")
    if not isinstance(fields.get("decoder"), (dict, type(None))):
        raise ValueError("expected a decoder that is an object")


def _check_part(name: str, part: Any, inner: str) -> None:
    """Check a normalizer or pre-tokenizer. The library would also accept lists, and objects without a type."""
    if part is None:
        return
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"expected a {name} that is an object with a type")
    steps = part.get(inner, [])
    if not isinstance(steps, list) or None in steps:
        raise ValueError(f"expected {inner} to be a list of objects")
    for step in steps:
        _check_part(name, step, inner)


def check_ids(added: Iterable[Mapping[str, Any]], vocabulary: Mapping[str, int]) -> None:
    """Check the ids that the `tokenizers` library has for a `tokenizer.json`, which adds some tokens.

    Raises:
        ValueError: If there is no token, an id is far too large, two tokens share an id, or an added token has another id than
            in the file.
    """
    if not vocabulary:
        raise ValueError("it has no tokens")
    largest = max(vocabulary.values())
    limit = _IDS_PER_TOKEN * len(vocabulary) + _IDS_BESIDES
    if largest >= limit:
        raise ValueError(f"it has {len(vocabulary):,} tokens and an id of {largest:,}: expected ids below {limit:,}")
    for token in added:
        number = vocabulary.get(token["content"])
        if number != token["id"]:
            raise ValueError(
                f"its added token {token['content']!r} has the id {token['id']}, but {number} in the tokenizers library"
            )
    if len({*vocabulary.values()}) != len(vocabulary):
        seen: dict[int, str] = {}
        for spelling, number in sorted(vocabulary.items()):
            if number in seen:
                raise ValueError(f"its tokens {seen[number]!r} and {spelling!r} share the id {number}")
            seen[number] = spelling
