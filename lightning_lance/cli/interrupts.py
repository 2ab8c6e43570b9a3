"""What Ctrl-C and SIGTERM do to a command: it cleans up and says how to go on; the second time it ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# For the thread that is first to say that the process ends.
_LAST_SECONDS = 1.0


class InterruptHandler:
    """While this is entered, both signals raise KeyboardInterrupt in the main thread; a second one ends the process at once.

    Attributes:
        received: The signal that came; None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._ending = threading.Lock()

    @property
    def exit_code(self) -> int:
        """What a shell gives for a process that the signal ended: 130 or 143."""
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
            # A command that was interrupted is at its end: nothing may hold it up any more.
            signal.signal(number, before if self.received is None else self._again)

    def _first(self, number: int, frame: FrameType | None) -> None:
        if signal.getsignal(number) != self._first:
            # Lightning has put a handler of its own in place, which calls this one too, and decides when to stop.
            self.received = self.received or number
        elif self.received is not None:
            self._again(number, frame)
        else:
            self.received = number
            self._watch()
            raise KeyboardInterrupt

    def _watch(self) -> None:
        """Let a thread see the second signal too: the main thread may be in a call that does not return to Python."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._wait_for_another, args=(read,), daemon=True).start()

    def _wait_for_another(self, read: int) -> None:
        while came := os.read(read, 1):
            # Of a handler that somebody else has put in place, the main thread knows.
            if came[0] in _SIGNALS and signal.getsignal(came[0]) in (self._first, self._again):
                self._again(came[0], None)

    def _again(self, number: int, frame: FrameType | None) -> None:
        if not self._ending.acquire(blocking=False):
            # The other thread ends the process; or this one, that a third signal has interrupted in it.
            threading.Event().wait(_LAST_SECONDS)
            os._exit(128 + number)
        # No clean-up, which may be what hangs: what is half-written goes with the next build, as after a kill.
        with contextlib.suppress(OSError):
            os.write(
                sys.__stderr__.fileno() if sys.__stderr__ else 2,
                b"interrupted again: stopped at once; what was committed is safe.\n",
            )
        os._exit(128 + number)


def _forget_wakeup() -> None:
    """Begin a forked process: a signal to it is none to its parent, whose pipe it has."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup)
