"""The rows of a token store: blocks of streams, and their schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.documents.splits import FORGOTTEN

# Tokens per row. Larger blocks read more than they need from object stores, smaller ones are more rows to find.
BLOCK = 2048


# Hashes of forgotten documents in a row: as many bytes as a block of tokens or more, and little to hold of a thousand rows.
_HASHES = 1024


class Stream(NamedTuple):
    """The key of a stream."""

    split: str
    language: str


def store_schema(dtype: np.dtype[Any], metadata: Sequence[str], hashed: bool = False) -> pa.Schema:
    """Give the columns of a token store.

    Args:
        dtype: uint16 or uint32, of the tokens.
        metadata: Names of the strings kept with each document.
        hashed: Whether the hash of its text is kept too: all that de-duplication has to know of a document.
    """
    fields = [("offset", pa.int32()), ("id", pa.string()), *((name, pa.string()) for name in metadata)]
    document = pa.struct([*fields, ("hash", pa.uint64())] if hashed else fields)
    return pa.schema(
        [
            ("tokens", pa.list_(pa.from_numpy_dtype(dtype), BLOCK)),
            ("num_tokens", pa.int32()),
            ("split", pa.string()),
            ("language", pa.string()),
            ("documents", pa.list_(document)),
        ]
    )


def forgotten_rows(hashes: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Make rows that hold no tokens and no more of documents than the hashes of their texts.

    Args:
        hashes: (n,) uint64.
        schema: Of the store; with `hash`.
    """
    num_rows = -(-len(hashes) // _HASHES)
    block, struct = schema.field("tokens").type.list_size, schema.field("documents").type.value_type
    fields = [pa.nulls(len(hashes), field.type) for field in struct]
    fields[0], fields[-1] = pa.repeat(pa.scalar(0, pa.int32()), len(hashes)), pa.array(hashes)
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
