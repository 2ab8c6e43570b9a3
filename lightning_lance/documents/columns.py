"""Columns of a source, whatever Arrow type they have: found by name, and read as text or in words.

A name means the column that is called so. Where there is none, its dots lead into structs: `meta.set` is the field `set` of
the column `meta`, and a list on the way gives the list of that field. Nothing that leaves this module is invalid UTF-8: what is
no text is replaced by U+FFFD, and told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.errors import SourceError
from lightning_lance.messages.formatting import nearest

#: Of a table, and of a document batch: whether metadata of a row was no UTF-8 and was replaced. Named as no column is.
REPLACED = "//replaced"

# Half a surrogate pair, or a byte that Python kept as one.
_REPLACEMENT = "\ufffd"


class UnfitShard(SourceError):  # noqa: N818 # what is wrong is the shard, which may be left out
    """A shard does not have the columns that were asked for, or has them in a type that cannot be read so.

    Args:
        message: A sentence without its end: what is to be done follows from whether other shards are so, too.
        of_text: Whether it is the text that is missing.
    """

    def __init__(self, message: str, of_text: bool = True) -> None:
        super().__init__(message)
        self.of_text = of_text


Steps = tuple[int, ...]
# Types of which it is remembered what they are: a corpus has a few.
_TYPES = 256


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list of any sort; a map is none."""
    kinds = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(check(kind) for check in kinds)


def steps_to(schema: pa.Schema, name: str) -> Steps | None:
    """Return the way to a column or a field: its place in the schema, then in each struct. None where there is none."""
    names = schema.names
    if name in names or "." not in name:
        return (names.index(name),) if name in names else None
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
    return list(kind) if pa.types.is_struct(kind) else []


def check_unique(schema: pa.Schema, names: Collection[str], where: str) -> None:
    """Refuse a column that there are several of; `where` names the shard. UnfitShard if so."""
    for name in names:
        count = schema.names.count(name)
        if count > 1:
            raise UnfitShard(
                f"{begin(where)} has {count} columns {name!r}, of which none is meant: give them different names"
            )


def type_at(schema: pa.Schema, steps: Steps) -> pa.DataType:
    """Return the type at the end of a way, without the lists on it."""
    kind = schema.field(steps[0]).type
    for step in steps[1:]:
        kind = _fields_of(kind)[step].type
    return kind


def leaves(schema: pa.Schema, steps: Steps) -> range:
    """Return which of the leaves of a schema are those of a column or a field. Parquet stores them in this order."""
    fields, first = list(schema), 0
    for depth, step in enumerate(steps):
        first += sum(_count_leaves(field.type) for field in fields[:step])
        if depth + 1 == len(steps):
            return range(first, first + _count_leaves(fields[step].type))
        fields = _fields_of(fields[step].type)
    return range(first, first)


def _count_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _count_leaves(kind.storage_type)
    if pa.types.is_dictionary(kind) or not pa.types.is_nested(kind):
        return 1
    if is_list(kind):
        return _count_leaves(kind.value_type)
    if pa.types.is_map(kind):
        return _count_leaves(kind.key_type) + _count_leaves(kind.item_type)
    return sum(_count_leaves(kind.field(i).type) for i in range(kind.num_fields))


def names_in(schema: pa.Schema) -> list[str]:
    """Return the names of all columns, and of all fields of structs in the way that they are asked for."""
    return [name for field in schema for name in _names(field)]


def _names(field: pa.Field) -> Iterator[str]:
    yield field.name
    for inner in _fields_of(field.type):
        for name in _names(inner):
            yield f"{field.name}.{name}"


def begin(words: str) -> str:
    """Return words as a sentence begins."""
    return words[:1].upper() + words[1:]


def meant(name: str, present: Sequence[str]) -> str:
    """Return the question whether another name was meant, or nothing if there is none like it."""
    near = nearest(name, present)
    return f"did you mean {near!r}? " if near else ""


def listed(schema: pa.Schema, missing: Collection[str]) -> str:
    """Return the columns there are, for a message; where a field is missing, those of its column too."""
    asked = {name.split(".")[0] for name in missing if "." in name}
    names = [
        name
        for field in schema
        for name in (list(_names(field))[1:] if field.name in asked and _fields_of(field.type) else [field.name])
    ]
    return ", ".join(names) or "none"


def column_at(table: pa.Table, name: str) -> pa.Array | None:
    """Return the values of a column or a field, (n,), a list of values where a list is on the way; None if it isn't there."""
    steps = steps_to(table.schema, name)
    return None if steps is None else _along(as_single_chunk(table.column(steps[0])), steps[1:])


def column_type(schema: pa.Schema, steps: Steps) -> pa.DataType:
    """Return the type that `column_at` gives values in: where a list is on the way, a list."""
    return _along(pa.nulls(0, schema.field(steps[0]).type), steps[1:]).type


def _along(values: pa.Array, steps: Steps) -> pa.Array:
    if not steps:
        return values
    if is_list(values.type):
        return _with_elements(values, lambda elements: _along(elements, steps))
    # Null where the struct itself is null.
    return _along(pc.struct_field(values, [steps[0]]), steps[1:])


def _with_elements(lists: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Return lists of other elements."""
    elements, of_list = flattened(lists)
    counts = np.bincount(of_list, minlength=len(lists))
    borders = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(borders), change(elements), mask=lists.is_null())


def flattened(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the elements of lists, (m,), and (m,) the place of the list that each is in."""
    return pc.list_flatten(lists), np.asarray(pc.list_parent_indices(lists))


def simple_table(table: pa.Table) -> pa.Table:
    """Return a table without views, dictionaries and runs, for which Arrow lacks many functions; the same if it has none."""
    for place, field in enumerate(table.schema):
        if not _is_simple(field.type):
            table = table.set_column(place, field.name, simple(as_single_chunk(table.column(place))))
    return table


@lru_cache(_TYPES)
def _is_simple(kind: pa.DataType) -> bool:
    unlike = (
        pa.types.is_dictionary,
        pa.types.is_run_end_encoded,
        pa.types.is_string_view,
        pa.types.is_binary_view,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    if any(check(kind) for check in unlike):
        return False
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_union(kind):
        return True
    return all(_is_simple(kind.field(i).type) for i in range(kind.num_fields))


def simple(values: pa.Array) -> pa.Array:
    """Return the same values without views, dictionaries and runs. Strings may be invalid UTF-8, as they were."""
    kind = values.type
    if _is_simple(kind):
        return values
    if pa.types.is_dictionary(kind):
        return simple(values.dictionary).take(values.indices)
    if pa.types.is_run_end_encoded(kind):
        # Arrow does not decode runs of all types.
        ends, places = np.asarray(values.run_ends), np.arange(values.offset, values.offset + len(values))
        return simple(values.values).take(pa.array(np.searchsorted(ends, places, side="right")))
    if pa.types.is_string_view(kind):
        return _unchecked(values, pa.large_string())
    if pa.types.is_binary_view(kind):
        return values.cast(pa.large_binary())
    if is_list(kind):
        return _with_elements(values, simple)
    if pa.types.is_struct(kind):
        fields = [simple(values.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, [field.name for field in kind], mask=values.is_null())
    # A map.
    inner = [simple(pa.nulls(0, part)).type for part in (kind.key_type, kind.item_type)]
    return _unchecked(values, pa.map_(*inner))


def _unchecked(values: pa.Array, kind: pa.DataType) -> pa.Array:
    return pc.cast(values, options=pc.CastOptions(kind, allow_invalid_utf8=True))


def plain(values: pa.Array) -> pa.Array:
    """Return simple values in a type that can be compared: no extension, no fixed size, no type that few functions know."""
    values = simple(values)
    kind = values.type
    if isinstance(kind, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())
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
    """Return the type of `plain` values of a type."""
    return plain(pa.nulls(0, kind)).type


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of a type can be read as text; nulls can."""
    return _is_bytes(plain_type(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_null,
    )
    return any(check(kind) for check in kinds)


def text_bytes(values: pa.Array) -> pa.Array:
    """Return texts, (n,), as large_binary, whatever they hold: some strings of some corpora are not UTF-8."""
    return plain(values).cast(pa.large_binary())


def without_rest(values: pa.Array) -> pa.Array:
    """Return strings or bytes of which nothing is left where they are null. Copies only where there is.

    Arrow's functions for strings, and Lance, also look at the bytes beneath nulls, and fail if those are not UTF-8.
    """
    if not values.null_count:
        return values
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    borders = np.frombuffer(values.buffers()[1], np.int64 if large else np.int32)
    sizes = np.diff(borders[values.offset : values.offset + len(values) + 1])
    null = np.asarray(values.is_null())
    return values.take(pa.array(np.arange(len(values)), mask=null)) if sizes[null].any() else values


def in_words(values: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Spell values: strings as they are, all else as Arrow writes it, and lists and structs as Python does.

    Args:
        values: (n,) of any type.

    Returns:
        (n,) strings, all of them UTF-8; and (n,) bool, of which something was replaced, None if of none.
    """
    values = plain(values)
    if pa.types.is_nested(values.type):
        return _in_python(values)
    if _is_bytes(values.type):
        return valid_strings(values if pa.types.is_string(values.type) else _unchecked(values, pa.string()))
    try:
        return values.cast(pa.string()), None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string()), None


def is_unicode(text: str) -> bool:
    """Return whether a text is one that UTF-8 can hold: without half a surrogate pair, or a byte that Python kept as one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def valid_strings(strings: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    """Return strings with U+FFFD for what is not UTF-8, and (n,) bool, which those are, None if all are UTF-8."""
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        raw = strings.cast(pa.large_binary()).to_pylist()
        made = [None if value is None else value.decode("utf-8", "replace") for value in raw]
        mended = pa.array(made, strings.type)
        same = pc.equal(mended.cast(pa.large_binary()), pa.array(raw, pa.large_binary()))
        return mended, ~np.asarray(pc.fill_null(same, True))
    return without_rest(strings), None


def _in_python(values: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
    replaced = None
    try:
        found = values.to_pylist()
    except UnicodeDecodeError:
        # As bytes first, since Arrow makes no Python strings of such.
        found, replaced = [], np.zeros(len(values), bool)
        for place, value in enumerate(values.cast(_as_bytes(values.type)).to_pylist()):
            made = _decoded(value, values.type)
            found.append(made)
            replaced[place] = _REPLACEMENT in str(made)
    return pa.array([None if value is None else str(value) for value in found], pa.string()), replaced


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type with binary in place of all strings in it."""
    if is_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_bytes(field.type)) for field in kind])
    return pa.large_binary() if _is_string(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _decoded(value: Any, kind: pa.DataType) -> Any:
    """Return a Python value with strings in place of the bytes that `_as_bytes` made of them."""
    if value is None:
        return None
    if is_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    if pa.types.is_map(kind):
        return [(_decoded(key, kind.key_type), _decoded(item, kind.item_type)) for key, item in value]
    if pa.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    return value.decode("utf-8", "replace") if _is_string(kind) else value
