"""Maps of files into memory, without an open file for each."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_LIMIT = Path("/proc/sys/vm/max_map_count")
_FAILED = ctypes.c_void_p(-1).value


class FileMaps:
    """Whole files, mapped for reading for as long as this is there. Where the files lie in memory is the system's choice.

    A map of Python's keeps its file open, and a process may have 1,024 open files on many systems. These maps don't. A file
    that is removed can still be read.

    Args:
        files: Files, none of them empty.

    Attributes:
        addresses: (n,) int64 addresses of their first bytes.
        sizes: (n,) int64 bytes of each.

    Raises:
        OSError: If one cannot be mapped. Then none is.
    """

    def __init__(self, files: Sequence[str]) -> None:
        made: list[tuple[int, int]] = []
        try:
            for file in files:
                made.append(_map(file))
        except BaseException:
            _unmap(made)
            raise
        found = np.asarray(made, np.int64).reshape(-1, 2)
        self.addresses: np.ndarray = found[:, 0].copy()
        self.sizes: np.ndarray = found[:, 1].copy()
        # The end of the process is the end of its maps. Until then, other threads may read.
        weakref.finalize(self, _unmap, found).atexit = False


class MadeMaps:
    """Maps of Python's, as `FileMaps`. They hold locks of their files."""

    def __init__(self, handles: Sequence[mmap.mmap]) -> None:
        self._handles = [*handles]
        addresses: list[int] = []
        sizes: list[int] = []
        for handle in handles:
            mapped = np.frombuffer(handle, np.uint8)
            addresses.append(mapped.ctypes.data)
            sizes.append(len(mapped))
        self.addresses: np.ndarray = np.asarray(addresses, np.int64)
        self.sizes: np.ndarray = np.asarray(sizes, np.int64)


class _Memory:
    """Memory at an address, for NumPy, which keeps `owner` for as long as it uses it."""

    def __init__(self, address: int, size: int, owner: object) -> None:
        self._owner = owner
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (address, True),
        }


def memory_of(maps: FileMaps | MadeMaps, file: int) -> np.ndarray:
    """Return the bytes of a mapped file."""
    return np.asarray(_Memory(int(maps.addresses[file]), int(maps.sizes[file]), maps))


def will_need(address: int, size: int) -> None:
    """Announce to the system that memory from a page's address on will be read; Linux only."""
    if sys.platform == "linux":
        _madvise(address, size, mmap.MADV_WILLNEED)


def _map(file: str) -> tuple[int, int]:
    """Map a file. Return its address and its size."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)}{_cure(number)}", file)
    finally:
        os.close(descriptor)
    return address, size


def _cure(number: int) -> str:
    """Return what to do about an error of mmap, for its message."""
    if number != errno.ENOMEM or not _LIMIT.exists():
        return ""
    limit = int(_LIMIT.read_text())
    return f"; a process may have {limit:,} maps, one for each file: raise 'sysctl vm.max_map_count'"


def _unmap(maps: np.ndarray | Sequence[tuple[int, int]]) -> None:
    for address, size in maps:
        _munmap(int(address), int(size))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of the C library."""
    found = getattr(ctypes.CDLL(None, use_errno=True), name)
    found.restype = result
    found.argtypes = arguments
    return found


_mmap = _function(
    "mmap", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64
)
_munmap = _function("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_madvise = _function("madvise", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
