"""Commits of a token store: tokens, and a note with the source cursor after them, in one Lance transaction.

A commit is made only on top of the version that its builder has seen, so of two builders one loses, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata

from lightning_lance.errors import NotForcedError, StoreError
from lightning_lance.format.checksums import root_session, write_sums
from lightning_lance.format.durability import force_data_files, force_version
from lightning_lance.format.lance_io import (
    PendingFragments,
    conflict,
    data_files,
    data_session,
    dataset_at,
    delete_uncommitted,
    fragments_of,
    lance_options,
    not_written,
)
from lightning_lance.format.lance_names import manifest_of, transaction_of
from lightning_lance.format.layout import DataFileInfo, files_of, properties_of
from lightning_lance.format.lineage import METADATA, check_unchanged, lineage_of, properties_at
from lightning_lance.format.metadata import CommitMetadata, _metadata, check_format, commit_from
from lightning_lance.json_checks import (
    field_of,
    json_of,
    metadata_of,
    object_of,
)
from lightning_lance.messages.redaction import shown_cause


def append_commit(
    uri: str,
    written: PendingFragments,
    commit: CommitMetadata,
    storage_options: Mapping[str, str] | None = None,
    durable: bool = True,
) -> int:
    """Make a version of what was written and of all before it, with its note; makes the store if there is none.

    Args:
        uri: The store.
        written: What to add.
        commit: The note.
        storage_options: Credentials and such for object stores.
        durable: Whether it is forced onto the disk; see `replace_fragments`.

    Returns:
        The new version.

    Raises:
        CommitConflict: If there is another version by now. Nothing of what was written stays.
        StoreError: If the store cannot be written.
    """
    before = written.before
    fragments = [] if before is None else fragments_of(before)
    known = {} if before is None else data_file_infos(before)
    return replace_fragments(
        uri,
        before,
        written.schema,
        [*fragments, *written.fragments],
        {**known, **written.files},
        commit,
        storage_options,
        durable,
    )


def newest_at(
    uri: str, version: int | None, storage_options: Mapping[str, str] | None, fingerprint: str | None = None
) -> Any:
    """Open a store as it is now, to write to it; None if there is none.

    Raises:
        CommitConflict: If it isn't at the version that a builder saw last; or of another fingerprint, since it was built anew
            and its versions count from 1 again.
        StoreError: If others have changed its rows.
    """
    dataset = dataset_at(uri, None, storage_options)
    now = 0 if dataset is None else int(dataset.version)
    if version is not None and now != version:
        raise conflict(uri, version, now)
    if version and fingerprint is not None and read_commit(dataset, uri).fingerprint != fingerprint:
        raise conflict(uri, version, now)
    if dataset is not None:
        check_unchanged(dataset, uri, storage_options)
    return dataset


def replace_fragments(
    uri: str,
    before: Any | None,
    schema: pa.Schema,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, DataFileInfo],
    commit: CommitMetadata,
    storage_options: Mapping[str, str] | None,
    durable: bool = True,
) -> int:
    """Make a version of exactly these fragments, right after the version `before`, or not at all.

    Args:
        uri: The store.
        before: Its dataset at the version that this one is made of; None to make the first.
        schema: Of the rows.
        fragments: All of the new version, in their order. Those that `before` lacks are removed if this fails.
        files: Notes of their data files, by path; others are left out.
        commit: The note.
        storage_options: Credentials and such for object stores.
        durable: Whether the version of a local store is on the disk when this returns, so that a power cut cannot take or
            damage it: its data files first, then its manifest and transaction, then their folders.

    Returns:
        The new version.

    Raises:
        CommitConflict: If another version came first.
        StoreError: If the store cannot be written. After any other error too, files stay only if the version was made.
    """
    paths = [file.path for fragment in fragments for file in fragment.files]
    version = 0 if before is None else int(before.version)
    told = json.dumps(_metadata(commit))
    with metadata_of(uri):
        # Nothing is written that could not be read again.
        commit_from(object_of(json_of(told, "it"), "it"))
    transaction = lance.Transaction(
        read_version=version,
        operation=lance.LanceOperation.Overwrite(schema if before is None else before.lance_schema, fragments),
        transaction_properties={
            METADATA: told,
            **properties_of({path: files[path] for path in paths if path in files}),
        },
    )
    if durable:
        # Before the manifest that names them: the disk may take files in another order than they were written.
        _force_new(uri, before, paths, storage_options)
    try:
        # An append would be put on top of whatever was committed meanwhile. An overwrite without a retry is not: it makes the
        # manifest of this very version, or fails.
        lance.LanceDataset.commit(
            uri if before is None else before,
            transaction,
            max_retries=0,
            storage_options=lance_options(storage_options),
        )
    except BaseException as error:
        # A bucket may have made it though the answer was lost, and then says of the second try that it is there already.
        made = _uuid_of(uri, version + 1, storage_options) == transaction.uuid
        if made and isinstance(error, Exception):
            _end_commit(uri, version + 1, transaction.uuid, durable, storage_options)
            return version + 1
        now = dataset_at(uri, None, storage_options)
        delete_uncommitted(uri, paths, [before, now], storage_options)
        if now is not None and int(now.version) != version and not made:
            raise conflict(uri, version, int(now.version)) from shown_cause(error)
        if isinstance(error, (ValueError, OSError)):
            raise not_written(uri, error) from shown_cause(error)
        raise
    now = dataset_at(uri, None, storage_options)
    late = now is not None and int(now.version) > version + 1
    if late or not _is_founded(uri, before, paths, storage_options):
        # This builder stood still while another went on and removed old versions, or built the store anew: so the place of
        # this one was free again, but what it is made of may be gone.
        if _uuid_of(uri, version + 1, storage_options) == transaction.uuid:
            with contextlib.suppress(ValueError, OSError):
                root_session(uri, storage_options).delete_file(manifest_of(version + 1))
        now = dataset_at(uri, None, storage_options)
        delete_uncommitted(uri, paths, [before, now], storage_options)
        raise conflict(uri, version, 0 if now is None else int(now.version))
    _end_commit(uri, version + 1, transaction.uuid, durable, storage_options)
    return version + 1


def _force_new(uri: str, before: Any | None, paths: Sequence[str], storage_options: Mapping[str, str] | None) -> None:
    """Force the data files that a version adds onto the disk. Nothing of them stays if that fails."""
    known = set() if before is None else {*data_files(before)}
    try:
        force_data_files(uri, [path for path in paths if path not in known])
    except BaseException as error:
        delete_uncommitted(uri, paths, [before], storage_options)
        if isinstance(error, OSError):
            raise not_written(uri, error) from shown_cause(error)
        raise


def _end_commit(uri: str, version: int, uuid: str, durable: bool, storage_options: Mapping[str, str] | None) -> None:
    """Do what belongs to a version that was made just now. NotForcedError if the disk does not take it."""
    if durable:
        try:
            force_version(uri, manifest_of(version), transaction_of(version, uuid), is_first=version == 1)
        except OSError as error:
            raise NotForcedError(str(not_written(uri, error))) from shown_cause(error)
    write_sums(uri, storage_options)


def _is_founded(uri: str, before: Any | None, paths: Sequence[str], storage_options: Mapping[str, str] | None) -> bool:
    """Tell whether the version that another was made of is still there, or at least all of these files are."""
    if before is None:
        return True
    version = int(before.version)
    with contextlib.suppress(ValueError, OSError):
        if _uuid_of(uri, version, storage_options) == str(before.read_transaction(version).uuid):
            return True
    session = data_session(uri, storage_options)
    return all(session.contains(path) for path in paths)


def _uuid_of(uri: str, version: int, storage_options: Mapping[str, str] | None) -> str | None:
    dataset = dataset_at(uri, version, storage_options)
    return None if dataset is None else str(dataset.read_transaction(version).uuid)


def data_file_infos(dataset: Any) -> dict[str, DataFileInfo]:
    """Read the notes of the data files of an open dataset, by path; of what others wrote there are none.

    Raises:
        StoreError: If they cannot be.
    """
    with metadata_of(dataset.uri):
        return files_of(_noted(dataset) or {})


def _noted(dataset: Any) -> Mapping[str, str] | None:
    """Read what the last commit up to the version that is open says; None if there is none.

    Other writes (a deletion, a compaction) make versions that carry no note: what the one before them says still holds.
    """
    committed = committed_version(dataset)
    return None if committed is None else properties_at(dataset, committed)


def committed_version(dataset: Any) -> int | None:
    """Give the version of the last commit that the open version is made of; None if there is none."""
    return lineage_of(dataset).committed


def is_commit(dataset: Any) -> bool:
    """Tell whether the version that is open was committed by this package, and not made by others out of one that was."""
    return METADATA in (properties_at(dataset, int(dataset.version)) or {})


def last_commit(
    uri: str, version: int | None = None, storage_options: Mapping[str, str] | None = None
) -> CommitMetadata | None:
    """Read the note of the last commit up to a version; None if there is no store. StoreError if it is another thing."""
    if version is None:
        return last_version(uri, storage_options)[1]
    dataset = dataset_at(uri, version, storage_options)
    return None if dataset is None else read_commit(dataset, uri)


def last_version(uri: str, storage_options: Mapping[str, str] | None = None) -> tuple[int, CommitMetadata | None]:
    """Give the last version and its note; 0 and None if there is no store. StoreError if it is another thing."""
    while (dataset := dataset_at(uri, None, storage_options)) is not None:
        version = int(dataset.version)
        try:
            return version, read_commit(dataset, uri)
        except (StoreError, ValueError, OSError):
            # A builder may have made another one, and removed this.
            now = dataset_at(uri, None, storage_options)
            if now is not None and int(now.version) == version:
                raise
    return 0, None


def read_commit(dataset: Any, uri: str) -> CommitMetadata:
    """Read the note of the last commit of an open dataset.

    Raises:
        FormatError: If another version of this package wrote it, in another format.
        StoreError: If it has none, or one that cannot be read.
    """
    noted = _noted(dataset)
    if noted is None:
        raise StoreError(
            f"The Lance dataset {uri!r} is no token store: none of its versions was committed by this package."
        )
    with metadata_of(uri):
        told = object_of(json_of(noted[METADATA], "it"), "it")
        check_format(object_of(field_of(told, "recipe"), "recipe").get("format"), uri)
        return commit_from(told)
