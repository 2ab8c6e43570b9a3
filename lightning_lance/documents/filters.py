"""Which rows to keep, by what their columns hold: the same in Parquet, in JSON Lines and in all that `datasets` reads.

A row is kept if its value equals one of those that are wanted. A list is kept if one of its elements does. Numbers are
equal whatever their type; text that spells a number, a truth value or a date (ISO 8601) equals it; null is equal to null, which
is also what a column that is missing holds.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.columns import (
    UnfitShard,
    column_at,
    flattened,
    in_words,
    is_list,
    is_text,
    is_unicode,
    plain,
    plain_type,
    steps_to,
    type_at,
)
from lightning_lance.errors import ConfigError

_PLAIN = (str, bool, int, float, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)


class Statistics(Protocol):
    """What the footer of a Parquet file says of a column in a row group."""

    has_min_max: bool
    min: Any
    max: Any
    has_null_count: bool
    null_count: int


def checked_where(where: Any) -> dict[str, list[Any]]:
    """Return a mapping of columns to the values to keep, as lists of plain Python values.

    Args:
        where: What the user gave: values may be in any collection, numpy's and Arrow's too.

    Raises:
        ConfigError: If it is no such mapping, or nothing could be kept.
    """
    if not isinstance(where, Mapping):
        raise ConfigError(
            f"source.where is {where!r}: expected a mapping of columns to values to keep, such as {{license: [mit]}}."
        )
    return {_checked_name(column): _checked_values(column, values) for column, values in where.items()}


def _checked_name(column: Any) -> str:
    if not isinstance(column, str):
        raise ConfigError(f"source.where has the column {column!r}: expected a name, write it in quotes.")
    return column


def _checked_values(column: str, values: Any) -> list[Any]:
    key = f"source.where.{column}"
    if isinstance(values, str):
        raise ConfigError(f"{key} is the string {values!r}: write a list, [{values}].")
    if isinstance(values, (bytes, Mapping)) or not isinstance(values, Iterable):
        raise ConfigError(f"{key} is {values!r}: expected a list of values to keep, such as [mit].")
    try:
        found = [_checked_value(key, value) for value in values]
    except TypeError as error:  # of numpy, of an array without a dimension
        raise ConfigError(f"{key} is {values!r}: expected a list of values to keep, such as [mit].") from error
    if not found:
        raise ConfigError(f"{key} is empty, so no row would be kept: give the values to keep, or leave it out.")
    return found


def _checked_value(key: str, value: Any) -> Any:
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    elif isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    elif isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, _PLAIN):
        raise ConfigError(f"{key} has the value {value!r}: expected text, numbers, true, false, dates or null.")
    if isinstance(value, str) and not is_unicode(value):
        raise ConfigError(f"{key} has the value {value!r}: expected text of whole Unicode characters.")
    return value


def plain_value(value: Any) -> str | int | float | bool | None:
    """Return a value to keep as JSON can hold it, for the fingerprint."""
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


class Condition(Protocol):
    """What the values of one column must fulfil."""

    @property
    def column(self) -> str:
        """The column, or the field of one (see columns.py)."""
        ...

    def mask(self, values: pa.Array, where: str) -> np.ndarray:
        """Return which values of a column fulfil it, as (n,) bool; `where` names the shard, for messages."""
        ...

    def check(self, kind: pa.DataType, where: str) -> None:
        """Check that it can be asked of the type of a column. UnfitShard if not."""
        ...

    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        """Return the same of values out of JSON, none of them a list, as they are `spelled`."""
        ...

    def keeps(self, value: Any) -> bool:
        """Return whether a value out of a line of JSON fulfils it."""
        ...

    def possible(self, kind: pa.DataType, statistics: Statistics | None, rows: int | None) -> bool:
        """Return from statistics whether a value may fulfil it. `rows`: of a column without lists and structs, else None."""
        ...


@dataclass(frozen=True)
class OneOf:
    """The value, or an element of a list, is one of some."""

    column: str
    values: tuple[Any, ...]

    @cached_property
    def _spellings(self) -> frozenset[str]:
        return frozenset(text for value in self.values for text in spellings_of(value))

    @property
    def _null(self) -> bool:
        return None in self.values

    def check(self, kind: pa.DataType, where: str) -> None:
        if kind not in self._fitting:  # `mask` asks for every table
            self._check(kind, where)
            self._fitting.add(kind)

    @cached_property
    def _fitting(self) -> set[pa.DataType]:
        return set()

    def _check(self, kind: pa.DataType, where: str) -> None:
        while is_list(kind):
            kind = kind.value_type
        if pa.types.is_null(kind):
            return
        what = f"source.where.{self.column}: the column {self.column!r} of {where} holds {kind}"
        if pa.types.is_struct(kind):
            names = ", ".join(f"{self.column}.{field.name}" for field in kind)
            raise UnfitShard(f"{what}, which has fields: name one of {names}", False)
        if pa.types.is_nested(plain_type(kind)):
            raise UnfitShard(f"{what}, whose values cannot be compared: filter by another column", False)
        inner = plain_type(kind)
        wanted = [value for value in self.values if value is not None]
        if not self._null and not any(_is_comparable(value, inner) for value in wanted):
            given = ", ".join(repr(plain_value(value)) for value in wanted)
            raise UnfitShard(f"{what}, and {given} can be none of that: give values of its type", False)

    def mask(self, values: pa.Array, where: str) -> np.ndarray:
        self.check(values.type, where)
        return self._found(plain(values))

    def _found(self, values: pa.Array) -> np.ndarray:
        if is_list(values.type):
            elements, lists = flattened(values)
            found = np.zeros(len(values), bool)
            found[lists[self._found(plain(elements))]] = True
        else:
            found = np.asarray(pc.is_in(values, value_set=self._of_type(values.type), skip_nulls=True))
        return found | np.asarray(values.is_null()) if self._null else found

    def _of_type(self, kind: pa.DataType) -> pa.Array:
        """Return the wanted values that a type can hold, in that type."""
        known = self._known
        if kind not in known:
            found = [made for value in self.values if value is not None for made in _in_type(value, kind)]
            known[kind] = pa.concat_arrays(found) if found else pa.nulls(0, kind)
        return known[kind]

    @cached_property
    def _known(self) -> dict[pa.DataType, pa.Array]:
        return {}

    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        found = _among(words, self._spellings)
        return found | np.asarray(words.is_null()) if self._null else found

    def keeps(self, value: Any) -> bool:
        if value is None:
            return self._null
        # In this way lists were found before their elements were.
        if spelled(value) in self._spellings:
            return True
        return isinstance(value, list) and any(self.keeps(item) for item in value)

    def possible(self, kind: pa.DataType, statistics: Statistics | None, rows: int | None) -> bool:
        while is_list(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType) or statistics is None:
            return True
        if self._null and not (rows is not None and statistics.has_null_count and statistics.null_count == 0):
            return True
        if not statistics.has_min_max:
            return not (rows is not None and statistics.has_null_count and statistics.null_count == rows)
        return _within(self._of_type(plain_type(kind)).to_pylist(), statistics)


@dataclass(frozen=True)
class SpelledAs:
    """The value as it is spelled in the store is one of some: a language."""

    column: str
    values: tuple[str, ...]

    def check(self, kind: pa.DataType, where: str) -> None:
        pass

    def mask(self, values: pa.Array, where: str) -> np.ndarray:
        return self.mask_of_words(in_words(values)[0])

    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        return _among(words, self.values)

    def keeps(self, value: Any) -> bool:
        return value is not None and spelled(value) in self.values

    def possible(self, kind: pa.DataType, statistics: Statistics | None, rows: int | None) -> bool:
        if statistics is None or not statistics.has_min_max or not is_text(kind):
            return True
        # What is not UTF-8 is replaced before it is looked at.
        return any("\ufffd" in value for value in self.values) or _within(self.values, statistics)


@dataclass(frozen=True)
class EndsWith:
    """The value as it is spelled in the store ends with one of some: a path of a language."""

    column: str
    tails: tuple[str, ...]

    def check(self, kind: pa.DataType, where: str) -> None:
        pass

    def mask(self, values: pa.Array, where: str) -> np.ndarray:
        return self.mask_of_words(in_words(values)[0])

    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        found = np.zeros(len(words), bool)
        for tail in self.tails:
            found |= np.asarray(pc.fill_null(pc.ends_with(words, tail), False))
        return found

    def keeps(self, value: Any) -> bool:
        return value is not None and (spelled(value) or "").endswith(self.tails)

    def possible(self, kind: pa.DataType, statistics: Statistics | None, rows: int | None) -> bool:
        return True


@dataclass(frozen=True)
class RowFilter:
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...]

    @property
    def columns(self) -> list[str]:
        """The columns that it looks at."""
        return list(dict.fromkeys(condition.column for condition in self.conditions))

    def check(self, schema: pa.Schema, where: str) -> None:
        """Check that it can be asked of the types of some columns.

        Args:
            schema: Of the source.
            where: The shard, in words, for the message.

        Raises:
            UnfitShard: Naming the column, its type and the cure.
        """
        for condition in self.conditions:
            steps = steps_to(schema, condition.column)
            if steps is not None:
                condition.check(type_at(schema, steps), where)

    def passing(self, table: pa.Table, where: str) -> pa.Table:
        """Return the rows that pass; copies nothing where all do. `where`: the shard, for messages."""
        passes = np.ones(len(table), bool)
        for condition in self.conditions:
            values = column_at(table, condition.column)
            passes &= condition.keeps(None) if values is None else condition.mask(values, where)
        return table if passes.all() else table.filter(pa.array(passes))


def _among(words: pa.Array, wanted: Iterable[str]) -> np.ndarray:
    return np.asarray(pc.is_in(words, value_set=pa.array(sorted(wanted), pa.string()), skip_nulls=True))


def spelled(value: Any) -> str | None:
    """Spell a value out of JSON, the same whatever the others in its column are."""
    if isinstance(value, bool):
        return str(value).lower()
    # A character that is none, as in half a surrogate pair, becomes a question mark.
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def spellings_of(value: Any) -> list[str]:
    """Return how a value may be spelled in JSON: 1 as 1 and as 1.0."""
    first = spelled(value)
    found = [] if first is None else [first]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        found.append(str(int(value)))
        found += [str(float(value))] if _is_exact(int(value)) else []
        found += ["0.0", "-0.0"] if value == 0 else []
    if isinstance(value, datetime.datetime):
        found.append(value.isoformat())
    if isinstance(value, decimal.Decimal) and value.is_finite() and decimal.Decimal(float(value)) == value:
        found += spellings_of(float(value))
    return list(dict.fromkeys(found))


def _is_exact(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _within(values: Iterable[Any], statistics: Statistics) -> bool:
    """Return whether one of some values may lie between the least and the largest. True where they cannot be compared."""
    try:
        low, high = statistics.min, statistics.max
        # Statistics say nothing of what is no number; the largest text may be its beginning only.
        return any(
            value != value or low <= value <= high or (isinstance(value, (str, bytes)) and value[: len(high)] == high)
            for value in (_comparable_with(high, value) for value in values)
        )
    except (TypeError, ValueError, ArithmeticError, pa.ArrowException, NotImplementedError):
        return True


def _comparable_with(bound: Any, value: Any) -> Any:
    if isinstance(bound, str) and isinstance(value, bytes):
        return value.decode()
    if isinstance(bound, bytes) and isinstance(value, str):
        return value.encode()
    if type(bound) is not type(value) and not isinstance(bound, (int, float)):
        raise TypeError
    return value


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_comparable(value: Any, kind: pa.DataType) -> bool:
    """Return whether values of a type can be compared with one: all numbers with numbers, whether or not they fit."""
    if _is_number(kind):
        return _number(value) is not None
    return bool(_in_type(value, kind))


def _number(value: Any) -> int | float | decimal.Decimal | None:
    if isinstance(value, (int, float, decimal.Decimal)):
        return value
    if isinstance(value, str) and value == value.strip() and "_" not in value:
        for make in (int, float):
            try:
                return make(value)
            except ValueError:
                continue
    return None


def _in_type(value: Any, kind: pa.DataType) -> list[pa.Array]:
    """Return a value as an array of a type (see `plain`), or several that are equal to it; nothing if there is none."""
    makers: Sequence[tuple[Callable[[pa.DataType], bool], Callable[[Any, pa.DataType], list[Any]]]] = [
        (is_text, _as_text),
        (pa.types.is_boolean, _as_bool),
        (pa.types.is_integer, _as_integer),
        (pa.types.is_floating, _as_float),
        (pa.types.is_decimal, _as_decimal),
        (pa.types.is_date, _as_date),
        (pa.types.is_timestamp, _as_timestamp),
        (pa.types.is_time, _as_time),
        (pa.types.is_duration, _as_duration),
    ]
    make = next((make for is_kind, make in makers if is_kind(kind)), None)
    try:
        return [] if make is None else [_array(made, kind) for made in make(value, kind)]
    except (pa.ArrowException, ArithmeticError, ValueError, TypeError):
        return []


def _array(value: Any, kind: pa.DataType) -> pa.Array:
    return value.cast(kind) if isinstance(value, pa.Array) else pa.array([value], kind)


def _as_text(value: Any, kind: pa.DataType) -> list[Any]:
    return [pa.array([text], pa.string()) for text in spellings_of(value)]


def _as_bool(value: Any, kind: pa.DataType) -> list[Any]:
    if isinstance(value, str):
        return {"true": [True], "1": [True], "false": [False], "0": [False]}.get(value.lower(), [])
    return [bool(value)] if isinstance(value, (int, float)) and value in (0, 1) else []


def _as_integer(value: Any, kind: pa.DataType) -> list[Any]:
    number = _number(value)
    return [] if number is None or number != number // 1 else [int(number)]


def _as_float(value: Any, kind: pa.DataType) -> list[Any]:
    number = _number(value)
    if number is None:
        return []
    if isinstance(number, int) and not _is_exact(number):
        return []
    return [0.0, -0.0] if number == 0 else [float(number)]


def _as_decimal(value: Any, kind: pa.DataType) -> list[Any]:
    number = _number(value)
    text = value if isinstance(value, str) else str(int(value) if isinstance(value, bool) else number)
    return [] if number is None else [decimal.Decimal(text)]


def _as_date(value: Any, kind: pa.DataType) -> list[Any]:
    if isinstance(value, str):
        return [pa.array([value]).cast(pa.date32())]
    if isinstance(value, datetime.datetime):
        return [value.date()] if value.time() == datetime.time() and value.tzinfo is None else []
    return [value] if isinstance(value, datetime.date) else []


def _as_timestamp(value: Any, kind: pa.DataType) -> list[Any]:
    local = pa.timestamp(kind.unit)
    if isinstance(value, str):
        return [_parsed(value, kind)]
    if isinstance(value, datetime.datetime):
        if kind.tz is None and value.tzinfo is not None:
            return []
        return [pa.array([value])]
    # A time without a zone is one of UTC, as Arrow has it.
    return [pa.array([value]).cast(local)] if isinstance(value, datetime.date) else []


def _parsed(text: str, kind: pa.DataType) -> pa.Array:
    written = pa.array([text])
    if kind.tz is None:
        return written.cast(kind)
    try:
        return written.cast(kind)
    except pa.ArrowInvalid:
        return written.cast(pa.timestamp(kind.unit)).cast(kind)


def _as_time(value: Any, kind: pa.DataType) -> list[Any]:
    made = datetime.time.fromisoformat(value) if isinstance(value, str) else value
    return [pa.array([made])] if isinstance(made, datetime.time) and made.tzinfo is None else []


def _as_duration(value: Any, kind: pa.DataType) -> list[Any]:
    return [pa.array([value])] if isinstance(value, datetime.timedelta) else []
