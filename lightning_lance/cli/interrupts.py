"""Handle Ctrl-C and SIGTERM: a command cleans up and says how to continue; a second signal ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Time for the first thread to print that the process ends.
_LAST_SECONDS = 1.0


class InterruptHandler:
    """A context in which both signals raise KeyboardInterrupt in the main thread; a second signal ends the process at once.

    Attributes:
        received: The first signal; None before it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._ending = threading.Lock()

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process ended by the signal: 130 or 143."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> InterruptHandler:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            # An interrupted command is about to end: another signal ends it at once.
            signal.signal(number, before if self.received is None else self._again)

    def _first(self, number: int, frame: FrameType | None) -> None:
        if signal.getsignal(number) != self._first:
            # Lightning has installed its own handler, which calls this one too, and decides when to stop.
            self.received = self.received or number
        elif self.received is not None:
            self._again(number, frame)
        else:
            self.received = number
            self._watch()
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Watch for a second signal in a thread: the main thread may be in a call that does not return to Python."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._wait_for_another, args=(read,), daemon=True).start()

    def _wait_for_another(self, read: int) -> None:
        while number := os.read(read, 1):
            # Handlers of others are called in the main thread.
            if number[0] in _SIGNALS and signal.getsignal(number[0]) in (self._first, self._again):
                self._again(number[0], None)

    def _again(self, number: int, frame: FrameType | None) -> None:
        if not self._ending.acquire(blocking=False):
            # The other thread is ending the process; or this thread is, and a third signal has interrupted it.
            threading.Event().wait(_LAST_SECONDS)
            os._exit(128 + number)
        # No clean-up, since it may hang: the next build removes unfinished files, as after a kill.
        with contextlib.suppress(OSError):
            stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
            os.write(stderr, b"interrupted again: stopped at once; all commits are safe.\n")
        os._exit(128 + number)


def _forget_wakeup() -> None:
    """Detach a forked process from its parent's pipe, so that its signals do not reach the parent."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup)
