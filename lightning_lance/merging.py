"""Tidiness of a store: small fragments are merged into large ones, and what no version needs any more is removed.

A build commits every minute, for days. Each commit ends every stream with a block that is not full, and adds a fragment and a
version. So neighbouring fragments are written anew, each stream as one run of full blocks, when enough of one size have come
together: every token is written a few times in all, however long the build. The streams stay what they were.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from lance.fragment import FragmentMetadata

from lightning_lance.commit import Commit, commit_of, newest_at, notes_of, replace_fragments
from lightning_lance.errors import StoreError
from lightning_lance.fragments import dataset_at, fragments_of, not_written, write_rows
from lightning_lance.layout import FileNote
from lightning_lance.repacking import repack
from lightning_lance.sums import write_sums

_log = logging.getLogger(__name__)

# Where a writer leaves files before its commit.
_FOLDERS = ("data", "_transactions")
# Fragments of so many bytes are left as they are.
FULL_BYTES = 1 << 30
# So many fragments of about one size become one. Sizes differ by this factor from level to level, so a token is written
# anew three times at most on the way from a commit of 2 MB to a full fragment.
_FAN = 8
# Begins the name of what a build ended with.
_BUILD_TAG = "build-"


def tidy(
    uri: str,
    version: int,
    storage_options: Mapping[str, str] | None = None,
    *,
    full: int = FULL_BYTES,
    left: Collection[str] = (),
) -> int:
    """Merge what has become due since the last time, and then remove what is no longer needed.

    Args:
        uri: The store.
        version: The version that the builder has made last. Only the one builder of a store may call this.
        storage_options: Credentials and such for object stores.
        full: Bytes from which on a fragment is left as it is.
        left: What `left_behind` gave when the build began.

    Returns:
        The version that holds now: `version`, or the one after it.

    Raises:
        CommitConflict: If another process has committed.
        StoreError: If the store cannot be written.
    """
    dataset = newest_at(uri, version, storage_options)
    fragments, files = fragments_of(dataset), notes_of(dataset)
    groups = merge_groups([_size(fragment, files) for fragment in fragments], full, final=False)
    if not groups:
        return version
    for group in reversed(groups):
        made, notes, _ = repack(uri, dataset, fragments[group.start : group.stop], files, storage_options)
        fragments[group.start : group.stop] = made
        files |= notes
    schema, commit = dataset.schema, commit_of(dataset, uri)
    version = replace_fragments(uri, dataset, schema, fragments, files, commit, storage_options)
    _log.info("%s: merged into %d fragments.", uri, len(fragments))
    remove_unneeded(uri, storage_options, left)
    return version


def finish(
    uri: str,
    rows: pa.Table,
    commit: Commit,
    storage_options: Mapping[str, str] | None = None,
    expected_version: int | None = None,
    *,
    full: int = FULL_BYTES,
    left: Collection[str] = (),
) -> int:
    """Make the last commit of a build: its rows are merged with all before them that is not full, in one transaction.

    So there is no version with all tokens that is not tidy. It gets the tag `build-<tokens>`: asked again for the same
    budget, when the store has grown, it is found. All other versions without a tag are removed.

    Args: as for `append_commit`, and
        full: Bytes from which on a fragment is left as it is.
        left: What `left_behind` gave when the build began.

    Returns:
        The new version.

    Raises:
        CommitConflict: If there is another version by now. Nothing of `rows` stays.
        StoreError: If the store cannot be written.
    """
    before = newest_at(uri, expected_version, storage_options, commit.fingerprint)
    fragments = [] if before is None else fragments_of(before)
    files = {} if before is None else notes_of(before)
    sizes = [_size(fragment, files) for fragment in fragments] + [rows.nbytes] * bool(len(rows))
    groups = merge_groups(sizes, full, final=True)
    # The rows by themselves, where nothing is to be merged with them.
    if len(rows) and (before is None or not any(group.stop == len(sizes) and len(group) > 1 for group in groups)):
        made, notes = write_rows(uri, before, rows.schema, rows.to_batches(), storage_options)
        fragments, files, rows = [*fragments, *made], {**files, **notes}, rows.slice(0, 0)
    for group in reversed(groups):
        if before is not None and len(group) > 1:
            more = rows if group.stop > len(fragments) else None
            old = fragments[group.start : group.stop]
            made, notes, _ = repack(uri, before, old, files, storage_options, more=more)
            fragments[group.start : group.stop] = made
            files |= notes
    version = replace_fragments(uri, before, rows.schema, fragments, files, commit, storage_options)
    _tag_build(dataset_at(uri, version, storage_options), uri)
    remove_unneeded(uri, storage_options, left)
    return version


def _tag_build(dataset: Any, uri: str) -> None:
    """Keep what a build ended with: the same budget, asked again of a store that has grown, finds the same tokens."""
    name = f"{_BUILD_TAG}{commit_of(dataset, uri).tokens}"
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
    ended = f"{_BUILD_TAG}{now.tokens}"
    try:
        for name, tag in dataset.tags.list().items():
            before = dataset_at(uri, int(tag["version"]), storage_options)
            if before is None or commit_of(before, uri).extent.forgotten == now.extent.forgotten:
                continue
            if name == ended:
                dataset.tags.update(name, int(dataset.version))
            elif purge or name.startswith(_BUILD_TAG):
                dataset.tags.delete(name)
            else:
                kept.append(name)
    except (ValueError, OSError) as error:
        raise not_written(uri, error) from error
    return sorted(kept)


def merge_groups(sizes: Sequence[int], full: int, final: bool) -> list[range]:
    """Choose which neighbours to merge.

    Args:
        sizes: Bytes of the fragments, in their order.
        full: Bytes from which on a fragment is left as it is.
        final: Whether nothing comes after.

    Returns:
        Groups of places, each of which becomes one fragment.
    """
    begin = next((i + 1 for i in reversed(range(len(sizes))) if sizes[i] >= full), 0)
    if final:
        return _full_groups(sizes, begin, full)
    levels = [max(0, math.ceil(math.log(full / max(size, 1), _FAN))) for size in sizes]
    # From the left: the larger the merge, the fewer there will be.
    for first in range(begin, len(sizes)):
        run = levels[first:]
        due = sum(sizes[first:]) >= full or sum(level == run[0] for level in run) >= _FAN
        if len(run) > 1 and min(run) == run[0] and due:
            return _full_groups(sizes, first, full)
    return []


def _full_groups(sizes: Sequence[int], begin: int, full: int) -> list[range]:
    """Cut the fragments from `begin` on into groups of `full` bytes or little more, the last of what is left."""
    groups: list[range] = []
    first = begin
    for i in range(begin, len(sizes)):
        if sum(sizes[first : i + 1]) >= full or i == len(sizes) - 1:
            groups.append(range(first, i + 1))
            first = i + 1
    return groups


def _size(fragment: FragmentMetadata, files: Mapping[str, FileNote]) -> int:
    """Give the bytes of a fragment; of those that others have written or changed, more than are ever merged."""
    known = len(fragment.files) == 1 and fragment.deletion_file is None and fragment.files[0].path in files
    return files[fragment.files[0].path].size if known else 1 << 62


def left_behind(uri: str, storage_options: Mapping[str, str] | None = None) -> set[str]:
    """List the files that are of no version, such as a killed builder leaves; for one that begins, in its turn.

    In a bucket there may be several builders at any time: there, what is of no version is left until it is a week old.
    """
    if "://" in uri:
        return set()
    root, dataset = Path(uri), dataset_at(uri, None, storage_options)
    there = {str(path.relative_to(root)) for folder in _FOLDERS for path in root.glob(f"{folder}/*")}
    try:
        return there - (set() if dataset is None else _needed(uri, dataset, storage_options))
    except (ValueError, OSError, StoreError):  # one who came back removes versions: the next build looks again
        return set()


def _needed(uri: str, dataset: Any, storage_options: Mapping[str, str] | None) -> set[str]:
    needed = set()
    for number in [int(entry["version"]) for entry in dataset.versions()]:
        version = dataset_at(uri, number, storage_options)
        if version is None:
            raise StoreError(f"Version {number} of {uri!r} was removed meanwhile.")
        needed |= {f"data/{file.path}" for fragment in fragments_of(version) for file in fragment.files}
        needed.add(f"_transactions/{number - 1}-{version.read_transaction(number).uuid}.txn")
    return needed


def remove_unneeded(uri: str, storage_options: Mapping[str, str] | None = None, left: Collection[str] = ()) -> None:
    """Remove all versions but the newest and those with a tag; and what was left behind, unless a version has it now.

    Readers that map an older version's files keep them as long as they are open. Files of no version that came later are not
    touched: this process may have stood still after its last commit, and they are another's, who is about to commit them.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        left: What `left_behind` gave. Only who has committed since may give it: then, who made them can commit no more.
    """
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None:
        return
    try:
        kept = {int(dataset.version), *(int(tag["version"]) for tag in dataset.tags.list().values())}
        write_sums(uri, storage_options, kept)
        dataset.cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)
        for path in {*left} - _needed(uri, dataset, storage_options) if left else ():
            Path(uri, path).unlink(missing_ok=True)
    except (ValueError, OSError, StoreError) as error:
        # The store is whole, only larger than need be.
        _log.warning("Old versions of %s could not be removed: %s", uri, " ".join(str(error).split())[:200])
