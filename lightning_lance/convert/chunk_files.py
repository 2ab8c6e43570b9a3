"""The chunk files of MDS and LitData: a count, a table of offsets, and items; perhaps compressed as a whole."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lance.errors import ConfigError
from lightning_lance.json_checks import json_of, object_of
from lightning_lance.sources.local_paths import readable

INDEX = "index.json"
# A table of 32-bit numbers reaches no further.
_MOST_BYTES = 1 << 32
_PIECE_BYTES = 1 << 24


def read_index(folder: Path) -> Mapping[str, Any]:
    """Return the index of a folder. ConfigError if it is not readable JSON."""
    file = folder / INDEX
    try:
        return object_of(json_of(file.read_text(encoding="utf-8"), "it"), "it")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{readable(str(file))!r} cannot be read ({error}): copy it again.") from error


def file_in(folder: Path, name: Any) -> Path:
    """Return the place of a file that an index names. ConfigError if that is not in the folder of the index."""
    if isinstance(name, str) and name and not Path(name).is_absolute() and ".." not in Path(name).parts:
        return folder / name
    raise ConfigError(
        f"The index of {readable(str(folder))!r} names {str(name)[:80]!r}, expected a file in its folder: copy the set again."
    )


def content_of(file: Path, compression: str | None) -> memoryview:
    """Return the bytes of a chunk file.

    Args:
        file: The file.
        compression: The algorithm, perhaps with a level (`zstd:3`); None for none.

    Raises:
        ConfigError: If it is missing or damaged, or the algorithm is unknown.
    """
    name = readable(str(file))
    algorithm = (compression or "").partition(":")[0]
    try:
        if not algorithm:
            return np.memmap(file, np.uint8, "r").data
        packed = file.read_bytes()
        if algorithm == "zstd":
            import zstandard

            return _unpacked(zstandard.ZstdDecompressor().stream_reader(packed), name)
        if algorithm in ("gz", "gzip"):
            return _unpacked(gzip.GzipFile(fileobj=io.BytesIO(packed)), name)
        if algorithm == "bz2":
            return _unpacked(bz2.BZ2File(io.BytesIO(packed)), name)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {name!r}, which the index names: copy the whole folder.") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"{name!r} cannot be read ({error}): copy it again.") from error
    except Exception as error:  # zstandard has an error of its own
        raise ConfigError(f"{name!r} cannot be decompressed ({error}): copy it again.") from error
    raise ConfigError(
        f"{name!r} is compressed by {compression!r}, expected zstd, gz, bz2 or nothing: decompress the set, or write it anew."
    )


def _unpacked(stream: Any, name: str) -> memoryview:
    """Return all bytes of a stream. ConfigError if these are more than a chunk can have."""
    content = bytearray()
    while piece := stream.read(_PIECE_BYTES):
        content += piece
        if len(content) > _MOST_BYTES:
            raise ConfigError(
                f"{name!r} has more than {_MOST_BYTES:,} bytes once it is decompressed, expected a chunk, whose places are "
                "numbers of 32 bits: it is not one."
            )
    return memoryview(content)


def borders_of(content: memoryview, name: str) -> np.ndarray:
    """Return the (items + 1,) places of the items of a chunk. ConfigError if they do not fit its size."""
    size = len(content)
    count = int(np.frombuffer(content, "<u4", 1)[0]) if size >= 4 else -1
    if count < 0 or size < 4 * (count + 2):
        raise _damaged(name)
    borders = np.frombuffer(content, "<u4", count + 1, 4).astype(np.int64)
    if borders[-1] != size or borders[0] < 4 * (count + 2) or (np.diff(borders) < 0).any():
        raise _damaged(name)
    return borders


def _damaged(name: str) -> ConfigError:
    return ConfigError(f"{name!r} is damaged, or not a chunk of this format: copy it again.")
