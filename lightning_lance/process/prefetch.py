"""An iterator that runs ahead of its consumer, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, TypeVar

Item = TypeVar("Item")

# Seconds to wait for the thread when the generator is closed.
_PATIENCE = 5.0
# Follows the last item.
_DONE = object()


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yield the items of an iterator that runs in a thread, `depth` items ahead.

    Its errors are raised here. Closing this generator closes the iterator and waits a few seconds for the thread to end, not
    longer, since it may be reading from a network that does not answer.
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
            # Items may be large: release this one before the next is made.
            del item
            if stop.is_set():
                break
        _put(ahead, (_DONE, None), stop)
    except BaseException as error:  # raised again in the consumer's thread
        _put(ahead, (None, error), stop)
    finally:
        if isinstance(items, Generator):
            items.close()


def _put(ahead: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(queue.Full):
            ahead.put(item, timeout=0.1)
            return
