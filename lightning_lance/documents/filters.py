"""Row filters on column values: the same for Parquet, JSON Lines and everything that `datasets` reads.

A row is kept if its value equals a wanted one, a list if one of its elements does. Numbers are equal whatever their type; text
that spells a number, a truth value or a date (ISO 8601) equals it; null equals null. A missing column counts as null.
"""

from __future__ import annotations

import datetime
import decimal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
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
    """Statistics of a column in a row group, from the footer of a Parquet file."""

    has_min_max: bool
    min: Any
    max: Any
    has_null_count: bool
    null_count: int


def checked_where(where: Any) -> dict[str, list[Any]]:
    """Return `source.where`, columns to any collections of values to keep, with lists of plain Python values.

    Raises:
        ConfigError: If it is not such a mapping, or would keep no row.
    """
    if not isinstance(where, Mapping):
        raise ConfigError(
            f"source.where is {where!r}: expected a mapping of columns to values to keep, such as {{license: [mit]}}."
        )
    checked: dict[str, list[Any]] = {}
    for column, values in where.items():
        if not isinstance(column, str):
            raise ConfigError(f"source.where has the column {column!r}: expected a name. Write it in quotes.")
        checked[column] = _checked_values(column, values)
    return checked


def _checked_values(column: str, values: Any) -> list[Any]:
    key = f"source.where.{column}"
    if isinstance(values, str):
        raise ConfigError(f"{key} is the string {values!r}: write a list, [{values}].")
    if isinstance(values, (bytes, Mapping)) or not isinstance(values, Iterable):
        raise ConfigError(f"{key} is {values!r}: expected a list of values to keep, such as [mit].")
    try:
        found = [_checked_value(key, value) for value in values]
    except TypeError as error:  # numpy's, for an array without a dimension
        raise ConfigError(f"{key} is {values!r}: expected a list of values to keep, such as [mit].") from error
    if not found:
        raise ConfigError(f"{key} is empty, which keeps no row: list the values to keep, or remove it.")
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
        raise ConfigError(f"{key} has the value {value!r}: expected valid Unicode text.")
    return value


def plain_value(value: Any) -> str | int | float | bool | None:
    """Return a value to keep in a type that JSON has, for the fingerprint."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


@dataclass(frozen=True)
class Condition(ABC):
    """A condition on the values of one column, `spelled` as in the store.

    Attributes:
        column: Name of the column or field (see columns.py).
    """

    column: str

    def mask(self, values: pa.Array, where: str) -> np.ndarray:
        """Return which (n,) values of a column meet the condition, as (n,) bool; `where` names the shard, for messages."""
        return self.mask_of_words(in_words(values)[0])

    def check(self, kind: pa.DataType, where: str) -> None:
        """Check that values of a type can meet the condition; raise UnfitShard if not."""
        return  # any value can

    @abstractmethod
    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        """Return which values of JSON meet the condition; `words` are their spellings. None of them is a list."""

    @abstractmethod
    def keeps(self, value: Any) -> bool:
        """Return whether a value of a line of JSON meets the condition."""

    def possible(self, kind: pa.DataType, statistics: Statistics | None, rows: int | None) -> bool:
        """Return whether a row group may hold a value that meets the condition, by its statistics.

        Args:
            kind: Type of the column.
            statistics: Statistics of the row group; None if it has none.
            rows: Number of its rows; None for a column with lists or structs.
        """
        return True


@dataclass(frozen=True)
class OneOf(Condition):
    """The value, or an element of a list, is one of the wanted values."""

    values: tuple[Any, ...]

    @cached_property
    def _spellings(self) -> frozenset[str]:
        return frozenset(chain.from_iterable(map(spellings_of, self.values)))

    @property
    def _null(self) -> bool:
        return None in self.values

    def check(self, kind: pa.DataType, where: str) -> None:
        while is_list(kind):
            kind = kind.value_type
        if pa.types.is_null(kind):
            return
        what = f"source.where.{self.column}: the column {self.column!r} of {where} holds {kind}"
        if pa.types.is_struct(kind):
            names = [f"{self.column}.{field.name}" for field in kind]
            raise UnfitShard(f"{what}, which has fields: name one of {', '.join(names)}", of_text=False)
        inner = plain_type(kind)
        if pa.types.is_nested(inner):
            raise UnfitShard(f"{what}, whose values cannot be compared: filter by another column", of_text=False)
        if not self._null and not self._may_equal(inner):
            given = ", ".join(map(repr, map(plain_value, self.values)))
            raise UnfitShard(f"{what}, which never equals {given}: list values of its type", of_text=False)

    def _may_equal(self, kind: pa.DataType) -> bool:
        """Return whether a type can hold a wanted value. Any two numbers are comparable, whether or not they fit."""
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if is_number and any(map(_is_number, self.values)):
            return True
        return len(self._of_type(kind)) > 0

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
        return self._with_nulls(found, values)

    def _with_nulls(self, found: np.ndarray, values: pa.Array) -> np.ndarray:
        if self._null:
            found = found | np.asarray(values.is_null())
        return found

    def _of_type(self, kind: pa.DataType) -> pa.Array:
        """Return the wanted values that a type can hold, in that type."""
        known = self._known
        if kind not in known:
            found = [pa.nulls(0, kind)]
            for value in self.values:
                found += _in_type(value, kind)
            known[kind] = pa.concat_arrays(found)
        return known[kind]

    @cached_property
    def _known(self) -> dict[pa.DataType, pa.Array]:
        return {}

    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        return self._with_nulls(_among(words, self._spellings), words)

    def keeps(self, value: Any) -> bool:
        if value is None:
            return self._null
        # A whole list may be wanted by its spelling, as in stores of earlier versions.
        if spelled(value) in self._spellings:
            return True
        return isinstance(value, list) and any(map(self.keeps, value))

    def possible(self, kind: pa.DataType, statistics: Statistics | None, rows: int | None) -> bool:
        while is_list(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType) or statistics is None:
            return True
        nulls = None
        if rows is not None and statistics.has_null_count:
            nulls = statistics.null_count
        if self._null and nulls != 0:
            return True
        if not statistics.has_min_max:
            return nulls is None or nulls != rows
        return _within(self._of_type(plain_type(kind)).to_pylist(), statistics)


@dataclass(frozen=True)
class SpelledAs(Condition):
    """The value is one of the wanted words: a language."""

    values: tuple[str, ...]

    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        return _among(words, self.values)

    def keeps(self, value: Any) -> bool:
        return value is not None and spelled(value) in self.values

    def possible(self, kind: pa.DataType, statistics: Statistics | None, rows: int | None) -> bool:
        if statistics is None or not statistics.has_min_max or not is_text(kind):
            return True
        # Invalid UTF-8 is replaced before the comparison.
        return "\ufffd" in "".join(self.values) or _within(self.values, statistics)


@dataclass(frozen=True)
class EndsWith(Condition):
    """The value has one of the wanted endings: a path of a language."""

    tails: tuple[str, ...]

    def mask_of_words(self, words: pa.Array) -> np.ndarray:
        found = np.zeros(len(words), bool)
        for tail in self.tails:
            found |= np.asarray(pc.fill_null(pc.ends_with(words, tail), False))
        return found

    def keeps(self, value: Any) -> bool:
        return value is not None and (spelled(value) or "").endswith(self.tails)


@dataclass(frozen=True)
class RowFilter:
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...]

    @property
    def columns(self) -> list[str]:
        """Names of the filtered columns."""
        return list(dict.fromkeys(condition.column for condition in self.conditions))

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raise UnfitShard if the filter does not fit the types of the columns; `where` names the shard."""
        for condition in self.conditions:
            steps = steps_to(schema, condition.column)
            if steps is not None:
                condition.check(type_at(schema, steps), where)

    def passing(self, table: pa.Table, where: str) -> pa.Table:
        """Return the rows that pass. Copies nothing if all do; `where` names the shard, for messages."""
        passes = np.ones(len(table), bool)
        for condition in self.conditions:
            values = column_at(table, condition.column)
            if values is None:
                passes &= condition.keeps(None)
            else:
                passes &= condition.mask(values, where)
        if passes.all():
            return table
        return table.filter(pa.array(passes))


def _among(words: pa.Array, wanted: Iterable[str]) -> np.ndarray:
    return np.asarray(pc.is_in(words, value_set=pa.array(sorted(wanted), pa.string()), skip_nulls=True))


def spelled(value: Any) -> str | None:
    """Return a value of JSON as text, the same whatever else is in its column; None for null."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    # Half a surrogate pair becomes a question mark.
    return str(value).encode("utf-8", "replace").decode()


def spellings_of(value: Any) -> list[str]:
    """Return all spellings of a value in JSON: 1 as 1 and as 1.0."""
    first = spelled(value)
    if first is None:
        return []
    found = [first]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        found.append(str(int(value)))
        if _is_exact(int(value)):
            found.append(str(float(value)))
        if value == 0:
            found += ["0.0", "-0.0"]
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
    """Return whether any value may lie between the minimum and the maximum, true if they cannot be compared."""
    try:
        low = statistics.min
        high = statistics.max
        for value in values:
            if _is_between(low, _comparable_with(high, value), high):
                return True
    except (TypeError, ValueError, ArithmeticError, pa.ArrowException, NotImplementedError):
        return True
    return False


def _is_between(low: Any, value: Any, high: Any) -> bool:
    # Statistics leave out NaN.
    if value != value or low <= value <= high:
        return True
    # The maximum of texts may be cut off.
    return isinstance(value, (str, bytes)) and value[: len(high)] == high


def _comparable_with(bound: Any, value: Any) -> Any:
    if isinstance(bound, str) and isinstance(value, bytes):
        return value.decode()
    if isinstance(bound, bytes) and isinstance(value, str):
        return value.encode()
    if type(bound) is not type(value) and not isinstance(bound, (int, float)):
        raise TypeError
    return value


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


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, or text that spells one."""
    return _number(value) is not None


def _in_type(value: Any, kind: pa.DataType) -> list[pa.Array]:
    """Return arrays of a plain type, with the values that equal `value`; none if the type has no such value."""
    for is_kind, given, make in _MAKERS:
        if is_kind(kind) and isinstance(value, given):
            try:
                return [_array(made, kind) for made in make(value, kind)]
            except (pa.ArrowException, ArithmeticError, ValueError, TypeError):
                return []
    return []


def _array(value: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(value, pa.Array):
        return value.cast(kind)
    return pa.array([value], kind)


def _as_text(value: Any, kind: pa.DataType) -> list[Any]:
    return [pa.array(spellings_of(value), pa.string())]


_TRUTH = {"true": True, "1": True, 1: True, "false": False, "0": False, 0: False}


def _as_bool(value: Any, kind: pa.DataType) -> list[Any]:
    if isinstance(value, str):
        value = value.lower()
    if value in _TRUTH:
        return [_TRUTH[value]]
    return []


def _as_integer(value: Any, kind: pa.DataType) -> list[Any]:
    number = _number(value)
    if number is None or number != number // 1:
        return []
    return [int(number)]


def _as_float(value: Any, kind: pa.DataType) -> list[Any]:
    number = _number(value)
    if number is None or (isinstance(number, int) and not _is_exact(number)):
        return []
    if number == 0:
        return [0.0, -0.0]
    return [float(number)]


def _as_decimal(value: Any, kind: pa.DataType) -> list[Any]:
    number = _number(value)
    if number is None:
        return []
    if isinstance(value, str):
        return [decimal.Decimal(value)]
    if isinstance(number, bool):
        number = int(number)
    return [decimal.Decimal(str(number))]


def _as_date(value: Any, kind: pa.DataType) -> list[Any]:
    if isinstance(value, str):
        return [pa.array([value]).cast(pa.date32())]
    if isinstance(value, datetime.datetime):
        if value.time() != datetime.time() or value.tzinfo is not None:
            return []
        return [value.date()]
    return [value]


def _as_timestamp(value: Any, kind: pa.DataType) -> list[Any]:
    if isinstance(value, str):
        return [_parsed(value, kind)]
    if not isinstance(value, datetime.datetime):
        # Like Arrow, we take a time without a zone as UTC.
        return [pa.array([value]).cast(pa.timestamp(kind.unit))]
    if kind.tz is None and value.tzinfo is not None:
        return []
    return [pa.array([value])]


def _parsed(text: str, kind: pa.DataType) -> pa.Array:
    written = pa.array([text])
    try:
        return written.cast(kind)
    except pa.ArrowInvalid:
        if kind.tz is None:
            raise
        return written.cast(pa.timestamp(kind.unit)).cast(kind)


def _as_time(value: Any, kind: pa.DataType) -> list[Any]:
    if isinstance(value, str):
        value = datetime.time.fromisoformat(value)
    if value.tzinfo is not None:
        return []
    return [pa.array([value])]


def _as_duration(value: Any, kind: pa.DataType) -> list[Any]:
    return [pa.array([value])]


# For each kind of type: the values that may equal one of it, and what makes arrays of them.
_MAKERS: list[tuple[Callable[[pa.DataType], bool], Any, Callable[[Any, pa.DataType], list[Any]]]] = [
    (is_text, object, _as_text),
    (pa.types.is_boolean, (str, int, float), _as_bool),
    (pa.types.is_integer, object, _as_integer),
    (pa.types.is_floating, object, _as_float),
    (pa.types.is_decimal, object, _as_decimal),
    (pa.types.is_date, (str, datetime.date), _as_date),
    (pa.types.is_timestamp, (str, datetime.date), _as_timestamp),
    (pa.types.is_time, (str, datetime.time), _as_time),
    (pa.types.is_duration, datetime.timedelta, _as_duration),
]
