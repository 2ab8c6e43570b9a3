"""Rows on their way into a data file while more of them are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from lightning_lance.errors import StoreError
from lightning_lance.format.commit import newest_at
from lightning_lance.format.lance_io import PendingFragments, dataset_at, delete_uncommitted, write_rows
from lightning_lance.format.lance_names import DATA
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.process.memory import give_back

# Batches of rows that wait to be written: some megabytes each.
_WAITING = 1
# Between two looks at whether there is still anybody who gives rows.
_LOOK_SECONDS = 0.1
_GIVEN_UP = "what was written was given up"


class RowWriter:
    """Writes rows as they come into one data file, in a thread. Nothing is committed: see `append_commit`.

    Args:
        uri: The store.
        version: The version that the builder has seen last, 0 if there was none.
        fingerprint: Of the store.
        schema: Of the rows.
        storage_options: Credentials and such for object stores.

    Raises:
        CommitConflict: If there is another version by now.
    """

    def __init__(
        self, uri: str, version: int, fingerprint: str, schema: pa.Schema, storage_options: Mapping[str, str] | None
    ) -> None:
        self._uri, self._schema, self._storage_options = uri, schema, storage_options
        self._before = newest_at(uri, version, storage_options, fingerprint)
        self._rows: queue.Queue[pa.RecordBatch | None] = queue.Queue(_WAITING)
        self._result: Future[PendingFragments] = Future()
        self._given_up = threading.Event()
        # Held by whichever of `close` and `abandon` came first.
        self._ended = threading.Lock()
        # No daemon: at the end of the process it removes its file, should nobody have closed this.
        threading.Thread(target=self._write, name="write").start()

    def _write(self) -> None:
        try:
            made = write_rows(self._uri, self._before, self._schema, self._coming(), self._storage_options)
            self._result.set_result(PendingFragments(self._before, self._schema, *made))
        except BaseException as error:  # it belongs to who gave the rows
            self._result.set_exception(error)
        give_back()

    def _coming(self) -> Iterator[pa.RecordBatch]:
        # Lance removes a file whose rows end with an error.
        while not self._given_up.is_set() and threading.main_thread().is_alive():
            with suppress(queue.Empty):
                rows = self._rows.get(timeout=_LOOK_SECONDS)
                if rows is None:
                    return
                yield rows
        raise ValueError(_GIVEN_UP)

    def put(self, rows: pa.RecordBatch | None) -> None:
        """Take rows; None after the last. Waits where the disk is slower.

        Raises:
            CommitConflict: If writing failed since there is another version by now.
            StoreError: If it cannot be written, or could not be read again.
        """
        if rows is not None:
            _check_readable(rows, self._uri)
        while not self._result.done():
            with suppress(queue.Full):
                self._rows.put(rows, timeout=0.1)
                return
        self._result.result()

    def close(self) -> PendingFragments:
        """Wait until all is written. What becomes of the file then is the caller's affair.

        Raises:
            CommitConflict: If that fails since there is another version by now.
            StoreError: If it cannot be written.
            ValueError: If it was abandoned.
        """
        if not self._ended.acquire(blocking=False):
            raise ValueError(_GIVEN_UP)
        try:
            self.put(None)
            return self._result.result()
        except BaseException:
            _remove_empty(self._uri)
            raise

    def abandon(self) -> None:
        """Leave nothing of it behind, if it is not closed."""
        if self._ended.acquire(blocking=False):
            # From here on that is done, whether or not it is waited for.
            self._given_up.set()
            wait([self._result])
            _remove_empty(self._uri)


def _check_readable(rows: pa.RecordBatch, uri: str) -> None:
    """Refuse rows that Lance would write and never decode again, such as strings that are not UTF-8.

    No source should give any; it costs a microsecond for each document to be sure.
    """
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise StoreError(
            f"Rows for the token store {uri!r} are not valid ({in_one_line(error, 200)}), so none of them was "
            "stored: a source must give documents whose strings are all UTF-8."
        ) from error


def forget_written(uri: str, written: PendingFragments, storage_options: Mapping[str, str] | None) -> None:
    """Remove what was written, but for what has become part of the newest version."""
    delete_uncommitted(uri, written.files, [written.before, dataset_at(uri, None, storage_options)], storage_options)
    _remove_empty(uri)


def _remove_empty(uri: str) -> None:
    if "://" not in uri:
        for folder in (Path(uri, DATA), Path(uri)):
            with suppress(OSError):  # where it isn't empty, there is a store
                folder.rmdir()
