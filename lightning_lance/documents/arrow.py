"""Arrow arrays as plain memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def offsets_and_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Lay numpy over the memory of a large_string array: (n + 1,) int64 offsets and the uint8 bytes."""
    _, offsets, data = texts.buffers()
    ends = (
        np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if offsets
        else np.zeros(1, np.int64)
    )
    return ends, np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)


def as_single_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array. Copies only where it is in pieces; Arrow's own `combine_chunks` always does."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
