"""The disk space of a store: which files are of its newest version, which are kept by tags, and which a clean-up removes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from lightning_lance.errors import StoreError
from lightning_lance.format.commit import data_file_infos
from lightning_lance.format.lance_io import dataset_at, versions_of
from lightning_lance.format.own_files import sizes_of
from lightning_lance.lance_names import data_file_at, manifest_of
from lightning_lance.location import StoreLocation, is_local
from lightning_lance.maintenance.removal import files_of_versions, find_orphans, half_removed, unneeded_versions
from lightning_lance.process.locks import lock_file, seems_held


class DiskUsage(NamedTuple):
    """Bytes of a store.

    Attributes:
        total: All files. In a bucket, the data files of all versions.
        newest: Data files of the newest version.
        older: Data files that only older versions have which a tag or a branch keeps.
        reclaimable: Files that `lightning-lance clean` removes.
    """

    total: int
    newest: int
    older: int
    reclaimable: int


def disk_usage(location: StoreLocation, dataset: Any) -> DiskUsage:
    """Return the disk space of a store.

    Args:
        location: The store.
        dataset: Its newest version.

    Raises:
        StoreError: If a builder has removed a version meanwhile, or a file of it is damaged.
    """
    versions = {*versions_of(dataset)}
    sizes = sizes_of(location.uri) if is_local(location.uri) else _sizes_in_bucket(location, versions)
    garbage = versions & (unneeded_versions(location) | half_removed(location))
    newest = files_of_versions(location, [int(dataset.version)])
    kept = files_of_versions(location, versions - garbage)
    unused = files_of_versions(location, garbage) - kept
    unused.update(map(manifest_of, garbage))
    lock = lock_file(location.uri)
    # While another process is building, its files are of no version yet.
    if lock is None or not seems_held(lock):
        unused |= find_orphans(location)
    return DiskUsage(sum(sizes.values()), _bytes(sizes, newest), _bytes(sizes, kept - newest), _bytes(sizes, unused))


def _bytes(sizes: Mapping[str, int], files: Collection[str]) -> int:
    return sum(sizes.get(file, 0) for file in files)


def _sizes_in_bucket(location: StoreLocation, versions: Collection[int]) -> dict[str, int]:
    """Return the path of each data file of the versions to its bytes, as their commits tell them."""
    sizes: dict[str, int] = {}
    for number in versions:
        with suppress(StoreError):
            version = dataset_at(location, number)
            if version is None:
                continue
            for path, info in data_file_infos(version).items():
                sizes[data_file_at(path)] = info.size
    return sizes
