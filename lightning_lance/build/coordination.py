"""Whose turn it is to build a store: one process builds, those that ask for the same store meanwhile wait for it."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from lightning_lance.errors import StoreError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_tokens, pluralize
from lightning_lance.process.build_status import BuildStatus, StatusFile, failure_of, read_status
from lightning_lance.process.locks import POLL_SECONDS, Lease

_log = logger(__name__)

# Between two lines of a process that waits.
_TELL_SECONDS = 10.0
# How much longer than a commit may take those wait who can only see commits: the time of reading on and of writing.
COMMIT_MARGIN_SECONDS = 30.0


class BuildCoordinator(Protocol):
    """A process's part in the building of one store, from when it asks until the store is complete."""

    mine: bool
    """Whether this process builds."""

    @property
    def lost(self) -> bool:
        """Whether another process has taken over from this one."""

    def wait(self, commit: CommitMetadata | None) -> None:
        """Try to become the builder; if another one is, tell its progress, and wait a moment.

        Args:
            commit: The last commit of the store.

        Raises:
            SourceError: If the builder that was waited for failed because of the source.
            StoreError: If it failed for another cause.
        """

    def finishing(self) -> bool:
        """Wait a moment if another process has stored all and still tidies up, and tell whether it did so."""

    def progress(self, documents: int, tokens: int, share: float) -> None:
        """Tell those who wait how far this build is."""

    def conflict(self) -> None:
        """Another process has committed, so what this one has packed is not needed."""

    def failed(self, error: BaseException) -> None:
        """Tell those who wait why the build failed."""

    def __enter__(self) -> BuildCoordinator: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave it to others."""


class LeaseTurn:
    """The turn by a lease, for stores in folders, shared ones too; with a status file. See `BuildCoordinator`.

    Args:
        uri: The store.
        fingerprint: Of what is built.
        lock_file: Of the lease.
        status_file: Who builds, and how far it is.
    """

    def __init__(self, uri: str, fingerprint: str, lock_file: Path, status_file: Path) -> None:
        self._uri, self._fingerprint, self._status_file = uri, fingerprint, status_file
        self._lock_file = lock_file
        self._lease: Lease | None = None
        self._status: StatusFile | None = None
        self._told, self._next = False, 0.0
        # A failure from before is no reason not to try.
        self._before = read_status(status_file)
        self.mine = False

    @property
    def lost(self) -> bool:
        return self._lease is not None and self._lease.lost

    def wait(self, commit: CommitMetadata | None) -> None:
        if self._lease is None:
            self._lease = Lease(self._lock_file)
        taken = self._lease.take()
        status = read_status(self._status_file)
        if status is not None and status.failure and self._is_news(status):
            if taken:
                self._lease.release()
            raise failure_of(status, self._uri)
        if taken:
            # Before it has packed anything, it tells those who wait what is there.
            done = (0, 0) if commit is None else (commit.documents, commit.tokens)
            self._status = StatusFile(self._status_file, self._fingerprint, *done)
            self._status.begin()
            self.mine = True
            return
        now = time.monotonic()
        # A builder that has just begun has not yet written who it is.
        self._next = self._next or now + (0 if status else 4 * POLL_SECONDS)
        if now >= self._next or (status and not self._told):
            self._told, self._next = True, now + _TELL_SECONDS
            _log.warning("Another process builds %s; waiting for it (%s).", self._uri, status or self._lock_file)
        time.sleep(POLL_SECONDS)

    def finishing(self) -> bool:
        status = read_status(self._status_file)
        if self.mine or status is None or status.failure or status.fingerprint != self._fingerprint or status.share < 1:
            return False
        if not self._lock_file.exists():
            return False
        self._lease = self._lease or Lease(self._lock_file)
        try:
            if self._lease.take():  # it has died
                self._lease.release()
                return False
        except StoreError:  # who may only read waits for nobody
            return False
        time.sleep(POLL_SECONDS)
        return True

    def _is_news(self, status: BuildStatus) -> bool:
        seen_before = self._before is not None and self._before.failure is not None and self._before.run == status.run
        return status.fingerprint == self._fingerprint and not seen_before

    def progress(self, documents: int, tokens: int, share: float) -> None:
        if self._status is not None and not self.lost:
            self._status.update(documents, tokens, share)

    def conflict(self) -> None:
        if self.lost:
            _log.warning("Another process has taken over the build of %s, while this one stood still.", self._uri)
            self._leave()

    def failed(self, error: BaseException) -> None:
        if self._status is not None and not self.lost:
            self._status.failed(error)

    def _leave(self) -> None:
        if self._status is not None:
            self._status.remove()
        if self._lease is not None:
            self._lease.release()
        self.mine, self._status = False, None

    def __enter__(self) -> LeaseTurn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()


class CommitTurn:
    """The turn by commits, for stores in buckets, which have no leases: whoever loses a commit waits. See `BuildCoordinator`.

    Args:
        uri: The store.
        patience: Seconds without a commit after which the builder is taken for dead.
    """

    def __init__(self, uri: str, patience: float) -> None:
        self._uri, self._patience = uri, patience
        self._seen: CommitMetadata | None = None
        # When the store last grew, on this machine's clock, as far as this process saw; None before it lost a commit.
        self._since: float | None = None
        self._told: float | None = None
        self.mine = False

    @property
    def lost(self) -> bool:
        return False

    def wait(self, commit: CommitMetadata | None) -> None:
        now = time.monotonic()
        if self._since is None or (commit == self._seen and now - self._since > self._patience):
            self.mine = True
            return
        if commit != self._seen:
            self._seen, self._since = commit, now
        if self._told is None or now - self._told > _TELL_SECONDS:
            self._told = now
            done = (
                "nothing yet"
                if commit is None
                else f"{pluralize(commit.documents, 'document')}, {format_tokens(commit.tokens)}"
            )
            _log.warning("Another process builds %s; waiting for it (committed: %s).", self._uri, done)
        time.sleep(POLL_SECONDS)

    def finishing(self) -> bool:
        return False

    def progress(self, documents: int, tokens: int, share: float) -> None: ...

    def conflict(self) -> None:
        self.mine, self._seen, self._since, self._told = False, None, time.monotonic(), None

    def failed(self, error: BaseException) -> None: ...

    def __enter__(self) -> CommitTurn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
