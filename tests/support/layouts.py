"""Rows of some streams, and the part of a stream that they are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lightning_lance.format.layout import StreamPart
from lightning_lance.format.rows import BLOCK, store_schema


def rows_of(parts: list[StreamPart], dtype: type = np.uint16) -> pa.Table:
    """Blocks of ones, as these parts say."""
    schema = store_schema(np.dtype(dtype), [])
    tables = [schema.empty_table()]
    for part in parts:
        tokens = np.zeros(part.rows * BLOCK, dtype)
        tokens[: part.tokens] = 1
        counts = np.minimum(np.full(part.rows, BLOCK), part.tokens - np.arange(part.rows) * BLOCK)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(tokens), BLOCK),
            pa.array(counts.astype(np.int32)),
            pa.repeat(pa.scalar(part.split), part.rows),
            pa.repeat(pa.scalar(part.language), part.rows),
            pa.array([[]] * part.rows, schema.field("documents").type),
        ]
        tables.append(pa.table(columns, schema=schema))
    return pa.concat_tables(tables)


def part_of(language: str, tokens: int) -> StreamPart:
    return StreamPart("train", language, tokens, -(-tokens // BLOCK))
