"""Waiting for a store that another process builds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from lightning_lance.errors import StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import store_place
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize
from lightning_lance.process.build_status import BuildStatus, failure_of, read_status, status_file
from lightning_lance.process.locks import LeaseWatch, lock_file

_log = logger(__name__)

# Between two looks at a store that another process builds.
_POLL_SECONDS = 1.0
# Between two lines that say what is waited for, where nothing changes.
_TELL_SECONDS = 60.0
# A builder that failed and is started again may begin after the run that waits for it.
_BEGIN_SECONDS = 60.0


def wait_for(uri: str, tokens: int, storage_options: Mapping[str, str] | None = None) -> None:
    """Wait until a build that runs elsewhere has committed so many tokens, or all that its source has.

    What it waits for is told whenever that changes, and every minute.

    Args:
        uri: The store, as `store_place` gives it.
        tokens: How many.
        storage_options: Credentials and such for an object store.

    Raises:
        SourceError: If that build fails because of its source; or had failed before, and no other begins within a minute.
        StoreError: If it fails, or had failed, for another cause; or if its process is gone, and no other takes over.
    """
    uri = store_place(uri)
    file, began, waiting = status_file(uri), time.monotonic(), _Waiting(uri, tokens)
    before = status = read_status(file) if file else None
    while True:
        commit = last_commit(uri, storage_options=storage_options)
        if commit is not None and (commit.tokens >= tokens or commit.exhausted):
            return
        if status is not None and status.failure:
            known = before is not None and before.failure is not None and before.run == status.run
            if not known or time.monotonic() - began > _BEGIN_SECONDS:
                raise failure_of(status, uri)
        waiting.look(commit, status)
        time.sleep(_POLL_SECONDS)
        # Before the commits: those of a build that failed are all there then.
        status = read_status(file) if file else None


class _Waiting:
    """Tells what a process waits for that builds nothing itself, and whether there is still somebody to wait for."""

    def __init__(self, uri: str, tokens: int) -> None:
        lock = lock_file(uri)
        self._uri, self._tokens = uri, tokens
        self._watch = None if lock is None else LeaseWatch(lock)
        self._committed = -1
        self._grown = self._told = time.monotonic()
        self._who: str | None = None

    def look(self, commit: CommitMetadata | None, status: BuildStatus | None) -> None:
        """Look at the store and its builder, and say what there is to say. StoreError if the builder is gone for good."""
        now = time.monotonic()
        committed = 0 if commit is None else commit.tokens
        silence = None if self._watch is None else self._watch.silence()
        patience = math.inf if self._watch is None else self._watch.patience
        gone = silence is not None and silence > patience
        if silence is not None and silence > 2 * patience:
            raise StoreError(
                f"The token store {self._uri!r} has {committed:,} of the {self._tokens:,} tokens that min_tokens asks for, and "
                f"its builder ({_builder(status)}) has shown no sign of life for {silence:.0f} seconds: run "
                "'lightning-lance prepare' again, it goes on after the last commit, and start this again."
            )
        if committed != self._committed:
            self._grown = now
        who = self._builder_told(status, silence, gone, now)
        due = now - self._told > _TELL_SECONDS
        if committed != self._committed or due or (gone and who != self._who):
            _log.warning(
                "Waiting for the store %s: %s of %s tokens are committed%s.",
                self._uri,
                f"{committed:,}",
                f"{self._tokens:,}",
                who,
            )
            self._committed, self._told, self._who = committed, now, who

    def _builder_told(self, status: BuildStatus | None, silence: float | None, gone: bool, now: float) -> str:
        if self._watch is None:
            minutes = int((now - self._grown) / 60)
            return f", the last of them {pluralize(minutes, 'minute')} ago or more" if minutes else ""
        if silence is None:
            return ", and no process builds it: run 'lightning-lance prepare' for it"
        return f", and its builder ({_builder(status)}) shows no sign of life" if gone else ""


def _builder(status: BuildStatus | None) -> str:
    return "which has not told who it is" if status is None else status.builder
