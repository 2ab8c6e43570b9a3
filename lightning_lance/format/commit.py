"""Commits of a token store: tokens and commit metadata, which holds the source cursor, in one Lance transaction.

A commit succeeds only on top of the version that its builder has seen. So of two builders one loses, and nothing of its
commit stays.
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
from lightning_lance.format.checksums import Root, write_sums
from lightning_lance.format.durability import force_data_files, force_version
from lightning_lance.format.lance_io import (
    PendingFragments,
    conflict,
    data_files,
    data_session,
    dataset_at,
    delete_uncommitted,
    file_names,
    fragments_of,
    lance_options,
    not_written,
    number_of,
)
from lightning_lance.format.layout import DataFileInfo, files_of, properties_of
from lightning_lance.format.lineage import METADATA, Lineage, check_unchanged, lineage_of, properties_at
from lightning_lance.format.metadata import CommitMetadata, check_format, commit_from, stored_metadata
from lightning_lance.json_checks import field_of, json_of, metadata_of, object_of
from lightning_lance.lance_names import manifest_of, transaction_of
from lightning_lance.location import StoreLocation
from lightning_lance.messages.redaction import shown_cause


def append_commit(
    location: StoreLocation, written: PendingFragments, commit: CommitMetadata, durable: bool = True
) -> int:
    """Make a version of the pending fragments and all before them, and the store if there is none. Return the new version.

    For `durable` see `replace_fragments`.

    Raises:
        CommitConflict: If another version came first. The pending fragments are removed.
        StoreError: If the store cannot be written.
    """
    before = written.before
    fragments = [*fragments_of(before), *written.fragments]
    files = {**data_file_infos(before), **written.files}
    return replace_fragments(location, before, written.schema, fragments, files, commit, durable)


def newest_at(location: StoreLocation, version: int | None, fingerprint: str | None = None) -> Any:
    """Open the newest version of a store to write to it; None if there is no store.

    Raises:
        CommitConflict: If it is not the version that the builder saw last, or the store has another fingerprint: a store that
            was built anew counts its versions from 1 again.
        StoreError: If another program has changed its rows.
    """
    dataset = dataset_at(location, None)
    now = number_of(dataset)
    if version is not None and now != version:
        raise conflict(location.uri, version, now)
    if version and fingerprint is not None and read_commit(dataset, location.uri).fingerprint != fingerprint:
        raise conflict(location.uri, version, now)
    if dataset is not None:
        check_unchanged(dataset, location)
    return dataset


def replace_fragments(
    location: StoreLocation,
    before: Any | None,
    schema: pa.Schema,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, DataFileInfo],
    commit: CommitMetadata,
    durable: bool = True,
) -> int:
    """Make a version of exactly these fragments, right after the version `before`, or not at all.

    Args:
        location: The store.
        before: Its dataset at the preceding version; None to make the first.
        schema: The schema of the rows.
        fragments: All fragments of the new version, in order. Those that `before` lacks are removed if the commit fails.
        files: Information about their data files, by path; other files are ignored.
        commit: The commit metadata.
        durable: Whether the version of a local store is forced onto the disk before this returns, so that a power cut can
            neither lose nor damage it: its data files first, then its manifest and transaction, then their folders.

    Returns:
        The new version.

    Raises:
        CommitConflict: If another version came first.
        StoreError: If the store cannot be written. After any error, new files stay only if the version was made.
    """
    paths = file_names(fragments)
    version = number_of(before)
    metadata = json.dumps(stored_metadata(commit))
    with metadata_of(location.uri):
        # Write nothing that could not be read again.
        commit_from(object_of(json_of(metadata, "it"), "it"))
    described = {path: files[path] for path in paths if path in files}
    transaction = lance.Transaction(
        read_version=version,
        operation=lance.LanceOperation.Overwrite(schema if before is None else before.lance_schema, fragments),
        transaction_properties={METADATA: metadata, **properties_of(described)},
    )
    if durable:
        # Before the manifest that names them: a disk may store files in another order than they were written.
        _force_new(location, before, paths)
    try:
        # Lance would put an append on top of any commit made meanwhile. An overwrite without a retry makes the manifest of
        # this very version, or fails.
        lance.LanceDataset.commit(
            location.uri if before is None else before,
            transaction,
            max_retries=0,
            storage_options=lance_options(location),
        )
    except BaseException as error:
        # A bucket may have made the version although its answer was lost. Lance's second request then finds it existing.
        made = _uuid_of(location, version + 1) == transaction.uuid
        if made and isinstance(error, Exception):
            _end_commit(location, version + 1, transaction.uuid, durable)
            return version + 1
        now = dataset_at(location, None)
        delete_uncommitted(location, paths, [before, now])
        if now is not None and int(now.version) != version and not made:
            raise conflict(location.uri, version, int(now.version)) from shown_cause(error)
        if isinstance(error, (ValueError, OSError)):
            raise not_written(location.uri, error) from shown_cause(error)
        raise
    now = dataset_at(location, None)
    if number_of(now) > version + 1 or not _is_founded(location, before, paths):
        # This builder was suspended while another one removed old versions, or built the store anew. So the number of this
        # version was free again, but its files may be gone.
        if _uuid_of(location, version + 1) == transaction.uuid:
            with contextlib.suppress(ValueError, OSError):
                Root(location).delete_file(manifest_of(version + 1))
        now = dataset_at(location, None)
        delete_uncommitted(location, paths, [before, now])
        raise conflict(location.uri, version, number_of(now))
    _end_commit(location, version + 1, transaction.uuid, durable)
    return version + 1


def _force_new(location: StoreLocation, before: Any | None, paths: Sequence[str]) -> None:
    """Force the data files that a version adds onto the disk; remove them if that fails."""
    known = {*data_files(before)}
    try:
        force_data_files(location.uri, [path for path in paths if path not in known])
    except BaseException as error:
        delete_uncommitted(location, paths, [before])
        if isinstance(error, OSError):
            raise not_written(location.uri, error) from shown_cause(error)
        raise


def _end_commit(location: StoreLocation, version: int, uuid: str, durable: bool) -> None:
    """Force a version that was just made onto the disk, and write its checksums. NotForcedError if the disk fails."""
    if durable:
        try:
            force_version(location.uri, manifest_of(version), transaction_of(version, uuid), is_first=version == 1)
        except OSError as error:
            raise NotForcedError(str(not_written(location.uri, error))) from shown_cause(error)
    write_sums(location)


def _is_founded(location: StoreLocation, before: Any | None, paths: Sequence[str]) -> bool:
    """Return whether the preceding version still exists, or at least all of these files do."""
    if before is None:
        return True
    version = int(before.version)
    with contextlib.suppress(ValueError, OSError):
        if _uuid_of(location, version) == str(before.read_transaction(version).uuid):
            return True
    session = data_session(location)
    return all(map(session.contains, paths))


def _uuid_of(location: StoreLocation, version: int) -> str | None:
    dataset = dataset_at(location, version)
    if dataset is None:
        return None
    return str(dataset.read_transaction(version).uuid)


def data_file_infos(dataset: Any | None, lineage: Lineage | None = None) -> dict[str, DataFileInfo]:
    """Return information about the data files of an open dataset, if there is one, by path. It lacks files of other programs.

    `lineage` is the lineage of the dataset, if it is known: to read it takes a third of a second for 10,000 files.

    Raises:
        StoreError: If it is damaged.
    """
    if dataset is None:
        return {}
    with metadata_of(dataset.uri):
        # Other writes, such as a deletion or a compaction, make versions without commit metadata: that of the last commit still
        # holds.
        return files_of((lineage or lineage_of(dataset)).properties or {})


def is_commit(dataset: Any) -> bool:
    """Return whether the open version was committed by this package, rather than made from a commit by another program."""
    return METADATA in (properties_at(dataset, int(dataset.version)) or {})


def last_commit(location: StoreLocation, version: int | None = None) -> CommitMetadata | None:
    """Read the last commit up to a version; None if there is no store. StoreError if it is not a token store."""
    if version is None:
        return last_version(location)[1]
    dataset = dataset_at(location, version)
    if dataset is None:
        return None
    return read_commit(dataset, location.uri)


def last_version(location: StoreLocation) -> tuple[int, CommitMetadata | None]:
    """Return the newest version and its commit; 0 and None if there is no store. StoreError if it is not a token store."""
    dataset = dataset_at(location, None)
    while dataset is not None:
        version = int(dataset.version)
        try:
            return version, read_commit(dataset, location.uri)
        except (StoreError, ValueError, OSError):
            # A builder may have made a newer version, and removed this one.
            dataset = dataset_at(location, None)
            if number_of(dataset) == version:
                raise
    return 0, None


def read_commit(dataset: Any, uri: str, lineage: Lineage | None = None) -> CommitMetadata:
    """Read the last commit of an open dataset; `lineage` is its lineage, if it is known.

    Raises:
        FormatError: If another version of this package wrote it, in another format.
        StoreError: If there is none, or it is damaged.
    """
    properties = (lineage or lineage_of(dataset)).properties
    if properties is None:
        raise StoreError(
            f"The Lance dataset {uri!r} is not a token store: none of its versions was committed by this package; use "
            "another uri."
        )
    with metadata_of(uri):
        metadata = object_of(json_of(properties[METADATA], "it"), "it")
        check_format(object_of(field_of(metadata, "recipe"), "recipe").get("format"), uri)
        return commit_from(metadata)
