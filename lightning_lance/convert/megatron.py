"""Megatron's `.bin` and `.idx`: flat tokens, and an index of sequences, of which documents consist.

The index, little-endian: the 9 bytes `MMIDIDX`, 0, 0; version 1 as uint64; the code of the dtype as a byte; the numbers of
sequences and of document borders as uint64; then the length of each sequence as int32, its place in bytes as int64, and the
number of sequences before each document border as int64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from lightning_lance.convert.documents import Shard, TokenDocuments, TokenShards, in_batches
from lightning_lance.convert.places import Found
from lightning_lance.errors import ConfigError
from lightning_lance.sources.local_paths import readable

ENDING = ".idx"
_TOKENS = ".bin"
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
# Documents of a shard.
_SHARD_DOCUMENTS = 1 << 16
# Elements of an index that are written together.
_WRITTEN_TOGETHER = 1 << 20


class _Index:
    """The index of one file, mapped into memory.

    Raises:
        ConfigError: If it is not one, or does not fit its tokens.
    """

    def __init__(self, file: Path) -> None:
        self.name = readable(str(file))
        self.tokens_file = file.with_suffix(_TOKENS)
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(_HEADER.size)
        magic, version, code, sequences, borders = _HEADER.unpack(head.ljust(_HEADER.size, b"\0"))
        if magic != _MAGIC or version != _VERSION:
            raise ConfigError(f"{self.name!r} is not an index of Megatron, version {_VERSION}: check the place.")
        if code not in _DTYPES:
            kind = _FLOATS.get(code, f"of the unknown code {code}")
            raise ConfigError(f"The elements of {self.name!r} are {kind}, expected whole numbers: it has no tokens.")
        self.dtype = np.dtype(_DTYPES[code])
        if size < _HEADER.size + 12 * sequences + 8 * borders or not borders:
            raise ConfigError(
                f"{self.name!r} has {size:,} bytes, too few for its {sequences:,} sequences and {borders:,} borders of "
                "documents: it is cut off; copy it again."
            )
        if not self.tokens_file.is_file():
            raise ConfigError(
                f"There is no {readable(str(self.tokens_file))!r}, with the tokens of {self.name!r}: copy it too."
            )
        self._raw = np.memmap(file, np.uint8, "r")
        lengths_end = _HEADER.size + 4 * sequences
        places_end = lengths_end + 8 * sequences
        self._lengths = self._raw[_HEADER.size : lengths_end].view("<i4")
        self._places = self._raw[lengths_end:places_end].view("<i8")
        self._borders = self._raw[places_end : places_end + 8 * borders].view("<i8")
        if self._borders[0] != 0 or self._borders[-1] != sequences:
            raise self._damaged()
        self.num_documents = borders - 1
        self._num_bytes = self.tokens_file.stat().st_size

    def borders(self, low: int, high: int) -> np.ndarray:
        """Return the (high - low + 1,) borders of documents `low` to `high` among the tokens.

        Raises:
            ConfigError: If sequences do not follow each other, or lie outside the tokens.
        """
        borders = np.asarray(self._borders[low : high + 1]).astype(np.int64)
        if (np.diff(borders) < 0).any() or borders[0] < 0 or borders[-1] > len(self._lengths):
            raise self._damaged()
        first = int(borders[0])
        lengths = np.asarray(self._lengths[first : borders[-1]]).astype(np.int64)
        places = np.asarray(self._places[first : borders[-1]]).astype(np.int64)
        begin = int(places[0]) if len(places) else 0
        starts = np.append(0, np.cumsum(lengths)) * self.dtype.itemsize + begin
        if (lengths < 0).any() or (places != starts[:-1]).any() or begin < 0 or starts[-1] > self._num_bytes:
            raise self._damaged()
        return starts[borders - first] // self.dtype.itemsize

    def _damaged(self) -> ConfigError:
        return ConfigError(
            f"{self.name!r} does not fit its tokens, or has sequences that do not follow each other: copy both files again."
        )


class MegatronShards(TokenShards):
    """The documents of `.bin` and `.idx` files.

    Raises:
        ConfigError: If a file is damaged, or of another format.
    """

    def __init__(self, found: Sequence[Found]) -> None:
        super().__init__()
        self._parts: list[tuple[_Index, int, int]] = []
        for split, file in found:
            index = _Index(file)
            self.files += [(split, file), (split, index.tokens_file)]
            for low in range(0, index.num_documents, _SHARD_DOCUMENTS):
                high = min(low + _SHARD_DOCUMENTS, index.num_documents)
                self._parts.append((index, low, high))
                name = f"{index.name} from document {low:,} on" if low else index.name
                self.shards.append(Shard(name, split, index.name))

    def read(self, shard: int, row: int) -> Iterator[TokenDocuments]:
        """See `TokenShards.read`."""
        index, low, high = self._parts[shard]
        borders = index.borders(low + row, high)
        if len(borders) < 2 or borders[0] == borders[-1]:
            yield from in_batches(np.empty(0, index.dtype), np.zeros(len(borders), np.int64))
            return
        mapped = np.memmap(index.tokens_file, index.dtype, "r")
        tokens = np.asarray(mapped[borders[0] : borders[-1]])
        yield from in_batches(tokens, borders - borders[0])


class MegatronWriter:
    """Writes a `.bin` and its `.idx`: a document is one sequence, with EOS at its end.

    Args:
        vocab_size: Largest id plus one.

    Raises:
        ConfigError: If the ids do not fit.
    """

    # The index is put in place last: without it, there is no set.
    endings = (_TOKENS, ENDING)

    def __init__(self, vocab_size: int) -> None:
        if vocab_size > 1 << 31:
            raise ConfigError(
                f"The store has a vocabulary of {vocab_size:,} ids, and Megatron's files hold up to {1 << 31:,}: export it as "
                "parquet."
            )
        self._dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")
        self._lengths: list[np.ndarray] = []

    def write(self, files: Sequence[BinaryIO], tokens: np.ndarray, offsets: np.ndarray, described: pa.Table) -> None:
        """Write documents, EOS included; there is no room for their metadata.

        Raises:
            ConfigError: If a document is too long for the index.
        """
        lengths = np.diff(offsets)
        if int(lengths.max(initial=0)) > np.iinfo(np.int32).max:
            raise ConfigError(
                f"A document has {int(lengths.max()):,} tokens, and Megatron's index holds up to {np.iinfo(np.int32).max:,}: "
                "export the store as nanogpt or parquet."
            )
        self._lengths.append(lengths.astype("<i4"))
        files[0].write(tokens.astype(self._dtype, copy=False).tobytes())

    def finish(self, files: Sequence[BinaryIO]) -> None:
        """Write the index."""
        lengths = np.concatenate([np.empty(0, "<i4"), *self._lengths])
        index = files[1]
        index.write(_HEADER.pack(_MAGIC, _VERSION, _CODES[self._dtype.str], len(lengths), len(lengths) + 1))
        index.write(lengths.tobytes())
        place = 0
        for low in range(0, len(lengths), _WRITTEN_TOGETHER):
            sizes = lengths[low : low + _WRITTEN_TOGETHER].astype("<i8") * self._dtype.itemsize
            index.write((place + np.cumsum(sizes) - sizes).astype("<i8").tobytes())
            place += int(sizes.sum())
        for low in range(0, len(lengths) + 1, _WRITTEN_TOGETHER):
            high = min(low + _WRITTEN_TOGETHER, len(lengths) + 1)
            index.write(np.arange(low, high, dtype="<i8").tobytes())

    def close(self) -> None:
        """Do nothing: the files are the caller's."""
