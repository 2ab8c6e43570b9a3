"""What a store notes of each of its data files: which streams lie in it, its size, and hashes of it.

Every version's note tells of all files of that version, so that opening reads one note, whatever was committed before, and
however many versions were removed since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.splits import FORGOTTEN, SPLITS
from lightning_lance.errors import StoreError
from lightning_lance.format.hashing import hash_tokens
from lightning_lance.json_checks import count_of, field_of, json_of, list_of, object_of, text_of

_FILES = "lightning_lance_files"
# Rows of a part, of which not even all parts together have as many: an int64 can count their tokens.
_MOST_ROWS = 1 << 40


class StreamPart(NamedTuple):
    """Rows of one stream that follow each other: `tokens` tokens in `rows` blocks, full but for the last."""

    split: str
    language: str
    tokens: int
    rows: int


class StreamExtent(NamedTuple):
    """Where a stream lies among the tokens of its split: `num_tokens` tokens from `start` on."""

    language: str
    start: int
    num_tokens: int


class StoreContent(NamedTuple):
    """What of its source a store holds; of one recipe, equal extents are equal streams.

    Attributes:
        tokens: Tokens that were taken from the source, in its order.
        forgotten: The rules (`key=value`) by which some of their documents were taken out again, sorted.
    """

    tokens: int
    forgotten: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tags are named by: `<tokens>`, and where documents were forgotten, a hash of the rules."""
        rules = xxhash.xxh3_64_hexdigest(repr(self.forgotten).encode())[:8]
        return f"{self.tokens}-{rules}" if self.forgotten else f"{self.tokens}"


class DataFileInfo(NamedTuple):
    """What is known of a data file, whose content never changes.

    Attributes:
        size: Bytes.
        whole: xxh3_64 of all bytes of the file, as they were read back after they were written.
        tokens: xxh3_64 of its blocks of tokens, padding included, as they were before they were written.
        parts: What its rows are, in their order.
    """

    size: int
    whole: str
    tokens: str
    parts: tuple[StreamPart, ...]


class LayoutCounter:
    """Counts the parts and hashes the tokens of rows that go by on their way into one file."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()
        self._parts: list[StreamPart] = []
        self.rows = 0

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Give the batches on, counted."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch."""
        if not len(batch):
            return
        self.rows += len(batch)
        hash_tokens(self._hash, batch.column("tokens"))
        keys = [batch.column(name).dictionary_encode() for name in ("split", "language")]
        codes = [np.asarray(key.indices) for key in keys]
        tokens = np.asarray(batch.column("num_tokens"))
        changes = np.logical_or(*(np.diff(code) != 0 for code in codes))
        for low, high in pairwise([0, *(np.flatnonzero(changes) + 1).tolist(), len(batch)]):
            names = [key.dictionary[int(code[low])].as_py() for key, code in zip(keys, codes, strict=True)]
            part = StreamPart(names[0], names[1], int(tokens[low:high].sum()), high - low)
            if self._parts and self._parts[-1][:2] == part[:2]:
                last = self._parts.pop()
                part = part._replace(tokens=last.tokens + part.tokens, rows=last.rows + part.rows)
            self._parts.append(part)

    def note(self, size: int, whole: str) -> DataFileInfo:
        """Give what was counted, with what is known of the file."""
        return DataFileInfo(size, whole, self._hash.hexdigest(), tuple(self._parts))


def properties_of(files: Mapping[str, DataFileInfo]) -> dict[str, str]:
    """Give the notes as properties of a transaction."""
    # Streams are named once: there may be hundreds, and each may be in every file.
    streams = sorted({part[:2] for note in files.values() for part in note.parts})
    numbers = {stream: number for number, stream in enumerate(streams)}
    told = {
        path: [note.size, note.whole, note.tokens, [[numbers[part[:2]], *part[2:]] for part in note.parts]]
        for path, note in files.items()
    }
    return {_FILES: json.dumps({"streams": streams, "files": told}, separators=(",", ":"))}


def files_of(properties: Mapping[str, str]) -> dict[str, DataFileInfo]:
    """Read the notes out of the properties of a transaction; those of other writers have none.

    Raises:
        ValueError: If they are of another form, or a part has no rows or is of no known split.
    """
    if _FILES not in properties:
        return {}
    told = object_of(json_of(properties[_FILES], "the list of files"), "the list of files")
    streams = [_stream_of(stream) for stream in list_of(field_of(told, "streams"), "streams")]
    files = object_of(field_of(told, "files"), "files")
    return {text_of(path, "a path of files"): _file_note_of(note, streams) for path, note in files.items()}


def _stream_of(value: Any) -> tuple[str, str]:
    if len(list_of(value, "a stream")) != 2:
        raise ValueError(f"a stream has {len(value)} names: expected a split and a language")
    split, language = text_of(value[0], "the split of a stream"), text_of(value[1], "the language of a stream")
    if split not in (*SPLITS, FORGOTTEN):
        raise ValueError(f"the split of a stream is {split!r}: expected one of {', '.join((*SPLITS, FORGOTTEN))}")
    return split, language


def _file_note_of(value: Any, streams: Sequence[tuple[str, str]]) -> DataFileInfo:
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
    """Check that all blocks of each part are full but the last, which is not empty. Forgotten rows have no tokens.

    Args:
        parts: Those of the rows of a store.
        block: Tokens of a full row.
        uri: The store.

    Raises:
        StoreError: Naming the first part that cannot be.
    """
    for part in parts:
        if part.split not in (*SPLITS, FORGOTTEN):
            raise StoreError(
                f"The token store {uri!r} has rows of the split {part.split!r}: expected {' or '.join(SPLITS)}; take them out "
                "again, or get the store anew from where it came."
            )
        fits = (part.rows - 1) * block < part.tokens <= part.rows * block
        if part.split == FORGOTTEN:
            fits = part.tokens == 0
        if not fits:
            raise StoreError(
                f"The token store {uri!r} says that {part.rows:,} rows of {block:,} tokens hold {part.tokens:,} tokens of "
                f"{part.split}/{part.language}, which cannot be: get the store anew from where it came, or build it again "
                "elsewhere."
            )


def layout_of(fragments: Iterable[Any], files: Mapping[str, DataFileInfo]) -> list[StreamPart] | None:
    """Tell from the notes which rows of some Lance fragments are of which stream; None if they do not tell of every row.

    That is far less to read than the rows' own columns; but what others than this package added, deleted or moved, only the
    columns know.
    """
    parts: list[StreamPart] = []
    for fragment in fragments:
        if len(fragment.files) != 1 or fragment.deletion_file is not None or fragment.files[0].path not in files:
            return None
        mine = files[fragment.files[0].path].parts
        if sum(part.rows for part in mine) != fragment.physical_rows:
            return None
        parts += mine
    return parts


def layout_of_rows(rows: pa.Table, block: int) -> list[StreamPart]:
    """Tell which rows are of which stream, from their own columns (see `stream_columns`); `block` tokens are a full row."""
    num_tokens = np.asarray(rows.column("num_tokens"))
    keys = [as_single_chunk(rows.column(name).dictionary_encode()) for name in ("split", "language")]
    codes = [np.asarray(key.indices) for key in keys]
    # A block that is not full ends a part: another commit's follow it.
    changes = (num_tokens[:-1] != block) | (np.diff(codes[0]) != 0) | (np.diff(codes[1]) != 0)
    low = np.append(0, np.flatnonzero(changes) + 1)[: len(num_tokens)]
    sizes, tokens = np.diff(low, append=len(num_tokens)), np.add.reduceat(num_tokens, low) if len(low) else low
    names = [key.dictionary.to_pylist() for key in keys]
    return [
        StreamPart(names[0][split], names[1][language], int(count), int(size))
        for split, language, count, size in zip(codes[0][low], codes[1][low], tokens, sizes, strict=True)
    ]
