"""Checks of JSON values that may come from somebody else.

Each check returns the value, or raises a ValueError with its name, the value, and the expected kind. The caller adds the
store or file, as `metadata_of` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NoReturn

from lightning_lance.errors import StoreError

# The largest int64.
_MOST = 2**63 - 1
# Depth of nested settings; real ones have five levels.
_DEPTH = 50


@contextmanager
def metadata_of(uri: str) -> Iterator[None]:
    """Turn a ValueError about the metadata of a store into a StoreError that names the store."""
    try:
        yield
    except ValueError as error:
        raise StoreError(
            f"The commit metadata of the token store {uri!r} cannot be used ({error}): copy the store again from its origin, "
            "or build it again at another place."
        ) from error


def json_of(text: str, name: str) -> Any:
    """Return parsed JSON without NaN and Infinity."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from error


def object_of(value: Any, name: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        _misfit(name, value, "an object")
    return value


def list_of(value: Any, name: str) -> list[Any]:
    """Return a JSON list."""
    if not isinstance(value, list):
        _misfit(name, value, "a list")
    return value


def text_of(value: Any, name: str) -> str:
    """Return text that can be written as UTF-8."""
    if not isinstance(value, str):
        _misfit(name, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        _misfit(name, value, "valid Unicode text")
    return value


def flag_of(value: Any, name: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        _misfit(name, value, "true or false")
    return value


def count_of(value: Any, name: str, least: int = 0, most: int = _MOST) -> int:
    """Return a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        limit = "on" if most == _MOST else f"to {most:,}"
        _misfit(name, value, f"a whole number from {least:,} {limit}")
    return value


def counts_of(value: Any, name: str) -> dict[str, int]:
    """Return an object of whole numbers from 0 on."""
    for key, count in object_of(value, name).items():
        count_of(count, f"{name}.{text_of(key, f'a key of {name}')}")
    return dict(value)


def texts_of(value: Any, name: str) -> dict[str, str]:
    """Return an object of texts."""
    for key, text in object_of(value, name).items():
        text_of(text, f"{name}.{text_of(key, f'a key of {name}')}")
    return dict(value)


def plain_of(value: Any, name: str) -> dict[str, Any]:
    """Return an object with limited nesting, since deep recursion would end the process."""
    layer: list[Any] = [object_of(value, name)]
    for _ in range(_DEPTH):
        layer = [*chain.from_iterable(map(_parts, layer))]
        if not layer:
            return dict(value)
    raise ValueError(f"{name} is nested {_DEPTH} levels deep or more: expected a few levels")


def field_of(fields: Mapping[str, Any], name: str) -> Any:
    """Return a required field."""
    if name not in fields:
        raise ValueError(f"{name} is missing")
    return fields[name]


def _parts(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return [part for part in inner if isinstance(part, (dict, list))]


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")


def _misfit(name: str, value: Any, expected: str) -> NoReturn:
    got = repr(value)[:60]
    if isinstance(value, dict):
        got = "an object"
    elif isinstance(value, list):
        got = "a list"
    raise ValueError(f"{name} is {got}: expected {expected}")
