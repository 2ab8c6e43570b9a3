"""Stores of made rows, for the benchmarks that read."""

from lightning_lance.build.row_writer import RowWriter
from lightning_lance.format.commit import append_commit, last_version
from lightning_lance.location import StoreLocation


def commit_rows(uri, batches, schema, note):
    """Commit record batches to a store, which is made if there is none."""
    writer = RowWriter(StoreLocation(uri), last_version(StoreLocation(uri))[0], note.fingerprint, schema)
    for batch in batches:
        writer.put(batch)
    append_commit(StoreLocation(uri), writer.close(), note)
