"""LitData's token sets: the chunks that `optimize` writes with a `TokensLoader`, an item for each call or yield.

Our own reader, since the format is a table of offsets and flat tokens, and the package asks for torchvision and more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_lance.convert.chunk_files import INDEX, borders_of, content_of, file_in, read_index
from lightning_lance.convert.documents import Shard, TokenDocuments, TokenShards, in_batches
from lightning_lance.convert.places import Found
from lightning_lance.errors import ConfigError
from lightning_lance.sources.local_paths import readable

# By the names and numbers of its serializers.
_DTYPES = {
    "no_header_tensor": {
        11: "<u1",
        12: "<i1",
        13: "<i2",
        14: "<i2",
        15: "<i4",
        16: "<i4",
        17: "<i8",
        18: "<i8",
        20: "<u2",
    },
    "no_header_numpy": {0: "<i1", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<u1", 5: "<u2", 6: "<u4", 7: "<u8"},
}


class _Chunk(NamedTuple):
    path: Path
    compression: str | None
    dtype: np.dtype[Any]


class LitDataShards(TokenShards):
    """The items of chunks.

    Raises:
        ConfigError: If they are not tokens, or are encrypted.
    """

    def __init__(self, found: Sequence[Found]) -> None:
        super().__init__()
        self._chunks: list[_Chunk] = []
        for split, folder in found:
            index = read_index(folder)
            self.files.append((split, folder / INDEX))
            name = readable(str(folder))
            config = index.get("config")
            chunks = index.get("chunks")
            listed = isinstance(chunks, list) and all(isinstance(chunk, dict) for chunk in chunks)
            if not isinstance(config, dict) or not isinstance(chunks, list) or not listed:
                raise ConfigError(
                    f"{name!r} has an index without chunks, expected that of LitData: check the format, which may be mds."
                )
            dtype = _dtype_of(config, chunks, name)
            for chunk in chunks:
                path = file_in(folder, chunk.get("filename"))
                compression = config.get("compression") if ".zstd" in path.name else None
                self.files.append((split, path))
                self._chunks.append(_Chunk(path, compression, dtype))
                self.shards.append(Shard(readable(str(path)), split, name))

    def read(self, shard: int, row: int) -> Iterator[TokenDocuments]:
        """See `TokenShards.read`."""
        chunk = self._chunks[shard]
        content = content_of(chunk.path, chunk.compression)
        borders = borders_of(content, self.shards[shard].name)
        width = chunk.dtype.itemsize
        if ((borders - borders[0]) % width).any():
            raise ConfigError(f"{self.shards[shard].name!r} has half a token, of {width} bytes: copy it again.")
        tokens = np.frombuffer(content, chunk.dtype, int(borders[-1] - borders[0]) // width, int(borders[0]))
        offsets = (borders - borders[0]) // width
        yield from in_batches(tokens[offsets[row] :], offsets[row:] - offsets[row])


def _dtype_of(config: dict[str, Any], chunks: list[Any], name: str) -> np.dtype[Any]:
    """Return the type of the tokens. ConfigError if the chunks are not tokens."""
    if config.get("encryption"):
        raise ConfigError(f"{name!r} is encrypted, expected plain chunks: write it anew without encryption.")
    kinds = config.get("data_format")
    serializer, _, code = str(kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else kinds).partition(":")
    known = _DTYPES.get(serializer, {})
    if not code.isdigit() or int(code) not in known or any(chunk.get("dim") is None for chunk in chunks):
        raise ConfigError(
            f"{name!r} has items of {kinds}, expected whole numbers written with TokensLoader(): write it anew with "
            "optimize(item_loader=TokensLoader())."
        )
    return np.dtype(known[int(code)])
