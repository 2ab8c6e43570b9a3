"""Hashes of tokens and of data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

# Bytes read at once to hash a file in a bucket, where each read is a request.
_CHUNK = 16 << 20
# The same on a disk: small enough for the processor's cache, in one buffer, since allocating one per read costs more than
# hashing.
_LOCAL_CHUNK = 1 << 20


def hash_tokens(digest: Any, tokens: pa.FixedSizeListArray) -> None:
    """Update an xxhash digest with the little-endian bytes of blocks of tokens."""
    digest.update(np.ascontiguousarray(tokens.flatten()).view(np.uint8))


def hash_file(session: Any, path: str, size: int) -> str:
    """Return the hash of a file; `session` is a `LanceFileSession` of its folder. OSError if it has fewer bytes."""
    digest = xxhash.xxh3_64()
    for begin in range(0, size, _CHUNK):
        digest.update(session.read_range(path, begin, min(_CHUNK, size - begin)))
    return digest.hexdigest()


def hash_local(path: Path) -> str:
    """Return the hash of a file on disk, the same as `hash_file`."""
    digest = xxhash.xxh3_64()
    buffer = memoryview(bytearray(_LOCAL_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
