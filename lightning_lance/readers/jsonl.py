"""JSON Lines, wherever they are: read in blocks of whole lines, each line a row, whatever it holds."""

from __future__ import annotations

import gzip
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.columns import UnfitShard, meant
from lightning_lance.documents.filters import RowFilter
from lightning_lance.messages.redaction import public_url
from lightning_lance.readers.json_table import (
    NOT_JSON,
    PASSES,
    SPACE,
    LineParser,
    is_there,
    parsed,
    rows_of,
    type_of,
    value_of,
    whole_objects,
)

# What is read and parsed at a time: the first blocks are smaller, since the tokenizer waits for them.
_FIRST_BLOCK, BLOCK_BYTES = 256 << 10, 4 << 20
# What is fetched at a time of a remote file, the first times less: opening looks at its beginning.
_FIRST_PIECE, _PIECE_BYTES = 128 << 10, 4 << 20
# Rows given together.
_TABLE_ROWS = 1000
# Arrow counts the bytes of a block in 31 bits; and what has no line ends is no such file.
_LONGEST_LINE = 1 << 30
_BOM = b"\xef\xbb\xbf"

#: How the names of such files end.
ENDINGS = tuple(f".{kind}{packed}" for kind in ("jsonl", "ndjson", "json") for packed in ("", ".gz", ".zst"))


class NotLines(Exception):  # noqa: N818 - not an error: another reader knows such files
    """The file is one JSON array, or one object over several lines."""


class _Remote:
    """A remote file, read once from a place on to its end, in pieces of some size."""

    def __init__(self, file: Any, place: int) -> None:
        self._file, self._place, self._size = file, place, file.size
        self._piece, self._at, self._next = b"", 0, _FIRST_PIECE
        self.closed = False
        if place:
            file.seek(place)

    def read(self, size: int) -> bytes:
        if self._at == len(self._piece):
            self._piece, self._at = self._file.read(self._next), 0
            self._place += len(self._piece)
            if not self._piece and self._size is not None and self._place < self._size:
                raise ConnectionError(f"{self._place} of {self._size} bytes came")
            self._next = min(2 * self._next, _PIECE_BYTES)
        self._at, low = min(self._at + size, len(self._piece)), self._at
        return bytes(self._piece[low : self._at])

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
        self._path, self._options, self._block_bytes = path, storage_options, block_bytes
        # A signature may stand behind the name.
        self._name = public_url(path)
        self._compressed = self._name.endswith((".gz", ".zst"))

    def columns(self, wanted: Sequence[str], text: str | None = None) -> list[str]:
        """Return the names of its columns, as far as needed to see those that are wanted, in some MB at most.

        Args:
            wanted: Columns, or fields of objects in them.
            text: Which of them has to hold text; None for none.

        Raises:
            UnfitShard: If the text is there, and never one.
        """
        found: dict[str, None] = {}
        others: list[Any] = []
        is_text = text is None
        # Of objects that are asked for a field, the fields are told.
        outer = {name.split(".")[0] for name in wanted if "." in name}
        for start, block in self._blocks(0):
            lines, bad = rows_of(block), 0
            for line in lines:
                row = parsed(line)
                bad += row is None
                found.update(dict.fromkeys(row or ()))
                found.update({name: None for name in wanted if row is not None and is_there(row, name)})
                for key in outer:
                    inner = None if row is None else row.get(key)
                    found.update({f"{key}.{name}": None for name in inner} if isinstance(inner, dict) else {})
                value = None if text is None else value_of(row, text)
                is_text = is_text or isinstance(value, str)
                others += [] if is_text or value is None else [value]
                if is_text and found.keys() >= {*wanted}:
                    return list(found)
            if lines and bad == len(lines):
                self._refuse(block)
            if start + len(block) >= self._block_bytes:
                break
        if not is_text and others:
            raise UnfitShard(
                f"Column {text!r} of shard {self._path!r} cannot be read as 'text': it holds {type_of(others)}, expected "
                "strings"
            )
        return list(found)

    def tables(
        self, columns: Sequence[str], text: str, filters: RowFilter | None, row: int, starts: dict[int, int]
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Read the rows that a filter lets through; a line that is no JSON object passes any.

        Args:
            columns: Columns to read. All but the text are spelled as strings; the text is bytes, as some are not UTF-8.
            text: The column of the text.
            filters: The filter, of some of the columns.
            row: How many of the rows to pass over; without a filter, they are not parsed.
            starts: Place in the file to the rows that pass before it, as far as known; filled here where the file is not
                compressed, for when a reading is taken up again.

        Yields:
            The place of a table's first row among the rows that pass, and the table, which has `NOT_JSON` (bool) besides; its
            first rows may lie before `row`.

        Raises:
            NotLines: If the file is of another kind, before anything is given.
            UnfitShard: If it begins with some MB of lines that have no text, before anything is given.
        """
        start = max((place for place, before in starts.items() if before <= row), default=0)
        first, begun, parser = starts.get(start, 0), start > 0, LineParser(columns, text, filters)
        for place, block in self._blocks(start):
            if not self._compressed:
                starts[place] = first
            objects = whole_objects(block)
            if (count := len(rows_of(block)) if objects is None else objects) == 0:
                continue
            if filters is None and first + count <= row:
                first, begun = first + count, True
                continue
            table = parser.table(block, objects)
            if not begun and pc.all(table.column(NOT_JSON)).as_py():
                self._refuse(block)
            if not begun and text in columns and table.column(text).null_count == len(table):
                self._check_text(text)
            begun = True
            if filters is not None:
                passes = table.column(PASSES)
                table = table.drop_columns([PASSES])
                table = table if pc.all(passes).as_py() else table.filter(passes)
            for low in range(0, len(table), _TABLE_ROWS):
                yield first + low, table.slice(low, _TABLE_ROWS)
            first += len(table)

    def _check_text(self, text: str) -> None:
        """Refuse a file whose first lines, as many as are looked at, have no such key, or no text there but other values."""
        found = self.columns([text], text)
        if text not in found:
            raise UnfitShard(
                f"Shard {self._path!r} has no column {text!r}, which source.columns gives for 'text': "
                f"{meant(text, [*found])}there are {', '.join(found) or 'none'}"
            )

    def _refuse(self, block: bytes) -> None:
        raise ValueError(f"no line of its first {len(block)} bytes is a JSON object")

    def _blocks(self, start: int) -> Generator[tuple[int, bytes], None, None]:
        """Read whole lines, some MB at a time, each with its place in the text."""
        held: list[bytes | memoryview] = []
        size, place = min(_FIRST_BLOCK, self._block_bytes), start
        raw, stream = self._open(start)
        try:
            if self._compressed and not raw.peek(1):
                raise EOFError("the file is empty, which no compressed text is")
            while data := _full(stream, size):
                size = min(2 * size, self._block_bytes)
                if place == 0 and not held:
                    _check_lines(data)
                end = data.rfind(b"\n") + 1
                held.append(memoryview(data)[:end] if end else data)
                if end:
                    block = b"".join(held)
                    held = [data[end:]]
                    yield place, block.removeprefix(_BOM) if place == 0 else block
                    place += len(block)
                elif sum(map(len, held)) > _LONGEST_LINE:
                    raise ValueError(f"a line is longer than {_LONGEST_LINE} bytes")
            last = b"".join(held)
            # Between two frames a compressed file may be cut off and still look whole; but seldom at a line end.
            if self._compressed and last.strip(SPACE) and parsed(last) is None:
                raise EOFError("the file ends in the middle of a line")
            if last:
                yield place, last.removeprefix(_BOM) if place == 0 else last
        finally:
            if stream is not raw:
                stream.close()
            raw.close()

    def _open(self, start: int) -> tuple[Any, Any]:
        """Open the file, and give it and what decompresses it."""
        raw: Any
        if "://" in self._path:
            from fsspec.core import url_to_fs

            fs, place = url_to_fs(self._path, **self._options)
            # No cache of fsspec's: it fetches what is near, and we read on.
            raw = _Remote(fs.open(place, "rb", cache_type="none"), start)
        else:
            raw = Path(self._path).open("rb")  # noqa: SIM115 - closed by who asked
            raw.seek(start)
        if self._name.endswith(".gz"):
            return raw, gzip.GzipFile(fileobj=raw)
        if self._name.endswith(".zst"):
            # Unlike others, it tells of a file that ends within a frame.
            return raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return raw, raw


def _full(stream: Any, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_lines(data: bytes) -> None:
    line, end, _ = data.removeprefix(_BOM).lstrip(SPACE)[:100].partition(b"\n")
    if line.startswith(b"[") or (end and line.strip(SPACE) == b"{"):
        raise NotLines
