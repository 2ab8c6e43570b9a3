"""Wait for a store that another process builds."""

from __future__ import annotations

import time

from lightning_lance.errors import StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import StoreLocation, store_place
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize
from lightning_lance.process.build_status import BuildStatus, failure_of, read_status, status_file
from lightning_lance.process.locks import LeaseWatch, lock_file

_log = logger(__name__)

# Between two checks of the store.
_POLL_SECONDS = 1.0
# Between two log lines, if nothing changes.
_LOG_SECONDS = 60.0
# After a failed build, a new builder has this long to begin.
_BEGIN_SECONDS = 60.0


def wait_for(location: StoreLocation, tokens: int) -> None:
    """Wait until a build in another process has committed some number of tokens, or its whole source.

    The state of the build is logged when it changes, and every minute.

    Raises:
        SourceError: If the build fails because of its source; or had failed before, and no other begins within a minute.
        StoreError: If it fails, or had failed, for another reason; or if its process is gone, and no other takes over.
    """
    location = StoreLocation(store_place(location.uri), location.storage_options)
    waiting = _Waiting(location.uri, tokens)
    began = time.monotonic()
    file = status_file(location.uri)
    before = status = read_status(file)
    while True:
        commit = last_commit(location)
        if commit is not None and (commit.tokens >= tokens or commit.exhausted):
            return
        if status is not None and status.failure:
            known = before is not None and before.failure is not None and before.run == status.run
            if not known or time.monotonic() - began > _BEGIN_SECONDS:
                raise failure_of(status, location.uri)
        waiting.look(commit, status)
        time.sleep(_POLL_SECONDS)
        # Read before the commits, so that a failure is seen after the last commit of the build.
        status = read_status(file)


class _Waiting:
    """Logs the state of a build in another process, and notices if that process is gone."""

    def __init__(self, uri: str, tokens: int) -> None:
        lock = lock_file(uri)
        self._uri = uri
        self._tokens = tokens
        self._watch = None if lock is None else LeaseWatch(lock)
        self._committed = -1
        self._last_growth = time.monotonic()
        self._last_log = time.monotonic()
        self._state: str | None = None

    def look(self, commit: CommitMetadata | None, status: BuildStatus | None) -> None:
        """Check the store and its builder, and log changes. StoreError if the builder is gone for good."""
        now = time.monotonic()
        committed = 0 if commit is None else commit.tokens
        grown = committed != self._committed
        if grown:
            self._last_growth = now
        gone = False
        state = ""
        if self._watch is None:
            minutes = int((now - self._last_growth) / 60)
            if minutes:
                state = f", the last of them {pluralize(minutes, 'minute')} ago or more"
        else:
            silence = self._watch.silence()
            if silence is not None and silence > 2 * self._watch.patience:
                raise StoreError(
                    f"The token store {self._uri!r} has {committed:,} of the {self._tokens:,} tokens that wait_for_tokens asks "
                    f"for, and its builder ({_builder(status)}) has shown no sign of life for {silence:.0f} seconds: run "
                    "'lightning-lance prepare' again to continue after the last commit, and start this again."
                )
            gone = silence is not None and silence > self._watch.patience
            if silence is None:
                state = ", and no process builds it: run 'lightning-lance prepare' for it"
            elif gone:
                state = f", and its builder ({_builder(status)}) shows no sign of life"
        if grown or now - self._last_log > _LOG_SECONDS or (gone and state != self._state):
            _log.warning(
                "Waiting for the store %s: %s of %s tokens are committed%s.",
                self._uri,
                f"{committed:,}",
                f"{self._tokens:,}",
                state,
            )
            self._committed = committed
            self._last_log = now
            self._state = state


def _builder(status: BuildStatus | None) -> str:
    if status is None:
        return "not known yet"
    return status.builder
