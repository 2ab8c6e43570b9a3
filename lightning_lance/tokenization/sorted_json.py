"""JSON text with sorted keys, fast for the vocabulary and the merges of a tokenizer."""

from __future__ import annotations

import json
from itertools import chain
from json.encoder import encode_basestring as quoted
from typing import Any


def sorted_json(value: Any) -> str:
    """Return the JSON text of a parsed JSON file.

    The text is that of `json.dumps(value, sort_keys=True, ensure_ascii=False)`, which takes twice as long for a tokenizer of
    150,000 tokens: it sorts pairs of keys and values, and makes an object for each bracket.
    """
    if isinstance(value, dict):
        return f"{{{', '.join(_members(value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(_items(value))}]"
    if isinstance(value, str):
        return str(quoted(value))
    return json.dumps(value)


def _members(values: dict[str, Any]) -> list[str]:
    if {*map(type, values.values())} == {int}:
        return [f"{quoted(key)}: {values[key]}" for key in sorted(values)]
    return [f"{quoted(key)}: {sorted_json(values[key])}" for key in sorted(values)]


def _items(values: list[Any]) -> list[str]:
    if _are_pairs_of_text(values):
        return [f"[{quoted(one)}, {quoted(other)}]" for one, other in values]
    return list(map(sorted_json, values))


def _are_pairs_of_text(values: list[Any]) -> bool:
    """Return whether the values are merges: lists of two strings."""
    if {*map(type, values)} != {list}:
        return False
    return {*map(len, values)} == {2} and {*map(type, chain.from_iterable(values))} == {str}
