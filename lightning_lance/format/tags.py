"""Tags of a token store: the versions that no clean-up removes, since a build ended with them, or a run trains on them.

Three kinds are ours: `build-<tokens>`, what a build ended with; `checkpoint-<extent>`, what checkpoints go on with; and
`checkpoint-<extent>-run-<id>`, what a run trains on that has saved no checkpoint yet. Each run removes its own, and no other.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError, StoreError, StoreReplaced
from lightning_lance.format.checksums import root_session, stays, versions_on_list
from lightning_lance.format.commit import is_commit, read_commit
from lightning_lance.format.lance_io import data_files, dataset_at, lance_said, not_written
from lightning_lance.format.lance_names import tag_file
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.refs import read_refs
from lightning_lance.messages.redaction import shown_cause

_BUILD, _CHECKPOINT, _RUN = "build-", "checkpoint-", "-run-"
# Of the names that Lance takes, those that it can list again.
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_OURS = re.compile(r"build-(?P<tokens>\d+)|checkpoint-(?P<extent>\d+(-[0-9a-f]{8})?)(-run-[0-9a-f]+)?")
# What Lance raises: the last for a file of a tag that it cannot read.
_LANCE_ERRORS = (ValueError, OSError, RuntimeError)


def checkpoint_tag(extent: StoreContent) -> str:
    """Name the tag by which checkpoints keep what they were trained on."""
    return f"{_CHECKPOINT}{extent.name}"


def run_tag(extent: StoreContent, run: str) -> str:
    """Name the tag of a run that has saved no checkpoint yet."""
    return f"{checkpoint_tag(extent)}{_RUN}{run}"


def is_ours(name: str) -> bool:
    """Tell whether this package gives such names to tags."""
    return _OURS.fullmatch(name) is not None


def means(name: str, commit: CommitMetadata) -> bool:
    """Tell whether a tag of ours keeps a version with this note, going by its name alone."""
    ours = _OURS.fullmatch(name)
    if ours is None:
        return False
    return ours["extent"] == commit.extent.name or ours["tokens"] == str(commit.tokens)


def tag_version(
    dataset: Any,
    uri: str,
    extent: StoreContent,
    storage_options: Mapping[str, str] | None,
    name: str | None = None,
    fingerprint: str | None = None,
) -> bool:
    """Let a tag name the version that is open, for good, or leave it where it names one that holds the same.

    Equal extents are equal streams, so whoever goes by the tag finds what is kept here; moved, it would free the files of a
    version that others may read. A tag of any other version is moved: it may be of a store that was here before.

    Args:
        dataset: The version.
        uri: The store.
        extent: What it holds.
        storage_options: Credentials and such for object stores.
        name: Of the tag; None for `checkpoint-...`, named by the extent.
        fingerprint: Of the store that was opened; None if it can be no other.

    Returns:
        Whether a version that holds the same is there and has the tag; False if a builder has removed the one that is open,
        or is about to.

    Raises:
        ConfigError: If a tag cannot have this name.
        StoreReplaced: If there is another store by now.
        StoreError: If the store cannot be written.
    """
    name = name or checkpoint_tag(extent)
    if not _NAME.fullmatch(name) or name.endswith(".lock"):
        raise ConfigError(f"The tag is {name!r}: expected letters, digits, '-', '_', and single dots between them.")
    opened = _Opened(dataset, uri, extent, storage_options, fingerprint)
    if opened.kept_by(name) is not None:
        return True
    # Whoever finds a tag of this name relies on it, so it is made only when the version is sure to stay.
    run = secrets.token_hex(8)
    if not keep_for_run(dataset, uri, extent, storage_options, run, fingerprint):
        return False
    try:
        set_tag(dataset, name)
    except _LANCE_ERRORS as error:
        if opened.kept_by(name) is None:  # another rank may have been first
            raise opened.not_tagged(error) from shown_cause(error)
    finally:
        untag(dataset, extent, run)
    return True


def keep_for_run(
    dataset: Any,
    uri: str,
    extent: StoreContent,
    storage_options: Mapping[str, str] | None,
    run: str,
    fingerprint: str | None = None,
) -> bool:
    """Let a tag of its own keep what a run trains on, until the run takes it away.

    The tag is made first, and then it is looked whether a clean-up had decided before that the version goes. The clean-up
    decides first, and then looks at the tags (`compaction.clean_up`). So one of them sees the other.

    Args: as for `tag_version`, and
        run: Tells the run from others; the same on all of its ranks.

    Returns:
        Whether it is kept; False if a builder has removed it, or is about to.

    Raises:
        StoreReplaced: If there is another store by now.
        StoreError: If the store cannot be written.
    """
    opened, name = _Opened(dataset, uri, extent, storage_options, fingerprint), run_tag(extent, run)
    tagged = opened.kept_by(name)
    if tagged is not None:  # another rank was first
        return opened.stays(tagged)
    if not opened.is_there():
        return False
    try:
        set_tag(dataset, name)
    except _LANCE_ERRORS as error:
        tagged = opened.kept_by(name)
        if tagged is not None:
            return opened.stays(tagged)
        if not opened.is_there():
            return False
        raise opened.not_tagged(error) from shown_cause(error)
    if opened.stays(opened.version) and opened.is_there():
        return True
    _remove(dataset, name)
    return False


def untag(dataset: Any, extent: StoreContent, run: str) -> None:
    """Remove the tag of a run, which is no other's; that it cannot be, or is not there, is no error."""
    _remove(dataset, run_tag(extent, run))


def let_go_of_others(
    dataset: Any, uri: str, storage_options: Mapping[str, str] | None, run: str, extents: Collection[StoreContent]
) -> None:
    """Remove the tags of a run from all versions but those that hold some extents: it has gone on from them."""
    kept = {run_tag(extent, run) for extent in extents}
    with suppress(*_LANCE_ERRORS):
        for name in read_refs(uri, storage_options).tags:
            if name.endswith(f"{_RUN}{run}") and name not in kept:
                _remove(dataset, name)


class _Opened(NamedTuple):
    """A version as it was opened; the arguments of `tag_version`."""

    dataset: Any
    uri: str
    extent: StoreContent
    storage_options: Mapping[str, str] | None
    fingerprint: str | None

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    def kept_by(self, name: str) -> int | None:
        """Give the version that a tag names, if that holds the same; None if not, or if there is no such tag."""
        tagged = read_refs(self.uri, self.storage_options).tags.get(name)
        return tagged if tagged is not None and self._is_at(tagged) else None

    def is_there(self) -> bool:
        """Tell whether the version is there still, or again. StoreReplaced if another store is, StoreError if none is."""
        if self._is_at(self.version):
            return True
        check_not_replaced(self.uri, self.fingerprint, self.storage_options)
        if dataset_at(self.uri, None, self.storage_options) is None:
            raise self.not_tagged("the store is gone")
        return False

    def _is_at(self, version: int) -> bool:
        there = dataset_at(self.uri, version, self.storage_options)
        if there is None:
            return False
        # What others than this package made of it may have its rows in another order.
        if version != self.version and not is_commit(there):
            return False
        commit = read_commit(there, self.uri)
        return commit.extent == self.extent and self.fingerprint in (None, commit.fingerprint)

    def stays(self, version: int) -> bool:
        """Tell whether no clean-up has taken a version off its list: that one knows nothing of a tag that was made since."""
        if stays(versions_on_list(self.uri, self.storage_options), version):
            return True
        newest = dataset_at(self.uri, None, self.storage_options)
        # The newest version never goes, whatever a list says, which may be a copy of another time.
        return newest is not None and int(newest.version) == version

    def not_tagged(self, error: object) -> StoreError:
        """Say that the version cannot be tagged."""
        return StoreError(
            f"Version {self.version} of the token store {self.uri!r} cannot be tagged: {lance_said(error)}."
        )


def check_not_replaced(uri: str, fingerprint: str | None, storage_options: Mapping[str, str] | None) -> None:
    """Refuse a store that was built anew, by another recipe, since it was opened; `fingerprint` is what it was then.

    Raises:
        StoreReplaced: Naming both fingerprints.
    """
    now = dataset_at(uri, None, storage_options)
    if fingerprint is None or now is None:
        return
    found = read_commit(now, uri).fingerprint
    if found != fingerprint:
        raise replaced(uri, fingerprint, found)


def replaced(uri: str, before: str, now: str) -> StoreReplaced:
    """Say that a store is another one by now."""
    return StoreReplaced(
        f"The token store {uri!r} was built anew by another recipe while it was read (fingerprint {before} -> {now}): start "
        "again, to read the new one, or build that one at another uri."
    )


def _remove(dataset: Any, name: str) -> None:
    """Remove a tag that is there, if it can be removed."""
    with suppress(*_LANCE_ERRORS):
        dataset.tags.delete(name)


def keep_build(dataset: Any, uri: str) -> None:
    """Keep what a build ended with: the same budget, asked again of a store that has grown, finds the same tokens.

    Raises:
        StoreError: If the store cannot be written.
    """
    try:
        set_tag(dataset, _build_tag(dataset, uri))
    except _LANCE_ERRORS as error:
        raise not_written(uri, error) from shown_cause(error)


def lacks_build_tag(dataset: Any, uri: str, storage_options: Mapping[str, str] | None = None) -> bool:
    """Tell whether the version that is open lacks the tag of what a build ended with; those of others need none."""
    return is_commit(dataset) and _build_tag(dataset, uri) not in read_refs(uri, storage_options).tags


def build_tag_is_older(dataset: Any, uri: str, storage_options: Mapping[str, str] | None = None) -> bool:
    """Tell whether the tag of what a build ended with names an older version that is made of the same files.

    A version is made once more where a killed builder is succeeded. Whoever maps the older one's files keeps them.
    """
    if not is_commit(dataset):
        return False
    tagged = read_refs(uri, storage_options).tags.get(_build_tag(dataset, uri))
    if tagged is None or tagged >= int(dataset.version):
        return False
    older = dataset_at(uri, tagged, storage_options)
    return (
        older is not None
        and is_commit(older)
        and read_commit(older, uri) == read_commit(dataset, uri)
        and data_files(older) == data_files(dataset)
    )


def _build_tag(dataset: Any, uri: str) -> str:
    return f"{_BUILD}{read_commit(dataset, uri).tokens}"


def set_tag(dataset: Any, name: str) -> None:
    """Make a tag, or move it; one whose file is damaged is made anew."""
    version = int(dataset.version)
    try:
        dataset.tags.create(name, version)
        return
    except _LANCE_ERRORS as error:
        if "already exists" not in str(error):
            raise
    try:
        dataset.tags.update(name, version)
    except _LANCE_ERRORS:
        if _is_readable(dataset, name):
            raise
        dataset.tags.delete(name)
        dataset.tags.create(name, version)


def _is_readable(dataset: Any, name: str) -> bool:
    try:
        dataset.tags.get_version(name)
    except _LANCE_ERRORS:
        return False
    return True


def retag(uri: str, storage_options: Mapping[str, str] | None, purge: bool) -> list[str]:
    """After documents were forgotten: let the newest version be what the build ended with, and no older one.

    Args:
        uri: The store.
        storage_options: Credentials and such for object stores.
        purge: Whether all other tags of older versions go too.

    Returns:
        The tags that were removed because of `purge`.

    Raises:
        StoreError: If the store cannot be written.
    """
    dataset = dataset_at(uri, None, storage_options)
    now, ended = read_commit(dataset, uri), _build_tag(dataset, uri)
    session, removed = root_session(uri, storage_options), []
    try:
        for name in tags_from_before(uri, now, storage_options):
            if name == ended:
                dataset.tags.update(name, int(dataset.version))
            elif purge or name.startswith(_BUILD):
                session.delete_file(tag_file(name))
                removed.append(name)
        for name in read_refs(uri, storage_options).damaged:
            if name == ended:
                keep_build(dataset, uri)
            elif purge and is_ours(name):
                # What it kept is not known; of a version from before it would be too much.
                session.delete_file(tag_file(name))
                removed.append(name)
    except _LANCE_ERRORS as error:
        raise not_written(uri, error) from shown_cause(error)
    return sorted(removed)


def tags_from_before(uri: str, now: CommitMetadata, storage_options: Mapping[str, str] | None) -> list[str]:
    """List the tags of versions of which something was forgotten since; `now` is the note of the newest."""
    found = []
    for name, version in read_refs(uri, storage_options).tags.items():
        before = dataset_at(uri, version, storage_options)
        if before is not None and read_commit(before, uri).extent.forgotten != now.extent.forgotten:
            found.append(name)
    return sorted(found)
