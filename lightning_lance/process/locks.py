"""Leases: one process at a time, on one machine or on a shared disk."""

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

# A holder without a heartbeat for this long is replaced if it is on another machine, or stopped. A dead process on this
# machine is replaced at once. Long enough for a slow shared disk; a wrong guess only costs work.
LEASE_SECONDS = 10.0
# The beginning of a lease file.
_LEASE = b"filelock/2\n"
# Lease files are shorter than this.
_LONGEST = 1 << 16
# Between two looks at a lease of another process.
POLL_SECONDS = 0.5


def lock_file(uri: str) -> Path | None:
    """Return the path of the lease of a store's builder; None for a bucket."""
    return beside(uri, "lock")


class Lease:
    """A file that names the working process, with a heartbeat from one of its threads.

    It needs neither locks of the operating system, which shared disks often lack, nor synchronized clocks: each waiting
    process measures the heartbeat by its own clock. It is advisory: a stopped holder that was replaced may resume, see `lost`.

    Args:
        path: The file; its folder is created. It exists only while the lease is held.

    Raises:
        ConfigError: If the folder cannot be created.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lost = threading.Event()
        self._blank: tuple[tuple[int, int], float] | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The folder {str(self._path.parent)!r} cannot be created ({error.strerror}): choose another place."
            ) from error
        # Several threads use the lease: its own reports a loss, and any thread may release it.
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
        """Try to take the lease without waiting. Returns whether this process holds it.

        Raises:
            StoreError: If the file cannot be written.
        """
        self._lost.clear()
        self._check_own()
        try:
            # The first try may only clear away what a holder that has died left: filelock before 4.2 does not take it then.
            if self._try() or self._try():
                return True
        except LeaseSettingsMismatch as error:
            raise self._not_own() from error
        except OSError as error:
            raise StoreError(
                f"The file {str(self._path)!r} cannot be written ({error.strerror}): free disk space or grant write access."
            ) from error
        except BaseException as error:
            if not _is_interrupt(error):
                raise
            # The signal may have come when the file was written already.
            self.release()
            raise KeyboardInterrupt from error
        self._remove_blank()
        return False

    def take_from_the_dead(self) -> bool:
        """Take the lease if its holder is dead. For a holder on another machine, wait for one missed heartbeat."""
        first = None
        while not self.take():
            with suppress(FileNotFoundError):
                sign = self._path.stat().st_mtime
                first = first or sign
                if sign != first or time.time() - sign < 2 * LEASE_SECONDS:
                    return False
            time.sleep(POLL_SECONDS)
        return True

    def release(self) -> None:
        """Release the lease. Does nothing if it was lost or is not held."""
        self._lease.release(force=True)

    def _try(self) -> bool:
        with suppress(Timeout):
            self._lease.acquire(blocking=False)
            return True
        return False

    def _check_own(self) -> None:
        """Raise StoreError for a file that is not a lease, such as Poetry's `poetry.lock` beside a store `poetry.lance`."""
        with suppress(OSError):  # there is no file, or `take` raises
            mode = self._path.lstat().st_mode
            mine = stat.S_ISREG(mode) and _begins_as_lease(self._path)
            if not mine and not stat.S_ISDIR(mode):  # for a folder, `take` raises
                raise self._not_own()

    def _not_own(self) -> StoreError:
        return StoreError(
            f"The file {str(self._path)!r} is not a lease of lightning-lance, which needs this path: move the file, or choose "
            "another place for the store."
        )

    def _remove_blank(self) -> None:
        """Remove a file that stays empty: its process was killed before writing to it, and filelock would wait forever."""
        with suppress(FileNotFoundError):
            found = self._path.stat()
            if found.st_size:
                self._blank = None
            elif self._blank is None or self._blank[0] != (found.st_ino, found.st_ctime_ns):
                self._blank = (found.st_ino, found.st_ctime_ns), time.monotonic()
            elif time.monotonic() - self._blank[1] > LEASE_SECONDS:
                self._path.unlink()


def _is_interrupt(error: BaseException) -> bool:
    """Return whether an error is Ctrl-C, or what filelock makes of one in the midst of its work: a group, or another error."""
    if isinstance(error, KeyboardInterrupt):
        return True
    if error.__context__ is not None and _is_interrupt(error.__context__):
        return True
    return any(map(_is_interrupt, getattr(error, "exceptions", ())))


def _begins_as_lease(path: Path) -> bool:
    """Return whether a file is a lease, or may become one: empty, or blank after a power cut."""
    with path.open("rb") as file:
        content = file.read(_LONGEST)
    return _LEASE.startswith(content[: len(_LEASE)]) or (len(content) < _LONGEST and not content.strip(b"\0"))


def seems_held(path: Path) -> bool:
    """Return whether a lease has a holder that has shown life lately, by the clocks of this machine and of the disk.

    For reports only: a look takes no time, but it may be wrong for some seconds. `Lease.take_from_the_dead` is sure.
    """
    try:
        found = path.stat()
        return stat.S_ISREG(found.st_mode) and found.st_size > 0 and time.time() - found.st_mtime < 2 * LEASE_SECONDS
    except OSError:
        return False


class LeaseWatch:
    """Observes the lease of a file without taking it or writing to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    @property
    def patience(self) -> float:
        """Seconds without a heartbeat after which a holder counts as dead. A waiting builder takes over earlier."""
        return 2 * LEASE_SECONDS

    def silence(self) -> float | None:
        """Return the seconds since the last heartbeat seen by this object; None if the lease is free."""
        try:
            found = self._path.stat()
        except OSError:
            self._seen = None
            return None
        now = time.monotonic()
        heartbeat = (found.st_ino, found.st_mtime_ns)
        if heartbeat != self._seen:
            self._seen = heartbeat
            self._since = now
        return now - self._since


@contextmanager
def exclusive(path: str | Path, what: str) -> Iterator[None]:
    """Hold a lease while the block runs; a process that waits for it logs `what` it is for, as in `training a tokenizer`."""
    lease = Lease(path)
    warned = False
    while not lease.take():
        if not warned:
            _log.warning("Another process is %s; waiting for it (file %s).", what, path)
            warned = True
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lease.release()


def content_of(path: Path) -> bytes:
    """Return the content of a regular file. A pipe, socket or device is not read, since that may block forever.

    Raises:
        OSError: If it cannot be read, or is not a regular file.
    """

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=opened) as file:  # Path.open takes no opener
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileExistsError(errno.EEXIST, "It is not a regular file", str(path))
        return file.read()
