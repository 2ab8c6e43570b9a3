"""The rules of removal: which versions and files of a store may go, when, and how a stale builder is fenced off.

A version goes when it is neither the newest nor kept by a tag or a branch. A file goes with the last version that has it, or
when it belongs to no version and the builder that wrote it can no longer commit it.
docs/internals/commit-protocol.md shows the states.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_lance.errors import StoreError
from lightning_lance.format.checksums import Root, stays, versions_on_list, write_sums
from lightning_lance.format.commit import data_file_infos, is_commit, newest_at, read_commit, replace_fragments
from lightning_lance.format.lance_io import dataset_at, file_names, fragments_of, lance_options, lance_said, versions_of
from lightning_lance.format.lineage import lineage_of
from lightning_lance.format.own_files import check_no_links, is_builders, is_data_file, left_files
from lightning_lance.format.refs import read_refs
from lightning_lance.format.tags import build_tag_is_older, is_ours, keep_build, lacks_build_tag, means
from lightning_lance.lance_names import (
    DATA,
    DELETIONS,
    INDICES,
    UNITS,
    data_file_at,
    is_data_name,
    manifest_of,
    tag_file,
    transaction_of,
    unit_of,
)
from lightning_lance.location import StoreLocation, is_local
from lightning_lance.messages.escaping import logger, shown

_log = logger(__name__)


def fence_stale_builders(location: StoreLocation, version: int, orphans: Collection[str], durable: bool = True) -> int:
    """Make a version once more, so that no earlier builder can commit, and remove the files that killed builders left.

    A builder that was only suspended finds a conflict when it commits. So its files, `orphans`, are safe to remove. Return the
    new version, which follows the one that this builder has seen.

    Raises:
        CommitConflict: If another process has committed.
        StoreError: If the store cannot be written.
    """
    before = newest_at(location, version)
    version = replace_fragments(
        location,
        before,
        before.schema,
        fragments_of(before),
        data_file_infos(before),
        read_commit(before, location.uri),
        durable,
    )
    made = dataset_at(location, version)
    if made is not None and build_tag_is_older(made, location):
        # So that the older version of the same files can go.
        keep_build(made, location.uri)
    clean_up(location, orphans)
    return version


def find_orphans(location: StoreLocation) -> set[str]:
    """Return the files of a local store that belong to no version, such as those of a killed builder.

    Only files with the name and content of a builder's file count. The caller must hold the lease of the store: without it,
    another builder may be about to commit them. In a bucket there is no lease, so none are returned.
    """
    if not is_local(location.uri):
        return set()
    dataset = dataset_at(location, None)
    try:
        orphans = left_files(location.uri)
        orphans -= files_of_versions(location, versions_of(dataset))
        return {path for path in orphans if is_builders(location.uri, path)}
    except (ValueError, OSError, StoreError):
        # A resumed builder may be removing versions: the next build looks again.
        return set()


def clean_up(location: StoreLocation, orphans: Collection[str] = ()) -> None:
    """Remove all versions that nothing keeps, and orphans that no version has by now.

    Only the files of the removed versions go, and none if the store contains links. A reader that maps the files of an older
    version keeps them while it is open. New files of no version stay: this process may have been suspended after its last
    commit, and another builder may be about to commit them. So the caller must have committed since it found the orphans.
    """
    dataset = dataset_at(location, None)
    if dataset is None:
        return
    try:
        check_no_links(location.uri)
        if orphans:
            # These first, since the disk may be full.
            for path in {*orphans} - files_of_versions(location, versions_of(dataset)):
                Path(location.uri, path).unlink(missing_ok=True)
            with suppress(OSError):  # it does not exist, or is not empty
                Path(location.uri, UNITS).rmdir()
        kept = _announce(location, dataset)
        if kept is not None:
            _remove_versions(location, {*versions_of(dataset)} - kept)
    except (ValueError, OSError, RuntimeError, StoreError) as error:
        # The store is whole, only larger than necessary.
        _log.warning("Old versions of %s could not be removed: %s", location.uri, lance_said(error))


def _announce(location: StoreLocation, dataset: Any) -> set[int] | None:
    """Remove versions from the list of checksums. Return those that stay; None if the list cannot be written.

    A run makes its tag first, then reads the list (`tags.keep_for_run`). A clean-up writes the list first, then reads the
    tags. So at least one sees the other: an earlier tag is found here, and a later run does not find its version on the list.
    """
    kept = _kept_versions(location, dataset)
    while True:
        # Versions on the list must exist: `verify` reports a missing one.
        if not write_sums(location, kept):
            return None
        tagged = _kept_versions(location, dataset) - kept
        if not tagged.intersection(versions_of(dataset)):
            return kept
        kept |= tagged


def announce_purge(location: StoreLocation) -> None:
    """Remove all versions with forgotten documents from the list of checksums, so that no run begins with one.

    Raises:
        StoreError: If the list cannot be written.
    """
    dataset = dataset_at(location, None)
    kept = {*versions_of(dataset)} - set(versions_from_before(location, dataset))
    if not write_sums(location, kept):
        raise StoreError(
            f"The documents are forgotten, but older versions of {location.uri!r} still contain them, since the list of "
            "checksums cannot be written: free disk space or grant write access, then run it again."
        )


def versions_from_before(location: StoreLocation, dataset: Any) -> list[int]:
    """Return the versions with documents that the newest version, `dataset`, has forgotten."""
    rules = read_commit(dataset, location.uri).extent.forgotten
    found = []
    for number in versions_of(dataset):
        version = dataset_at(location, number)
        if version is not None and read_commit(version, location.uri).extent.forgotten != rules:
            found.append(number)
    return found


def half_removed(location: StoreLocation) -> set[int]:
    """Return the versions that a killed clean-up has removed from the list of checksums, but not from the store."""
    dataset = dataset_at(location, None)
    if dataset is None:
        return set()
    on_list = versions_on_list(location)
    announced = {version for version in versions_of(dataset) if not stays(on_list, version)}
    return announced - _kept_versions(location, dataset)


def unneeded_versions(location: StoreLocation) -> set[int]:
    """Return the versions that `clean_up` would remove; none while the store's build is unfinished."""
    dataset = dataset_at(location, None)
    if dataset is None or not is_commit(dataset) or lacks_build_tag(dataset, location):
        return set()
    return {*versions_of(dataset)} - _kept_versions(location, dataset)


def _kept_versions(location: StoreLocation, dataset: Any) -> set[int]:
    """Return the versions that stay: the newest, the commit it was made from, and those with a tag or a branch."""
    refs = read_refs(location)
    foreign = {tag_file(name): damage for name, damage in refs.damaged.items() if not is_ours(name)}
    for file, damage in (foreign | refs.unreadable).items():
        raise StoreError(
            f"{shown(file)} {damage.why}, and may keep any of them: run 'lightning-lance clean {location.uri}' for a cure."
        )
    kept = {int(dataset.version), *refs.tags.values(), *refs.branches.values()}
    committed = lineage_of(dataset).committed
    if committed is not None:
        kept.add(committed)
    if not refs.damaged:
        return kept
    # The names of this package's own damaged tags are enough to find their versions.
    for number in {*versions_of(dataset)} - kept:
        version = dataset_at(location, number)
        if version is None:
            continue
        commit = read_commit(version, location.uri)
        if any(means(name, commit) for name in refs.damaged):
            kept.add(number)
    return kept


def files_of_versions(location: StoreLocation, versions: Collection[int]) -> set[str]:
    """Return the data files, deletion files and transactions of versions. StoreError if one of them is gone."""
    files = set()
    for number in versions:
        version = dataset_at(location, number)
        if version is None:
            raise StoreError(f"Version {number} of {location.uri!r} was removed meanwhile.")
        files.add(transaction_of(number, version.read_transaction(number).uuid))
        fragments = fragments_of(version)
        files.update(map(data_file_at, file_names(fragments)))
        for fragment in fragments:
            if fragment.deletion_file is not None:
                files.add(fragment.deletion_file.path(fragment.id))
    return files


def unit_files(location: StoreLocation) -> set[str]:
    """Return the paths of the files of units that belong to no version: data files and results, in a bucket too."""
    root = Root(location)
    found = set()
    for folder in (DATA, UNITS):
        for path in _files_in(root, folder):
            if unit_of(path) is not None:
                found.add(path)
    if found:
        found -= files_of_versions(location, versions_of(dataset_at(location, None)))
    return found


def _files_in(root: Root, folder: str) -> list[str]:
    """Return the paths that the files of a folder have in metadata."""
    return [f"{folder}/{Path(path).name}" for path in root.list(folder)]


def remove_unit_files(location: StoreLocation, paths: Collection[str]) -> None:
    """Remove files of units that no version has, and that no builder can commit any more."""
    root = Root(location)
    for path in sorted(paths):
        with suppress(ValueError, OSError):  # gone already; else the next build tries again
            root.delete_file(path)
    if location.is_local:
        with suppress(OSError):  # it does not exist, or is not empty
            Path(location.uri, UNITS).rmdir()


def _remove_versions(location: StoreLocation, versions: Collection[int]) -> None:
    """Remove the manifests of versions, then the files that no other version has.

    Lance's own clean-up would also remove files of others that no version has.
    """
    files = set()
    for number in sorted(versions):
        # The rest of a version that a killed clean-up has half removed is found among the orphans.
        with suppress(ValueError, OSError, StoreError):
            files |= files_of_versions(location, [number])
    root = Root(location)
    for number in sorted(versions):
        root.delete_file(manifest_of(number))
    if versions:
        _remove_unused_files(location, files)
    if not is_local(location.uri):
        _remove_orphans_in_bucket(location)


def _remove_unused_files(location: StoreLocation, files: Collection[str]) -> None:
    """Remove those files of removed versions that no other version has.

    Lance does not do this reliably: it keeps files that are new by this machine's clock, but a shared disk may be ahead.
    """
    root = Root(location)
    dataset = dataset_at(location, None)
    unused: set[str] = set()
    for folder in {file.partition("/")[0] for file in files}:
        unused.update(_files_in(root, folder))
    # Nearly always the newest version has all that are left, and no other version needs to be read.
    unused &= {*files} - files_of_versions(location, [int(dataset.version)])
    if unused:
        for file in unused - files_of_versions(location, versions_of(dataset)):
            root.delete_file(file)


def _remove_orphans_in_bucket(location: StoreLocation) -> None:
    """Let Lance remove orphans from a bucket once they are a week old, unless there are files of others."""
    dataset = dataset_at(location, None)
    root = Root(location)
    orphans: set[str] = set()
    for folder in (DATA, DELETIONS, INDICES):
        orphans.update(root.list(folder))
    orphans -= files_of_versions(location, versions_of(dataset))
    for path in orphans:
        folder, _, name = path.partition("/")
        is_own_name = folder == DATA and is_data_name(name)
        if not is_own_name or not is_data_file(f"{location.uri}/{path}", lance_options(location)):
            return
    # Lance never removes the newest version, so naming it alone removes no version.
    dataset.cleanup_old_versions(versions=[int(dataset.version)], error_if_tagged_old_versions=False)
