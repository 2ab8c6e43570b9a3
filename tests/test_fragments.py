from pathlib import Path

import lance
import numpy as np
import pytest
from test_layout import part_of, rows_of

from lightning_lance.errors import StoreError
from lightning_lance.fragments import data_session, dataset_at, fragments_of, take_blocks, write_rows
from lightning_lance.layout import files_of, hash_file, layout_of
from lightning_lance.packing import BLOCK


def test_a_data_file_is_one_and_its_note_tells_what_is_in_it(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    rows = rows_of([part_of("a", 5000), part_of("b", 10)])
    (fragment,), files = write_rows(uri, None, rows.schema, rows.to_batches(max_chunksize=2), None)
    (path,) = files
    file = tmp_path / "x.lance" / "data" / path
    assert files[path].size == file.stat().st_size == fragment.files[0].file_size_bytes
    assert files[path].parts == (part_of("a", 5000), part_of("b", 10))
    assert hash_file(data_session(uri, None), path, files[path].size) == files[path].whole
    assert layout_of([fragment], files) == [*files[path].parts]
    # Not committed, it is in no version; nor is there a file for no rows.
    assert dataset_at(uri, None, None) is None
    assert write_rows(uri, None, rows.schema, [], None) == ([], {})


def test_the_notes_of_others_files_are_unknown(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    rows = rows_of([part_of("a", 5000)])
    (fragment,), files = write_rows(uri, None, rows.schema, rows.to_batches(), None)
    assert layout_of([fragment], {}) is None
    assert (
        layout_of([fragment], {path: note._replace(parts=(part_of("a", 1),)) for path, note in files.items()}) is None
    )
    assert files_of({"other": "1"}) == {}


def test_what_is_no_dataset_is_told_from_none(tmp_path: Path):
    assert dataset_at(str(tmp_path / "none.lance"), None, None) is None
    (tmp_path / "x.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "x.lance" / "_versions" / "1.manifest").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot be opened"):
        dataset_at(str(tmp_path / "x.lance"), None, None)


def test_blocks_are_taken_by_row(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    lance.write_dataset(rows_of([part_of("a", 5000)]), uri)
    dataset = dataset_at(uri, None, None)
    assert len(fragments_of(dataset)) == 1
    assert take_blocks(dataset, np.array([2, 0])).sum(axis=1).tolist() == [5000 - 2 * BLOCK, BLOCK]
