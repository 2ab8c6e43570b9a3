"""An iterator that runs ahead of its consumer, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, TypeVar

Item = TypeVar("Item")

# Seconds for an item to come to its end when nobody wants it any more.
_PATIENCE = 5.0
# Comes after the last item.
_DONE = object()


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Run an iterator in a thread, `depth` items ahead.

    What it raises is raised here. Closing this generator closes it, and waits until its thread has ended, but no longer than a
    few seconds: it may be reading from a network that does not answer.

    Args:
        items: The iterator.
        depth: How many items to hold ready.
    """
    ahead: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_run, args=(items, ahead, stop), name="read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ahead.get()
            if error is not None:
                raise error
            if item is _DONE:
                return
            taken = [item]
            del item
            yield taken.pop()
    finally:
        stop.set()
        thread.join(_PATIENCE)


def _run(items: Iterator[Any], ahead: queue.Queue[Any], stop: threading.Event) -> None:
    try:
        for item in items:
            _put(ahead, (item, None), stop)
            # Items may be large: none is kept here while the next one is made.
            del item
            if stop.is_set():
                break
        _put(ahead, (_DONE, None), stop)
    except BaseException as error:  # it belongs to the thread that asked
        _put(ahead, (None, error), stop)
    finally:
        if isinstance(items, Generator):
            items.close()


def _put(ahead: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(queue.Full):
            ahead.put(item, timeout=0.1)
            return
