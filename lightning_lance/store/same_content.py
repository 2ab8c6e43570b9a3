"""Open a version, or another one of equal content in its place: a builder may remove the one, and leave the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import xxhash

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import dataset_at
from lightning_lance.format.layout import StoreContent, StreamExtent
from lightning_lance.format.tags import check_not_replaced
from lightning_lance.format.versions import find_version, gone, open_with_retry
from lightning_lance.location import StoreLocation

Opened = TypeVar("Opened")


class Content(NamedTuple):
    """What two versions have in common of which one can be read in place of the other.

    Attributes:
        fingerprint: Hash of the settings that determine the tokens.
        extent: The content by the metadata.
        streams: Hash of the streams of each split; there may be hundreds.
        is_ours: Whether equal content means equal rows.
    """

    fingerprint: str
    extent: StoreContent
    streams: str
    is_ours: bool


def hash_of(streams: Mapping[str, Sequence[StreamExtent]]) -> str:
    """Return a hash of the streams of each split."""
    return xxhash.xxh3_64_hexdigest(repr(sorted(streams.items())).encode())


def open_same(
    location: StoreLocation,
    version: int,
    content: Content,
    opened: Callable[[int], Opened],
    content_of: Callable[[Opened], Content],
) -> Opened:
    """Open a version or, if it was removed, another one of the same content.

    Args:
        location: The store.
        version: The version.
        content: What is wanted.
        opened: Opens a version.
        content_of: Returns the content of an open version.

    Raises:
        StoreReplaced: If the store was replaced by another.
        StoreError: If no version has this content, or the one that has it cannot be opened.
    """
    try:
        store = opened(version)
        if content_of(store) == content:
            return store
    except StoreError:
        if dataset_at(location, version) is not None:
            raise
    check_not_replaced(location, content.fingerprint)

    def find() -> int:
        found = None
        if content.is_ours:
            found = find_version(location, content.extent, content.fingerprint)
        if found is None:
            raise gone(location.uri, version)
        return found

    store = open_with_retry(find, opened)
    if content_of(store) != content:
        raise gone(location.uri, version)
    return store
