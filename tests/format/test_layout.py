import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.build.packing import BLOCK, store_schema
from lightning_lance.format.layout import LayoutCounter, StreamPart, files_of, properties_of


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


@given(st.lists(st.builds(part_of, st.sampled_from("abc"), st.integers(1, 5 * BLOCK)), max_size=6), st.integers(1, 4))
def test_what_goes_by_is_counted_however_it_is_cut(parts: list[StreamPart], size: int):
    rows = rows_of(parts)
    whole, cut = LayoutCounter(), LayoutCounter()
    for batch in rows.combine_chunks().to_batches():
        whole.add(batch)
    for batch in rows.to_batches(max_chunksize=size):
        cut.add(batch)
    note = whole.note(1, "")
    assert cut.note(1, "") == note
    assert sum(part.tokens for part in note.parts) == sum(part.tokens for part in parts)
    assert sum(part.rows for part in note.parts) == whole.rows == len(rows)
    assert files_of(properties_of({"x": note, "y": note._replace(size=2)})) == {"x": note, "y": note._replace(size=2)}
