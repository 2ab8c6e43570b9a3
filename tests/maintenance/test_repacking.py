import tempfile
from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.format.commit import data_file_infos, replace_fragments
from lightning_lance.format.lance_io import fragments_of
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.repacking import rewrite_fragments
from tests.support.laws import examples
from tests.support.merges import NOTE, Made, append, check_same_readers, commits, contents


@examples(10)
@given(commits, st.sets(st.integers(0, 40)), st.sampled_from([1, 2, 1024]))
def test_documents_are_dropped_with_all_their_tokens(parts: list[list[Made]], gone: set[int], rows: int):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_lance.maintenance.repacking._ROWS", rows)
        patch.setattr("lightning_lance.maintenance.repacking._ROWS_WRITTEN", 2 * rows)
        uri, other, note, numbered, left = f"{folder}/x.lance", f"{folder}/y.lance", NOTE, 0, []
        for part in parts:
            note = append(uri, part, numbered, note)
            left += [(numbered + i, made) for i, made in enumerate(part) if numbered + i not in gone]
            numbered += len(part)
        for number, document in left:
            append(other, [document], number)
        dataset = lance.dataset(uri)
        before = dataset.count_rows()

        def drop(documents: pa.StructArray, _: str) -> np.ndarray:
            return np.array([int(i) in gone for i in documents.field("id").to_pylist()], bool)

        before_files = data_file_infos(dataset)
        fragments, files, dropped = rewrite_fragments(
            StoreLocation(uri), dataset, fragments_of(dataset), before_files, drop=drop
        )
        assert lance.dataset(uri).count_rows() == before
        forgotten = [made for i, made in enumerate(m for part in parts for m in part) if i in gone]
        assert dropped.documents == len(forgotten) == sum(dropped.languages.values())
        assert dropped.tokens == sum(size + 1 for _, _, size in forgotten)
        shorter = replace(note, tokens=note.tokens - dropped.tokens)
        replace_fragments(StoreLocation(uri), dataset, dataset.schema, fragments, files, shorter)
        assert contents(uri) == (contents(other) if left else {})
        if left:
            check_same_readers(uri)
