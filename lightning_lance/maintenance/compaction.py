"""Compaction: merge small fragments into large ones while a build goes on, and when it ends.

A build commits every minute, for days. Each commit adds a version and a fragment, and ends every stream with a partial block.
Once enough neighbouring fragments of one size have come together, they are rewritten as one, each stream as one run of full
blocks. Every token is rewritten a few times in all, however long the build. The streams do not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lance.fragment import FragmentMetadata

from lightning_lance.format.commit import data_file_infos, newest_at, read_commit, replace_fragments
from lightning_lance.format.lance_io import PendingFragments, dataset_at, delete_uncommitted, fragments_of
from lightning_lance.format.layout import DataFileInfo
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.tags import build_tag_is_older, keep_build, lacks_build_tag
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.removal import clean_up
from lightning_lance.maintenance.repacking import rewrite_fragments
from lightning_lance.messages.escaping import logger

_log = logger(__name__)

# Bytes of a full fragment, which is not merged any more, in a large store.
FULL_BYTES = 1 << 30
# The first ones are full at a small part of that, the others at a share of the bytes before them. So a store of 32 GB is not
# written once more to have fewer files, and one of 20 TB has 3,500 fragments more than if all had to be large.
_SMALLEST_PART = 32
_FRAGMENTS_BEFORE = 1024
# Runs of blocks of one stream that a fragment of few streams may have.
_MANY_PARTS = 256
# Fragments of about one size that are merged into one. Sizes differ by this factor from level to level, so a token is rewritten
# at most three times on the way from a commit of 2 MB to a full fragment.
_FAN = 8
# Commits without rows make versions but nothing to merge. Old versions are removed after every so many of these.
_CLEAN_EVERY = 8
# More bytes than are ever merged.
_NEVER_MERGED = 1 << 62


def compact(location: StoreLocation, version: int, *, full: int = FULL_BYTES, durable: bool = True) -> int:
    """Merge the fragments that are due, and remove versions that nothing keeps. Return the newest version.

    Args:
        location: The store.
        version: The last version that the builder has made. Only the one builder of a store may call this.
        full: Bytes of a full fragment in a large store, as for `merge_groups`.
        durable: As for `replace_fragments`; before anything is removed.

    Raises:
        CommitConflict: If another process has committed.
        StoreError: If the store cannot be written.
    """
    merged = False
    while True:
        dataset = newest_at(location, version)
        files = data_file_infos(dataset)
        fragments = fragments_of(dataset)
        groups = merge_groups(fragment_sizes(fragments, files), full, final=False)
        for i, fragment in enumerate(fragments):
            if _is_mixed(fragment, files):
                groups.append(range(i, i + 1))
        if not groups:
            break
        version = _merge(location, dataset, groups[0], durable)
        merged = True
    if not merged and version % _CLEAN_EVERY == 0:
        clean_up(location)
    return version


def _merge(location: StoreLocation, dataset: Any, group: range, durable: bool) -> int:
    """Make a version in which neighbouring fragments are one, and remove the versions that it replaces.

    One group at a time, since the disk holds the old fragments too until then.
    """
    fragments = fragments_of(dataset)
    files = data_file_infos(dataset)
    merged, infos, _ = rewrite_fragments(location, dataset, fragments[group.start : group.stop], files)
    fragments[group.start : group.stop] = merged
    commit = read_commit(dataset, location.uri)
    version = replace_fragments(location, dataset, dataset.schema, fragments, {**files, **infos}, commit, durable)
    _log.info("%s: merged into %d fragments.", location.uri, len(fragments))
    clean_up(location)
    return version


def commit_final(
    location: StoreLocation,
    written: PendingFragments,
    commit: CommitMetadata,
    *,
    full: int = FULL_BYTES,
    durable: bool = True,
) -> int:
    """Make the last commit of a build: merge the pending fragments with the small ones before them, in one transaction.

    So every version with all tokens is compacted. It gets the tag `build-<tokens>`, by which the same budget finds it after the
    store has grown. All other versions that nothing keeps are removed. Return the new version.

    Args: as for `append_commit`, and
        full: Bytes of a full fragment in a large store, as for `merge_groups`.

    Raises:
        CommitConflict: If another version came first.
        StoreError: If the store cannot be written.
    """
    before = written.before
    fragments: list[FragmentMetadata] = []
    files: dict[str, DataFileInfo] = {}
    first = 0
    while before is not None:
        fragments = fragments_of(before)
        files = data_file_infos(before)
        sizes = fragment_sizes(fragments, files)
        sizes += [info.size for info in written.files.values()]
        groups = merge_groups(sizes, full, final=True)
        first = groups[0].start if groups else len(fragments)
        if not groups or groups[0].stop == len(sizes):
            break
        version = _merge(location, before, groups[0], durable)
        before = newest_at(location, version, commit.fingerprint)
    merged = written.fragments
    infos = written.files
    if first < len(fragments):
        merged, infos, _ = rewrite_fragments(location, before, fragments[first:], files, more=written)
        delete_uncommitted(location, written.files, [before])
    fragments[first:] = merged
    version = replace_fragments(location, before, written.schema, fragments, {**files, **infos}, commit, durable)
    end_build(location, dataset_at(location, version))
    return version


def end_build(location: StoreLocation, dataset: Any) -> None:
    """Tag the last version of a build, its newest one, and remove all other versions that nothing keeps.

    If a builder is killed before this, `lightning-lance clean` does it.
    """
    keep_build(dataset, location.uri)
    clean_up(location)


def lacks_its_end(location: StoreLocation) -> bool:
    """Return whether the newest version is compacted like the end of a build, but its tag is missing or older."""
    dataset = dataset_at(location, None)
    if dataset is None:
        return False
    if build_tag_is_older(dataset, location):
        return True
    sizes = fragment_sizes(fragments_of(dataset), data_file_infos(dataset))
    return lacks_build_tag(dataset, location) and not merge_groups(sizes, FULL_BYTES, final=True)


def full_bytes_at(before: int, full: int = FULL_BYTES) -> int:
    """Return the bytes of a full fragment at its place in a store.

    Args:
        before: Bytes of the fragments before it.
        full: Bytes of a full fragment in a large store.
    """
    return max(1, full // _SMALLEST_PART, min(full, before // _FRAGMENTS_BEFORE))


def merge_groups(sizes: Sequence[int], full: int, final: bool) -> list[range]:
    """Return the groups of neighbouring fragments to merge.

    After the last merge, there are at most as many fragments as their bytes fill full ones, and one more; before it, up to
    eight of each size in addition. That depends on the sizes alone, whatever made them: killed builds, growth, forgotten
    documents. A merged fragment is smaller than two full ones.

    Args:
        sizes: Bytes of the fragments, in order.
        full: Bytes of a full fragment in a large store. A full one is not merged, except with small ones right before it.
        final: Whether this is the last merge.

    Returns:
        Groups of two indices or more, each of which becomes one fragment.
    """
    groups = []
    first = 0
    before = 0
    total = 0
    full_here = full_bytes_at(0, full)
    for i, size in enumerate(sizes):
        if size >= full_here and total + size >= 2 * full_here:
            # Together as large as two full ones, so they stay two.
            groups.append(range(first, i))
            first = i
            before += total
            total = 0
            full_here = full_bytes_at(before, full)
        total += size
        if total >= full_here:
            groups.append(range(first, i + 1))
            first = i + 1
            before += total
            total = 0
            full_here = full_bytes_at(before, full)
    # The rest is smaller than a full fragment in all.
    if not final:
        levels = [math.ceil(math.log(full_here / max(size, 1), _FAN)) for size in sizes[first:]]
        # The leftmost group is the largest merge, which leaves the fewest.
        while levels and levels.count(levels[0]) < _FAN:
            del levels[0]
            first += 1
    groups.append(range(first, len(sizes)))
    return [group for group in groups if len(group) > 1]


class GrowthMerges(NamedTuple):
    """What is merged when a store grows.

    Attributes:
        loose: Bytes of the fragments that are there and are merged.
        largest: Bytes that no merged fragment reaches.
    """

    loose: int
    largest: int


def merges_of_growth(location: StoreLocation, new: float, *, full: int = FULL_BYTES) -> GrowthMerges:
    """Return what is merged when a store, which may not exist yet, grows by some bytes.

    Args:
        location: The store.
        new: Bytes that are added.
        full: Bytes of a full fragment in a large store.
    """
    dataset = dataset_at(location, None)
    sizes = fragment_sizes(fragments_of(dataset), data_file_infos(dataset))
    loose = 0
    # With something behind them, the last fragments are merged, even a single one.
    for group in merge_groups([*sizes, 1], full, final=True):
        loose += sum(sizes[group.start : group.stop])
    # See `merge_groups`: less than two full ones, of which the last ones are the largest.
    return GrowthMerges(loose, 2 * full_bytes_at(int(sum(sizes) + new), full))


def _info(fragment: FragmentMetadata, files: Mapping[str, DataFileInfo]) -> DataFileInfo | None:
    """Return the description of a fragment's file; None if another program has written or changed the fragment."""
    if len(fragment.files) != 1 or fragment.deletion_file is not None:
        return None
    return files.get(fragment.files[0].path)


def fragment_sizes(fragments: Sequence[FragmentMetadata], files: Mapping[str, DataFileInfo]) -> list[int]:
    """Return the bytes of fragments, with `_NEVER_MERGED` for one that another program has written or changed."""
    sizes = []
    for fragment in fragments:
        info = _info(fragment, files)
        sizes.append(_NEVER_MERGED if info is None else info.size)
    return sizes


def _is_mixed(fragment: FragmentMetadata, files: Mapping[str, DataFileInfo]) -> bool:
    """Return whether the streams of a fragment alternate so often that its description, part of every commit, is long."""
    info = _info(fragment, files)
    if info is None:
        return False
    streams = {part.stream for part in info.parts}
    return len(info.parts) > max(_MANY_PARTS, 4 * len(streams))
