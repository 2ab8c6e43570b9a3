"""Columns of a source: found by name and read as text or as strings, whatever their Arrow type.

A name is the name of a column. If there is no such column, its dots lead into structs: `meta.set` is the field `set` of the
column `meta`, and a list on the way gives the list of that field. All strings that leave this module are valid UTF-8: invalid
bytes are replaced by U+FFFD and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.errors import SourceError

#: Column of a table or a document batch: whether invalid UTF-8 in the row's metadata was replaced. No source has this name.
REPLACED = "//replaced"

_REPLACEMENT = "\ufffd"


class UnfitShard(SourceError):  # noqa: N818 # the shard is at fault, and may be skipped
    """A shard lacks a column, or has it in a type that cannot be read.

    Args:
        message: A sentence without its end: the caller adds the cure, which depends on the other shards.
        of_text: Whether the text column is at fault.
    """

    def __init__(self, message: str, of_text: bool = True) -> None:
        super().__init__(message)
        self.of_text = of_text


#: The way to a column or a field: its position in the schema, then in each struct.
Steps = tuple[int, ...]
# Cached types; a corpus has a few.
_TYPES = 256


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list of any sort. A map is not."""
    is_plain = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_plain or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def steps_to(schema: pa.Schema, name: str) -> Steps | None:
    """Return the way to a column or a field, None if it does not exist."""
    if name in schema.names:
        return (schema.names.index(name),)
    if "." not in name:
        return None
    return _steps(list(schema), name)


def _steps(fields: Sequence[pa.Field], name: str) -> Steps | None:
    names = [field.name for field in fields]
    if name in names:
        return (names.index(name),)
    # The longest name first, since names may have dots of their own.
    for place in sorted(range(len(fields)), key=lambda place: -len(names[place])):
        if not name.startswith(f"{names[place]}."):
            continue
        rest = _steps(_fields_of(fields[place].type), name[len(names[place]) + 1 :])
        if rest is not None:
            return (place, *rest)
    return None


def _fields_of(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields of a struct, or of the structs in a list."""
    while is_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind):
        return []
    return list(kind)


def check_unique(schema: pa.Schema, names: Collection[str], where: str) -> None:
    """Raise UnfitShard if a shard has several columns of one name; `where` names the shard."""
    for name in names:
        count = schema.names.count(name)
        if count > 1:
            raise UnfitShard(f"{begin(where)} has {count} columns {name!r}, expected one: rename the others")


def type_at(schema: pa.Schema, steps: Steps) -> pa.DataType:
    """Return the type of a column or a field, without the lists on the way to it."""
    kind = schema.field(steps[0]).type
    for step in steps[1:]:
        kind = _fields_of(kind)[step].type
    return kind


def leaves(schema: pa.Schema, steps: Steps) -> range:
    """Return the leaves of a column or a field among those of a schema, in the order in which Parquet stores them."""
    first = 0
    fields = list(schema)
    for step in steps[:-1]:
        first += _leaves_of(fields[:step])
        fields = _fields_of(fields[step].type)
    last = steps[-1]
    first += _leaves_of(fields[:last])
    return range(first, first + _count_leaves(fields[last].type))


def _leaves_of(fields: Sequence[pa.Field]) -> int:
    count = 0
    for field in fields:
        count += _count_leaves(field.type)
    return count


def _count_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _count_leaves(kind.storage_type)
    if pa.types.is_dictionary(kind) or not pa.types.is_nested(kind):
        return 1
    if is_list(kind):
        return _count_leaves(kind.value_type)
    if pa.types.is_map(kind):
        return _count_leaves(kind.key_type) + _count_leaves(kind.item_type)
    return _leaves_of(_parts_of(kind))


def _parts_of(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields of a struct, the values of a list, the keys and values of a map, or the choices of a union."""
    return list(map(kind.field, range(kind.num_fields)))


def names_in(schema: pa.Schema) -> list[str]:
    """Return the names of all columns, and of all fields of structs with dots."""
    names: list[str] = []
    for field in schema:
        names += _names(field)
    return names


def _names(field: pa.Field) -> Iterator[str]:
    yield field.name
    for inner in _fields_of(field.type):
        for name in _names(inner):
            yield f"{field.name}.{name}"


def missing_names(schema: pa.Schema, names: Iterable[str]) -> list[str]:
    """Return the names that are neither of a column nor of a field."""
    return [name for name in names if steps_to(schema, name) is None]


def outer_names(names: Iterable[str]) -> set[str]:
    """Return the columns that names with dots lead into."""
    outer: set[str] = set()
    for name in names:
        column, dot, _ = name.partition(".")
        if dot:
            outer.add(column)
    return outer


def begin(words: str) -> str:
    """Return words as the beginning of a sentence."""
    return words[:1].upper() + words[1:]


def listed(schema: pa.Schema, missing: Collection[str]) -> str:
    """Return the columns of a schema for a message; if a field is missing, with the fields of its column."""
    opened = outer_names(missing)
    names: list[str] = []
    for field in schema:
        if field.name in opened and _fields_of(field.type):
            names += list(_names(field))[1:]
        else:
            names.append(field.name)
    return ", ".join(names) or "none"


def column_at(table: pa.Table, name: str) -> pa.Array | None:
    """Return the (n,) values of a column or a field, None if it does not exist; lists of values if a list is on the way."""
    steps = steps_to(table.schema, name)
    if steps is None:
        return None
    return _along(as_single_chunk(table.column(steps[0])), steps[1:])


def column_type(schema: pa.Schema, steps: Steps) -> pa.DataType:
    """Return the type of the values that `column_at` returns."""
    return _along(pa.nulls(0, schema.field(steps[0]).type), steps[1:]).type


def _along(values: pa.Array, steps: Steps) -> pa.Array:
    if not steps:
        return values
    if is_list(values.type):
        return _with_elements(values, lambda elements: _along(elements, steps))
    # Null if the struct itself is null.
    return _along(pc.struct_field(values, [steps[0]]), steps[1:])


def _with_elements(lists: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Return lists with changed elements."""
    elements, of_list = flattened(lists)
    counts = np.bincount(of_list, minlength=len(lists))
    borders = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(borders), change(elements), mask=lists.is_null())


def flattened(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the (m,) elements of lists, and (m,) the position of the list that holds each."""
    return pc.list_flatten(lists), np.asarray(pc.list_parent_indices(lists))


def simple_table(table: pa.Table) -> pa.Table:
    """Return a table without views, dictionaries and runs: Arrow lacks many functions for them."""
    for place, field in enumerate(table.schema):
        if not _is_simple(field.type):
            table = table.set_column(place, field.name, simple(as_single_chunk(table.column(place))))
    return table


@lru_cache(_TYPES)
def _is_simple(kind: pa.DataType) -> bool:
    is_encoded = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
    is_string_view = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
    is_list_view = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    if is_encoded or is_string_view or is_list_view:
        return False
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_union(kind):
        return True
    return all(_is_simple(part.type) for part in _parts_of(kind))


def simple(values: pa.Array) -> pa.Array:
    """Return the same values without views, dictionaries and runs. Strings stay as they are, valid UTF-8 or not."""
    kind = values.type
    if _is_simple(kind):
        return values
    if pa.types.is_dictionary(kind):
        return simple(values.dictionary).take(values.indices)
    if pa.types.is_run_end_encoded(kind):
        # Arrow decodes runs of some types only.
        places = np.arange(values.offset, values.offset + len(values))
        runs = np.searchsorted(np.asarray(values.run_ends), places, side="right")
        return simple(values.values).take(pa.array(runs))
    if pa.types.is_string_view(kind):
        return _unchecked(values, pa.large_string())
    if pa.types.is_binary_view(kind):
        return values.cast(pa.large_binary())
    if is_list(kind):
        return _with_elements(values, simple)
    if pa.types.is_struct(kind):
        fields = [simple(values.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, kind.names, mask=values.is_null())
    # A map.
    return _unchecked(values, pa.map_(simple_type(kind.key_type), simple_type(kind.item_type)))


def simple_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the `simple` values of a type."""
    return simple(pa.nulls(0, kind)).type


def _unchecked(values: pa.Array, kind: pa.DataType) -> pa.Array:
    return pc.cast(values, options=pc.CastOptions(kind, allow_invalid_utf8=True))


def plain(values: pa.Array) -> pa.Array:
    """Return simple values of a type that can be compared: no extension, fixed size, or type that few functions know."""
    values = simple(values)
    kind = values.type
    if isinstance(kind, pa.UuidType):
        return _as_python_writes(values.to_pylist())
    if isinstance(kind, pa.BaseExtensionType):
        return plain(values.storage)
    if pa.types.is_fixed_size_binary(kind):
        return values.cast(pa.large_binary())
    if pa.types.is_float16(kind):
        return values.cast(pa.float32())
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return values.cast(pa.decimal128(38, kind.scale))
    return values


@lru_cache(_TYPES)
def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the `plain` values of a type."""
    return plain(pa.nulls(0, kind)).type


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of a type can be read as text. Nulls can."""
    return _is_bytes(plain_type(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(is_string(kind) or is_binary or pa.types.is_null(kind))


def text_bytes(values: pa.Array) -> pa.Array:
    """Return (n,) texts as large_binary, valid UTF-8 or not."""
    return plain(values).cast(pa.large_binary())


def without_rest(values: pa.Array) -> pa.Array:
    """Return strings or bytes without stale bytes beneath nulls. Copies only if there are any.

    Arrow's functions for strings, and Lance, also read the bytes beneath nulls, and fail if they are not UTF-8.
    """
    if not values.null_count:
        return values
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    borders = np.frombuffer(values.buffers()[1], np.int64 if large else np.int32)
    sizes = np.diff(borders[values.offset : values.offset + len(values) + 1])
    null = np.asarray(values.is_null())
    if not sizes[null].any():
        return values
    return values.take(pa.array(np.arange(len(values)), mask=null))


def in_words(values: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Return values as strings: lists and structs as Python writes them, other types as Arrow does.

    Args:
        values: (n,) of any type.

    Returns:
        (n,) strings, all valid UTF-8; and (n,) bool, true if invalid UTF-8 was replaced, or None if all were valid.
    """
    values = plain(values)
    if pa.types.is_nested(values.type):
        return _in_python(values)
    if pa.types.is_string(values.type):
        return valid_strings(values)
    if _is_bytes(values.type):
        return valid_strings(_unchecked(values, pa.string()))
    try:
        return values.cast(pa.string()), None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _as_python_writes(values.to_pylist()), None


def _as_python_writes(values: list[Any]) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8, which half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def valid_strings(strings: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Return strings with U+FFFD in place of invalid UTF-8, and (n,) bool, true for those, or None if all were valid."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        raw = strings.cast(pa.large_binary()).to_pylist()
        made = [None if value is None else value.decode("utf-8", "replace") for value in raw]
        repaired = pa.array(made, strings.type)
        same = pc.equal(repaired.cast(pa.large_binary()), pa.array(raw, pa.large_binary()))
        return repaired, ~np.asarray(pc.fill_null(same, True))
    return without_rest(strings), None


def _in_python(values: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    try:
        return _as_python_writes(values.to_pylist()), None
    except UnicodeDecodeError:
        # Arrow makes no Python string of invalid UTF-8, so the strings are decoded from bytes.
        raw = values.cast(_as_bytes(values.type)).to_pylist()
    written = _as_python_writes(_decoded_values(raw, values.type))
    replaced = pc.fill_null(pc.match_substring(written, _REPLACEMENT), False)
    return written, np.asarray(replaced)


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type with binary in place of each string type in it."""
    if is_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_bytes(field.type)) for field in kind])
    if is_string(kind):
        return pa.large_binary()
    return kind


def is_string(kind: pa.DataType) -> bool:
    """Return whether a type is a string or a large string."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _decoded_values(values: Sequence[Any], kind: pa.DataType) -> list[Any]:
    return [_decoded(value, kind) for value in values]


def _decoded(value: Any, kind: pa.DataType) -> Any:
    """Return a Python value with strings in place of the bytes that `_as_bytes` introduced."""
    if value is None:
        return None
    if is_list(kind):
        return _decoded_values(value, kind.value_type)
    if pa.types.is_map(kind):
        return [(_decoded(key, kind.key_type), _decoded(item, kind.item_type)) for key, item in value]
    if pa.types.is_struct(kind):
        fields: dict[str, Any] = {}
        for field in kind:
            fields[field.name] = _decoded(value[field.name], field.type)
        return fields
    if is_string(kind):
        return value.decode("utf-8", "replace")
    return value
