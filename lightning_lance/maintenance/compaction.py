"""Tidiness of a store: small fragments are merged into large ones, and what no version needs any more is removed.

A build commits every minute, for days. Each commit ends every stream with a block that is not full, and adds a fragment and a
version. So neighbouring fragments are written anew, each stream as one run of full blocks, when enough of one size have come
together: every token is written a few times in all, however long the build. The streams stay what they were.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lance.fragment import FragmentMetadata

from lightning_lance.errors import StoreError
from lightning_lance.format.checksums import root_session, stays, versions_on_list, write_sums
from lightning_lance.format.commit import (
    committed_version,
    data_file_infos,
    is_commit,
    newest_at,
    read_commit,
    replace_fragments,
)
from lightning_lance.format.lance_io import (
    PendingFragments,
    dataset_at,
    delete_uncommitted,
    fragments_of,
    lance_options,
    lance_said,
)
from lightning_lance.format.lance_names import (
    DATA,
    DELETIONS,
    INDICES,
    data_file_at,
    is_data_name,
    manifest_of,
    tag_file,
    transaction_of,
)
from lightning_lance.format.layout import DataFileInfo
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links, is_builders, is_data_file, left_files
from lightning_lance.format.refs import read_refs
from lightning_lance.format.tags import build_tag_is_older, is_ours, keep_build, lacks_build_tag, means
from lightning_lance.location import is_local
from lightning_lance.maintenance.repacking import rewrite_fragments
from lightning_lance.messages.escaping import logger, shown

_log = logger(__name__)

# Fragments of so many bytes are left as they are.
FULL_BYTES = 1 << 30
# Runs of blocks of one stream that a fragment may have, where it is not of many streams.
_MANY_PARTS = 256
# So many fragments of about one size become one. Sizes differ by this factor from level to level, so a token is written
# anew three times at most on the way from a commit of 2 MB to a full fragment.
_FAN = 8
# A commit without rows makes a version and nothing to merge: of every so many, the old ones are removed all the same.
_CLEAN_EVERY = 8


def compact(
    uri: str,
    version: int,
    storage_options: Mapping[str, str] | None = None,
    *,
    full: int = FULL_BYTES,
    durable: bool = True,
) -> int:
    """Merge what has become due since the last time, and remove what is no longer needed.

    Args:
        uri: The store.
        version: The version that the builder has made last. Only the one builder of a store may call this.
        storage_options: Credentials and such for object stores.
        full: Bytes from which on a fragment is left as it is.
        durable: Whether what is merged is forced onto the disk before anything goes; see `replace_fragments`.

    Returns:
        The version that holds now: `version`, or a later one.

    Raises:
        CommitConflict: If another process has committed.
        StoreError: If the store cannot be written.
    """
    merged = False
    while True:
        dataset = newest_at(uri, version, storage_options)
        files = data_file_infos(dataset)
        fragments = fragments_of(dataset)
        groups = merge_groups([_size(fragment, files) for fragment in fragments], full, final=False)
        groups = groups or [range(i, i + 1) for i, part in enumerate(fragments) if _is_mixed(part, files)]
        if not groups:
            break
        version, merged = _merge(uri, dataset, groups[0], storage_options, durable), True
    if not merged and version % _CLEAN_EVERY == 0:
        clean_up(uri, storage_options)
    return version


def _merge(uri: str, dataset: Any, group: range, storage_options: Mapping[str, str] | None, durable: bool) -> int:
    """Make a version in which neighbours are one fragment, and remove what that one replaces.

    One group at a time: until its version is there, what it is made of is on the disk too.
    """
    fragments, files, commit = fragments_of(dataset), data_file_infos(dataset), read_commit(dataset, uri)
    made, notes, _ = rewrite_fragments(uri, dataset, fragments[group.start : group.stop], files, storage_options)
    fragments[group.start : group.stop] = made
    version = replace_fragments(
        uri, dataset, dataset.schema, fragments, {**files, **notes}, commit, storage_options, durable
    )
    _log.info("%s: merged into %d fragments.", uri, len(fragments))
    clean_up(uri, storage_options)
    return version


def commit_final(
    uri: str,
    written: PendingFragments,
    commit: CommitMetadata,
    storage_options: Mapping[str, str] | None = None,
    *,
    full: int = FULL_BYTES,
    durable: bool = True,
) -> int:
    """Make the last commit of a build: what was written is merged with those before it that are not full, in one transaction.

    So there is no version with all tokens that is not tidy. It gets the tag `build-<tokens>`: asked again for the same
    budget, when the store has grown, it is found. All other versions without a tag are removed.

    Args: as for `append_commit`, and
        full: Bytes from which on a fragment is left as it is.

    Returns:
        The new version.

    Raises:
        CommitConflict: If there is another version by now.
        StoreError: If the store cannot be written.
    """
    before = written.before
    while True:
        fragments = [] if before is None else fragments_of(before)
        files = {} if before is None else data_file_infos(before)
        sizes = [_size(fragment, files) for fragment in fragments] + [note.size for note in written.files.values()]
        groups = merge_groups(sizes, full, final=True)
        if before is None or not groups or groups[0].stop == len(sizes):
            break
        version = _merge(uri, before, groups[0], storage_options, durable)
        before = newest_at(uri, version, storage_options, commit.fingerprint)
    first = groups[0].start if before is not None and groups else len(fragments)
    made, notes = written.fragments, written.files
    if first < len(fragments):
        made, notes, _ = rewrite_fragments(uri, before, fragments[first:], files, storage_options, more=written)
        delete_uncommitted(uri, written.files, [before], storage_options)
    fragments[first:] = made
    version = replace_fragments(
        uri, before, written.schema, fragments, {**files, **notes}, commit, storage_options, durable
    )
    end_build(uri, dataset_at(uri, version, storage_options), storage_options)
    return version


def end_build(uri: str, dataset: Any, storage_options: Mapping[str, str] | None = None) -> None:
    """Do what remains to be done after the last commit of a build: tag it, and remove all other versions without a tag.

    A builder that is killed before this leaves it to `lightning-lance clean`.

    Args:
        uri: The store.
        dataset: Its newest version, which the build ended with.
        storage_options: Credentials and such for object stores.
    """
    keep_build(dataset, uri)
    clean_up(uri, storage_options)


def fence_stale_builders(
    uri: str,
    version: int,
    left: Collection[str],
    storage_options: Mapping[str, str] | None = None,
    durable: bool = True,
) -> int:
    """Begin in the place of builders that were killed: what they left goes, before as much is written again.

    The version is made once more, with its note: so none of them, should it only have stood still, can commit what goes.

    Args:
        uri: The store.
        version: The version that the builder has seen.
        left: What `find_orphans` gave.
        storage_options: Credentials and such for object stores.
        durable: Whether that version is forced onto the disk before anything goes; see `replace_fragments`.

    Returns:
        The version that holds now.

    Raises:
        CommitConflict: If another process has committed.
        StoreError: If the store cannot be written.
    """
    before = newest_at(uri, version, storage_options)
    fragments, files, now = fragments_of(before), data_file_infos(before), read_commit(before, uri)
    version = replace_fragments(uri, before, before.schema, fragments, files, now, storage_options, durable)
    move_build_tag(uri, version, storage_options)
    clean_up(uri, storage_options, left)
    return version


def move_build_tag(uri: str, version: int, storage_options: Mapping[str, str] | None = None) -> None:
    """Let the tag of what a build ended with name a version that was made once more of the same files: the older one can go."""
    dataset = dataset_at(uri, version, storage_options)
    if dataset is not None and build_tag_is_older(dataset, uri, storage_options):
        keep_build(dataset, uri)


def merge_groups(sizes: Sequence[int], full: int, final: bool) -> list[range]:
    """Choose which neighbours to merge.

    After the last merge there are at most as many fragments as `full` goes into all their bytes, and one; before, eight of each
    size more. That depends on the sizes alone, not on how they came to be: a build that was killed, a growth, documents that
    were forgotten. Nothing is merged to twice `full`, or more.

    Args:
        sizes: Bytes of the fragments, in their order.
        full: Bytes from which on a fragment is left as it is, but for small ones right before it.
        final: Whether nothing comes after.

    Returns:
        Groups of two places or more, each of which becomes one fragment.
    """
    groups, first, total = [], 0, 0
    for i, size in enumerate(sizes):
        if size >= full and total + size >= 2 * full:
            # As large as two full ones, they may be two.
            groups.append(range(first, i))
            first, total = i, 0
        total += size
        if total >= full:
            groups.append(range(first, i + 1))
            first, total = i + 1, 0
    # What is left is less than full, all together.
    if not final:
        levels = [math.ceil(math.log(full / max(size, 1), _FAN)) for size in sizes[first:]]
        # From the left: the larger the merge, the fewer there will be.
        first += next((i for i, level in enumerate(levels) if levels[i:].count(level) >= _FAN), len(levels))
    return [group for group in [*groups, range(first, len(sizes))] if len(group) > 1]


def uncompacted_bytes(uri: str, storage_options: Mapping[str, str] | None = None, *, full: int = FULL_BYTES) -> int:
    """Give the bytes of the last fragments of a store that a build which goes on writes anew: those that make no full one."""
    if (dataset := dataset_at(uri, None, storage_options)) is None:
        return 0
    files, loose = data_file_infos(dataset), 0
    for fragment in reversed(fragments_of(dataset)):
        if (size := _size(fragment, files)) >= full or loose + size >= full:
            break
        loose += size
    return loose


def _size(fragment: FragmentMetadata, files: Mapping[str, DataFileInfo]) -> int:
    """Give the bytes of a fragment; of those that others have written or changed, more than are ever merged."""
    known = len(fragment.files) == 1 and fragment.deletion_file is None and fragment.files[0].path in files
    return files[fragment.files[0].path].size if known else 1 << 62


def _is_mixed(fragment: FragmentMetadata, files: Mapping[str, DataFileInfo]) -> bool:
    """Whether the streams of a fragment take turns so often that its note, which every version repeats, is long."""
    note = files.get(fragment.files[0].path) if fragment.files else None
    parts = note.parts if note and _size(fragment, files) <= note.size else ()
    return len(parts) > max(_MANY_PARTS, 4 * len({part[:2] for part in parts}))


def find_orphans(uri: str, storage_options: Mapping[str, str] | None = None) -> set[str]:
    """List the files that are of no version, such as a killed builder leaves; for one that begins, in its turn.

    Those only whose names and contents are a builder's: whatever else somebody has put there stays. In a bucket there may be
    several builders at any time: there, what is of no version is left until it is a week old.
    """
    if not is_local(uri):
        return set()
    dataset = dataset_at(uri, None, storage_options)
    try:
        needed = set() if dataset is None else _needed(uri, dataset, storage_options)
        return {path for path in left_files(uri) - needed if is_builders(uri, path)}
    except (ValueError, OSError, StoreError):  # one who came back removes versions: the next build looks again
        return set()


def _needed(uri: str, dataset: Any, storage_options: Mapping[str, str] | None, but: Collection[int] = ()) -> set[str]:
    """List the files of all versions but some."""
    needed = set()
    for number in sorted(_versions(dataset) - {*but}):
        needed |= _files_of(uri, number, storage_options)
    return needed


def _files_of(uri: str, number: int, storage_options: Mapping[str, str] | None) -> set[str]:
    """List the files with the rows of a version, and its transaction. StoreError if the version is gone."""
    version = dataset_at(uri, number, storage_options)
    if version is None:
        raise StoreError(f"Version {number} of {uri!r} was removed meanwhile.")
    files = {transaction_of(number, version.read_transaction(number).uuid)}
    for fragment in fragments_of(version):
        files |= {data_file_at(file.path) for file in fragment.files}
        if fragment.deletion_file is not None:
            files.add(fragment.deletion_file.path(fragment.id))
    return files


def _versions(dataset: Any) -> set[int]:
    return {int(entry["version"]) for entry in dataset.versions()}


def _remove_files(uri: str, files: Collection[str], storage_options: Mapping[str, str] | None) -> None:
    """Remove what versions had that are gone, unless another version has it.

    Lance leaves a file that by this machine's clock comes from the future, as on a shared disk whose clock is ahead.
    """
    root, dataset = root_session(uri, storage_options), dataset_at(uri, None, storage_options)
    places = {file.partition("/")[0] for file in files}
    there = {f"{place}/{Path(path).name}" for place in places for path in root.list(place)} & {*files}
    # Nearly always none is there that the newest has not, and no other needs to be read.
    if there - _needed(uri, dataset, storage_options, but=_versions(dataset) - {int(dataset.version)}):
        for file in there - _needed(uri, dataset, storage_options):
            root.delete_file(file)


def _kept(uri: str, dataset: Any, storage_options: Mapping[str, str] | None) -> set[int]:
    """List the versions that stay: the newest, what others have made that of, those with a tag, and those with a branch.

    Raises:
        StoreError: If that cannot be known, since the file of a tag or a branch is damaged.
    """
    refs = read_refs(uri, storage_options)
    unknown = {tag_file(name): damage for name, damage in refs.damaged.items() if not is_ours(name)} | refs.unreadable
    for file, damage in unknown.items():
        raise StoreError(
            f"{shown(file)} {damage.why}, and may keep any of them: 'lightning-lance clean {uri}' says what helps."
        )
    kept = {int(dataset.version), *refs.tags.values(), *refs.branches.values()}
    if (committed := committed_version(dataset)) is not None:
        kept.add(committed)
    # Of ours, the names alone tell enough.
    for number in _versions(dataset) - kept if refs.damaged else ():
        version = dataset_at(uri, number, storage_options)
        if version is not None and any(means(name, read_commit(version, uri)) for name in refs.damaged):
            kept.add(number)
    return kept


def half_removed(uri: str, storage_options: Mapping[str, str] | None = None) -> set[int]:
    """List the versions that a clean-up has taken off its list, and was killed before it removed them."""
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None:
        return set()
    on_list = versions_on_list(uri, storage_options)
    going = {version for version in _versions(dataset) if not stays(on_list, version)}
    return going - _kept(uri, dataset, storage_options)


def unneeded_versions(uri: str, storage_options: Mapping[str, str] | None = None) -> set[int]:
    """Return the versions of a store whose build has ended that `clean_up` would remove; none while it is unfinished."""
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None or not is_commit(dataset) or lacks_build_tag(dataset, uri, storage_options):
        return set()
    return _versions(dataset) - _kept(uri, dataset, storage_options)


def lacks_its_end(uri: str, storage_options: Mapping[str, str] | None = None, *, full: int = FULL_BYTES) -> bool:
    """Return whether the newest version is as a build ends, with nothing left to merge, and its tag is missing or older."""
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None:
        return False
    if build_tag_is_older(dataset, uri, storage_options):
        return True
    files = data_file_infos(dataset)
    sizes = [_size(fragment, files) for fragment in fragments_of(dataset)]
    return lacks_build_tag(dataset, uri, storage_options) and not merge_groups(sizes, full, final=True)


def clean_up(uri: str, storage_options: Mapping[str, str] | None = None, left: Collection[str] = ()) -> None:
    """Remove all versions but the newest and those with a tag; and what was left behind, unless a version has it now.

    Nothing goes but the files that these versions name, and nothing at all where there are links in the store. Readers that
    map an older version's files keep them as long as they are open. Files of no version that came later are not touched: this
    process may have stood still after its last commit, and they are another's, who is about to commit them.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        left: What `find_orphans` gave. Only who has committed since may give it: then, who made them can commit no more.
    """
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None:
        return
    try:
        check_no_links(uri)
        # First what is needed for nothing: the disk may be full.
        for path in {*left} - _needed(uri, dataset, storage_options) if left else ():
            Path(uri, path).unlink(missing_ok=True)
        kept = _announce(uri, dataset, storage_options)
        if kept is not None:
            _remove_versions(uri, dataset, _versions(dataset) - kept, storage_options)
    except (ValueError, OSError, RuntimeError, StoreError) as error:
        # The store is whole, only larger than need be.
        _log.warning("Old versions of %s could not be removed: %s", uri, lance_said(error))


def _announce(uri: str, dataset: Any, storage_options: Mapping[str, str] | None) -> set[int] | None:
    """Take the versions that go off the list of checksums. Return those that stay, None if the list cannot be written.

    A run makes its tag first, then reads the list (`tags.tag_version`). Here the list is written first, then the tags are read,
    so one of the two sees the other: an earlier tag is found here, and a later run finds its version off the list.
    """
    stay = _kept(uri, dataset, storage_options)
    while True:
        # What is still listed would be missed by a verification.
        if not write_sums(uri, storage_options, stay):
            return None
        tagged = _kept(uri, dataset, storage_options) - stay
        if not tagged & _versions(dataset):
            return stay
        stay |= tagged


def announce_purge(uri: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Say, before their tags go, that all versions go of which something was forgotten since: no run begins with one any more.

    Raises:
        StoreError: If the store cannot be written.
    """
    dataset = dataset_at(uri, None, storage_options)
    stay = _versions(dataset) - set(versions_from_before(uri, dataset, storage_options))
    if not write_sums(uri, storage_options, stay):
        raise StoreError(
            f"The documents are forgotten, and older versions of {uri!r} that hold them are still there, since the list of "
            "checksums cannot be written: make room or give access, and run it again."
        )


def versions_from_before(uri: str, dataset: Any, storage_options: Mapping[str, str] | None = None) -> list[int]:
    """List the versions of which something was forgotten since; `dataset` is the newest."""
    rules = read_commit(dataset, uri).extent.forgotten
    found = []
    for number in sorted(_versions(dataset)):
        version = dataset_at(uri, number, storage_options)
        if version is not None and read_commit(version, uri).extent.forgotten != rules:
            found.append(number)
    return found


def _remove_versions(uri: str, dataset: Any, going: Collection[int], storage_options: Mapping[str, str] | None) -> None:
    """Remove versions, and the files that no other has. The files go after the manifests that name them.

    Lance's own clean-up also removes what it finds in the folders of a store and no version names, whosever it is.
    """
    files = set()
    for number in sorted(going):
        # Of one that a killed clean-up has half removed, the rest is found as files of no version.
        with suppress(ValueError, OSError, StoreError):
            files |= _files_of(uri, number, storage_options)
    root = root_session(uri, storage_options)
    for number in sorted(going):
        root.delete_file(manifest_of(number))
    if going:
        _remove_files(uri, files, storage_options)
    if not is_local(uri):
        _remove_left(uri, storage_options)


def _remove_left(uri: str, storage_options: Mapping[str, str] | None) -> None:
    """Let Lance remove what builders that were killed left in a bucket a week ago or more, unless there is also others'."""
    dataset = dataset_at(uri, None, storage_options)
    needed = _needed(uri, dataset, storage_options)
    root = root_session(uri, storage_options)
    left = {path for folder in (DATA, DELETIONS, INDICES) for path in root.list(folder)} - needed
    if all(_is_data_file(uri, path, storage_options) for path in left):
        # It removes no version: it is told the newest one alone, which it never removes.
        dataset.cleanup_old_versions(versions=[int(dataset.version)], error_if_tagged_old_versions=False)


def _is_data_file(uri: str, path: str, storage_options: Mapping[str, str] | None) -> bool:
    folder, _, name = path.partition("/")
    return folder == DATA and is_data_name(name) and is_data_file(f"{uri}/{path}", lance_options(storage_options))
