"""Copies of a remote store's data files on a local disk, made in the background and shared by the processes of a machine.

All processes that are given one folder share it. Whoever holds its lock makes room and copies one file; the others look now
and then for what has arrived. The lock is the operating system's, so that of a dead process is free at once. A process holds
a shared lock on each copy for as long as it has it mapped, so a copy that can be locked for itself is unused.
"""

from __future__ import annotations

import atexit
import errno
import mmap
import os
import re
import secrets
import shutil
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import xxhash
from filelock import FileLock, Timeout

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.lance_io import data_session, lance_said
from lightning_lance.format.layout import DataFileInfo
from lightning_lance.location import StoreLocation
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize

_log = logger(__name__)

# The copies lie in this folder of the one that is given, so that no file of others is among them.
FOLDER = "lightning-lance-stage"
_LOCK = "lock"
# Name, size and hash of the original.
_COPY = re.compile(r"(?P<name>[0-9A-Za-z_-]{1,120})\.(?P<size>\d{1,16})\.(?P<hash>[0-9a-f]{16})\.copy")
_PART = re.compile(rf"{_COPY.pattern}\.[0-9a-f]{{16}}\.part")
# A copier reads so many pieces of a file at once, of so many bytes each.
_PIECES_AT_ONCE = 4
_PIECE_BYTES = 8 << 20
# Between two looks for copies that others have made.
_LOOK_SECONDS = 0.5
# Between two attempts to make room, while others use all of it.
_ROOM_SECONDS = 30.0
# Waits after failures in a row to read the store.
_WAITS = (1.0, 5.0, 15.0, 60.0)
# Copies are passed on to the store after so many times the time that this took the last time.
_TELLING_SHARE = 10
# Bytes of the disk that stay free.
_SPARE_BYTES = 64 << 20


class Copy(NamedTuple):
    """A copy that this process has mapped.

    Attributes:
        path: Its place.
        map: The map, which keeps others from removing the copy.
    """

    path: Path
    map: mmap.mmap


class _NotRead(Exception):  # noqa: N818 - never leaves this module
    """A file of the store cannot be read."""


class _Stopped(Exception):  # noqa: N818 - never leaves this module
    """The copying is to end."""


def copy_name(file: str, info: DataFileInfo) -> str:
    """Return the name of the copy of a data file. It says what is in it, so equal names are equal contents."""
    return f"{file.removesuffix('.lance')}.{info.size}.{info.whole}.copy"


class Staging:
    """Copies the data files of one version of a store, in a thread of its own.

    Args:
        location: The store.
        files: The descriptions of its data files, by name, in the order in which they are copied.
        folder: A folder of a local disk.
        max_bytes: Most bytes of copies in that folder; None for no bound.
        arrived: Called in the thread with all copies that are there, by name, as they become more.

    Raises:
        ConfigError: If the folder cannot be used.
    """

    def __init__(
        self,
        location: StoreLocation,
        files: Mapping[str, DataFileInfo],
        folder: str,
        max_bytes: int | None,
        arrived: Callable[[dict[str, Copy]], None],
    ) -> None:
        self._location = location
        self._files: dict[str, DataFileInfo] = {}
        for name, info in files.items():
            if _COPY.fullmatch(copy_name(name, info)):
                self._files[name] = info
        self._folder = _made(folder)
        self._max_bytes = max_bytes
        self._arrived = arrived
        self._copies: dict[str, Copy] = {}
        self._told = 0
        self._tell_from = 0.0
        self._stop = threading.Event()
        self._lock = FileLock(self._folder / _LOCK, mode=0o600, thread_local=False)
        self._failures = 0
        self._warned: set[str] = set()
        self._began = time.monotonic()
        self._copied_bytes = 0
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to copy, once. Does nothing in a fork, which shares the copies that were mapped before."""
        if self._thread is not None or self._process != os.getpid():
            return
        with self._starting:
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._run, name="stage", daemon=True)
                _running.add(self)
                thread.start()
                self._thread = thread

    def stop(self) -> None:
        """End the copying, without waiting for it."""
        self._stop.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the thread has ended. Return whether it has."""
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._step():
                pass
        except _Stopped:
            pass
        except Exception as error:
            with suppress(Exception):
                self._tell(last=True)
            cause = error.strerror if isinstance(error, OSError) and error.strerror else lance_said(error)
            self._warn(
                "ended", f"is copied no further to {str(self._folder)!r} ({cause}); the rest is read from the store"
            )

    def _step(self) -> bool:
        """Look for copies of others, and make one. Return whether there is more to do."""
        missing = self._look()
        if not missing:
            self._tell(last=True)
            self._tell_end()
            return False
        wait = _LOOK_SECONDS
        with self._alone() as alone:
            if alone:
                # Another process may have made it while this one waited.
                missing = self._look()
                wait = self._copy_first(missing) if missing else 0.0
        self._tell()
        self._stop.wait(wait)
        return True

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock of the folder. Gives whether it was free."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            self._lock.release()

    def _look(self) -> dict[str, DataFileInfo]:
        """Map the copies that have arrived. Return the files that are still missing."""
        missing = {}
        for name, info in self._files.items():
            if name in self._copies:
                continue
            path = self._folder / copy_name(name, info)
            found = _mapped(path, info.size)
            if found is None:
                missing[name] = info
            else:
                self._copies[name] = Copy(path, found)
        return missing

    def _copy_first(self, missing: Mapping[str, DataFileInfo]) -> float:
        """Copy the first missing file for which there is room. Return the seconds to wait after that."""
        for left in self._folder.iterdir():
            # Only who holds the lock writes, so its writer is dead.
            if _PART.fullmatch(left.name):
                left.unlink()
        smallest = min(missing, key=lambda name: missing[name].size)
        for name in dict.fromkeys([next(iter(missing)), smallest]):
            if self._make_room(missing[name].size):
                return self._copy(name, missing[name])
        if self._max_bytes is None or self._free() < missing[smallest].size + _SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        return _ROOM_SECONDS

    def _copy(self, name: str, info: DataFileInfo) -> float:
        try:
            self._write(name, info)
        except _NotRead as error:
            said = str(error)
            if "not found" in said.lower():
                # A builder has merged the files of this version.
                del self._files[name]
                return 0.0
            self._warn("network", f"cannot be copied to {str(self._folder)!r} now ({said}); trying again")
            self._failures += 1
            return _WAITS[min(self._failures, len(_WAITS)) - 1]
        self._failures = 0
        # Mapped under the lock, so that nobody takes it for unused.
        self._look()
        return 0.0

    def _write(self, name: str, info: DataFileInfo) -> None:
        """Copy one file, under another name until it is whole."""
        path = self._folder / copy_name(name, info)
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        digest = xxhash.xxh3_64()
        try:
            with _private(part) as file, closing(self._pieces(name, info.size)) as pieces:
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                # A power cut must not leave the name without the content.
                os.fsync(file.fileno())
            if part.stat().st_size != info.size or digest.hexdigest() != info.whole:
                del self._files[name]
                self._warn(
                    "damaged",
                    f"has a damaged data file ({name}), which is not copied: 'lightning-lance verify' lists it",
                )
                return
            part.replace(path)
            self._copied_bytes += info.size
        finally:
            part.unlink(missing_ok=True)

    def _pieces(self, name: str, size: int) -> Generator[bytes, None, None]:
        """Read a file of the store in pieces, some of them at once."""
        try:
            session = data_session(self._location)
        except StoreError as error:
            raise _NotRead(str(error)) from error
        begins = iter(range(0, size, _PIECE_BYTES))
        pool = ThreadPoolExecutor(_PIECES_AT_ONCE, thread_name_prefix="stage")

        def read(begin: int) -> bytes:
            return bytes(session.read_range(name, begin, min(_PIECE_BYTES, size - begin)))

        def submit(begin: int) -> Future[bytes]:
            try:
                return pool.submit(read, begin)
            except RuntimeError as error:  # the interpreter exits
                raise _Stopped from error

        ahead: deque[Future[bytes]] = deque()
        try:
            for begin in begins:
                ahead.append(submit(begin))
                if len(ahead) == _PIECES_AT_ONCE:
                    yield self._result(ahead.popleft())
            while ahead:
                yield self._result(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _result(self, reading: Future[bytes]) -> bytes:
        try:
            piece = reading.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise _NotRead(lance_said(error)) from error
        if self._stop.is_set():
            raise _Stopped
        return piece

    def _make_room(self, size: int) -> bool:
        """Remove unused copies until a file fits, the longest unused first. Return whether it does. Needs the lock."""
        wanted = {copy_name(name, info) for name, info in self._files.items()}
        own_bytes = 0
        unused: dict[Path, os.stat_result] = {}
        for path, found in _own_copies(self._folder).items():
            own_bytes += found.st_size
            if path.name not in wanted:
                unused[path] = found
        bound = self._max_bytes
        needed = size + _SPARE_BYTES - self._free()
        if bound is not None:
            needed = max(needed, own_bytes + size - bound)
        if bound is not None and size > bound:
            return False
        for path, found in sorted(unused.items(), key=lambda entry: entry[1].st_mtime_ns):
            if needed <= 0:
                break
            if _removed_if_unused(path):
                needed -= found.st_size
        return needed <= 0

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _tell(self, last: bool = False) -> None:
        """Pass on what has arrived. Of many small files, not each: that would take longer than copying them."""
        began = time.monotonic()
        if len(self._copies) > self._told and (last or began >= self._tell_from):
            self._told = len(self._copies)
            self._arrived(dict(self._copies))
            now = time.monotonic()
            self._tell_from = now + _TELLING_SHARE * (now - began)

    def _tell_end(self) -> None:
        if self._copied_bytes:
            _log.info(
                "Copied %.1f MB of %s to %s in %.0f s: %s are read from there.",
                self._copied_bytes / 1e6,
                self._location.uri,
                self._folder,
                time.monotonic() - self._began,
                pluralize(len(self._copies), "data file"),
            )

    def _warn(self, kind: str, what: str) -> None:
        """Log a warning of a kind once, and by one process of a machine."""
        if kind not in self._warned and os.environ.get("LOCAL_RANK", "0") == "0":
            _log.warning("The token store %r %s.", self._location.uri, what)
        self._warned.add(kind)


# Those whose threads may be within Lance when the interpreter exits, which would crash it.
_running: weakref.WeakSet[Staging] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    running = [*_running]
    for staging in running:
        staging.stop()
    for staging in running:
        staging.join(60)


def _made(folder: str) -> Path:
    """Return the folder of the copies in one that is given, and create both. ConfigError if that fails."""
    place = Path(folder)
    try:
        place.mkdir(exist_ok=True)
        copies = place / FOLDER
        copies.mkdir(mode=0o700, exist_ok=True)
        found = copies.lstat()
        # Whoever can write there decides what is read.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(errno.EACCES, f"{FOLDER} in it belongs to others, or can be written by them")
        if not os.access(copies, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"stage is {folder!r}, which cannot be used ({error.strerror}): expected a folder on a local disk that this user "
            "may write, in a folder that exists."
        ) from error
    return copies


def _private(path: Path) -> BinaryIO:
    """Create a file that only this user can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _mapped(path: Path, size: int) -> mmap.mmap | None:
    """Map a copy, and keep others from removing it as long as the map is there; None if it is not there, or not whole."""
    import fcntl

    descriptor = _opened(path)
    if descriptor is None:
        return None
    try:
        if os.fstat(descriptor).st_size != size:
            return None
        # The map has a descriptor of its own for the same lock.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        found = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except BlockingIOError:
        return None
    finally:
        os.close(descriptor)
    with suppress(OSError):
        os.utime(path)
    return found


def _opened(path: Path) -> int | None:
    """Open a copy. Return its descriptor; None if it is missing, or something else than a file is in its place.

    Raises:
        OSError: If it cannot be read, or is a link.
    """
    try:
        # Without O_NONBLOCK, a pipe would block until something writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        # The system's answer for a socket.
        if error.errno == errno.ENXIO:
            return None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _own_copies(folder: Path) -> dict[Path, os.stat_result]:
    """Return the copies in a folder: regular files whose size is the one in their name."""
    own = {}
    for path in folder.iterdir():
        named = _COPY.fullmatch(path.name)
        if named is None or path.is_symlink():
            continue
        with suppress(FileNotFoundError):
            found = path.stat()
            if path.is_file() and found.st_size == int(named["size"]):
                own[path] = found
    return own


def _removed_if_unused(path: Path) -> bool:
    """Remove a copy, unless a process has it mapped. Return whether it was removed."""
    import fcntl

    try:
        descriptor = _opened(path)
    except OSError:
        return False
    if descriptor is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
