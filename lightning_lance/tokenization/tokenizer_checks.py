"""What a `tokenizer.json` must be, whoever has written it: its form, and ids that are one to a token and close together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Ids for each token, and besides: models and engines have a row for every id, so one of a billion would need gigabytes. Real
# tokenizers leave out some hundreds.
_IDS_PER_TOKEN, _IDS_BESIDES = 2, 1 << 16


def check_form(fields: Any) -> None:
    """Check the parsed text of a `tokenizer.json`.

    Raises:
        ValueError: If it, its model, a part of it or an added token is not of the form that it must be.
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
    """Check a normalizer or pre-tokenizer: the library also takes lists for objects, and objects without a type."""
    if part is None:
        return
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"expected a {name} that is an object with a type")
    steps = part.get(inner, [])
    if not isinstance(steps, list) or None in steps:
        raise ValueError(f"expected {inner} that are a list of objects")
    for step in steps:
        _check_part(name, step, inner)


def check_ids(added: Iterable[Mapping[str, Any]], vocabulary: Mapping[str, int]) -> None:
    """Check the ids that the `tokenizers` library has made of a `tokenizer.json`.

    Args:
        added: Its added tokens, with `content` and `id`.
        vocabulary: All tokens, and their ids.

    Raises:
        ValueError: If there are none, an id is far beyond their number, two tokens share one, or one is not that of the file.
    """
    if not vocabulary:
        raise ValueError("it has no tokens")
    largest, most = max(vocabulary.values()), _IDS_PER_TOKEN * len(vocabulary) + _IDS_BESIDES
    if largest >= most:
        raise ValueError(f"it has {len(vocabulary):,} tokens and an id of {largest:,}: expected ids below {most:,}")
    for token in added:
        if vocabulary.get(token["content"]) != token["id"]:
            raise ValueError(
                f"its added token {token['content']!r} has the id {token['id']}, but the library makes it "
                f"{vocabulary.get(token['content'])}"
            )
    if len({*vocabulary.values()}) != len(vocabulary):
        seen: dict[int, str] = {}
        for spelling, number in sorted(vocabulary.items()):
            if number in seen:
                raise ValueError(f"its tokens {seen[number]!r} and {spelling!r} share the id {number}")
            seen[number] = spelling
