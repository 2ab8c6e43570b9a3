"""The rows of a token store: blocks of streams, and their schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.splits import FORGOTTEN
from lightning_lance.format.channels import CHANNELS, TOKENS, ordered

# Tokens per row. Larger blocks waste reads from object stores; smaller ones are more rows to find.
BLOCK = 2048

# Hashes of forgotten documents per row: at least as many bytes as a block of tokens, and little memory for a thousand rows.
_HASHES = 1024


class Stream(NamedTuple):
    """The key of a stream."""

    split: str
    language: str


def store_schema(
    dtype: np.dtype[Any], metadata: Sequence[str], hashed: bool = False, channels: Sequence[str] = ()
) -> pa.Schema:
    """Return the schema of a token store.

    Args:
        dtype: The dtype of the tokens, uint16 or uint32.
        metadata: Names of the strings stored with each document.
        hashed: Whether to store the hash of each text too, for de-duplication.
        channels: Names of the channels; see `CHANNELS`.
    """
    of_document = [("offset", pa.int32())]
    for name in ("id", *metadata):
        of_document.append((name, pa.string()))
    if hashed:
        of_document.append(("hash", pa.uint64()))
    columns = [
        ("tokens", pa.list_(pa.from_numpy_dtype(dtype), BLOCK)),
        ("num_tokens", pa.int32()),
        ("split", pa.string()),
        ("language", pa.string()),
        ("documents", pa.list_(pa.struct(of_document))),
    ]
    # Behind all others: what reads tokens expects them first.
    for name in channels:
        columns.append((name, pa.list_(pa.from_numpy_dtype(CHANNELS[name].stored), BLOCK)))
    return pa.schema(columns)


def token_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of a store that have a value for each token: the tokens themselves, and the channels."""
    return [TOKENS, *ordered(schema.names)]


def blocks_of(values: np.ndarray, block: int) -> pa.FixedSizeListArray:
    """Return values, whole blocks of them, as the column of a store."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values), block)


def empty_blocks(schema: pa.Schema, name: str, num_rows: int) -> pa.FixedSizeListArray:
    """Return rows of a column of `token_columns` that have no tokens: zeros."""
    kind = schema.field(name).type
    return blocks_of(np.zeros(num_rows * kind.list_size, kind.value_type.to_pandas_dtype()), kind.list_size)


def forgotten_rows(hashes: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Return rows without tokens, whose documents have no fields but the hashes of their texts, (n,) uint64."""
    num_rows = -(-len(hashes) // _HASHES)
    struct = schema.field("documents").type.value_type
    fields = [pa.nulls(len(hashes), field.type) for field in struct]
    fields[0] = pa.repeat(pa.scalar(0, pa.int32()), len(hashes))
    fields[-1] = pa.array(hashes)
    borders = np.minimum(np.arange(num_rows + 1) * _HASHES, len(hashes)).astype(np.int32)
    tokens, *channels = (empty_blocks(schema, name, num_rows) for name in token_columns(schema))
    columns = [
        tokens,
        pa.repeat(pa.scalar(0, pa.int32()), num_rows),
        pa.repeat(pa.scalar(FORGOTTEN), num_rows),
        pa.repeat(pa.scalar(""), num_rows),
        pa.ListArray.from_arrays(pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(struct))),
        *channels,
    ]
    return pa.table(columns, schema=schema)
