"""The chunk files of MDS and LitData: a count, a table of offsets, and items; perhaps compressed as a whole."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lance.errors import ConfigError
from lightning_lance.json_checks import json_of, object_of
from lightning_lance.sources.local_paths import readable

INDEX = "index.json"


def read_index(folder: Path) -> Mapping[str, Any]:
    """Return the index of a folder. ConfigError if it is not readable JSON."""
    file = folder / INDEX
    try:
        return object_of(json_of(file.read_text(encoding="utf-8"), "it"), "it")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{readable(str(file))!r} cannot be read ({error}): copy it again.") from error


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

            return memoryview(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
        if algorithm in ("gz", "gzip"):
            return memoryview(gzip.decompress(packed))
        if algorithm == "bz2":
            return memoryview(bz2.decompress(packed))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {name!r}, which the index names: copy the whole folder.") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"{name!r} cannot be read ({error}): copy it again.") from error
    except Exception as error:  # zstandard has an error of its own
        raise ConfigError(f"{name!r} cannot be decompressed ({error}): copy it again.") from error
    raise ConfigError(
        f"{name!r} is compressed by {compression!r}, expected zstd, gz, bz2 or nothing: decompress the set, or write it anew."
    )


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
