"""The tags of an open version, by which it stays: one with a name, one of a training run, one of the run's checkpoints."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from lightning_lance.errors import StoreError, StoreReplaced
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.own_files import check_no_links
from lightning_lance.format.tags import keep_for_run, let_go_of_others, tag_version, untag
from lightning_lance.location import StoreLocation
from lightning_lance.messages.escaping import logger

_log = logger(__name__)


class VersionTags:
    """Tags a version; see the methods of `TokenStore`.

    Args:
        location: The store.
        dataset: The open version.
        extent: Its content.
        fingerprint: The fingerprint of the store.

    Attributes:
        run: The id of the training run in its tag.
    """

    def __init__(self, location: StoreLocation, dataset: Any, extent: StoreContent, fingerprint: str) -> None:
        self.run = secrets.token_hex(8)
        self._location = location
        self._dataset = dataset
        self._extent = extent
        self._fingerprint = fingerprint
        # Whether the version has the tag of the run, and that of its checkpoints.
        self._kept = False
        self._kept_for_checkpoints = False

    def keep(self, name: str | None) -> bool:
        """Tag the version by a name. Return whether it is kept."""
        check_no_links(self._location.uri)
        return tag_version(self._dataset, self._location, self._extent, name, self._fingerprint)

    def keep_for_training(self) -> bool:
        """Tag the version for the run. Return whether it is kept. Log a warning if the tag cannot be written."""
        if self._kept:
            return True
        try:
            check_no_links(self._location.uri)
            self._kept = keep_for_run(self._dataset, self._location, self._extent, self.run, self._fingerprint)
        except StoreReplaced:
            raise
        except StoreError as error:
            self._kept = True
            _warn_not_kept(str(error))
        return self._kept

    def keep_for_checkpoints(self) -> None:
        """Replace the tag of the run by one for its checkpoints. Log a warning if that fails."""
        if self._kept_for_checkpoints:
            return
        self._kept_for_checkpoints = True
        try:
            if not self.keep(None):
                _warn_not_kept(
                    f"Version {self._dataset.version} of the token store {self._location.uri!r} was removed."
                )
        except StoreError as error:
            _warn_not_kept(str(error))
        else:
            untag(self._dataset, self._extent, self.run)

    def let_go(self) -> None:
        """Remove the tag of the run."""
        if self._kept:
            untag(self._dataset, self._extent, self.run)
            self._kept = False

    def let_go_of_others(self, extents: Collection[StoreContent]) -> None:
        """Remove the tags of the run from all versions of the store except those of some contents."""
        let_go_of_others(self._dataset, self._location, self.run, extents)


def _warn_not_kept(why: str) -> None:
    _log.warning(
        "%s. A clean-up may remove the version, which the run and its checkpoints need.", why.removesuffix(".")
    )
