"""The rows of a token store: blocks of streams, and their schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.splits import FORGOTTEN

# Tokens per row. Larger blocks waste reads from object stores; smaller ones are more rows to find.
BLOCK = 2048

# Hashes of forgotten documents per row: at least as many bytes as a block of tokens, and little memory for a thousand rows.
_HASHES = 1024


class Stream(NamedTuple):
    """The key of a stream."""

    split: str
    language: str


def store_schema(dtype: np.dtype[Any], metadata: Sequence[str], hashed: bool = False) -> pa.Schema:
    """Return the schema of a token store.

    Args:
        dtype: The dtype of the tokens, uint16 or uint32.
        metadata: Names of the strings stored with each document.
        hashed: Whether to store the hash of each text too, for de-duplication.
    """
    fields = [("offset", pa.int32()), *((name, pa.string()) for name in ("id", *metadata))]
    if hashed:
        fields.append(("hash", pa.uint64()))
    return pa.schema(
        [
            ("tokens", pa.list_(pa.from_numpy_dtype(dtype), BLOCK)),
            ("num_tokens", pa.int32()),
            ("split", pa.string()),
            ("language", pa.string()),
            ("documents", pa.list_(pa.struct(fields))),
        ]
    )


def forgotten_rows(hashes: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Return rows without tokens, whose documents have no fields but the hashes of their texts, (n,) uint64."""
    num_rows = -(-len(hashes) // _HASHES)
    block = schema.field("tokens").type.list_size
    struct = schema.field("documents").type.value_type
    fields = [pa.nulls(len(hashes), field.type) for field in struct]
    fields[0] = pa.repeat(pa.scalar(0, pa.int32()), len(hashes))
    fields[-1] = pa.array(hashes)
    borders = np.minimum(np.arange(num_rows + 1) * _HASHES, len(hashes)).astype(np.int32)
    zeros = np.zeros(num_rows * block, schema.field("tokens").type.value_type.to_pandas_dtype())
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(zeros), block),
        pa.repeat(pa.scalar(0, pa.int32()), num_rows),
        pa.repeat(pa.scalar(FORGOTTEN), num_rows),
        pa.repeat(pa.scalar(""), num_rows),
        pa.ListArray.from_arrays(pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(struct))),
    ]
    return pa.table(columns, schema=schema)
