"""Lines of JSON as Arrow tables: the same whether Arrow parses them all at once or Python one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from lightning_lance.documents.columns import REPLACED, is_list
from lightning_lance.documents.filters import RowFilter, spelled

#: What the tables have besides, whether a line is no JSON object: named as no column is.
NOT_JSON = "//not_json"
#: What they have where there is a filter: whether it lets a line through.
PASSES = "//passes"
#: White space around a line.
SPACE = b" \t\r\n"

_NEWLINE, _RETURN, _OPEN, _CLOSE = b"\n\r{}"
# Beyond that, Python refuses to make a whole number of digits.
_LONGEST_WHOLE = 4000
# Half a surrogate pair; `parsed` makes such of bytes that are not UTF-8.
_LONE = re.compile("[\ud800-\udfff]")
# Lines from which the types of columns are guessed.
_FEW = 100


class LineParser:
    """Makes tables of blocks of lines.

    Args:
        columns: Columns to keep, or fields of objects in them (see `value_of`). All but the text are spelled as strings.
        text: The column of the text, which is given as bytes, since some are not UTF-8.
        filters: Which lines to mark as those that pass, by columns of those; None marks none.
    """

    def __init__(self, columns: Sequence[str], text: str, filters: RowFilter | None = None) -> None:
        self._columns, self._text, self._filters = columns, text, filters
        # How Arrow has to see the objects that names with dots lead into; None where two names contradict each other.
        self._tree = _tree(columns)
        # Keys with dots of their own, which Python looks for.
        self._dotted = [spelling for name in columns for key in _dotted(name) for spelling in _as_keys(key)]
        # Of each column but the text, the Arrow type that its values were last seen to have; None for one that only Python
        # spells as it should be.
        self._types: dict[str, pa.DataType | None] = {}

    def table(self, block: bytes, count: int | None) -> pa.Table:
        """Parse a block: at once by Arrow, else line by line, to the same table.

        Args:
            block: Whole lines; those of white space are no rows.
            count: What `whole_objects` says of it.

        Returns:
            The columns; `NOT_JSON` (bool), of whose lines all else is null; `PASSES` (bool) if there is a filter, which lets
            those lines through; and `REPLACED` (bool) if something that was no Unicode was replaced by question marks.
        """
        lines: list[bytes] | None = None
        if count is None:
            lines = rows_of(block)
            block = b"\n".join(lines)
            count = whole_objects(block)
        if count is not None:
            if not self._types:
                others = [name for name in self._columns if name != self._text]
                few = (lines or block.split(b"\n", _FEW))[:_FEW] if others else []
                self._learn([parsed(line) or {} for line in few])
            if (table := self._at_once(block, count)) is not None:
                return table
        return self._line_by_line([parsed(line) for line in (rows_of(block) if lines is None else lines)])

    def _line_by_line(self, rows: Sequence[dict[str, Any] | None]) -> pa.Table:
        self._learn([row or {} for row in rows])
        cells = {name: [value_of(row, name) for row in rows] for name in self._columns}
        made = {
            name: _texts(values) if name == self._text else pa.array(map(spelled, values), pa.string())
            for name, values in cells.items()
        }
        made[NOT_JSON] = pa.array([row is None for row in rows], pa.bool_())
        if self._filters is not None:
            made[PASSES] = pa.array([row is None or self._keeps(row) for row in rows], pa.bool_())
        others = [values for name, values in cells.items() if name != self._text]
        replaced = [any(_is_odd(value) for value in values) for values in zip(*others, strict=True)]
        if any(replaced):
            made[REPLACED] = pa.array(replaced)
        return pa.table(made)

    def _keeps(self, row: Mapping[str, Any]) -> bool:
        return self._filters is None or self._filters.keeps(lambda name: value_of(row, name))

    def _learn(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for name in self._columns:
            values = [value for row in rows if (value := value_of(row, name)) is not None]
            self._types[name] = _arrow_type(values)

    def _at_once(self, block: bytes, count: int) -> pa.Table | None:
        types = {name: pa.large_string() if name == self._text else self._types[name] for name in self._columns}
        if self._tree is None or None in types.values() or any(key in block for key in self._dotted):
            return None
        # Without threads: the tokenizer has the other cores.
        read = pj.ReadOptions(use_threads=False, block_size=len(block) + 1)
        schema = pa.schema(_fields(self._tree, types))
        parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            table = pj.read_json(pa.BufferReader(block), read, parse)
            found = {name: _field(table, name) for name in self._columns}
            made = {
                name: column.cast(pa.large_binary()) if name == self._text else _as_strings(column)
                for name, column in found.items()
            }
            passes = self._passing(found, made, count) if len(table) == count else None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        if passes is None:  # several objects in a line
            return None
        made[NOT_JSON] = np.zeros(count, bool)
        if self._filters is not None:
            made[PASSES] = passes
        return pa.table(made)

    def _passing(self, found: Mapping[str, pa.ChunkedArray], words: Mapping[str, Any], count: int) -> np.ndarray:
        passes = np.ones(count, bool)
        for condition in self._filters.conditions if self._filters is not None else ():
            values = found[condition.column]
            if is_list(values.type):
                passes &= np.fromiter((condition.keeps(value) for value in values.to_pylist()), bool, count)
            else:
                # The text is bytes here.
                strings = words[condition.column].cast(pa.string()).combine_chunks()
                passes &= condition.mask_of_words(strings)
        return passes


def _tree(columns: Sequence[str]) -> dict[str, Any] | None:
    """Make a tree of objects of names with dots: of each key, the keys in it, or the name that ends there."""
    tree: dict[str, Any] = {}
    for name in columns:
        *outer, last = name.split(".")
        branch = tree
        for key in outer:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                return None
        if last in branch:
            return None
        branch[last] = name
    return tree


def _fields(tree: Mapping[str, Any], types: Mapping[str, pa.DataType | None]) -> list[tuple[str, pa.DataType]]:
    return [
        (key, pa.struct(_fields(inner, types)) if isinstance(inner, dict) else types[inner])
        for key, inner in tree.items()
    ]


def _field(table: pa.Table, name: str) -> pa.ChunkedArray:
    first, *rest = name.split(".")
    column = table.column(first)
    return pc.struct_field(column, rest) if rest else column


def _dotted(name: str) -> list[str]:
    """Return all parts of a name that have a dot: an object may have one of them for a key."""
    parts = name.split(".")
    places = range(len(parts))
    return [".".join(parts[low : high + 1]) for low in places for high in places[low + 1 :]]


def _as_keys(name: str) -> list[bytes]:
    """Return the ways in which a key is written in JSON."""
    return [json.dumps(name, ensure_ascii=ascii_only).encode("utf-8", "replace") for ascii_only in (True, False)]


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
    for key in sorted((key for key in row if name.startswith(f"{key}.")), key=len, reverse=True):
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
    """Return whether a line has what a name means, null or not."""
    if name in row:
        return True
    return any(_is_within(value, name[len(key) + 1 :]) for key, value in row.items() if name.startswith(f"{key}."))


def _is_within(value: Any, name: str) -> bool:
    if isinstance(value, list):
        return any(_is_within(item, name) for item in value)
    return isinstance(value, dict) and is_there(value, name)


def _is_odd(value: Any) -> bool:
    return isinstance(value, str) and not value.isascii() and _LONE.search(value) is not None


def type_of(values: Sequence[Any]) -> str:
    """Name the Arrow types of values, for a message."""
    names = {bool: "bool", int: "int64", float: "double", str: "string", list: "list", dict: "struct"}
    return " and ".join(sorted({names[type(value)] for value in values}))


def rows_of(block: bytes) -> list[bytes]:
    """Return the lines of a block that are rows, without the white space around them."""
    return [line for line in (line.strip(SPACE) for line in block.split(b"\n")) if line]


def whole_objects(block: bytes) -> int | None:
    """Count lines if each begins with a brace and ends with one; else give None.

    Between such lines no object can go on, so Arrow, which knows no lines, sees them as they are. Of a line that is `null` it
    would crash.
    """
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    if not len(data):
        return 0
    if not (data[np.concatenate([[0], ends[:-1] + 1])] == _OPEN).all():
        return None
    last = data[ends - 1]
    last = np.where(last == _RETURN, data[ends - 2], last)
    return len(ends) if (last == _CLOSE).all() else None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_WHOLE else float(digits)


def parsed(line: bytes) -> dict[str, Any] | None:
    """Parse a line, bytes that are not UTF-8 as lone surrogates; None if it is no JSON object."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"), parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _arrow_type(values: Sequence[Any]) -> pa.DataType | None:
    kinds = {type(value) for value in values}
    if kinds == {list} and {type(item) for value in values for item in value} <= {str, type(None)}:
        return pa.list_(pa.string())
    if not values:
        return pa.string()
    # Arrow forgets how a fraction was spelled.
    return None if len(kinds) > 1 else {str: pa.string(), int: pa.int64(), bool: pa.bool_()}.get(kinds.pop())


def _as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type):
        return pa.chunked_array([pa.array(map(spelled, column.to_pylist()), pa.string())])
    column.validate(full=True)
    return column.cast(pa.string())


def _texts(values: Sequence[Any]) -> pa.Array:
    """Return texts as bytes, null for what is none."""
    texts = [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None for value in values]
    return pa.array(texts, pa.large_binary())
