"""Blocks for a forked process, in which Lance cannot run: a process of its own takes them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe

import numpy as np

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import data_files, dataset_at, lance_said, take_blocks


class ForkedReader:
    """Takes blocks of a store by way of a fresh process, which ends with this object or with the process that has it.

    Lance's threads do not live on in a forked process, and those that it starts there sometimes crash it.

    Args:
        uri: The store.
        version: Its version.
        storage_options: As for `TokenStore.open`.
        files: Data files of that version, since another store may have been built there; None if it can be no other.
    """

    def __init__(
        self,
        uri: str,
        version: int,
        storage_options: Mapping[str, str] | None,
        files: Sequence[str] | None = None,
    ) -> None:
        self._pipe, theirs = Pipe()
        command = f"from lightning_lance.store.fork_reader import serve; serve({theirs.fileno()})"
        with theirs:
            # Not of the terminal's group: Ctrl-C is for those who ask.
            process = subprocess.Popen(
                [sys.executable, "-c", command],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._uri = uri
        self._end = weakref.finalize(self, _end, self._pipe, process, os.getpid())
        self._pipe.send((uri, version, files, dict(storage_options or {})))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Give the tokens of rows, as (n, block). StoreError if they cannot be read."""
        try:
            with self._lock:
                self._pipe.send(rows)
                answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise StoreError(
                f"The process that reads the token store {self._uri!r} for a forked one has ended: start workers by "
                "'forkserver' or 'spawn' instead."
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return np.asarray(answer)


def _end(pipe: Connection, process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        pipe.close()  # a fork of the process that asks: the reader goes on for that one
        return
    # A fork may hold its end of the pipe open, so that closing this one would end nothing.
    with contextlib.suppress(OSError):
        pipe.send(None)
    pipe.close()
    process.wait()


def serve(descriptor: int) -> None:
    """Answer one `ForkedReader` until it is gone."""
    with Connection(descriptor) as pipe:
        uri, version, files, storage_options = pipe.recv()
        dataset = None
        while True:
            try:
                rows = pipe.recv()
            except EOFError:
                return
            if rows is None:
                return
            try:
                if dataset is None:
                    dataset = dataset_at(uri, version, storage_options)
                    if dataset is None or files not in (None, data_files(dataset)):
                        dataset = None
                        raise StoreError(
                            f"Version {version} of the token store {uri!r} cannot be read in a forked process any more: it "
                            "was removed meanwhile; start the workers again."
                        )
                pipe.send(take_blocks(dataset, rows))
            except StoreError as error:
                pipe.send(error)
            except Exception as error:  # of whatever kind: who asked raises it
                pipe.send(StoreError(f"The token store {uri!r} cannot be read: {lance_said(error)}"))
