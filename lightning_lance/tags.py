"""Tags of a token store: the versions that no clean-up removes, since a build ended with them, or a run trains on them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lightning_lance.commit import commit_of, is_commit
from lightning_lance.errors import StoreError
from lightning_lance.fragments import dataset_at, lance_said, not_written
from lightning_lance.layout import Extent

# Begins the name of what a build ended with, and of what a run trains on.
_BUILD, _CHECKPOINT = "build-", "checkpoint-"


def keep(
    dataset: Any, uri: str, extent: Extent, storage_options: Mapping[str, str] | None, name: str | None = None
) -> bool:
    """Let a tag name the version that is open, or leave it where it names one that holds the same.

    Equal extents are equal streams, so whoever goes by the tag finds what is kept here; moved, it would free the files of a
    version that others may read. A tag of any other version is moved: it may be of a store that was here before.

    Args:
        dataset: The version.
        uri: The store.
        extent: What it holds.
        storage_options: Credentials and such for object stores.
        name: Of the tag; None for `checkpoint-...`, named by the extent.

    Returns:
        Whether a version that holds the same is there and has the tag; False if a builder has removed the one that is open.

    Raises:
        StoreError: If the store cannot be written.
    """
    name = name or f"{_CHECKPOINT}{extent.name}"

    def is_kept() -> bool:
        tag = dataset.tags.list().get(name)
        there = None if tag is None else dataset_at(uri, int(tag["version"]), storage_options)
        if there is None or int(there.version) == int(dataset.version):
            return there is not None
        # What others than this package made of it may have its rows in another order.
        return is_commit(there) and commit_of(there, uri).extent == extent

    try:
        if not is_kept():
            _set(dataset, name)
    except (ValueError, OSError) as error:
        if is_kept():  # another rank was first
            return True
        gone = dataset_at(uri, int(dataset.version), storage_options) is None
        if gone and dataset_at(uri, None, storage_options) is not None:
            return False
        raise StoreError(
            f"Version {dataset.version} of the token store {uri!r} cannot be tagged: {lance_said(error)}"
        ) from error
    # A clean-up that had begun knows nothing of a new tag.
    if is_kept():
        return True
    dataset.tags.delete(name)
    return False


def is_trained_on(dataset: Any, extent: Extent, share: bool) -> bool:
    """Tell whether there is a tag for runs that train on an extent; `share` has the run that made it let it be from now on."""
    name = f"{_CHECKPOINT}{extent.name}"
    tag = dataset.tags.list().get(name)
    if tag is not None and share:
        with suppress(ValueError, OSError):
            # Written again, it has another time than when it was made.
            dataset.tags.update(name, int(tag["version"]))
    return tag is not None


def let_go(dataset: Any, extent: Extent) -> None:
    """Remove the tag for runs that train on an extent, unless another run shares it; that it cannot be is no error."""
    name = f"{_CHECKPOINT}{extent.name}"
    with suppress(ValueError, OSError):
        tag = dataset.tags.list().get(name)
        if tag is not None and tag["created_at"] == tag["updated_at"]:
            dataset.tags.delete(name)


def keep_build(dataset: Any, uri: str) -> None:
    """Keep what a build ended with: the same budget, asked again of a store that has grown, finds the same tokens."""
    _set(dataset, _build_tag(dataset, uri))


def lacks_build_tag(dataset: Any, uri: str) -> bool:
    """Tell whether the version that is open lacks the tag of what a build ended with; those of others need none."""
    return is_commit(dataset) and _build_tag(dataset, uri) not in dataset.tags.list()


def _build_tag(dataset: Any, uri: str) -> str:
    return f"{_BUILD}{commit_of(dataset, uri).tokens}"


def _set(dataset: Any, name: str) -> None:
    if name in dataset.tags.list():
        dataset.tags.update(name, int(dataset.version))
    else:
        dataset.tags.create(name, int(dataset.version))


def retag(uri: str, storage_options: Mapping[str, str] | None, purge: bool) -> list[str]:
    """After documents were forgotten: let the newest version be what the build ended with, and no older one.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        purge: Whether all other tags of older versions go too.

    Returns:
        The tags of versions that were made before something was forgotten.

    Raises:
        StoreError: If the store cannot be written.
    """
    dataset = dataset_at(uri, None, storage_options)
    now, kept = commit_of(dataset, uri), []
    ended = _build_tag(dataset, uri)
    try:
        for name, tag in dataset.tags.list().items():
            before = dataset_at(uri, int(tag["version"]), storage_options)
            if before is None or commit_of(before, uri).extent.forgotten == now.extent.forgotten:
                continue
            if name == ended:
                dataset.tags.update(name, int(dataset.version))
            elif purge or name.startswith(_BUILD):
                dataset.tags.delete(name)
            else:
                kept.append(name)
    except (ValueError, OSError) as error:
        raise not_written(uri, error) from error
    return sorted(kept)
