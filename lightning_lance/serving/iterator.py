"""`BatchIterator`: one pass of a training loop over the batches of a `WindowLoader`."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from lightning_lance.errors import StoreError
from lightning_lance.serving.batches import Batch


class Served(Protocol):
    """What an iterator needs of its loader."""

    waited: float

    def _alone(self) -> AbstractContextManager[Any]: ...

    def _begin(self, iterator: BatchIterator) -> Generator[Batch, None, None]: ...

    def _check_turn(self, iterator: BatchIterator) -> None: ...


class BatchIterator(Iterator[Batch]):
    """The batches from a loader's position to the end of the epoch. Threads may share it: each batch is returned once.

    The iterator begins at its first `next` and then owns the loader's position. An older iterator of a resumable loader
    would repeat windows, so its next use raises.
    """

    def __init__(self, loader: Served) -> None:
        self._loader = loader
        self._process = os.getpid()
        self._lock = loader._alone()
        self._batches: Generator[Batch, None, None] | None = None
        self._turn = object()
        self._ended = False
        self._failure: BaseException | None = None

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            StoreError: If the windows cannot be read, the ranks disagree on the position, a newer iterator of the loader has
                taken over, or this process is a fork of the one that began the iterator.
        """
        if self._process != os.getpid():
            raise StoreError(
                f"This iterator belongs to process {self._process}, and its reading threads do not exist in the fork "
                f"{os.getpid()}: call iter() on the loader in this process."
            )
        began = time.perf_counter()
        with self._lock:
            try:
                return self._next()
            finally:
                self._loader.waited += time.perf_counter() - began

    def _next(self) -> Batch:
        if self._ended:
            raise StopIteration
        if self._failure is not None:
            cause = " ".join(f"{type(self._failure).__name__}: {self._failure}".split())
            raise StoreError(
                f"This iterator has failed before ({cause}): call iter() on the loader to continue after the last batch."
            ) from self._failure
        try:
            if self._batches is None:
                self._batches = self._loader._begin(self)
            self._loader._check_turn(self)
            return next(self._batches)
        except StopIteration:
            self._ended = True
            raise
        except BaseException as error:
            self._failure = error
            if self._batches is not None:
                self._batches.close()
            raise

    def close(self) -> None:
        """End the iterator and its reading threads."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._ended = True
            if self._batches is not None:
                self._batches.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise StoreError("An iterator of a WindowLoader cannot be copied: copy the loader, or its state_dict().")
