"""What may be taken out of a store by hand: what is provably damaged, or left over of ours. Nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lightning_lance.errors import LightningLanceError, StoreError
from lightning_lance.format.checksums import SUMS, read_sums, root_session, write_sums
from lightning_lance.format.commit import last_version, read_commit
from lightning_lance.format.lance_io import aside_of, dataset_at, lance_said, remove_aside
from lightning_lance.format.lance_names import manifest_of, tag_file
from lightning_lance.format.own_files import check_no_links
from lightning_lance.format.refs import Damage, read_refs
from lightning_lance.format.tags import is_ours, means, set_tag
from lightning_lance.location import is_local, store_place
from lightning_lance.maintenance.compaction import (
    clean_up,
    end_build,
    fence_stale_builders,
    find_orphans,
    half_removed,
    lacks_its_end,
    move_build_tag,
    unneeded_versions,
)
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import pluralize
from lightning_lance.messages.redaction import shown_cause
from lightning_lance.process.build_status import read_status, remove_status, status_file
from lightning_lance.process.locks import Lease, lock_file


class Cleaned(NamedTuple):
    """What was done.

    Attributes:
        done: What was mended or removed, a line each.
        left: What is damaged and was left, a line each, with what helps.
    """

    done: list[str]
    left: list[str]


def clean(uri: str, storage_options: Mapping[str, str] | None = None) -> Cleaned:
    """Mend and remove what power cuts, killed builders and killed clean-ups have left in a store.

    A tag of ours whose file is damaged, or names a version that is not there, names the version again that its name tells of,
    or goes where there is none. Any other damaged tag goes only if its file is empty. What a killed builder has left goes, as
    with the next build; not while another process builds. A build that was killed after its last commit is ended.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.

    Raises:
        StoreError: If there is no store, or it cannot be read or written.
    """
    uri = store_place(uri)
    check_no_links(uri)
    if dataset_at(uri, None, storage_options) is None:
        raise StoreError(f"There is no committed token store at {uri!r}: check the address.")
    last_version(uri, storage_options)  # refuses what is none of ours
    cleaned = Cleaned([], [])
    try:
        _mend_tags(uri, storage_options, cleaned)
        _mend_sums(uri, storage_options, cleaned)
        if is_local(uri):
            _remove_leftovers(uri, storage_options, cleaned)
        else:
            # No lease tells whether another process builds: what is of no version goes with the next build.
            _end_build(uri, storage_options, cleaned)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, LightningLanceError):
            raise
        raise StoreError(
            f"The token store {uri!r} cannot be cleaned ({lance_said(error)}): give access, and run it again."
        ) from shown_cause(error)
    return cleaned


def _mend_tags(uri: str, storage_options: Mapping[str, str] | None, cleaned: Cleaned) -> None:
    for name, damage in _wrong_tags(uri, storage_options):
        file = shown(tag_file(name))
        if damage.loss == "unknown":
            cleaned.left.append(f"{file} {damage.why}: remove it by hand if it is not needed")
        elif is_ours(name):
            _mend_tag(uri, storage_options, cleaned, name, damage)
        elif damage.loss == "nothing":
            root_session(uri, storage_options).delete_file(tag_file(name))
            cleaned.done.append(f"{file} {damage.why}: removed")
        else:
            cleaned.left.append(
                f"{file} {damage.why}, and is not of this package: remove it by hand if it is not needed"
            )
    for file, damage in read_refs(uri, storage_options).unreadable.items():
        cleaned.left.append(
            f"{shown(file)} {damage.why}: bring it back, or remove it by hand if that branch is not needed"
        )


def _wrong_tags(uri: str, storage_options: Mapping[str, str] | None) -> Iterator[tuple[str, Damage]]:
    """Find the tags that cannot be read, and those whose version is not there."""
    refs, session = read_refs(uri, storage_options), root_session(uri, storage_options)
    yield from sorted(refs.damaged.items())
    for name, version in sorted(refs.tags.items()):
        if not session.contains(manifest_of(version)):
            yield name, Damage(f"names version {version}, which is not there", "content")


def _mend_tag(uri: str, storage_options: Mapping[str, str] | None, cleaned: Cleaned, name: str, damage: Damage) -> None:
    """Let a tag of ours name the version that its name tells of, or remove it."""
    file, version = shown(tag_file(name)), _version_meant(uri, storage_options, name)
    if version is None:
        root_session(uri, storage_options).delete_file(tag_file(name))
        cleaned.done.append(f"{file} {damage.why}: removed, since no version holds what it was to keep")
    else:
        set_tag(version, name)
        cleaned.done.append(f"{file} {damage.why}: names version {int(version.version)} again")


def _version_meant(uri: str, storage_options: Mapping[str, str] | None, name: str) -> Any:
    """Open the newest version that a tag of ours keeps, by its name; None if there is none."""
    newest = dataset_at(uri, None, storage_options)
    for number in sorted((int(entry["version"]) for entry in newest.versions()), reverse=True):
        version = dataset_at(uri, number, storage_options)
        if version is not None and means(name, read_commit(version, uri)):
            return version
    return None


def _mend_sums(uri: str, storage_options: Mapping[str, str] | None, cleaned: Cleaned) -> None:
    try:
        why = "is missing" if read_sums(root_session(uri, storage_options)) is None else ""
    except ValueError:
        why = "is damaged"
    if why and write_sums(uri, storage_options):
        cleaned.done.append(f"{SUMS} {why}: written anew, from the files as they are now")


def _remove_leftovers(uri: str, storage_options: Mapping[str, str] | None, cleaned: Cleaned) -> None:
    """Remove what killed builders and clean-ups have left, unless another process builds: it does so itself."""
    file = lock_file(uri)
    if file is None:
        return
    lease = Lease(file)
    if not lease.take_from_the_dead():
        cleaned.left.append(
            f"{uri} is written to by another process, which removes what it finds left over: nothing to do"
        )
        return
    try:
        _remove_files(uri, storage_options, cleaned)
        _end_build(uri, storage_options, cleaned)
        _remove_versions(uri, storage_options, cleaned)
    finally:
        lease.release()


def _end_build(uri: str, storage_options: Mapping[str, str] | None, cleaned: Cleaned) -> None:
    """Tag what a build has ended with that was killed before it could do so."""
    if not _refs_are_whole(uri, storage_options) or not lacks_its_end(uri, storage_options):
        return
    dataset = dataset_at(uri, None, storage_options)
    end_build(uri, dataset, storage_options)
    cleaned.done.append(f"version {int(dataset.version)}, the end of a build: tagged, so that it stays")


def _remove_versions(uri: str, storage_options: Mapping[str, str] | None, cleaned: Cleaned) -> None:
    if not _refs_are_whole(uri, storage_options):
        return
    half = half_removed(uri, storage_options)
    unneeded = unneeded_versions(uri, storage_options) - half
    if half or unneeded:
        clean_up(uri, storage_options)
    if half:
        cleaned.done.append(f"{pluralize(len(half), 'version')} that a killed clean-up had begun to remove: removed")
    if unneeded:
        cleaned.done.append(
            f"{pluralize(len(unneeded), 'version')} without a tag, older than the end of a build: removed"
        )


def _refs_are_whole(uri: str, storage_options: Mapping[str, str] | None) -> bool:
    """Return whether it is known what tags and branches keep; else no version goes."""
    refs = read_refs(uri, storage_options)
    return not refs.damaged and not refs.unreadable


def _remove_files(uri: str, storage_options: Mapping[str, str] | None, cleaned: Cleaned) -> None:
    status = status_file(uri)
    if status is not None and status.exists():
        told = read_status(status)
        # Why a build failed stays for those who wait for it.
        if told is not None and told.failure is None:
            remove_status(status)
            cleaned.done.append(f"{status} of a builder that is gone: removed")
    aside = aside_of(uri)
    if aside.exists():
        remove_aside(uri)
        if not aside.exists():
            cleaned.done.append(f"{aside}, the rest of a store that was replaced: removed")
    left = find_orphans(uri, storage_options)
    if left:
        version = last_version(uri, storage_options)[0]
        version = fence_stale_builders(uri, version, left, storage_options)
        move_build_tag(uri, version, storage_options)
        still = left & find_orphans(uri, storage_options)
        removed = sorted(left - still)
        cleaned.done.extend(f"{shown(path)}, which is of no version: removed" for path in removed)
        cleaned.left.extend(f"{shown(path)}, which is of no version, could not be removed" for path in sorted(still))
