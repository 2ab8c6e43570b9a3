"""Permissions of files that hold for root too, who may otherwise read everything."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of <linux/capability.h>.
_OF_ROOT = 1 << 1 | 1 << 2
_VERSION = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    # Of the first 32 capabilities, then of the others.
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable", "a", "b", "c")]


@contextmanager
def held_to_permissions() -> Iterator[None]:
    """Hold this thread to the permissions of files, whoever runs it."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read everything")
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(_VERSION, 0)
    sets = _Sets()
    assert libc.capget(ctypes.byref(header), ctypes.byref(sets)) == 0
    before = sets.effective
    sets.effective = before & ~_OF_ROOT
    assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
    try:
        yield
    finally:
        sets.effective = before
        assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
