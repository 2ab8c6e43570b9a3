"""What this process has begun and nobody needs if it ends at once: files that no version has yet, and its lease.

A second Ctrl-C ends a process without its clean-up, which may be what hangs. What is known here goes all the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# How Lance names a file that it has not written to its end.
_HALF = ".tmp"
# Of all processes' file descriptors, Linux tells a process its own.
_OPEN = Path("/proc/self/fd")

_lock = threading.Lock()
_folders: list[Path] = []
_files: set[Path] = set()
_others: list[Callable[[], object]] = []


@contextmanager
def writing_in(folder: Path | None) -> Iterator[None]:
    """While this is entered, what Lance has half written in a folder is unfinished; None: there is no folder."""
    if folder is None:
        yield
        return
    with _lock:
        _folders.append(folder)
    try:
        yield
    finally:
        with _lock, suppress(ValueError):  # in a forked process it is its parent's
            _folders.remove(folder)


def begun(files: Iterable[Path]) -> None:
    """Take files for unfinished, until they are `settled`."""
    with _lock:
        _files.update(files)


def settled(files: Iterable[Path]) -> None:
    """Let files be: they are removed, or about to be committed. Never returns to who would commit what is being removed."""
    with _lock:
        _files.difference_update(files)


def at_the_end(undo: Callable[[], object]) -> None:
    """Call a function too if the process ends at once; the last first."""
    with _lock:
        _others.append(undo)


def no_longer(undo: Callable[[], object]) -> None:
    """Forget a function of `at_the_end`, if it was one."""
    with _lock, suppress(ValueError):
        _others.remove(undo)


def take_back_all(seconds: float) -> None:
    """Remove all that is unfinished, in so much time; for a process that ends right after it.

    Args:
        seconds: After which it is given up: a disk may hang.
    """
    # Whoever holds the lock may be the very thread that a signal has interrupted.
    thread = threading.Thread(target=_take_back_all, daemon=True)
    thread.start()
    thread.join(seconds)


def _take_back_all() -> None:
    # Never given back: from here on nothing that is removed can be committed.
    _lock.acquire()
    for file in [*_files, *_half_written()]:
        with suppress(OSError):
            file.unlink()
    for undo in reversed(_others):
        with suppress(Exception):
            undo()


def _forget_all() -> None:
    """Begin a forked process: what was begun is its parent's, and the lock may be held by a thread that is not here."""
    global _lock
    _lock = threading.Lock()
    _folders.clear()
    _files.clear()
    _others.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _half_written() -> list[Path]:
    """List files that this process has open, so that they can be no other's."""
    folders, found = {os.path.realpath(folder) for folder in _folders}, []
    with suppress(OSError):
        for link in _OPEN.iterdir():
            with suppress(OSError):
                file = link.readlink()
                if file.name.startswith(_HALF) and str(file.parent) in folders:
                    found.append(file)
    return found
