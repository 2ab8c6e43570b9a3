"""Check the columns of a token store, whoever wrote them: types, no nulls, counts that fit a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.errors import StoreError
from lightning_lance.format.channels import CHANNELS

# Tokens of a row, limited since several rows are in memory at once. Stores of this package have 2,048.
_LARGEST_BLOCK = 1 << 20
_CURE = "use another copy of the store, or build it again elsewhere"
_TOKENS = (pa.uint16(), pa.uint32())
_KEYS = {"num_tokens": pa.int32(), "split": pa.string(), "language": pa.string()}


def block_of(uri: str, schema: pa.Schema) -> tuple[int, np.dtype[Any]]:
    """Return the tokens of a row and their dtype. StoreError if a column is missing or has another type."""
    for name, expected in _KEYS.items():
        found = _type_of(uri, schema, name)
        if found != expected:
            _misfit(uri, name, found, str(expected))
    tokens = _type_of(uri, schema, "tokens")
    expected = f"fixed_size_list of uint16 or uint32, of 1 to {_LARGEST_BLOCK:,} tokens"
    is_list = pa.types.is_fixed_size_list(tokens) and tokens.value_type in _TOKENS
    if not is_list or not 1 <= tokens.list_size <= _LARGEST_BLOCK:
        _misfit(uri, "tokens", tokens, expected)
    return int(tokens.list_size), np.dtype(tokens.value_type.to_pandas_dtype())


def check_channels(uri: str, schema: pa.Schema, channels: Sequence[str], block: int) -> None:
    """Raise StoreError if the column of a channel is missing or has another type."""
    for name in channels:
        found = _type_of(uri, schema, name)
        expected = pa.list_(pa.from_numpy_dtype(CHANNELS[name].stored), block)
        if found != expected:
            _misfit(uri, name, found, str(expected))


def check_dtype(uri: str, dtype: np.dtype[Any], recipe: Mapping[str, Any], vocab_size: int) -> None:
    """Check that the dtype of the tokens is that of the recipe, and fits every id. StoreError if not."""
    expected = recipe.get("dtype", str(dtype))
    if vocab_size - 1 > np.iinfo(dtype).max or expected != str(dtype):
        raise StoreError(
            f"The tokens of the store {uri!r} are of type {dtype}, but its metadata has {str(expected)[:20]} and a vocabulary "
            f"of {vocab_size:,} ids: {_CURE}."
        )


def tokens_of(uri: str, column: pa.ChunkedArray | pa.Array, block: int) -> np.ndarray:
    """Return the tokens of rows, or what a channel has for each of them, (n, block). StoreError if some are null.

    Nothing is copied if they are in one piece.
    """
    rows = as_single_chunk(column)
    tokens = rows.flatten()
    if rows.null_count or tokens.null_count or len(tokens) != len(rows) * block:
        raise StoreError(f"The token store {uri!r} has rows with null in their tokens: {_CURE}.")
    return np.asarray(tokens).reshape(len(rows), block)


def check_keys(uri: str, rows: pa.Table | pa.RecordBatch, block: int) -> None:
    """Raise StoreError if `num_tokens`, `split` or `language` has nulls, or a count is negative or larger than a block."""
    for name in _KEYS:
        if rows.column(name).null_count:
            raise StoreError(f"The token store {uri!r} has rows whose {name} is null: {_CURE}.")
    counts = np.asarray(rows.column("num_tokens"))
    if len(counts) and (int(counts.min()) < 0 or int(counts.max()) > block):
        raise StoreError(
            f"The token store {uri!r} has rows of {int(counts.min()):,} to {int(counts.max()):,} tokens, expected 0 to "
            f"{block:,}: {_CURE}."
        )


def begins_of(uri: str, lists: pa.ListArray, num_tokens: np.ndarray | None = None) -> np.ndarray:
    """Return the offsets at which the documents of rows begin in their blocks, (documents,) int64.

    Args:
        uri: The store.
        lists: The column `documents` of n rows, or its field `offset` alone.
        num_tokens: (n,) tokens of the rows; None if unknown.

    Raises:
        StoreError: If lists are null, or an offset is outside its block or not above the one before it.
    """
    documents = lists.flatten()
    offsets = None
    if pa.types.is_struct(documents.type) and documents.type.get_field_index("offset") >= 0:
        offsets = documents.field("offset")
    if offsets is None or offsets.type != pa.int32() or lists.null_count or documents.null_count or offsets.null_count:
        raise StoreError(f"The token store {uri!r} has rows without the offsets of their documents: {_CURE}.")
    begins = np.asarray(offsets).astype(np.int64)
    rows = np.repeat(np.arange(len(lists)), np.asarray(lists.value_lengths()))
    fits = begins >= 0
    if num_tokens is not None:
        fits &= begins < num_tokens[rows]
    ordered = (np.diff(begins) > 0) | (np.diff(rows) > 0)
    if not fits.all() or not ordered.all():
        raise StoreError(
            f"The token store {uri!r} has documents that begin outside their rows, or out of order: {_CURE}."
        )
    return begins


def _type_of(uri: str, schema: pa.Schema, name: str) -> pa.DataType:
    if len(schema.get_all_field_indices(name)) != 1:
        raise StoreError(f"The token store {uri!r} has no column {name!r}, or more than one: {_CURE}.")
    return schema.field(name).type


def _misfit(uri: str, name: str, found: pa.DataType, expected: str) -> NoReturn:
    raise StoreError(
        f"The column {name!r} of the token store {uri!r} is of type {str(found)[:100]}, expected {expected}: {_CURE}."
    )
