from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.format.layout import LayoutCounter, StreamPart, files_of, properties_of
from lightning_lance.format.rows import BLOCK
from tests.support.layouts import part_of, rows_of


@given(st.lists(st.builds(part_of, st.sampled_from("abc"), st.integers(1, 5 * BLOCK)), max_size=6), st.integers(1, 4))
def test_what_goes_by_is_counted_however_it_is_cut(parts: list[StreamPart], size: int):
    rows = rows_of(parts)
    whole, cut = LayoutCounter(), LayoutCounter()
    for batch in rows.combine_chunks().to_batches():
        whole.add(batch)
    for batch in rows.to_batches(max_chunksize=size):
        cut.add(batch)
    info = whole.info(1, "")
    assert cut.info(1, "") == info
    assert sum(part.tokens for part in info.parts) == sum(part.tokens for part in parts)
    assert sum(part.rows for part in info.parts) == whole.rows == len(rows)
    assert files_of(properties_of({"x": info, "y": info._replace(size=2)})) == {"x": info, "y": info._replace(size=2)}
