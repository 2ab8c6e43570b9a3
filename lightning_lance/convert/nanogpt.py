"""nanoGPT's `.bin`: the tokens of a split as uint16, one after the other, EOS at the end of each document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from lightning_lance.convert.documents import BATCH_TOKENS, Piece, Shard, TokenStream
from lightning_lance.convert.places import Found
from lightning_lance.errors import ConfigError
from lightning_lance.sources.local_paths import readable

ENDING = ".bin"
DTYPE = np.dtype("<u2")
# Tokens of a shard: after a kill, no more are looked through for the document to go on with.
_SHARD_TOKENS = 1 << 24


class NanoGPTStream(TokenStream):
    """The tokens of `.bin` files. The documents of a file do not go on in the next one.

    Raises:
        ConfigError: If a file is of another format.
    """

    def __init__(self, found: Sequence[Found]) -> None:
        super().__init__()
        self._pieces: list[tuple[Path, int, int]] = []
        for split, file in found:
            self.files.append((split, file))
            name = readable(str(file))
            size = file.stat().st_size
            if file.with_suffix(".idx").is_file():
                raise ConfigError(f"{name!r} has an index (.idx) beside it, as Megatron writes: import it as megatron.")
            if size % DTYPE.itemsize:
                raise ConfigError(
                    f"{name!r} has {size:,} bytes, expected two for each token: it is cut off, or of another format."
                )
            total = size // DTYPE.itemsize
            for low in range(0, total, _SHARD_TOKENS):
                high = min(low + _SHARD_TOKENS, total)
                self._pieces.append((file, low, high))
                self.shards.append(Shard(f"{name} from token {low:,} on" if low else name, split, name))

    def pieces(self, shard: int) -> Iterator[Piece]:
        """See `TokenStream.pieces`."""
        file, low, high = self._pieces[shard]
        mapped = np.memmap(file, DTYPE, "r")
        for begin in range(low, high, BATCH_TOKENS):
            yield Piece(np.asarray(mapped[begin : min(begin + BATCH_TOKENS, high)]))


class NanoGPTWriter:
    """Writes a `.bin` file.

    Args:
        vocab_size: Largest id plus one.

    Raises:
        ConfigError: If the ids do not fit.
    """

    endings = (ENDING,)

    def __init__(self, vocab_size: int) -> None:
        if vocab_size > 1 << 16:
            raise ConfigError(
                f"The store has a vocabulary of {vocab_size:,} ids, and nanoGPT's files hold up to 65,536: export it as "
                "megatron or parquet."
            )

    def write(self, files: Sequence[BinaryIO], tokens: np.ndarray, offsets: np.ndarray, described: pa.Table) -> None:
        """Write documents, EOS included; there is no room for their metadata."""
        files[0].write(tokens.astype(DTYPE, copy=False).tobytes())

    def finish(self, files: Sequence[BinaryIO]) -> None:
        """Do nothing: the tokens are all there is."""

    def close(self) -> None:
        """Do nothing: the files are the caller's."""
