from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from lightning_lance.errors import StoreError
from lightning_lance.format.commit import last_version
from lightning_lance.format.hashing import hash_file
from lightning_lance.format.lance_io import (
    data_session,
    dataset_at,
    fragments_of,
    remove_store,
    take_blocks,
    write_rows,
)
from lightning_lance.format.layout import files_of, layout_of
from lightning_lance.format.rows import BLOCK
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.integrity import verify_store
from tests.support.bucket import serving
from tests.support.commits import NOTE
from tests.support.commits import rows_of as number_rows
from tests.support.layouts import part_of, rows_of
from tests.support.stores import append_commit


def test_a_data_file_is_one_and_its_note_tells_what_is_in_it(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    rows = rows_of([part_of("a", 5000), part_of("b", 10)])
    (fragment,), files = write_rows(StoreLocation(uri), None, rows.schema, rows.to_batches(max_chunksize=2))
    (path,) = files
    file = tmp_path / "x.lance" / "data" / path
    assert files[path].size == file.stat().st_size == fragment.files[0].file_size_bytes
    assert files[path].parts == (part_of("a", 5000), part_of("b", 10))
    assert hash_file(data_session(StoreLocation(uri)), path, files[path].size) == files[path].whole
    assert layout_of([fragment], files) == [*files[path].parts]
    # Uncommitted rows are in no version, and no rows make no file.
    assert dataset_at(StoreLocation(uri), None) is None
    assert write_rows(StoreLocation(uri), None, rows.schema, []) == ([], {})


def test_the_notes_of_others_files_are_unknown(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    rows = rows_of([part_of("a", 5000)])
    (fragment,), files = write_rows(StoreLocation(uri), None, rows.schema, rows.to_batches())
    assert layout_of([fragment], {}) is None
    assert (
        layout_of([fragment], {path: note._replace(parts=(part_of("a", 1),)) for path, note in files.items()}) is None
    )
    assert files_of({"other": "1"}) == {}


def test_what_is_no_dataset_is_told_from_none(tmp_path: Path):
    assert dataset_at(StoreLocation(str(tmp_path / "none.lance")), None) is None
    (tmp_path / "x.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "x.lance" / "_versions" / "1.manifest").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot be opened"):
        dataset_at(StoreLocation(str(tmp_path / "x.lance")), None)


def test_blocks_are_taken_by_row(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    lance.write_dataset(rows_of([part_of("a", 5000)]), uri)
    dataset = dataset_at(StoreLocation(uri), None)
    assert len(fragments_of(dataset)) == 1
    assert take_blocks(dataset, np.array([2, 0])).sum(axis=1).tolist() == [5000 - 2 * BLOCK, BLOCK]


def test_a_removal_that_is_killed_leaves_the_store_or_none():
    """In a bucket, after any of its deletions. The rest does no harm to the next store."""
    with serving() as bucket:
        allowed: list[int] = []

        def around(app: Any) -> Any:
            def refusing(environ: dict[str, Any], start_response: Any) -> Any:
                asked = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
                if allowed and (asked[0] == "DELETE" or (asked[0] == "POST" and asked[1].startswith("delete"))):
                    if allowed[0] == 0:
                        start_response("403 Forbidden", [("Content-Length", "0")])
                        return [b""]
                    allowed[0] -= 1
                return app(environ, start_response)

            return refusing

        bucket.wrap(around)
        options, left = bucket.lance_options, list[int]()
        # Of eight files: the tag, the checksums, two manifests, two transactions, two data files.
        for deletions in (1, 2, 3, 4, 6):
            uri = f"s3://bucket/{deletions}/x.lance"
            for number in (1, 2):
                append_commit(StoreLocation(uri, options), number_rows(number), replace(NOTE, tokens=2 * number))
            dataset_at(StoreLocation(uri, options), None).tags.create("checkpoint-4", 2)
            allowed[:] = [deletions]
            with pytest.raises(StoreError, match="cannot be removed"):
                remove_store(StoreLocation(uri, options))
            allowed.clear()
            left.append(last_version(StoreLocation(uri, options))[0])
            if left[-1]:
                assert dataset_at(StoreLocation(uri, options), None).to_table() == pa.concat_tables(
                    map(number_rows, (1, 2))
                )
                remove_store(StoreLocation(uri, options))
            append_commit(StoreLocation(uri, options), number_rows(3), replace(NOTE, fingerprint="other", tokens=2), 0)
            assert verify_store(uri, options) == []
            assert dataset_at(StoreLocation(uri, options), None).tags.list() == {}
        assert left == [2, 2, 2, 0, 0]
