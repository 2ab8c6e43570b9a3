"""Find the version of a store with a certain content, while a builder may add and remove versions."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import TypeVar

from lightning_lance.errors import StoreError
from lightning_lance.format.checksums import stays, versions_on_list
from lightning_lance.format.commit import is_commit, last_commit, read_commit
from lightning_lance.format.lance_io import dataset_at, lance_said, versions_of
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.refs import read_refs
from lightning_lance.location import StoreLocation
from lightning_lance.messages.redaction import in_one_line, shown_cause

# Attempts to list the versions of a store while a builder removes some.
_LIST_TRIES = 5

Opened = TypeVar("Opened")


def first_version(location: StoreLocation, holds: Callable[[CommitMetadata], bool]) -> int:
    """Return the first version whose commit passes a test that all later commits pass too. StoreError if none does.

    Versions that a clean-up is about to remove are ignored.
    """

    def passes(version: int) -> bool:
        return holds(_commit_at(location, version))

    while True:
        versions = _staying(location)
        try:
            place = bisect.bisect_left(versions, True, key=passes)
            break
        except StoreError:
            # A builder may have removed one of the versions meanwhile.
            if versions == _staying(location):
                raise
    if place == len(versions):
        raise StoreError(
            f"No version of the token store {location.uri!r} is complete: run 'lightning-lance prepare' again."
        )
    return versions[place]


def _versions(location: StoreLocation) -> list[int]:
    """Return the versions of a store in ascending order."""
    tries = 0
    while True:
        dataset = dataset_at(location, None)
        try:
            return versions_of(dataset)
        except (ValueError, OSError) as error:
            tries += 1
            if tries == _LIST_TRIES:
                raise StoreError(
                    f"The versions of {location.uri!r} cannot be listed ({lance_said(error)}): check the store with "
                    "'lightning-lance verify'."
                ) from shown_cause(error)


def _staying(location: StoreLocation) -> list[int]:
    """Return the versions that are to stay, in ascending order; a killed clean-up may have left others."""
    versions = _versions(location)
    on_list = versions_on_list(location)
    staying = {version for version in versions if stays(on_list, version)}
    if len(staying) == len(versions):
        return versions
    staying |= {versions[-1], *read_refs(location).tags.values()}
    return sorted(staying.intersection(versions))


def find_version(location: StoreLocation, extent: StoreContent, fingerprint: str | None = None) -> int | None:
    """Return the newest version of a store with some content, preferably one of this package; None if there is none.

    If a fingerprint is given, it must be that of the version.
    """
    by_others = None
    for version in reversed(_versions(location)):
        try:
            found = dataset_at(location, version)
            if found is None:
                continue
            commit = read_commit(found, location.uri)
            is_ours = is_commit(found)
        except (StoreError, ValueError, OSError):
            # A builder may have removed it meanwhile.
            if dataset_at(location, version) is None:
                continue
            raise
        if commit.extent != extent or fingerprint not in (None, commit.fingerprint):
            continue
        if is_ours:
            return version
        by_others = by_others or version
    return by_others


def _commit_at(location: StoreLocation, version: int) -> CommitMetadata:
    try:
        commit = last_commit(location, version)
    except (ValueError, OSError) as error:
        raise StoreError(
            f"Version {version} of the token store {location.uri!r} cannot be read ({in_one_line(error, 200)}): check it with "
            "'lightning-lance verify'."
        ) from shown_cause(error)
    if commit is None:
        raise StoreError(
            f"Version {version} of the token store {location.uri!r} was removed while it was read: try again."
        )
    return commit


def open_with_retry(find: Callable[[], int], opened: Callable[[int], Opened]) -> Opened:
    """Return the opened version that `find` returns, and find again if a builder has removed it meanwhile."""
    while True:
        version = find()
        try:
            return opened(version)
        except StoreError:
            if find() == version:
                raise


def gone(uri: str, version: int) -> StoreError:
    """Return the error of an open version that was removed."""
    return StoreError(
        f"Version {version} of the token store {uri!r} was removed, and no other version has the same content: open the store "
        "again, and call keep() on a store that is read for long."
    )
