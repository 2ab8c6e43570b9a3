"""The layout of a store: for each data file, the streams in it, its size and its hashes.

The commit metadata of a version describes all its files, so opening a version reads one commit, however many were made
before or removed since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.splits import FORGOTTEN, SPLITS
from lightning_lance.errors import StoreError
from lightning_lance.format.hashing import hash_tokens
from lightning_lance.json_checks import count_of, field_of, json_of, list_of, object_of, text_of
from lightning_lance.lance_names import name_of

_FILES = "lightning_lance_files"
# More rows than all parts of a store together have, and few enough for an int64 to count their tokens.
_MOST_ROWS = 1 << 40


class StreamPart(NamedTuple):
    """Consecutive rows of one stream: `tokens` tokens in `rows` blocks, of which all but the last are full."""

    split: str
    language: str
    tokens: int
    rows: int

    @property
    def stream(self) -> tuple[str, str]:
        """The split and the language."""
        return self.split, self.language


class StreamExtent(NamedTuple):
    """The place of a stream among the tokens of its split: `num_tokens` tokens from `start` on."""

    language: str
    start: int
    num_tokens: int


def starts_of(streams: Iterable[StreamExtent]) -> npt.NDArray[np.int64]:
    """Return where streams begin among the tokens of their split, (n,)."""
    return np.asarray([stream.start for stream in streams], np.int64)


def lengths_of(streams: Iterable[StreamExtent]) -> npt.NDArray[np.int64]:
    """Return the tokens of each stream, (n,)."""
    return np.asarray([stream.num_tokens for stream in streams], np.int64)


def tokens_by_language(streams: Iterable[StreamExtent]) -> dict[str, int]:
    """Return the tokens of each language in the streams of a split."""
    return {stream.language: stream.num_tokens for stream in streams}


class StoreContent(NamedTuple):
    """The content of a store. Equal contents of one recipe are equal streams.

    Attributes:
        tokens: Tokens taken from the source, in its order.
        forgotten: The rules (`key=value`) by which documents were removed again, sorted.
    """

    tokens: int
    forgotten: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in tags: `<tokens>`, with a hash of the rules if documents were removed."""
        if not self.forgotten:
            return str(self.tokens)
        rules = xxhash.xxh3_64_hexdigest(repr(self.forgotten).encode())[:8]
        return f"{self.tokens}-{rules}"


class DataFileInfo(NamedTuple):
    """The description of a data file, whose content never changes.

    Attributes:
        size: Bytes.
        whole: xxh3_64 of all bytes of the file, read back after writing.
        tokens: xxh3_64 of its blocks of tokens, padding included, computed before writing.
        parts: The streams of its rows, in order.
    """

    size: int
    whole: str
    tokens: str
    parts: tuple[StreamPart, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(part.rows for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Tokens of the file, padding not included."""
        return sum(part.tokens for part in self.parts)


class LayoutCounter:
    """Counts the parts and hashes the tokens of rows while they are written into one file."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()
        self._parts: list[StreamPart] = []
        self.rows = 0

    def counted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield batches after adding them."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        """Add a batch."""
        if not len(batch):
            return
        self.rows += len(batch)
        hash_tokens(self._hash, batch.column("tokens"))
        splits = batch.column("split").dictionary_encode()
        languages = batch.column("language").dictionary_encode()
        split_codes = np.asarray(splits.indices)
        language_codes = np.asarray(languages.indices)
        tokens = np.asarray(batch.column("num_tokens"))
        changes = (np.diff(split_codes) != 0) | (np.diff(language_codes) != 0)
        for low, high in pairwise([0, *(np.flatnonzero(changes) + 1).tolist(), len(batch)]):
            split = splits.dictionary[int(split_codes[low])].as_py()
            language = languages.dictionary[int(language_codes[low])].as_py()
            part = StreamPart(split, language, int(tokens[low:high].sum()), high - low)
            if self._parts and self._parts[-1].stream == part.stream:
                last = self._parts.pop()
                part = part._replace(tokens=last.tokens + part.tokens, rows=last.rows + part.rows)
            self._parts.append(part)

    def info(self, size: int, whole: str) -> DataFileInfo:
        """Return the description of the file, given its size and hash."""
        return DataFileInfo(size, whole, self._hash.hexdigest(), tuple(self._parts))


def properties_of(files: Mapping[str, DataFileInfo]) -> dict[str, str]:
    """Return the descriptions of data files as properties of a transaction."""
    # Streams are named once: there may be hundreds, and each may be in every file.
    named: set[tuple[str, str]] = set()
    for info in files.values():
        for part in info.parts:
            named.add(part.stream)
    streams = sorted(named)
    numbers = {stream: number for number, stream in enumerate(streams)}
    stored = {}
    for path, info in files.items():
        parts = [[numbers[part.stream], part.tokens, part.rows] for part in info.parts]
        stored[path] = [info.size, info.whole, info.tokens, parts]
    return {_FILES: json.dumps({"streams": streams, "files": stored}, separators=(",", ":"))}


def files_of(properties: Mapping[str, str]) -> dict[str, DataFileInfo]:
    """Return the descriptions of data files from the properties of a transaction; none if another program made it.

    Raises:
        ValueError: If they have another form, or a part has no rows or an unknown split.
    """
    if _FILES not in properties:
        return {}
    stored = object_of(json_of(properties[_FILES], "the list of files"), "the list of files")
    streams = list(map(_stream_of, list_of(field_of(stored, "streams"), "streams")))
    files: dict[str, DataFileInfo] = {}
    for path, value in object_of(field_of(stored, "files"), "files").items():
        files[text_of(path, "a path of files")] = _info_of(value, streams)
    return files


def _stream_of(value: Any) -> tuple[str, str]:
    if len(list_of(value, "a stream")) != 2:
        raise ValueError(f"a stream has {len(value)} names: expected a split and a language")
    split = text_of(value[0], "the split of a stream")
    language = text_of(value[1], "the language of a stream")
    if split not in (*SPLITS, FORGOTTEN):
        raise ValueError(f"the split of a stream is {split!r}: expected one of {', '.join((*SPLITS, FORGOTTEN))}")
    return split, language


def _info_of(value: Any, streams: Sequence[tuple[str, str]]) -> DataFileInfo:
    if len(list_of(value, "a file")) != 4:
        raise ValueError(f"a file has {len(value)} values: expected size, two hashes and parts")
    size, whole, tokens, parts = value
    return DataFileInfo(
        count_of(size, "the size of a file"),
        text_of(whole, "the hash of a file"),
        text_of(tokens, "the hash of the tokens of a file"),
        tuple(_part_of(part, streams) for part in list_of(parts, "the parts of a file")),
    )


def _part_of(value: Any, streams: Sequence[tuple[str, str]]) -> StreamPart:
    if len(list_of(value, "a part")) != 3:
        raise ValueError(f"a part has {len(value)} values: expected stream, tokens and rows")
    number = count_of(value[0], "the stream of a part", most=len(streams) - 1)
    tokens = count_of(value[1], "the tokens of a part")
    return StreamPart(*streams[number], tokens, count_of(value[2], "the rows of a part", least=1, most=_MOST_ROWS))


def check_parts(parts: Iterable[StreamPart], block: int, uri: str) -> None:
    """Raise StoreError if in a part a block (of so many tokens) but the last is not full, or the last is empty.

    Forgotten rows have no tokens.
    """
    for part in parts:
        if part.split not in (*SPLITS, FORGOTTEN):
            raise StoreError(
                f"The token store {uri!r} has rows of the split {part.split!r}: expected {' or '.join(SPLITS)}; remove these "
                "rows, or use another copy of the store."
            )
        fits = (part.rows - 1) * block < part.tokens <= part.rows * block
        if part.split == FORGOTTEN:
            fits = part.tokens == 0
        if not fits:
            raise StoreError(
                f"The token store {uri!r} is damaged: its metadata has {part.tokens:,} tokens of "
                f"{part.split}/{part.language} in {part.rows:,} rows of {block:,}; use another copy of it, or build it again "
                "elsewhere."
            )


def layout_of(fragments: Iterable[Any], files: Mapping[str, DataFileInfo]) -> list[StreamPart] | None:
    """Return the parts of Lance fragments from the descriptions of their files; None if these do not cover every row.

    This reads far less than the rows' own columns. But rows that other programs added, deleted or moved are only in the
    columns.
    """
    parts: list[StreamPart] = []
    for fragment in fragments:
        if len(fragment.files) != 1 or fragment.deletion_file is not None:
            return None
        info = files.get(name_of(fragment.files[0]))
        if info is None or info.num_rows != fragment.physical_rows:
            return None
        parts += info.parts
    return parts


def layout_of_rows(rows: pa.Table, block: int) -> list[StreamPart]:
    """Return the parts of rows from their own columns (see `stream_columns`); `block` tokens are a full row."""
    if not len(rows):
        return []
    num_tokens = np.asarray(rows.column("num_tokens"))
    splits = as_single_chunk(rows.column("split").dictionary_encode())
    languages = as_single_chunk(rows.column("language").dictionary_encode())
    split_codes = np.asarray(splits.indices)
    language_codes = np.asarray(languages.indices)
    # A block that is not full ends a part: rows of another commit follow it.
    changes = (num_tokens[:-1] != block) | (np.diff(split_codes) != 0) | (np.diff(language_codes) != 0)
    low = np.append(0, np.flatnonzero(changes) + 1)
    split_names = splits.take(pa.array(low)).to_pylist()
    language_names = languages.take(pa.array(low)).to_pylist()
    tokens = np.add.reduceat(num_tokens, low).tolist()
    sizes = np.diff(low, append=len(num_tokens)).tolist()
    return list(map(StreamPart, split_names, language_names, tokens, sizes))
