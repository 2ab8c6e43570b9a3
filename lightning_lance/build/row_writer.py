"""Write rows into a data file while more are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from lightning_lance.errors import StoreError
from lightning_lance.format.commit import newest_at
from lightning_lance.format.lance_io import PendingFragments, dataset_at, delete_uncommitted, write_rows
from lightning_lance.lance_names import DATA
from lightning_lance.location import StoreLocation
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.process.memory import give_back

# Batches of rows that wait to be written, some megabytes each.
_WAITING = 1
# Between two checks that the writer was not abandoned.
_POLL_SECONDS = 0.1
_ABANDONED = "the rows of this commit were abandoned"


class RowWriter:
    """Writes rows to one data file, in a thread. Commits nothing: see `append_commit`.

    Args:
        location: The store.
        version: The version that the builder has seen last, 0 if there was none; None for any.
        fingerprint: The fingerprint of the store.
        schema: The schema of the rows.
        name: The name of the file, for a store with a version; None for one of Lance's.

    Raises:
        CommitConflict: If there is a newer version than that.
    """

    def __init__(
        self, location: StoreLocation, version: int | None, fingerprint: str, schema: pa.Schema, name: str | None = None
    ) -> None:
        self._location = location
        self._name = name
        self._schema = schema
        self._before = newest_at(location, version, fingerprint)
        self._rows: queue.Queue[pa.RecordBatch | None] = queue.Queue(_WAITING)
        self._result: Future[PendingFragments] = Future()
        self._abandoned = threading.Event()
        # Taken by the first call of `close` or `abandon`.
        self._ended = threading.Lock()
        # Not a daemon: if the process ends without closing the writer, the thread removes its file.
        threading.Thread(target=self._write, name="write").start()

    def _write(self) -> None:
        try:
            made = write_rows(self._location, self._before, self._schema, self._coming(), self._name)
            self._result.set_result(PendingFragments(self._before, self._schema, *made))
        except BaseException as error:  # raised by `put` or `close`
            self._result.set_exception(error)
        give_back()

    def _coming(self) -> Iterator[pa.RecordBatch]:
        # Lance removes a file whose rows end with an error.
        while not self._abandoned.is_set() and threading.main_thread().is_alive():
            with suppress(queue.Empty):
                rows = self._rows.get(timeout=_POLL_SECONDS)
                if rows is None:
                    return
                yield rows
        raise ValueError(_ABANDONED)

    def put(self, rows: pa.RecordBatch | None) -> None:
        """Queue rows for writing; None after the last. Waits if the disk is slower.

        Raises:
            CommitConflict: If writing failed because there is a newer version.
            StoreError: If the rows cannot be written, or could not be read again.
        """
        if rows is not None:
            _check_readable(rows, self._location.uri)
        while not self._result.done():
            with suppress(queue.Full):
                self._rows.put(rows, timeout=_POLL_SECONDS)
                return
        self._result.result()

    def close(self) -> PendingFragments:
        """Wait until all rows are written. The caller then commits or removes the file.

        Raises:
            CommitConflict: If writing fails because there is a newer version.
            StoreError: If the rows cannot be written.
            ValueError: If the writer was abandoned.
        """
        if not self._ended.acquire(blocking=False):
            raise ValueError(_ABANDONED)
        try:
            self.put(None)
            return self._result.result()
        except BaseException:
            _remove_empty(self._location.uri)
            raise

    def abandon(self) -> None:
        """Remove the file, unless the writer is closed."""
        if self._ended.acquire(blocking=False):
            # From here on the thread removes the file, even if the wait is interrupted.
            self._abandoned.set()
            wait([self._result])
            _remove_empty(self._location.uri)


def _check_readable(rows: pa.RecordBatch, uri: str) -> None:
    """Check that Lance can decode the rows that it writes: it would also write strings that are not UTF-8.

    Sources should not give any; the check costs a microsecond for each document.
    """
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise StoreError(
            f"Rows for the token store {uri!r} are not valid ({in_one_line(error, 200)}) and were not stored: all strings "
            "in the documents of a source must be UTF-8."
        ) from error


def forget_written(location: StoreLocation, written: PendingFragments) -> None:
    """Remove the files that were written, except those that are part of the newest version."""
    delete_uncommitted(location, written.files, [written.before, dataset_at(location, None)])
    _remove_empty(location.uri)


def _remove_empty(uri: str) -> None:
    if "://" not in uri:
        for folder in (Path(uri, DATA), Path(uri)):
            with suppress(OSError):  # a folder that is not empty holds a store
                folder.rmdir()
