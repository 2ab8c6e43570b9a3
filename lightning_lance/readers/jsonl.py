"""JSON Lines, local or remote, read in blocks of whole lines. Each line is a row."""

from __future__ import annotations

import gzip
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.columns import UnfitShard, outer_names
from lightning_lance.documents.filters import RowFilter
from lightning_lance.messages.formatting import suggestion
from lightning_lance.messages.redaction import public_url
from lightning_lance.readers.cuts import Cut
from lightning_lance.readers.json_table import (
    NOT_JSON,
    PASSES,
    SPACE,
    is_there,
    parsed,
    rows_of,
    table_of,
    type_of,
    value_of,
)

# Bytes read and parsed at a time: the first blocks are smaller, since the tokenizer waits for them.
_FIRST_BLOCK, BLOCK_BYTES = 256 << 10, 1 << 20
# Where the search for columns ends.
_LOOKED_AT = 7 << 20
# Bytes fetched at a time of a remote file, fewer at first: opening looks at its beginning.
_FIRST_PIECE, _PIECE_BYTES = 128 << 10, 4 << 20
# Rows of a table.
_TABLE_ROWS = 1000
# A file without line ends is no JSON Lines.
_LONGEST_LINE = 1 << 30
# Behind any row.
_BEHIND = 1 << 62
_BOM = b"\xef\xbb\xbf"

#: How the names of such files end.
ENDINGS = (
    ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst", ".json", ".json.gz", ".json.zst",
)  # fmt: skip


class NotLines(Exception):  # noqa: N818 - not an error: another reader knows such files
    """The file is one JSON array, or one object over several lines."""


class _Remote:
    """A remote file, read from a place to its end in growing pieces."""

    def __init__(self, file: Any, place: int) -> None:
        self._file = file
        self._place = place
        self._size = file.size
        # The last piece, what was read of it, and the size of the next one.
        self._piece = b""
        self._at = 0
        self._next = _FIRST_PIECE
        self.closed = False
        if place:
            file.seek(place)

    def read(self, size: int) -> bytes:
        if self._at == len(self._piece):
            self._piece = self._file.read(self._next)
            self._at = 0
            self._place += len(self._piece)
            if not self._piece and self._size is not None and self._place < self._size:
                raise ConnectionError(f"{self._place} of {self._size} bytes came")
            self._next = min(2 * self._next, _PIECE_BYTES)
        part = self._piece[self._at : self._at + size]
        self._at += len(part)
        return bytes(part)

    def peek(self, size: int) -> bytes:
        piece = self.read(size)
        self._at -= len(piece)
        return piece

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
        self._file.close()


class LinesShard:
    """A JSON Lines file, plain, gzip or Zstandard by its name.

    Args:
        path: Local path, or a URL that fsspec knows.
        storage_options: For its file system.
        block_bytes: What to parse at a time.
    """

    def __init__(self, path: str, storage_options: Mapping[str, Any], block_bytes: int = BLOCK_BYTES) -> None:
        self._path = path
        self._options = storage_options
        self._block_bytes = block_bytes
        # A signature may stand behind the name.
        self._name = public_url(path)
        self._compressed = self._name.endswith((".gz", ".zst"))

    def columns(self, wanted: Sequence[str], text: str) -> list[str]:
        """Return the names of its columns, from as many lines as show the wanted ones, some MB at most.

        Args:
            wanted: Columns, or fields of objects in them.
            text: The one of them that has to hold text.

        Raises:
            UnfitShard: If that column is there, and holds no text.
        """
        found: dict[str, None] = {}
        others: list[Any] = []
        is_text = False
        # The fields of objects of which one is wanted, for messages.
        outer = outer_names(wanted)
        for start, block in self._blocks(0):
            lines = rows_of(block)
            bad = 0
            for line in lines:
                row = parsed(line)
                if row is None:
                    bad += 1
                    continue
                found.update(dict.fromkeys(_names_in(row, wanted, outer)))
                value = value_of(row, text)
                is_text = is_text or isinstance(value, str)
                if not is_text and value is not None:
                    others.append(value)
                if is_text and found.keys() >= {*wanted}:
                    return list(found)
            if lines and bad == len(lines):
                self._refuse(block)
            if start + len(block) >= _LOOKED_AT:
                break
        if not is_text and others:
            raise UnfitShard(
                f"Column {text!r} of shard {self._path!r} cannot be read as 'text': it holds {type_of(others)}, expected "
                "strings (messages and other lists are to be made one text each first)"
            )
        return list(found)

    def cuts(self, text: str, filters: RowFilter | None, part_bytes: int) -> list[Cut]:
        """Return where parts of about `part_bytes` begin, but for the first; none for a compressed file.

        Lines are counted, and parsed only for a filter.
        """
        if self._compressed or self._size() < 2 * part_bytes:
            return []
        rows: dict[int, int] = {}
        columns = [] if filters is None else filters.columns
        for _ in self.tables(columns, text, filters, _BEHIND, rows):
            pass
        cuts: list[Cut] = []
        begin = 0
        for place in sorted(rows):
            if place - begin >= part_bytes:
                cuts.append(Cut(rows[place], place))
                begin = place
        return cuts

    def _size(self) -> int:
        if "://" not in self._path:
            return Path(self._path).stat().st_size
        from fsspec.core import url_to_fs

        fs, place = url_to_fs(self._path, **self._options)
        return int(fs.size(place))

    def tables(
        self, columns: Sequence[str], text: str, filters: RowFilter | None, row: int, starts: dict[int, int]
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Read the rows that a filter lets through. A line that is no JSON object passes any filter.

        Args:
            columns: Columns to read. All but the text are spelled as strings; the text is bytes, as some are not UTF-8.
            text: The column of the text.
            filters: The filter, of some of the columns.
            row: Rows to skip; without a filter, they are not parsed.
            starts: Place in the file to the rows that pass before it, as far as known. Filled here for uncompressed files, so
                that a later reading begins there.

        Yields:
            The place of a table's first row among the rows that pass, and the table, with `NOT_JSON` (bool). Its first rows may
            lie before `row`.

        Raises:
            NotLines: If the file is of another kind, before the first table.
            UnfitShard: If it begins with some MB of lines without text, before the first table.
        """
        start = _last_place(starts, row)
        first = starts.get(start, 0)
        begun = start > 0
        for place, block in self._blocks(start):
            if not self._compressed:
                starts[place] = first
            lines = rows_of(block)
            if not lines:
                continue
            if filters is None and first + len(lines) <= row:
                first += len(lines)
                begun = True
                continue
            table = table_of(lines, columns, text, filters)
            if not begun and pc.all(table.column(NOT_JSON)).as_py():
                self._refuse(block)
            if not begun and text in columns and table.column(text).null_count == len(table):
                self._check_text(text)
            begun = True
            if filters is not None:
                passes = table.column(PASSES)
                table = table.drop_columns([PASSES])
                if not pc.all(passes).as_py():
                    table = table.filter(passes)
            for low in range(0, len(table), _TABLE_ROWS):
                yield first + low, table.slice(low, _TABLE_ROWS)
            first += len(table)

    def _check_text(self, text: str) -> None:
        """Check that the first lines have the column of the text, and that it holds text."""
        found = self.columns([text], text)
        if text not in found:
            raise UnfitShard(
                f"Shard {self._path!r} has no column {text!r}{suggestion(text, [*found])}, which source.columns names for "
                f"'text': it has {', '.join(found) or 'none'}"
            )

    def _refuse(self, block: bytes) -> None:
        raise ValueError(f"no line of its first {len(block)} bytes is a JSON object")

    def _blocks(self, start: int) -> Generator[tuple[int, bytes], None, None]:
        """Read blocks of whole lines, each with its place in the text."""
        held: list[bytes] = []
        size = min(_FIRST_BLOCK, self._block_bytes)
        place = start
        raw, stream = self._open(start)
        try:
            if self._compressed and not raw.peek(1):
                raise EOFError("the file is empty, which no compressed text is")
            while data := _full(stream, size):
                size = min(2 * size, self._block_bytes)
                if place == 0 and not held:
                    _check_lines(data)
                end = data.rfind(b"\n") + 1
                if end:
                    block = b"".join([*held, memoryview(data)[:end]])
                    held = [data[end:]]
                    yield place, _without_bom(block, place)
                    place += len(block)
                    continue
                held.append(data)
                if sum(map(len, held)) > _LONGEST_LINE:
                    raise ValueError(f"a line is longer than {_LONGEST_LINE} bytes")
            last = b"".join(held)
            # A compressed file that was cut off between two frames looks whole, but seldom ends at a line end.
            if self._compressed and last.strip(SPACE) and parsed(last) is None:
                raise EOFError("the file ends in the middle of a line")
            if last:
                yield place, _without_bom(last, place)
        finally:
            if stream is not raw:
                stream.close()
            raw.close()

    def _open(self, start: int) -> tuple[Any, Any]:
        """Open the file. Return it and its decompressed stream."""
        raw: Any
        if "://" in self._path:
            from fsspec.core import url_to_fs

            fs, place = url_to_fs(self._path, **self._options)
            # Without a cache of fsspec, which would fetch more than is read.
            raw = _Remote(fs.open(place, "rb", cache_type="none"), start)
        else:
            raw = Path(self._path).open("rb")  # noqa: SIM115 - closed by the caller
            raw.seek(start)
        if self._name.endswith(".gz"):
            return raw, gzip.GzipFile(fileobj=raw)
        if self._name.endswith(".zst"):
            # Unlike other decompressors, it reports a file that ends within a frame.
            return raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return raw, raw


def _last_place(starts: Mapping[int, int], row: int) -> int:
    """Return the last known place that a reading from a row on may begin at."""
    last = 0
    for place, before in starts.items():
        if before <= row:
            last = max(last, place)
    return last


def _names_in(row: Mapping[str, Any], wanted: Sequence[str], outer: Collection[str]) -> Iterator[str]:
    """Yield the keys of a line, the wanted names that it has, and the fields of its `outer` objects."""
    yield from row
    for name in wanted:
        if is_there(row, name):
            yield name
    for key in outer:
        inner = row.get(key)
        if isinstance(inner, dict):
            for field in inner:
                yield f"{key}.{field}"


def _without_bom(block: bytes, place: int) -> bytes:
    if place == 0:
        return block.removeprefix(_BOM)
    return block


def _full(stream: Any, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    if len(parts) == 1:
        return parts[0]
    return b"".join(parts)


def _check_lines(data: bytes) -> None:
    line, end, _ = data.removeprefix(_BOM).lstrip(SPACE)[:100].partition(b"\n")
    if line.startswith(b"[") or (end and line.strip(SPACE) == b"{"):
        raise NotLines
