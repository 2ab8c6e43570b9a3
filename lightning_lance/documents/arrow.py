"""Arrow arrays as plain memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def offsets_and_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the memory of a large_string array as numpy views: (n + 1,) int64 offsets and the uint8 bytes."""
    _, offsets, data = texts.buffers()
    borders = np.zeros(1, np.int64)
    if offsets:
        borders = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.empty(0, np.uint8)
    if data:
        characters = np.frombuffer(data, np.uint8)
    return borders, characters


def as_single_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array. Copies only if it has several chunks; Arrow's own `combine_chunks` always copies."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks()
