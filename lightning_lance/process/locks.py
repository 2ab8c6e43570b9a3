"""One process at a time, on one machine or on a shared disk; and files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.location import beside
from lightning_lance.messages.escaping import logger

_log = logger(__name__)

# After so long without a sign of life, a holder on another machine (or one that is stopped) is replaced; one of this machine
# that has died is replaced at once. Long enough for a shared disk that hesitates: a wrong guess costs work, nothing else.
LEASE_SECONDS = 10.0
# How the file of a lease begins.
_LEASE = b"filelock/2\n"
# No lease has as many bytes.
_LONGEST = 1 << 16
# Between two looks at a lease that another process holds.
POLL_SECONDS = 0.5


def lock_file(uri: str) -> Path | None:
    """Give the file of the lease that keeps the builders of a store apart; a bucket has none."""
    return beside(uri, "lock")


class Lease:
    """A file that says who works, kept fresh by a thread of its holder, so that nobody waits for the dead.

    It needs no locks of the operating system, which shared disks often lack, and no clocks that agree: each waiter times the
    freshness by its own. It is a hint and no wall: a holder that was stopped and is replaced may come back, see `lost`.

    Args:
        path: The file; its folder is made. It is gone when nobody holds the lease.

    Raises:
        ConfigError: If the folder cannot be made.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lost = threading.Event()
        self._blank: tuple[tuple[int, int], float] | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The folder {str(self._path.parent)!r} cannot be made ({error.strerror}): choose another place."
            ) from error
        # Its thread tells of a loss, and whoever ends the build releases it, so the lease is not one thread's.
        self._lease = SoftFileLease(
            self._path,
            lease_duration=LEASE_SECONDS,
            heartbeat_interval=LEASE_SECONDS / 5,
            on_compromise=lambda _: self._lost.set(),
            thread_local=False,
        )

    @property
    def lost(self) -> bool:
        """Whether another process has taken over."""
        return self._lost.is_set()

    def take(self) -> bool:
        """Try to become the holder, without waiting.

        Raises:
            StoreError: If the file cannot be written.
        """
        self._lost.clear()
        self._check_own()
        try:
            self._lease.acquire(blocking=False)
        except Timeout:
            self._remove_blank()
            return False
        except LeaseSettingsMismatch as error:
            raise self._not_own() from error
        except OSError as error:
            raise StoreError(
                f"The file {str(self._path)!r} cannot be written ({error.strerror}): make room, or let this process write."
            ) from error
        return True

    def take_from_the_dead(self) -> bool:
        """Try to become the holder, and wait only where none has shown life for long: of another machine, nothing else tells.

        Raises:
            StoreError: If the file cannot be written.
        """
        first = None
        while not self.take():
            with suppress(FileNotFoundError):
                sign = self._path.stat().st_mtime
                first = sign if first is None else first
                if sign != first or time.time() - sign < 2 * LEASE_SECONDS:
                    return False
            time.sleep(POLL_SECONDS)
        return True

    def release(self) -> None:
        """Let others have it; nothing happens if it was lost, or is not held."""
        self._lease.release(force=True)

    def _check_own(self) -> None:
        """Refuse a file that is no lease: `poetry.lock` would be taken for that of a store `poetry.lance`, and removed."""
        try:
            mode = self._path.lstat().st_mode
            if stat.S_ISDIR(mode):  # it is told when it cannot be written
                return
            mine = stat.S_ISREG(mode) and _begins_as_lease(self._path)
        except FileNotFoundError:
            return
        except OSError:  # it is told when it cannot be written
            return
        if not mine:
            raise self._not_own()

    def _not_own(self) -> StoreError:
        return StoreError(
            f"The file {str(self._path)!r} is not the lease of a process at work here, and stands where one is needed: move it "
            "elsewhere, or give another place."
        )

    def _remove_blank(self) -> None:
        """Remove a file that stays empty: its maker was killed before it wrote a name, and filelock would wait for ever."""
        with suppress(FileNotFoundError):
            found = self._path.stat()
            if found.st_size:
                self._blank = None
            elif self._blank is None or self._blank[0] != (found.st_ino, found.st_ctime_ns):
                self._blank = (found.st_ino, found.st_ctime_ns), time.monotonic()
            elif time.monotonic() - self._blank[1] > LEASE_SECONDS:
                self._path.unlink()


def _begins_as_lease(path: Path) -> bool:
    """Tell whether a file is a lease, or an empty one, which may become one; or one that a power cut has left so."""
    with path.open("rb") as file:
        content = file.read(_LONGEST)
    return _LEASE.startswith(content[: len(_LEASE)]) or (len(content) < _LONGEST and not content.strip(b"\0"))


class LeaseWatch:
    """Looks at a lease from outside: takes nothing, and writes nothing.

    Args:
        path: The file of the lease.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    @property
    def patience(self) -> float:
        """Seconds of silence after which a holder is taken for dead; anybody who waits to build has taken over by then."""
        return 2 * LEASE_SECONDS

    def silence(self) -> float | None:
        """Tell for how many seconds the holder has shown no life, as far as this has looked; None if nobody holds it."""
        try:
            found = self._path.stat()
        except OSError:
            self._seen = None
            return None
        seen = (found.st_ino, found.st_mtime_ns)
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since


@contextmanager
def exclusive(path: str | Path, what: str) -> Iterator[None]:
    """Hold a lease while the block runs; other processes that come here wait, however long it takes.

    Args:
        path: The file of the lease; its folder is made.
        what: What is being done, for the message of those who wait.
    """
    lease, told = Lease(path), False
    while not lease.take():
        if not told:
            _log.warning("Another process is %s; waiting for it (file %s).", what, path)
            told = True
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lease.release()


def content_of(path: Path) -> bytes:
    """Read a file; of a pipe, a socket or a device, which may have nothing to give for ever, nothing is read.

    Raises:
        OSError: If it cannot be read, or is no file.
    """

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=opened) as file:  # a path's own way to open has no flags
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileExistsError(errno.EEXIST, "It is no file", str(path))
        return file.read()
