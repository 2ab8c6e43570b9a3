"""Which process builds a store: one does, and the others that ask for the same store wait for it."""

from __future__ import annotations

import time
from pathlib import Path

from lightning_lance.errors import StoreError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_tokens, pluralize
from lightning_lance.process.build_status import BuildStatus, StatusFile, failure_of, read_status
from lightning_lance.process.locks import POLL_SECONDS, Lease

_log = logger(__name__)

# Between two log lines of a waiting process.
_LOG_SECONDS = 10.0
# A process that only sees commits waits this much longer than their interval: for reading and writing.
COMMIT_MARGIN_SECONDS = 30.0


class BuildCoordinator:
    """A process's part in the building of one store, from when it asks until the store is complete. Use as a context.

    Attributes:
        mine: Whether this process builds.
    """

    mine = False

    @property
    def lost(self) -> bool:
        """Whether another process has taken over from this one."""
        return False

    def wait(self, commit: CommitMetadata | None) -> None:
        """Try to become the builder; if another process is, log what it has committed, and wait a moment.

        Raises:
            SourceError: If that builder failed because of the source.
            StoreError: If it failed for another reason.
        """
        raise NotImplementedError

    def finishing(self) -> bool:
        """Wait a moment if another process has made the last commit and still cleans up. Return whether it does."""
        return False

    def progress(self, documents: int, tokens: int, share: float) -> None:
        """Publish the progress of this build to waiting processes."""

    def conflict(self) -> None:
        """Stop being the builder if another process has taken over, after a commit that conflicted with another."""

    def failed(self, error: BaseException) -> None:
        """Publish to waiting processes why the build failed."""

    def __enter__(self) -> BuildCoordinator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Let another process build."""


class LeaseTurn(BuildCoordinator):
    """The turn by a lease and a status file, for stores in folders, also on shared disks."""

    def __init__(self, uri: str, fingerprint: str, lock_file: Path, status_file: Path) -> None:
        self._uri = uri
        self._fingerprint = fingerprint
        self._status_file = status_file
        self._lock_file = lock_file
        self._lease: Lease | None = None
        self._status: StatusFile | None = None
        self._logged_builder = False
        self._next_log = 0.0
        # An earlier failure does not keep this process from trying.
        self._before = read_status(status_file)

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
            # Published before anything is packed, so that waiting processes see what is committed.
            committed = () if commit is None else (commit.documents, commit.tokens)
            self._status = StatusFile(self._status_file, self._fingerprint, *committed)
            self._status.begin()
            self.mine = True
            return
        now = time.monotonic()
        if not self._next_log and not status:
            # A builder that has just begun has not written its name yet.
            self._next_log = now + 4 * POLL_SECONDS
        if now >= self._next_log or (status and not self._logged_builder):
            self._logged_builder = True
            self._next_log = now + _LOG_SECONDS
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
            if self._lease.take():  # the builder has died
                self._lease.release()
                return False
        except StoreError:  # without write access there is no lease to wait for
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
            _log.warning("Another process has taken over the build of %s, while this process was stalled.", self._uri)
            self.leave()

    def failed(self, error: BaseException) -> None:
        if self._status is not None and not self.lost:
            self._status.failed(error)

    def leave(self) -> None:
        if self._status is not None:
            self._status.remove()
        if self._lease is not None:
            self._lease.release()
        self.mine = False
        self._status = None


class CommitTurn(BuildCoordinator):
    """The turn by commits, for stores in buckets, which have no leases: a process whose commit conflicts waits.

    After `patience` seconds without a commit, the builder is considered dead.
    """

    def __init__(self, uri: str, patience: float) -> None:
        self._uri = uri
        self._patience = patience
        self._seen: CommitMetadata | None = None
        # When this process last saw the store grow, by its own clock; None before its first conflict.
        self._since: float | None = None
        self._last_log: float | None = None

    def wait(self, commit: CommitMetadata | None) -> None:
        now = time.monotonic()
        if self._since is None or (commit == self._seen and now - self._since > self._patience):
            self.mine = True
            return
        if commit != self._seen:
            self._seen = commit
            self._since = now
        if self._last_log is None or now - self._last_log > _LOG_SECONDS:
            self._last_log = now
            done = "nothing yet"
            if commit is not None:
                done = f"{pluralize(commit.documents, 'document')}, {format_tokens(commit.tokens)}"
            _log.warning("Another process builds %s; waiting for it (committed: %s).", self._uri, done)
        time.sleep(POLL_SECONDS)

    def conflict(self) -> None:
        self.mine = False
        self._seen = None
        self._since = time.monotonic()
        self._last_log = None
