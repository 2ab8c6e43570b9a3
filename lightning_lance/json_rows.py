"""Lines of JSON as Arrow tables: the same whether Arrow parses them all at once or Python one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

#: What the tables have besides, whether a line is no JSON object: named as no column is.
NOT_JSON = "//not_json"
#: White space around a line.
SPACE = b" \t\r\n"

_NEWLINE, _RETURN, _OPEN, _CLOSE = b"\n\r{}"
# Beyond that, Python refuses to make a whole number of digits.
_LONGEST_WHOLE = 4000
# Lines from which the types of columns are guessed.
_FEW = 100


class LineParser:
    """Makes tables of blocks of lines.

    Args:
        columns: Columns to keep. All but the text are spelled as strings.
        text: The column of the text, which is given as bytes, since some are not UTF-8.
    """

    def __init__(self, columns: Sequence[str], text: str) -> None:
        self._columns, self._text = columns, text
        # Of each column but the text, the Arrow type that its values were last seen to have; None for one that only Python
        # spells as it should be.
        self._types: dict[str, pa.DataType | None] = {}

    def table(self, block: bytes, count: int | None, first: bool = False) -> pa.Table:
        """Parse a block: at once by Arrow, else line by line, to the same table.

        Args:
            block: Whole lines; those of white space are no rows.
            count: What `whole_objects` says of it.
            first: Whether a file begins with it: if all its texts are of another type, they are given in that, for a message.

        Returns:
            The columns, and `NOT_JSON` (bool), of whose lines all else is null.
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
        rows = [parsed(line) for line in (rows_of(block) if lines is None else lines)]
        self._learn([row or {} for row in rows])
        cells = {name: [None if row is None else row.get(name) for row in rows] for name in self._columns}
        made = {
            name: _texts(values, first) if name == self._text else pa.array(map(_spelled, values), pa.string())
            for name, values in cells.items()
        }
        made[NOT_JSON] = pa.array([row is None for row in rows], pa.bool_())
        return pa.table(made)

    def _learn(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for name in self._columns:
            values = [value for row in rows if (value := row.get(name)) is not None]
            self._types[name] = _arrow_type(values)

    def _at_once(self, block: bytes, count: int) -> pa.Table | None:
        types = {name: pa.large_string() if name == self._text else self._types[name] for name in self._columns}
        if None in types.values():
            return None
        # Without threads: the tokenizer has the other cores.
        read = pj.ReadOptions(use_threads=False, block_size=len(block) + 1)
        parse = pj.ParseOptions(explicit_schema=pa.schema([*types.items()]), unexpected_field_behavior="ignore")
        try:
            table = pj.read_json(pa.BufferReader(block), read, parse)
            made = {
                name: table.column(name).cast(pa.large_binary())
                if name == self._text
                else _as_strings(table.column(name))
                for name in self._columns
            }
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        if len(table) != count:  # several objects in a line
            return None
        return pa.table({**made, NOT_JSON: np.zeros(count, bool)})


def rows_of(block: bytes) -> list[bytes]:
    """Give the lines of a block that are rows, without the white space around them."""
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


def _spelled(value: Any) -> str | None:
    """Spell a value that is no text, the same whatever the others in its column are."""
    if isinstance(value, bool):
        return str(value).lower()
    # A character that is none, as in half a surrogate pair, becomes a question mark.
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def _as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type):
        return pa.chunked_array([pa.array(map(_spelled, column.to_pylist()), pa.string())])
    column.validate(full=True)
    return column.cast(pa.string())


def _texts(values: Sequence[Any], first: bool) -> pa.Array:
    """Give texts as bytes; if a file begins with what is no text at all, give that, for the message."""
    others = [value for value in values if value is not None and not isinstance(value, str)]
    if first and others and not any(isinstance(value, str) for value in values):
        return pa.array(values) if len({*map(type, others)}) == 1 else pa.array(map(_spelled, values))
    texts = [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None for value in values]
    return pa.array(texts, pa.large_binary())


def spellings(values: Sequence[Any]) -> pa.Array:
    """Give the spellings of values to look for: 1 is found as 1 and as 1.0."""
    found = [_spelled(value) for value in values]
    for value in values:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
            found += [str(int(value)), str(float(value))]
    return pa.array(dict.fromkeys(found), pa.string())
