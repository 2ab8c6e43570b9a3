"""The memory of this process: its size, and the return of freed memory to the system.

This module alone changes the settings of the allocators, and pauses garbage collections: both are global to the process.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Within `large_blocks_given_back`, blocks of this size return to the system when freed.
_LARGE = 4 << 20
# The thresholds that glibc reaches by itself once a program has freed large blocks. It stops adapting them after mallopt.
_LEARNED_MMAP = 32 << 20
_LEARNED_TRIM = 64 << 20


def resident() -> int | None:
    """Return the resident memory of this process in bytes; None if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Return freed memory of glibc to the system; does nothing with other C libraries. Takes ten milliseconds.

    glibc keeps tens of megabytes for each thread that has used as much, even after the thread has ended.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_arrow() -> None:
    """Return freed memory of Arrow to the system. Arrow keeps more of it the longer a build runs."""
    pa.default_memory_pool().release_unused()


@contextmanager
def without_collections() -> Iterator[None]:
    """Make many small objects without garbage collections: each would look at all objects of the process.

    For a short time only, since circles of objects of all threads are kept until then.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Return large blocks to the system as soon as they are freed; glibc would keep half a gigabyte from Lance's threads."""
    allocator = None
    if sys.platform == "linux":
        allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is None:
        yield
        return
    allocator(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        allocator(_M_MMAP_THRESHOLD, _LEARNED_MMAP)
        allocator(_M_TRIM_THRESHOLD, _LEARNED_TRIM)
