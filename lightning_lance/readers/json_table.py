"""Lines of JSON as Arrow tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from lightning_lance.documents.columns import REPLACED
from lightning_lance.documents.filters import Condition, RowFilter, spelled

#: The column that says which lines are no JSON objects. No column of a file has this name.
NOT_JSON = "//not_json"
#: The column that says which lines a filter lets through.
PASSES = "//passes"
#: White space around a line.
SPACE = b" \t\r\n"

# Python refuses to make a whole number of more digits.
_LONGEST_WHOLE = 4000
# Half of a surrogate pair. `parsed` makes them of bytes that are not UTF-8.
_LONE = re.compile("[\ud800-\udfff]")
# orjson makes fractions of whole numbers from here on.
_LARGE = 2.0**63


def table_of(lines: Sequence[bytes], columns: Sequence[str], text: str, filters: RowFilter | None = None) -> pa.Table:
    """Parse lines, each by itself.

    Args:
        lines: Lines, as `rows_of` gives them.
        columns: Columns to keep, or fields of objects in them (see `value_of`). All but the text are spelled as strings.
        text: The column of the text. It is given as bytes, since some texts are not UTF-8.
        filters: Marks the lines that pass, by some of the columns; None marks none.

    Returns:
        The columns; `NOT_JSON` (bool), of whose lines all else is null; `PASSES` (bool) if there is a filter, which lets those
        lines through; and `REPLACED` (bool) if something that was no Unicode was replaced by question marks.
    """
    rows = list(map(parsed, lines))
    cells = _cells(rows, columns)
    rounded: set[int] = set()
    for values in cells.values():
        rounded.update(_rounded(values))
    if rounded:
        for place in rounded:
            rows[place] = _by_json(lines[place])
        cells = _cells(rows, columns)
    not_json = np.array([row is None for row in rows])
    replaced = np.zeros(len(rows), bool)
    made: dict[str, Any] = {}
    for name, values in cells.items():
        if name == text:
            made[name] = _texts(values)
            continue
        try:
            made[name] = pa.array(values, pa.string())
        except (pa.ArrowException, TypeError, UnicodeEncodeError):  # other values than strings, lone surrogates
            made[name] = pa.array(map(spelled, values), pa.string())
            replaced |= list(map(_is_odd, values))
    made[NOT_JSON] = not_json
    if filters is not None:
        passes = np.ones(len(rows), bool)
        for condition in filters.conditions:
            passes &= _passing(condition, cells[condition.column], made[condition.column])
        made[PASSES] = passes | not_json
    if replaced.any():
        made[REPLACED] = replaced
    return pa.table(made)


def _cells(rows: Sequence[dict[str, Any] | None], columns: Sequence[str]) -> dict[str, list[Any]]:
    cells: dict[str, list[Any]] = {}
    for name in columns:
        cells[name] = _values(rows, name)
    return cells


def _values(rows: Sequence[dict[str, Any] | None], name: str) -> list[Any]:
    if "." in name:
        return [value_of(row, name) for row in rows]
    return [None if row is None else row.get(name) for row in rows]


def _passing(condition: Condition, values: Sequence[Any], words: pa.Array) -> np.ndarray:
    """Return which values fulfil a condition. `words` are the values as they are spelled, or bytes."""
    if pa.types.is_string(words.type) and list not in map(type, values):
        return condition.mask_of_words(words)
    return np.array(list(map(condition.keeps, values)))


def _rounded(values: Sequence[Any]) -> list[int]:
    """Return the places of values that may hold a rounded number."""
    if {*map(type, values)}.isdisjoint((float, list, dict)):
        return []
    places: list[int] = np.flatnonzero(list(map(_may_be_rounded, values))).tolist()
    return places


def value_of(row: Mapping[str, Any] | None, name: str) -> Any:
    """Return a value out of a line, None if there is none.

    A name means the key that is called so. Where that is missing or null, its dots lead into objects: `meta.set` is the key
    `set` of the object `meta`, and a list on the way gives the list of that key.
    """
    if row is None:
        return None
    value = row.get(name)
    if value is not None or "." not in name:
        return value
    # The longest key first, since keys may have dots of their own.
    for key in sorted(row, key=len, reverse=True):
        if not name.startswith(f"{key}."):
            continue
        found = _within(row[key], name[len(key) + 1 :])
        if found is not None:
            return found
    return None


def _within(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return value_of(value, name)
    if isinstance(value, list):
        return [_within(item, name) for item in value]
    return None


def is_there(row: Mapping[str, Any], name: str) -> bool:
    """Return whether a line has what a name means, even if it is null."""
    if name in row:
        return True
    for key, value in row.items():
        if not name.startswith(f"{key}."):
            continue
        if _is_within(value, name[len(key) + 1 :]):
            return True
    return False


def _is_within(value: Any, name: str) -> bool:
    if isinstance(value, list):
        return any(_is_within(item, name) for item in value)
    return isinstance(value, dict) and is_there(value, name)


def _is_odd(value: Any) -> bool:
    return isinstance(value, str) and not value.isascii() and _LONE.search(value) is not None


def type_of(values: Sequence[Any]) -> str:
    """Name the Arrow types of values, for a message."""
    names = {bool: "bool", int: "int64", float: "double", str: "string", list: "list", dict: "struct"}
    found: set[str] = set()
    for value in values:
        found.add(names[type(value)])
    return " and ".join(sorted(found))


def rows_of(block: bytes) -> list[bytes]:
    """Return the lines of a block that are rows, without the white space around them."""
    lines = (line.strip(SPACE) for line in block.split(b"\n"))
    return list(filter(None, lines))


def parsed(line: bytes) -> dict[str, Any] | None:
    """Parse a line, bytes that are not UTF-8 as lone surrogates; None if it is no JSON object.

    Whole numbers of more than 64 bits may become fractions.
    """
    try:
        value = orjson.loads(line)
    except ValueError:  # also for NaN, infinity, lone surrogates and bytes that are not UTF-8
        return _by_json(line)
    if isinstance(value, dict):
        return value
    return None


def _may_be_rounded(value: Any) -> bool:
    """Return whether a value holds a fraction that may have been written as a whole number of more than 64 bits."""
    if isinstance(value, float):
        return abs(value) >= _LARGE
    try:
        if isinstance(value, dict):
            return any(map(_may_be_rounded, value.values()))
        if isinstance(value, list):
            return any(map(_may_be_rounded, value))
    except RecursionError:
        return True
    return False


def _by_json(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"), parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        return value
    return None


def _whole(digits: str) -> int | float:
    if len(digits) <= _LONGEST_WHOLE:
        return int(digits)
    return float(digits)


def _texts(values: Sequence[Any]) -> pa.Array:
    """Return texts as bytes, and null for any other value."""
    texts = [value if isinstance(value, str) else None for value in values]
    try:
        return pa.array(texts, pa.large_string()).cast(pa.large_binary())
    except UnicodeEncodeError:  # lone surrogates
        return pa.array(map(_encoded, texts), pa.large_binary())


def _encoded(text: str | None) -> bytes | None:
    if text is None:
        return None
    return text.encode("utf-8", "surrogatepass")
