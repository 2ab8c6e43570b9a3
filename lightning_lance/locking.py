"""One process at a time, on one machine or on a shared disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_lance.errors import ConfigError

_log = logging.getLogger(__name__)


@contextmanager
def only_one(path: str | Path, what: str) -> Iterator[None]:
    """Hold a lock file while the block runs; other processes that come here wait, however long it takes.

    The operating system drops the lock when its holder dies, so a killed process leaves nothing behind that blocks.

    Args:
        path: The lock file; its folder is made.
        what: What is being done, for the message of those who wait.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {str(path.parent)!r} cannot be made ({error.strerror}): choose another place."
        ) from error
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        _log.warning("Another process is %s; waiting for it (lock file %s).", what, path)
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()
