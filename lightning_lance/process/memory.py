"""The memory of this process: how much it holds, and the giving back of what it has freed.

The one owner of the settings of the allocators, which are the whole process's.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Of a piece of memory that goes back as soon as it is freed, while large blocks do.
_LARGE = 4 << 20
# Where glibc itself ends up once a program has freed large blocks: its own learning ends with the first call of mallopt.
_LEARNED_MMAP, _LEARNED_TRIM = 32 << 20, 64 << 20


def resident() -> int | None:
    """Tell how much memory this process holds, in bytes; None where the system does not say so."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Give back to the system what was freed of the C library's memory; elsewhere than with glibc, nothing happens.

    It keeps some tens of megabytes for each thread that had as much at once, also when the thread is gone. Ten milliseconds.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_arrow() -> None:
    """Give back to the system what Arrow has freed: it keeps more, the longer a build runs."""
    pa.default_memory_pool().release_unused()


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Let glibc give large blocks back to the system at once: of those that Lance's threads free it keeps half a gigabyte."""
    allocator = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if allocator is None:
        yield
        return
    allocator(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        allocator(_M_MMAP_THRESHOLD, _LEARNED_MMAP)
        allocator(_M_TRIM_THRESHOLD, _LEARNED_TRIM)
