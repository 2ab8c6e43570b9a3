"""The Lance dataset beneath a token store: how it is opened, its fragments, and how a data file is written.

Only the modules of the storage layer know Lance: this one, `commit`, `merging`, `integrity` and `store`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileSession
from lance.fragment import FragmentMetadata, write_fragments

from lightning_lance.documents import one_array
from lightning_lance.errors import StoreError
from lightning_lance.layout import FileNote, LayoutCounter, hash_file

# It warns of every fork. Forked workers do not go through it: see `ForkedReader`.
warnings.filterwarnings("ignore", "lance is not fork-safe")

# One file for one commit, however large: Lance cuts files at 1,048,576 rows otherwise.
_ROWS_PER_FILE = 2_000_000_000


def dataset_at(uri: str, version: int | None, storage_options: Mapping[str, str] | None) -> Any:
    """Open a Lance dataset at a version, or as it is now; None if there is none. StoreError if it cannot be opened."""
    try:
        return lance.dataset(uri, version=version, storage_options=lance_options(storage_options))
    except (ValueError, OSError) as error:
        if "not found" in str(error).lower():
            return None
        raise StoreError(f"The token store {uri!r} cannot be opened: {' '.join(str(error).split())[:300]}") from error


def fragments_of(dataset: Any) -> list[FragmentMetadata]:
    """List the fragments of an open dataset."""
    return [fragment.metadata for fragment in dataset.get_fragments()]


def take_blocks(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Read the tokens of rows, as (n, block)."""
    tokens = one_array(dataset.take(rows.tolist(), columns=["tokens"]).column("tokens"))
    return np.asarray(tokens.flatten()).reshape(len(rows), -1)


def data_session(uri: str, storage_options: Mapping[str, str] | None) -> LanceFileSession:
    """Open the folder of the data files, local or in a bucket."""
    return LanceFileSession(f"{uri}/data", lance_options(storage_options))


def write_rows(
    uri: str,
    before: Any | None,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    storage_options: Mapping[str, str] | None,
) -> tuple[list[FragmentMetadata], dict[str, FileNote]]:
    """Write rows into a data file that no version has yet, and give it as a fragment, with its note; no rows, no file.

    Args:
        uri: The store.
        before: Its dataset; None if there is no version of it.
        schema: Of the rows.
        batches: The rows.
        storage_options: Credentials and such for object stores.

    Raises:
        StoreError: If it cannot be written.
    """
    counter = LayoutCounter()
    reader = pa.RecordBatchReader.from_batches(schema, counter.passing(batches))
    try:
        written = write_fragments(
            reader,
            uri if before is None else before,
            mode="create" if before is None else "append",
            max_rows_per_file=_ROWS_PER_FILE,
            storage_options=lance_options(storage_options),
        )
        written = [fragment for fragment in written if fragment.physical_rows]
        session = data_session(uri, storage_options)
        files = {}
        for fragment in written:
            (file,) = fragment.files
            files[file.path] = counter.note(file.file_size_bytes, hash_file(session, file.path, file.file_size_bytes))
    except (ValueError, OSError) as error:
        raise not_written(uri, error) from error
    return written, files


def not_written(uri: str, error: Exception) -> StoreError:
    """Say that a store could not be written, and why."""
    return StoreError(
        f"The token store {uri!r} cannot be written ({' '.join(str(error).split())[:300]}): make room or give access, and run "
        "again; it goes on after the last commit."
    )


def lance_options(storage_options: Mapping[str, str] | None) -> dict[str, str] | None:
    """Give the options as Lance takes them."""
    return dict(storage_options or {}) or None
