"""MosaicML Streaming's MDS: shards of samples, each with its columns one after the other.

Our own reader, since the format is a table of offsets, and the package asks for some twenty others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.convert.channels import CHANNEL_WORDS, HF_LABELS, Aligned, not_taken
from lightning_lance.convert.chunk_files import INDEX, borders_of, content_of, file_in, read_index
from lightning_lance.convert.documents import BATCH_TOKENS, Shard, TokenDocuments, TokenShards
from lightning_lance.convert.places import Found
from lightning_lance.errors import ConfigError
from lightning_lance.format.channels import LOSS_MASK, TOKEN_LABELS
from lightning_lance.messages.formatting import format_list, suggestion
from lightning_lance.sources.local_paths import readable

# Columns that are looked for.
_USUAL = ("tokens", "input_ids")
# The first byte of an array whose type or shape is not in the index.
_CODES = (8, 9, 16, 17, 32, 33, 64, 65)
#: Types of tokens.
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_NAMES = {name: np.dtype(name) for name in DTYPES}
_DTYPES = dict(zip(_CODES, _NAMES.values(), strict=True))
_SHAPE_DTYPES = ("<u1", "<u2", "<u4", "<u8")
_ARRAYS = ("bytes", "ndarray")
# Bytes do not say their type. What is 0 or 1, or the id or -100, is checked; any other number might be taken for another one.
_ENCODINGS: Mapping[str, Sequence[str]] = {
    "tokens": _ARRAYS,
    LOSS_MASK: _ARRAYS,
    HF_LABELS: _ARRAYS,
    TOKEN_LABELS: _ARRAYS[1:],
}
_WIDTHS: Mapping[int, np.dtype[Any]] = {1: np.dtype("<i1"), 2: np.dtype("<i2"), 4: np.dtype("<i4"), 8: np.dtype("<i8")}


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
        # Bytes of each value of a channel, where the type is not stored.
        self._widths: dict[str, int] = {}
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
                self._tell_not_taken(shard)
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
            expected = _ENCODINGS.get(word, ("str",))
            if encoding.partition(":")[0] not in expected:
                raise ConfigError(
                    f"The column {column!r} of {name!r} is of {encoding!r}, expected {' or '.join(expected)}: name another by "
                    f"columns.{word}."
                )

    def _tell_not_taken(self, shard: _Shard) -> None:
        """Note columns that look like channels, and are not asked for."""
        arrays = []
        for column, encoding in zip(shard.names, shard.encodings, strict=True):
            if encoding.partition(":")[0] in _ARRAYS:
                arrays.append(column)
        for remark in not_taken(arrays, self._columns.values()):
            if (logging.INFO, remark) not in self.trouble.remarks:
                self.trouble.remarks.append((logging.INFO, remark))

    def read(self, shard: int, row: int) -> Iterator[TokenDocuments]:
        """See `TokenShards.read`."""
        file = self._files[shard]
        name = self.shards[shard].name
        content = content_of(file.path, file.compression)
        borders = borders_of(content, name).tolist()
        samples = _Samples([*self._columns])
        for sample in range(row, len(borders) - 1):
            try:
                values = _columns_of(file, content[borders[sample] : borders[sample + 1]])
                tokens = self._array(file, "tokens", values, self._dtype)
                for word, column in self._columns.items():
                    if word in CHANNEL_WORDS:
                        dtype = self._dtype_of_channel(file, word, values, len(tokens), sample)
                        samples.arrays[word].append(self._array(file, word, values, dtype))
                    elif word != "tokens":
                        text = bytes(values[file.names.index(column)]).decode("utf-8", "replace")
                        samples.texts[word].append(text)
            except ConfigError:
                raise
            except (ValueError, IndexError) as error:
                raise ConfigError(
                    f"Sample {sample} of {name!r} cannot be read ({error}): copy the shard again."
                ) from error
            samples.arrays["tokens"].append(tokens)
            samples.size += len(tokens)
            if samples.size >= BATCH_TOKENS:
                yield samples.documents()
                samples = _Samples([*self._columns])
        if samples.arrays["tokens"]:
            yield samples.documents()

    def _dtype_of_channel(
        self, file: _Shard, word: str, values: Sequence[memoryview], count: int, sample: int
    ) -> np.dtype[Any]:
        """Return the type of a channel's values in a column of bytes, of which each id has equally many.

        Args:
            file: The shard.
            word: Our word for the channel.
            values: What the columns have in a sample.
            count: The number of its ids.
            sample: Its number, for messages.
        """
        place = file.names.index(self._columns[word])
        if not file.encodings[place].startswith("bytes") or not count:
            return self._dtype
        size = len(values[place])
        width = size // count
        expected = self._widths.setdefault(word, width)
        if size % count or width not in _WIDTHS or width != expected:
            wanted = f"{expected} for each, as in the sample before"
            if expected == width or expected not in _WIDTHS:
                wanted = "1, 2, 4 or 8 for each"
            raise ConfigError(
                f"Sample {sample} of {readable(str(file.path))!r} has {size:,} bytes of {word} and {count:,} ids: expected "
                f"{wanted}."
            )
        return _WIDTHS[width]

    def _array(self, file: _Shard, word: str, values: Sequence[memoryview], dtype: np.dtype[Any]) -> np.ndarray:
        """Return the numbers that a column has in a sample; `dtype` is their type if it does not say that itself."""
        place = file.names.index(self._columns[word])
        value = values[place]
        kind, *parts = file.encodings[place].split(":")
        if kind == "bytes":
            return np.frombuffer(value, dtype)
        # An array: its type and its shape, each in the index or in front of its values.
        at = 0
        if parts:
            own = _NAMES.get(parts[0])
        else:
            own = _DTYPES.get(value[0])
            at = 1
        if own is None:
            raise ConfigError(
                f"The column {self._columns[word]!r} of {readable(str(file.path))!r} holds no whole numbers, expected {word}: "
                f"name another by columns.{word}."
            )
        if len(parts) < 2:
            dimensions, code = divmod(value[at], 4)
            at += 1 + dimensions * np.dtype(_SHAPE_DTYPES[code]).itemsize
        return np.frombuffer(value[at:], own)


class _Samples:
    """Samples that become documents together.

    Attributes:
        arrays: The tokens of each, and the values of its channels, by our word.
        texts: What the other columns have for each, by our word.
        size: Tokens in all.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.arrays: dict[str, list[np.ndarray]] = {}
        self.texts: dict[str, list[str]] = {}
        for word in words:
            if word == "tokens" or word in CHANNEL_WORDS:
                self.arrays[word] = []
            else:
                self.texts[word] = []
        self.size = 0

    def documents(self) -> TokenDocuments:
        """Return the samples as documents."""
        together = {word: _aligned(parts) for word, parts in self.arrays.items()}
        tokens = together.pop("tokens")
        columns = {word: pa.array(texts, pa.string()) for word, texts in self.texts.items()}
        return TokenDocuments(tokens.values, tokens.offsets, columns, together)


def _aligned(parts: Sequence[np.ndarray]) -> Aligned:
    offsets = np.append(0, np.cumsum(list(map(len, parts)), dtype=np.int64))
    return Aligned(np.concatenate(parts), offsets)


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
