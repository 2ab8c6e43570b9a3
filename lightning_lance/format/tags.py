"""Tags of a token store. They protect versions from clean-ups: the result of a build, and the data of a training run.

This package makes three kinds: `build-<tokens>` on the last version of a build; `checkpoint-<extent>` for checkpoints; and
`checkpoint-<extent>-run-<id>` for a run without a checkpoint so far. Each run removes its own tag, and no other.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError, StoreError, StoreReplaced
from lightning_lance.format.checksums import Root, stays, versions_on_list
from lightning_lance.format.commit import is_commit, read_commit
from lightning_lance.format.lance_io import data_files, dataset_at, lance_said, not_written, number_of, tags_to_write
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.refs import read_refs
from lightning_lance.lance_names import tag_file
from lightning_lance.location import StoreLocation
from lightning_lance.messages.redaction import shown_cause

_BUILD = "build-"
_CHECKPOINT = "checkpoint-"
_RUN = "-run-"
# Lance accepts more names, but cannot list them.
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_OURS = re.compile(r"build-(?P<tokens>\d+)|checkpoint-(?P<extent>\d+(-[0-9a-f]{8})?)(-run-[0-9a-f]+)?")
# Lance's errors. RuntimeError is about the file of a tag that it cannot read.
_LANCE_ERRORS = (ValueError, OSError, RuntimeError)


def checkpoint_tag(extent: StoreContent) -> str:
    """Return the name of the tag that keeps the data of checkpoints."""
    return f"{_CHECKPOINT}{extent.name}"


def run_tag(extent: StoreContent, run: str) -> str:
    """Return the name of the tag of a run without a checkpoint so far."""
    return f"{checkpoint_tag(extent)}{_RUN}{run}"


def is_ours(name: str) -> bool:
    """Return whether a name is one of this package's tags."""
    return _OURS.fullmatch(name) is not None


def is_of_a_run(name: str) -> bool:
    """Return whether a name is the tag of a run without a checkpoint so far. It goes when the run ends, unless it is killed."""
    return is_ours(name) and _RUN in name


def is_of_a_checkpoint(name: str) -> bool:
    """Return whether a name is the tag of a version that checkpoints go on with."""
    return is_ours(name) and name.startswith(_CHECKPOINT) and _RUN not in name


def means(name: str, commit: CommitMetadata) -> bool:
    """Return whether one of this package's tags is for a version with this commit, by its name alone."""
    ours = _OURS.fullmatch(name)
    if ours is None:
        return False
    return ours["extent"] == commit.extent.name or ours["tokens"] == str(commit.tokens)


def tag_version(
    dataset: Any, location: StoreLocation, extent: StoreContent, name: str | None = None, fingerprint: str | None = None
) -> bool:
    """Tag the open version permanently, unless the tag is on a version of equal content already.

    Versions of equal content have equal streams, so that tag serves as well; moving it would free the files of a version that
    others may read. A tag on any other version is moved: it may belong to an earlier store at this place.

    Args:
        dataset: The version.
        location: The store.
        extent: The content of the version.
        name: The name of the tag; None for `checkpoint-...`, named by the content.
        fingerprint: The fingerprint of the opened store; None accepts any.

    Returns:
        Whether a version of this content has the tag; False if a builder has removed the open version, or is about to.

    Raises:
        ConfigError: If the name is invalid.
        StoreReplaced: If another store was built at this place.
        StoreError: If the store cannot be written.
    """
    name = name or checkpoint_tag(extent)
    if not _NAME.fullmatch(name) or name.endswith(".lock"):
        raise ConfigError(f"The tag is {name!r}: expected letters, digits, '-', '_', and single dots between these.")
    opened = _Opened(dataset, location, extent, fingerprint)
    if opened.kept_by(name) is not None:
        return True
    # Other processes rely on a tag of this name, so it is made only once a run's tag keeps the version.
    run = secrets.token_hex(8)
    if not keep_for_run(dataset, location, extent, run, fingerprint):
        return False
    try:
        set_tag(dataset, name)
    except _LANCE_ERRORS as error:
        # Another rank may have been first.
        if opened.kept_by(name) is None:
            raise opened.not_tagged(error) from shown_cause(error)
    finally:
        untag(dataset, extent, run)
    return True


def keep_for_run(
    dataset: Any, location: StoreLocation, extent: StoreContent, run: str, fingerprint: str | None = None
) -> bool:
    """Tag the open version for a run, which removes the tag later.

    The run makes the tag first, and then checks whether a clean-up had decided before to remove the version. The clean-up
    decides first, and then checks the tags (`removal.clean_up`). So at least one of them sees the other.

    Args: as for `tag_version`, and
        run: Identifies the run; the same on all its ranks.

    Returns:
        Whether the version is kept; False if a builder has removed it, or is about to.

    Raises:
        StoreReplaced: If another store was built at this place.
        StoreError: If the store cannot be written.
    """
    opened = _Opened(dataset, location, extent, fingerprint)
    name = run_tag(extent, run)
    tagged = opened.kept_by(name)
    # Another rank was first.
    if tagged is not None:
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
    """Remove the tag of a run, if it exists and can be removed."""
    _remove(dataset, run_tag(extent, run))


def let_go_of_others(dataset: Any, location: StoreLocation, run: str, extents: Collection[StoreContent]) -> None:
    """Remove the tags of a run from all versions except those of some contents."""
    kept = {run_tag(extent, run) for extent in extents}
    with suppress(*_LANCE_ERRORS):
        for name in read_refs(location).tags:
            if name.endswith(f"{_RUN}{run}") and name not in kept:
                _remove(dataset, name)


class _Opened(NamedTuple):
    """An opened version; the arguments of `tag_version`."""

    dataset: Any
    location: StoreLocation
    extent: StoreContent
    fingerprint: str | None

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    def kept_by(self, name: str) -> int | None:
        """Return the version of a tag, if its content is the same; None if not, or if there is no such tag."""
        tagged = read_refs(self.location).tags.get(name)
        if tagged is not None and self._is_at(tagged):
            return tagged
        return None

    def is_there(self) -> bool:
        """Return whether the version exists. StoreReplaced if another store was built there, StoreError if none is left."""
        if self._is_at(self.version):
            return True
        check_not_replaced(self.location, self.fingerprint)
        if dataset_at(self.location, None) is None:
            raise self.not_tagged("the store is gone")
        return False

    def _is_at(self, version: int) -> bool:
        there = dataset_at(self.location, version)
        if there is None:
            return False
        # Other programs may have moved the rows of a version that they made.
        if version != self.version and not is_commit(there):
            return False
        commit = read_commit(there, self.location.uri)
        return commit.extent == self.extent and self.fingerprint in (None, commit.fingerprint)

    def stays(self, version: int) -> bool:
        """Return whether no clean-up is about to remove a version, in which case it would not see a new tag."""
        if stays(versions_on_list(self.location), version):
            return True
        # The newest version is never removed, whatever the list says: the list may be an old copy.
        return number_of(dataset_at(self.location, None)) == version

    def not_tagged(self, error: object) -> StoreError:
        """Return the error of a version that cannot be tagged."""
        return StoreError(
            f"Version {self.version} of the token store {self.location.uri!r} cannot be tagged ({lance_said(error)}): grant "
            "write access to the store, and try again."
        )


def check_not_replaced(location: StoreLocation, fingerprint: str | None) -> None:
    """Raise StoreReplaced if another store was built at this place since it was opened with `fingerprint`."""
    now = dataset_at(location, None)
    if fingerprint is None or now is None:
        return
    if read_commit(now, location.uri).fingerprint != fingerprint:
        raise replaced(location.uri)


def replaced(uri: str) -> StoreReplaced:
    """Return the error of a store that was replaced by another."""
    return StoreReplaced(
        f"The token store {uri!r} was replaced by one with other settings while it was read: run it again to read the new "
        "store, or build it at another uri."
    )


def _remove(dataset: Any, name: str) -> None:
    """Remove a tag, if it exists and can be removed."""
    with suppress(*_LANCE_ERRORS):
        dataset.tags.delete(name)


def keep_build(dataset: Any, uri: str) -> None:
    """Tag the last version of a build, so that the same budget finds the same tokens after the store has grown.

    Raises:
        StoreError: If the store cannot be written.
    """
    try:
        set_tag(dataset, _build_tag(dataset, uri))
    except _LANCE_ERRORS as error:
        raise not_written(uri, error) from shown_cause(error)


def lacks_build_tag(dataset: Any, location: StoreLocation) -> bool:
    """Return whether the open version lacks the tag of a build. Versions of other programs need none."""
    return is_commit(dataset) and _build_tag(dataset, location.uri) not in read_refs(location).tags


def build_tag_is_older(dataset: Any, location: StoreLocation) -> bool:
    """Return whether the build's tag is on an older version of the same files.

    Fencing off a killed builder makes a version once more. Processes that map the files of the older one keep them.
    """
    if not is_commit(dataset):
        return False
    tagged = read_refs(location).tags.get(_build_tag(dataset, location.uri))
    if tagged is None or tagged >= int(dataset.version):
        return False
    older = dataset_at(location, tagged)
    return (
        older is not None
        and is_commit(older)
        and read_commit(older, location.uri) == read_commit(dataset, location.uri)
        and data_files(older) == data_files(dataset)
    )


def _build_tag(dataset: Any, uri: str) -> str:
    return f"{_BUILD}{read_commit(dataset, uri).tokens}"


def set_tag(dataset: Any, name: str) -> None:
    """Make a tag, or move it. A tag with a damaged file is made again."""
    version = int(dataset.version)
    try:
        tags_to_write(dataset).create(name, version)
        return
    except _LANCE_ERRORS as error:
        if "already exists" not in str(error):
            raise
    try:
        tags_to_write(dataset).update(name, version)
    except _LANCE_ERRORS:
        if _is_readable(dataset, name):
            raise
        dataset.tags.delete(name)
        tags_to_write(dataset).create(name, version)


def _is_readable(dataset: Any, name: str) -> bool:
    try:
        dataset.tags.get_version(name)
    except _LANCE_ERRORS:
        return False
    return True


def retag(location: StoreLocation, purge: bool) -> list[str]:
    """Move the build's tag to the newest version after documents were forgotten, and untag older versions.

    With `purge`, all other tags of older versions are removed too. Return the removed tags. StoreError if that fails.
    """
    dataset = dataset_at(location, None)
    newest = read_commit(dataset, location.uri)
    build_tag = _build_tag(dataset, location.uri)
    session = Root(location)
    removed = []
    try:
        for name in tags_from_before(location, newest):
            if name == build_tag:
                tags_to_write(dataset).update(name, int(dataset.version))
            elif purge or name.startswith(_BUILD):
                session.delete_file(tag_file(name))
                removed.append(name)
        for name in read_refs(location).damaged:
            if name == build_tag:
                keep_build(dataset, location.uri)
            elif purge and is_ours(name):
                # It may keep a version with the documents, so it has to go.
                session.delete_file(tag_file(name))
                removed.append(name)
    except _LANCE_ERRORS as error:
        raise not_written(location.uri, error) from shown_cause(error)
    return sorted(removed)


def tags_from_before(location: StoreLocation, newest: CommitMetadata) -> list[str]:
    """Return the tags of versions with documents that the newest commit has forgotten."""
    found = []
    for name, version in read_refs(location).tags.items():
        before = dataset_at(location, version)
        if before is not None and read_commit(before, location.uri).extent.forgotten != newest.extent.forgotten:
            found.append(name)
    return sorted(found)
