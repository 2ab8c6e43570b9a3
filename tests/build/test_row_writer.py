from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lightning_lance.build.row_writer import forget_written
from lightning_lance.errors import CommitConflict, StoreError
from lightning_lance.format.commit import append_commit, last_version
from lightning_lance.format.lance_io import dataset_at
from lightning_lance.location import StoreLocation
from tests.support.commits import NOTE, rows_of, writer_of
from tests.support.paths import ROOT
from tests.support.warm import BUILDING, server


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_put_is_what_is_committed_in_its_order(tmp_path: Path):
    uri, parts = str(tmp_path / "x.lance"), [rows_of(number, 3000 * number) for number in range(1, 9)]
    for version, some in enumerate((parts[:5], parts[5:], [])):
        writer = writer_of(uri, version)
        for part in some:
            for rows in part.to_batches():
                writer.put(rows)
        written = writer.close()
        assert len(written.fragments) == len(written.files) == bool(some)
        assert append_commit(StoreLocation(uri), written, replace(NOTE, row=version)) == version + 1
    stored, expected = dataset_at(StoreLocation(uri), None).to_table(), pa.concat_tables(parts)
    for name in ("tokens", "num_tokens", "split"):
        assert stored.column(name).to_pylist() == expected.column(name).to_pylist()


def test_nothing_is_left_of_what_is_abandoned(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    for number in range(3):  # more than wait
        writer = writer_of(uri)
        for _ in range(6 * number):
            writer.put(rows_of(1).to_batches()[0])
        writer.abandon()
        assert files_in(tmp_path) == []
    assert append_commit(StoreLocation(uri), writer_of(uri).close(), NOTE) == 1
    before, writer = files_in(tmp_path), writer_of(uri, 1)
    writer.put(rows_of(1).to_batches()[0])
    writer.abandon()
    assert files_in(tmp_path) == before


def test_what_is_committed_is_not_forgotten(tmp_path: Path):
    uri, writer = str(tmp_path / "x.lance"), writer_of(str(tmp_path / "x.lance"))
    writer.put(rows_of(1).to_batches()[0])
    written = writer.close()
    append_commit(StoreLocation(uri), written, NOTE)
    forget_written(StoreLocation(uri), written)
    assert dataset_at(StoreLocation(uri), None).to_table() == rows_of(1)


def test_who_has_seen_another_version_writes_nothing(tmp_path: Path):
    with pytest.raises(CommitConflict):
        writer_of(str(tmp_path / "x.lance"), 3)
    assert files_in(tmp_path) == []


def test_a_failure_reaches_who_puts(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    (tmp_path / "x.lance").mkdir()
    (tmp_path / "x.lance" / "data").write_text("a file in its place")
    writer, rows = writer_of(uri), rows_of(1, 100 * 2048 - 1).to_batches()[0]

    def fill() -> None:
        for _ in range(1000):
            writer.put(rows)

    with pytest.raises(StoreError, match="cannot be written"):
        fill()
    with pytest.raises(StoreError, match="cannot be written"):
        writer.close()
    writer.abandon()
    assert last_version(StoreLocation(uri)) == (0, None)
    assert np.asarray(rows.column("num_tokens")).sum() == len(rows) * 2048


WRITE = """
import os, signal, sys, time
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from lightning_lance.build import row_writer
from tests.support.commits import rows_of, writer_of
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background does not have
writer = writer_of(sys.argv[2])
for _ in range(8):
    writer.put(rows_of(1, 100 * 2048).to_batches()[0])
while not list(Path(sys.argv[2]).glob("data/.tmp*")):
    time.sleep(0.01)
{ends}
"""


@pytest.mark.parametrize(
    "ends",
    [
        "",  # nobody closes it
        "row_writer.wait = lambda _: os.kill(os.getpid(), signal.SIGINT)\nwriter.abandon()",  # Ctrl-C in the clean-up
    ],
)
def test_a_process_that_ends_leaves_no_half_of_a_data_file(tmp_path: Path, ends: str):
    done = server(BUILDING).run(WRITE.format(ends=ends), ROOT, tmp_path / "x.lance", timeout=60)
    assert done.stderr == "" or done.stderr.endswith("\nKeyboardInterrupt\n")
    assert (done.returncode == 0) == (not ends)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert last_version(StoreLocation(str(tmp_path / "x.lance"))) == (0, None)
