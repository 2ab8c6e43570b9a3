"""Which version of a store holds what is asked for, while a builder may add and remove some."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from typing import TypeVar

from lightning_lance.errors import StoreError
from lightning_lance.format.checksums import stays, versions_on_list
from lightning_lance.format.commit import is_commit, last_commit, read_commit
from lightning_lance.format.lance_io import dataset_at, lance_said
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.refs import read_refs
from lightning_lance.messages.redaction import in_one_line, shown_cause

# At the versions of a store, before it counts as an error that a builder removes them meanwhile.
_LOOKS = 5

Opened = TypeVar("Opened")


def first_version(
    uri: str, holds: Callable[[CommitMetadata], bool], storage_options: Mapping[str, str] | None = None
) -> int:
    """Find the first version whose commit note passes a test that all later ones pass too. StoreError if none does.

    Not one that a clean-up is about to remove.
    """
    while True:
        versions = _staying(uri, storage_options)
        try:
            place = bisect.bisect_left(
                versions, True, key=lambda version: holds(_commit_at(uri, version, storage_options))
            )
        except StoreError:
            if versions == _staying(uri, storage_options):
                raise
        else:
            break  # no builder removed one meanwhile
    if place == len(versions):
        raise StoreError(f"No version of the token store {uri!r} is complete: run 'lightning-lance prepare' again.")
    return versions[place]


def _versions(uri: str, storage_options: Mapping[str, str] | None) -> list[int]:
    """List the versions of a store, in their order."""
    for look in range(_LOOKS):
        dataset = dataset_at(uri, None, storage_options)
        try:
            return [] if dataset is None else sorted(int(entry["version"]) for entry in dataset.versions())
        except (ValueError, OSError) as error:  # a builder removes old ones meanwhile
            if look == _LOOKS - 1:
                raise StoreError(f"The versions of {uri!r} cannot be listed: {lance_said(error)}") from shown_cause(
                    error
                )
    return []


def _staying(uri: str, storage_options: Mapping[str, str] | None) -> list[int]:
    """List the versions that are to stay, in their order: a clean-up that was killed may have left others."""
    versions = _versions(uri, storage_options)
    on_list = versions_on_list(uri, storage_options)
    if all(stays(on_list, version) for version in versions):
        return versions
    kept = {versions[-1], *read_refs(uri, storage_options).tags.values()}
    return [version for version in versions if version in kept or stays(on_list, version)]


def find_version(
    uri: str,
    extent: StoreContent,
    storage_options: Mapping[str, str] | None = None,
    fingerprint: str | None = None,
) -> int | None:
    """Find the newest version of a store that holds just this, made by this package if one is; None if there is none.

    Args:
        uri: The store.
        extent: What it is to hold.
        storage_options: Credentials and such for object stores.
        fingerprint: Of the store that is meant; None if it can be no other.
    """
    moved = None
    for version in reversed(_versions(uri, storage_options)):
        try:
            found = dataset_at(uri, version, storage_options)
            if found is None:
                continue
            commit, ours = read_commit(found, uri), is_commit(found)
        except (StoreError, ValueError, OSError):
            if dataset_at(uri, version, storage_options) is None:
                continue  # a builder has removed it meanwhile
            raise
        if commit.extent != extent or fingerprint not in (None, commit.fingerprint):
            continue
        if ours:
            return version
        moved = moved or version
    return moved


def _commit_at(uri: str, version: int, storage_options: Mapping[str, str] | None) -> CommitMetadata:
    try:
        commit = last_commit(uri, version, storage_options)
    except (ValueError, OSError) as error:
        raise StoreError(
            f"Version {version} of the token store {uri!r} cannot be read: {in_one_line(error, 200)}"
        ) from shown_cause(error)
    if commit is None:
        raise StoreError(f"Version {version} of the token store {uri!r} is gone: it was removed while it was read.")
    return commit


def open_with_retry(find: Callable[[], int], opened: Callable[[int], Opened]) -> Opened:
    """Open the version that `find` gives, and find again where a builder that merges has removed it meanwhile."""
    while True:
        version = find()
        try:
            return opened(version)
        except StoreError:
            if find() == version:
                raise


def gone(uri: str, version: int) -> StoreError:
    """Say that a version that was open is no longer there."""
    return StoreError(
        f"Version {version} of the token store {uri!r} cannot be read any more: it was removed, and no other version holds the "
        "same; open the store again, and keep() what is read for long."
    )
