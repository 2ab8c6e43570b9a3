"""Clean a store on request: repair its tags and checksums, and remove leftovers of this package. Nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lance.errors import LightningLanceError, StoreError
from lightning_lance.format.checksums import SUMS, Root, read_sums, write_sums
from lightning_lance.format.commit import last_version, read_commit
from lightning_lance.format.lance_io import dataset_at, finish_removal, lance_said, removal_folder, versions_of
from lightning_lance.format.own_files import check_no_links
from lightning_lance.format.refs import Damage, read_refs
from lightning_lance.format.tags import is_ours, means, set_tag
from lightning_lance.lance_names import manifest_of, tag_file
from lightning_lance.location import StoreLocation, check_not_on_hub, is_local, store_place
from lightning_lance.maintenance.compaction import end_build, lacks_its_end
from lightning_lance.maintenance.deletion import remove
from lightning_lance.maintenance.removal import (
    clean_up,
    fence_stale_builders,
    find_orphans,
    half_removed,
    unneeded_versions,
)
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import pluralize
from lightning_lance.messages.redaction import shown_cause
from lightning_lance.process.build_status import read_status, remove_status, status_file
from lightning_lance.process.locks import Lease, lock_file


class Cleaned(NamedTuple):
    """The result of a clean-up.

    Attributes:
        done: Repairs and removals, a line each.
        left: Damage that remains, a line each, with its cure.
    """

    done: list[str]
    left: list[str]


def clean(uri: str, storage_options: Mapping[str, str] | None = None) -> Cleaned:
    """Repair a store after power cuts, killed builders and killed clean-ups.

    A tag of this package with a damaged file or a missing version is moved to the version that its name describes, or removed
    if there is none. Any other damaged tag is removed only if its file is empty. Files of killed builders are removed, as the
    next build would do, unless another process is building. A build that was killed after its last commit gets its tag. Of
    builds that ended before their first commit everything is removed.

    Args:
        uri: The store.
        storage_options: Credentials and other options of object stores.

    Raises:
        StoreError: If there is no store, or it cannot be read or written.
    """
    location = StoreLocation(store_place(uri), storage_options)
    check_not_on_hub(location.uri, "Cleaning")
    check_no_links(location.uri)
    if dataset_at(location, None) is None:
        return _cleaned_of_all(location)
    # Raises if it is not a token store.
    last_version(location)
    cleaned = Cleaned([], [])
    try:
        _mend_tags(location, cleaned)
        _mend_sums(location, cleaned)
        if is_local(location.uri):
            _remove_leftovers(location, cleaned)
        else:
            # Without a lease, another process may be building. The next build removes orphans.
            _end_build(location, cleaned)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, LightningLanceError):
            raise
        raise StoreError(
            f"The token store {location.uri!r} cannot be cleaned ({lance_said(error)}): grant write access, then run it again."
        ) from shown_cause(error)
    return cleaned


def _cleaned_of_all(location: StoreLocation) -> Cleaned:
    """Remove what builds have left that ended before their first commit. StoreError if there is nothing of the kind."""
    folder = [location.uri] if is_local(location.uri) and Path(location.uri).is_dir() else []
    beside = remove(location.uri, location.storage_options)
    cleaned = Cleaned([], [])
    for file in [*folder, *beside]:
        cleaned.done.append(f"{file}, of a build that committed nothing: removed")
    return cleaned


def _mend_tags(location: StoreLocation, cleaned: Cleaned) -> None:
    for name, damage in _wrong_tags(location):
        file = shown(tag_file(name))
        if damage.loss == "unknown":
            cleaned.left.append(f"{file} {damage.why}: remove it by hand if it is not needed")
        elif is_ours(name):
            _mend_tag(location, cleaned, name, damage)
        elif damage.loss == "nothing":
            Root(location).delete_file(tag_file(name))
            cleaned.done.append(f"{file} {damage.why}: removed")
        else:
            cleaned.left.append(
                f"{file} {damage.why}, and another program made it: remove it by hand if it is not needed"
            )
    for file, damage in read_refs(location).unreadable.items():
        cleaned.left.append(f"{shown(file)} {damage.why}: restore it, or remove it by hand if the branch is not needed")


def _wrong_tags(location: StoreLocation) -> Iterator[tuple[str, Damage]]:
    """Yield the tags that cannot be read, and those whose version is missing."""
    refs = read_refs(location)
    session = Root(location)
    yield from sorted(refs.damaged.items())
    for name, version in sorted(refs.tags.items()):
        if not session.contains(manifest_of(version)):
            yield name, Damage(f"names version {version}, which is missing", "content")


def _mend_tag(location: StoreLocation, cleaned: Cleaned, name: str, damage: Damage) -> None:
    """Move a tag of this package to the version that its name describes, or remove it."""
    file = shown(tag_file(name))
    version = _version_meant(location, name)
    if version is None:
        Root(location).delete_file(tag_file(name))
        cleaned.done.append(f"{file} {damage.why}: removed, since no version has the content in its name")
    else:
        set_tag(version, name)
        cleaned.done.append(f"{file} {damage.why}: repaired, names version {int(version.version)} again")


def _version_meant(location: StoreLocation, name: str) -> Any:
    """Return the newest version that the name of a tag describes, opened; None if there is none."""
    newest = dataset_at(location, None)
    for number in reversed(versions_of(newest)):
        version = dataset_at(location, number)
        if version is not None and means(name, read_commit(version, location.uri)):
            return version
    return None


def _mend_sums(location: StoreLocation, cleaned: Cleaned) -> None:
    why = "is missing"
    try:
        if read_sums(Root(location)) is not None:
            return
    except ValueError:
        why = "is damaged"
    if write_sums(location):
        cleaned.done.append(f"{SUMS} {why}: written again from today's files")


def _remove_leftovers(location: StoreLocation, cleaned: Cleaned) -> None:
    """Remove the leftovers of killed builders and clean-ups, unless another process is building, which removes them."""
    file = lock_file(location.uri)
    if file is None:
        return
    lease = Lease(file)
    if not lease.take_from_the_dead():
        cleaned.left.append(
            f"{location.uri} is being written by another process, which removes leftovers itself: nothing to do"
        )
        return
    try:
        _remove_files(location, cleaned)
        _end_build(location, cleaned)
        _remove_versions(location, cleaned)
    finally:
        lease.release()


def _end_build(location: StoreLocation, cleaned: Cleaned) -> None:
    """Tag the last version of a build that was killed before it could do so."""
    if not _refs_are_whole(location) or not lacks_its_end(location):
        return
    dataset = dataset_at(location, None)
    end_build(location, dataset)
    cleaned.done.append(f"version {int(dataset.version)}, the last of a build: tagged, so that it is kept")


def _remove_versions(location: StoreLocation, cleaned: Cleaned) -> None:
    if not _refs_are_whole(location):
        return
    half = half_removed(location)
    unneeded = unneeded_versions(location) - half
    if half or unneeded:
        clean_up(location)
    if half:
        cleaned.done.append(f"{pluralize(len(half), 'version')} half removed by a killed clean-up: removed")
    if unneeded:
        cleaned.done.append(
            f"{pluralize(len(unneeded), 'version')} without a tag, older than the end of a build: removed"
        )


def _refs_are_whole(location: StoreLocation) -> bool:
    """Return whether all tags and branches can be read. Otherwise no version is removed."""
    refs = read_refs(location)
    return not refs.damaged and not refs.unreadable


def _remove_files(location: StoreLocation, cleaned: Cleaned) -> None:
    file = status_file(location.uri)
    status = read_status(file)
    # The cause of a failure stays for waiting processes.
    if file is not None and status is not None and status.failure is None:
        remove_status(file)
        cleaned.done.append(f"{file}, of a dead builder: removed")
    removing = removal_folder(location.uri)
    if removing.exists():
        finish_removal(location.uri)
        if not removing.exists():
            cleaned.done.append(f"{removing}, the rest of a store that was replaced: removed")
    orphans = find_orphans(location)
    if orphans:
        version = last_version(location)[0]
        fence_stale_builders(location, version, orphans)
        remaining = orphans & find_orphans(location)
        for path in sorted(orphans - remaining):
            cleaned.done.append(f"{shown(path)}, a file of no version: removed")
        for path in sorted(remaining):
            cleaned.left.append(f"{shown(path)}, a file of no version, could not be removed: grant write access")
