"""Tags of a run that trains: they keep the versions that it reads, until it is known whether a checkpoint needs them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from lightning_lance.store.token_store import TokenStore


class TrainingTags:
    """The versions of stores that this run has tagged, and that no checkpoint needs yet.

    Attributes:
        run: Name of the run, the same on all of its ranks.
    """

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)
        self._tagged: list[TokenStore] = []

    def keep_all(self, stores: Iterable[TokenStore]) -> bool:
        """Tag all of these versions. Return whether they were still there; if not, no tag of this run stays."""
        self._tagged = list(stores)
        for store in self._tagged:
            if not store.keep_for_training(self.run):
                self.remove()
                return False
        return True

    def keep(self, store: TokenStore) -> None:
        """Tag this version of a store, and no other version of it."""
        for other in list(self._tagged):
            if other.uri != store.uri:
                continue
            self._tagged.remove(other)
            if other.commit.extent != store.commit.extent:
                other.let_go()
        self._tagged.append(store)
        if not store.keep_for_training(self.run):
            # It goes, unless the tag of an earlier run's checkpoints names it.
            store.keep_for_checkpoints()

    def remove(self) -> None:
        """Take the tags away."""
        for store in self._tagged:
            store.let_go()
        self._tagged = []

    def keep_for_checkpoints(self, stores: Iterable[TokenStore] | None = None) -> None:
        """Leave these versions to checkpoints, which are saved by now or may be: all that were tagged, if none are given."""
        for store in self._tagged if stores is None else stores:
            store.keep_for_checkpoints()
        self._tagged = []

    def __bool__(self) -> bool:
        return bool(self._tagged)
