"""Hashes of tokens and of data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

# Bytes read at once to hash a file: from a bucket much, since each read is a request; from a disk what stays in the processor's
# cache, and in one buffer, since new memory for each read costs more than the hashing.
_CHUNK, _LOCAL_CHUNK = 16 << 20, 1 << 20


def hash_tokens(digest: Any, tokens: pa.FixedSizeListArray) -> None:
    """Add blocks of tokens to an xxhash digest, as their little-endian bytes."""
    digest.update(np.ascontiguousarray(tokens.flatten()).view(np.uint8))


def hash_file(session: Any, path: str, size: int) -> str:
    """Hash the bytes of a file; `session` is a `LanceFileSession` of its folder. OSError if it has fewer bytes."""
    digest = xxhash.xxh3_64()
    for begin in range(0, size, _CHUNK):
        digest.update(session.read_range(path, begin, min(_CHUNK, size - begin)))
    return digest.hexdigest()


def hash_local(path: Path) -> str:
    """Hash the bytes of a file on disk, as `hash_file`."""
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(_LOCAL_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
