"""The Lance dataset beneath a token store: how it is opened, its fragments, and how a data file is written.

Only the storage layer knows Lance, from this module to `store`; tests/test_layers.py has the list.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileSession
from lance.fragment import FragmentMetadata, write_fragments

from lightning_lance.documents import one_array
from lightning_lance.errors import CommitConflict, LightningLanceError, StoreError
from lightning_lance.layout import FileNote, LayoutCounter, hash_file, hash_local
from lightning_lance.unfinished import begun, settled, writing_in

# It warns of every fork. Forked workers do not go through it: see `ForkedReader`.
warnings.filterwarnings("ignore", "lance is not fork-safe")

# One file for one commit, however large: Lance cuts files at 1,048,576 rows otherwise.
_ROWS_PER_FILE = 2_000_000_000
# Of a local store on its way out. No name that anybody would give to a copy: it is removed unasked.
_ASIDE = ".being-removed"


class Written(NamedTuple):
    """Rows in a data file that no version has yet.

    Attributes:
        before: The dataset that they are to follow; None where they are the first of a store.
        schema: Of the rows.
        fragments: What to commit: one fragment, none if there are no rows.
        files: The note of its file, by path.
    """

    before: Any | None
    schema: pa.Schema
    fragments: list[FragmentMetadata]
    files: dict[str, FileNote]


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


def data_files(dataset: Any) -> list[str]:
    """List the data files of an open dataset, by name. No two files ever have one, so they tell a version from any other."""
    return [file.path for fragment in fragments_of(dataset) for file in fragment.files]


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn whatever Lance makes of a damaged store, its panics included, into a StoreError."""
    try:
        yield
    except (LightningLanceError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise StoreError(
            f"The token store {uri!r} cannot be read ({' '.join(str(error).split())[:300]}): 'lightning-lance verify' tells "
            "what is damaged."
        ) from error


def check_sizes(uri: str, fragments: Iterable[FragmentMetadata]) -> None:
    """Refuse a local store of which a data file is missing or has another size: a map of it would reach beyond its end.

    Raises:
        StoreError: Naming the file.
    """
    for fragment in fragments:
        for file in fragment.files:
            path = Path(uri, "data", file.path)
            size = path.stat().st_size if path.is_file() else None
            if size != file.file_size_bytes and file.base_id is None:
                got = "missing" if size is None else f"{size:,} bytes long"
                raise StoreError(
                    f"The data file {str(path)!r} is {got}, expected {file.file_size_bytes:,} bytes: bring it back, or remove "
                    "the store and build it again ('lightning-lance verify' lists all that is damaged)."
                )


def stream_columns(dataset: Any) -> pa.Table:
    """Read what tells of which streams the rows are: `num_tokens`, `split`, `language`."""
    return dataset.to_table(columns=["num_tokens", "split", "language"])


def take_blocks(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Read the tokens of rows, as (n, block)."""
    tokens = one_array(dataset.take(rows.tolist(), columns=["tokens"]).column("tokens"))
    return np.asarray(tokens.flatten()).reshape(len(rows), -1)


def data_session(uri: str, storage_options: Mapping[str, str] | None) -> LanceFileSession:
    """Open the folder of the data files, local or in a bucket."""
    return LanceFileSession(f"{uri}/data", lance_options(storage_options))


def remove_store(uri: str, storage_options: Mapping[str, str] | None) -> None:
    """Remove a token store, so that another can be made in its place. Who has it open and mapped can read on.

    Killed at any moment, it leaves the store or none, and never half of one: a local one is taken aside as a whole first. In a
    bucket tags and checksums go first, which could otherwise be taken for those of the next store; then the versions, and the
    newest of them last; then what no version needs any more.

    Raises:
        StoreError: If it cannot be removed.
    """
    try:
        if "://" not in uri:
            aside = aside_of(uri)
            remove_aside(uri)
            Path(uri).rename(aside)
            shutil.rmtree(aside)
            return
        session = LanceFileSession(uri, lance_options(storage_options))
        for file in sorted(session.list(), key=_going):
            session.delete_file(file)
    except (ValueError, OSError) as error:
        raise StoreError(f"The token store {uri!r} cannot be removed: {' '.join(str(error).split())[:300]}") from error


def _going(file: str) -> tuple[int, int]:
    """Order the files of a store by when they go."""
    folder, _, name = file.rpartition("/")
    if not folder.startswith("_versions"):
        return (2 if folder in ("data", "_transactions") else 0), 0
    number = name.partition(".")[0]
    # Lance counts versions down in their names; the hint of the newest is no number.
    return 1, -int(number) if number.isdigit() else -(2**64)


def aside_of(uri: str) -> Path:
    """Give the place of a local store that is being removed."""
    return Path(f"{uri.rstrip('/')}{_ASIDE}")


def remove_aside(uri: str) -> None:
    """Remove what a removal of a local store has left that was killed; for who builds there."""
    aside = aside_of(uri)
    if "://" not in uri and aside.exists():
        shutil.rmtree(aside)


def write_rows(
    uri: str,
    before: Any | None,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    storage_options: Mapping[str, str] | None,
) -> tuple[list[FragmentMetadata], dict[str, FileNote]]:
    """Write rows into a data file that no version has yet, and give it as a fragment, with its note; no rows, no file.

    Nothing of it stays if it fails, however. Not for the main thread: Ctrl-C within Lance would leave files there.

    Args:
        uri: The store.
        before: Its dataset; None if there is no version of it.
        schema: Of the rows.
        batches: The rows.
        storage_options: Credentials and such for object stores.

    Raises:
        CommitConflict: If that fails since there is another version by now.
        StoreError: If it cannot be written.
    """
    counter = LayoutCounter()
    reader = pa.RecordBatchReader.from_batches(schema, counter.passing(batches))
    paths: list[str] = []
    try:
        with writing_in(None if "://" in uri else Path(uri, "data")):
            written = write_fragments(
                reader,
                uri if before is None else before,
                mode="create" if before is None else "append",
                max_rows_per_file=_ROWS_PER_FILE,
                storage_options=lance_options(storage_options),
            )
            paths = [file.path for fragment in written for file in fragment.files]
            begun(local_files(uri, paths))
        written = [fragment for fragment in written if fragment.physical_rows]
        files = {}
        for fragment in written:
            (file,) = fragment.files
            if "://" in uri:
                whole = hash_file(data_session(uri, storage_options), file.path, file.file_size_bytes)
            else:
                whole = hash_local(Path(uri, "data", file.path))
            files[file.path] = counter.note(file.file_size_bytes, whole)
    except BaseException as error:
        take_back(uri, paths, [], storage_options)
        if not isinstance(error, (ValueError, OSError)):
            raise
        # Another may have made a version, and removed what this one was to be made of.
        newest = dataset_at(uri, None, storage_options)
        versions = [0 if dataset is None else int(dataset.version) for dataset in (before, newest)]
        if versions[0] != versions[1]:
            raise conflict(uri, *versions) from error
        raise not_written(uri, error) from error
    return written, files


def take_back(
    uri: str, paths: Iterable[str], datasets: Iterable[Any], storage_options: Mapping[str, str] | None
) -> None:
    """Remove those data files that none of the datasets (None: no dataset) has."""
    there = [dataset for dataset in datasets if dataset is not None]
    needed = {file.path for dataset in there for part in fragments_of(dataset) for file in part.files}
    if not (gone := {*paths} - needed):
        return
    session = data_session(uri, storage_options)
    for path in gone:
        with suppress(ValueError, OSError):
            session.delete_file(path)
    settled(local_files(uri, gone))


def local_files(uri: str, paths: Iterable[str]) -> list[Path]:
    """Give the places of data files on this machine; none in a bucket."""
    return [] if "://" in uri else [Path(uri, "data", path) for path in paths]


def conflict(uri: str, expected: int, version: int) -> CommitConflict:
    """Say that a commit has lost."""
    return CommitConflict(
        f"Another process wrote to the token store {uri!r} at the same time (it has version {version}, expected {expected}): "
        "nothing of this build's last part was stored; run again, it goes on after what is there."
    )


def not_written(uri: str, error: Exception) -> StoreError:
    """Say that a store could not be written, and why."""
    return StoreError(
        f"The token store {uri!r} cannot be written ({' '.join(str(error).split())[:300]}): make room or give access, and run "
        "again; it goes on after the last commit."
    )


def lance_options(storage_options: Mapping[str, str] | None) -> dict[str, str] | None:
    """Give the options as Lance takes them."""
    return dict(storage_options or {}) or None
