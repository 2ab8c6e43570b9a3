"""MosaicML Streaming's MDS: shards of samples, each with its columns one after the other.

Our own reader, since the format is a table of offsets, and the package asks for some twenty others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.convert.chunk_files import INDEX, borders_of, content_of, file_in, read_index
from lightning_lance.convert.documents import BATCH_TOKENS, Shard, TokenDocuments, TokenShards
from lightning_lance.convert.places import Found
from lightning_lance.errors import ConfigError
from lightning_lance.messages.formatting import format_list, suggestion
from lightning_lance.sources.local_paths import readable

# Columns that are looked for.
_USUAL = ("tokens", "input_ids")
# The first byte of an array whose type or shape is not in the index.
_CODES = (8, 9, 16, 17, 32, 33, 64, 65)
#: Types of tokens.
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_DTYPES = {code: np.dtype(name) for code, name in zip(_CODES, DTYPES, strict=True)}
_NAMES = {name: np.dtype(name) for name in DTYPES}
_SHAPE_DTYPES = ("<u1", "<u2", "<u4", "<u8")


class _Shard(NamedTuple):
    path: Path
    compression: str | None
    names: Sequence[str]
    encodings: Sequence[str]
    sizes: Sequence[int | None]


class MDSShards(TokenShards):
    """The samples of shards.

    Args:
        found: Their folders.
        columns: Our word to the name of a column. `tokens` is looked for if it is not named.
        dtype: Type of the tokens in a column of bytes.

    Raises:
        ConfigError: If there is no such column, or it does not hold tokens.
    """

    def __init__(self, found: Sequence[Found], columns: Mapping[str, str], dtype: str) -> None:
        super().__init__()
        self._columns = dict(columns)
        self._dtype = _NAMES[dtype]
        self._files: list[_Shard] = []
        for split, folder in found:
            name = readable(str(folder))
            listed = read_index(folder).get("shards")
            self.files.append((split, folder / INDEX))
            if not isinstance(listed, list):
                raise ConfigError(
                    f"{name!r} has an index without shards, expected that of MDS: check the format, which may be litdata."
                )
            for entry in listed:
                shard = _shard_of(folder, entry, name)
                self._check_columns(shard, name)
                self.files.append((split, shard.path))
                self._files.append(shard)
                self.shards.append(Shard(readable(str(shard.path)), split, name))

    def _check_columns(self, shard: _Shard, name: str) -> None:
        if "tokens" not in self._columns:
            usual = [column for column in _USUAL if column in shard.names]
            if len(usual) != 1:
                raise ConfigError(
                    f"{name!r} has the columns {format_list(shard.names)}: name the one with the tokens, as in "
                    f"columns.tokens={next(iter(shard.names), 'NAME')}."
                )
            self._columns["tokens"] = usual[0]
        for word, column in self._columns.items():
            if column not in shard.names:
                raise ConfigError(
                    f"{name!r} has no column {column!r}{suggestion(column, shard.names)}, which columns.{word} names: it has "
                    f"{format_list(shard.names)}."
                )
            encoding = shard.encodings[shard.names.index(column)]
            expected = "bytes or ndarray" if word == "tokens" else "str"
            if encoding.partition(":")[0] not in expected.split(" or "):
                raise ConfigError(
                    f"The column {column!r} of {name!r} is of {encoding!r}, expected {expected}: name another by "
                    f"columns.{word}."
                )

    def read(self, shard: int, row: int) -> Iterator[TokenDocuments]:
        """See `TokenShards.read`."""
        file = self._files[shard]
        name = self.shards[shard].name
        content = content_of(file.path, file.compression)
        borders = borders_of(content, name).tolist()
        tokens: list[np.ndarray] = []
        others: dict[str, list[str]] = {word: [] for word in self._columns if word != "tokens"}
        size = 0
        for sample in range(row, len(borders) - 1):
            try:
                values = _columns_of(file, content[borders[sample] : borders[sample + 1]])
                tokens.append(self._tokens(file, values[file.names.index(self._columns["tokens"])]))
                for word, texts in others.items():
                    texts.append(bytes(values[file.names.index(self._columns[word])]).decode("utf-8", "replace"))
            except (ValueError, IndexError) as error:
                raise ConfigError(
                    f"Sample {sample} of {name!r} cannot be read ({error}): copy the shard again."
                ) from error
            size += len(tokens[-1])
            if size >= BATCH_TOKENS:
                yield _documents(tokens, others)
                tokens = []
                others = {word: [] for word in others}
                size = 0
        if tokens:
            yield _documents(tokens, others)

    def _tokens(self, file: _Shard, value: memoryview) -> np.ndarray:
        encoding = file.encodings[file.names.index(self._columns["tokens"])]
        kind, *parts = encoding.split(":")
        if kind == "bytes":
            return np.frombuffer(value, self._dtype)
        # An array: its type and its shape, each in the index or in front of its values.
        at = 0
        if parts:
            dtype = _NAMES.get(parts[0])
        else:
            dtype = _DTYPES.get(value[0])
            at = 1
        if dtype is None:
            raise ConfigError(
                f"The column {self._columns['tokens']!r} of {readable(str(file.path))!r} holds no whole numbers, expected "
                "tokens: name another by columns.tokens."
            )
        if len(parts) < 2:
            dimensions, code = divmod(value[at], 4)
            at += 1 + dimensions * np.dtype(_SHAPE_DTYPES[code]).itemsize
        return np.frombuffer(value[at:], dtype)


def _shard_of(folder: Path, entry: Any, name: str) -> _Shard:
    try:
        if entry["format"] != "mds" or entry["version"] != 2:
            raise ConfigError(
                f"{name!r} has shards of the format {entry['format']!r}, version {entry['version']!r}, expected mds, version "
                "2: write it anew by MDSWriter."
            )
        raw = file_in(folder, entry["raw_data"]["basename"])
        packed = entry.get("zip_data")
        compression = None
        if packed and not raw.is_file():
            raw = file_in(folder, packed["basename"])
            compression = str(entry["compression"])
        return _Shard(raw, compression, entry["column_names"], entry["column_encodings"], entry["column_sizes"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"The index of {name!r} is damaged ({error!r}): copy it again.") from error


def _columns_of(file: _Shard, sample: memoryview) -> list[memoryview]:
    """Return the values of a sample: the sizes of those that vary stand in front of all."""
    sizes = []
    at = 0
    for size in file.sizes:
        if size:
            sizes.append(size)
        else:
            sizes.append(int.from_bytes(sample[at : at + 4], "little"))
            at += 4
    values = []
    for size in sizes:
        values.append(sample[at : at + size])
        at += size
    if at != len(sample):
        raise ValueError(f"it has {len(sample)} bytes, expected {at}")
    return values


def _documents(tokens: Sequence[np.ndarray], others: Mapping[str, Sequence[str]]) -> TokenDocuments:
    offsets = np.append(0, np.cumsum([len(ids) for ids in tokens], dtype=np.int64))
    columns = {word: pa.array(texts, pa.string()) for word, texts in others.items()}
    return TokenDocuments(np.concatenate(tokens), offsets, columns)
