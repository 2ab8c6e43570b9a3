"""Which version of a store holds what is asked for, while a builder may add and remove some."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from typing import TypeVar

from lightning_lance.commit import Commit, commit_of, is_commit, last_commit
from lightning_lance.errors import StoreError
from lightning_lance.fragments import dataset_at, lance_said
from lightning_lance.layout import Extent

# At the versions of a store, before it counts as an error that a builder removes them meanwhile.
_LOOKS = 5

Opened = TypeVar("Opened")


def first_version(uri: str, holds: Callable[[Commit], bool], storage_options: Mapping[str, str] | None = None) -> int:
    """Find the first version whose commit note passes a test that all later ones pass too. StoreError if none does."""
    while True:
        versions = _versions(uri, storage_options)
        try:
            place = bisect.bisect_left(
                versions, True, key=lambda version: holds(_commit_at(uri, version, storage_options))
            )
        except StoreError:
            if versions == _versions(uri, storage_options):
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
                raise StoreError(f"The versions of {uri!r} cannot be listed: {lance_said(error)}") from error
    return []


def version_with(uri: str, extent: Extent, storage_options: Mapping[str, str] | None = None) -> int | None:
    """Find the newest version of a store that holds just this, made by this package if one is; None if there is none."""
    moved = None
    for version in reversed(_versions(uri, storage_options)):
        found = dataset_at(uri, version, storage_options)
        if found is not None and commit_of(found, uri).extent == extent:
            if is_commit(found):
                return version
            moved = moved or version
    return moved


def _commit_at(uri: str, version: int, storage_options: Mapping[str, str] | None) -> Commit:
    commit = last_commit(uri, version, storage_options)
    if commit is None:
        raise StoreError(f"Version {version} of the token store {uri!r} is gone: it was removed while it was read.")
    return commit


def look_again(find: Callable[[], int], opened: Callable[[int], Opened]) -> Opened:
    """Open the version that `find` gives, and find again where a builder that merges has removed it meanwhile."""
    while True:
        version = find()
        try:
            return opened(version)
        except StoreError:
            if find() == version:
                raise
