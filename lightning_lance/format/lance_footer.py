"""Where the pages of a column of a Lance file lie, from the end of the file: its column metadata, in protobuf.

`LanceFileReader` tells the same, but takes half a millisecond for a file. Only a column is understood that pylance 14 writes
for plain values of one size. Whoever reads its pages compares some with what Lance reads.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple

from lightning_lance.lance_names import MAGIC

# Positions of the column metadata, of its table, and of the table of global buffers; how many there are of buffers and columns;
# the version of the format.
_FOOTER = struct.Struct("<QQQIIHH4s")
# The position and the bytes of the metadata of a column.
_ENTRY = struct.Struct("<QQ")
_VERSIONS = ((2, 1), (2, 2))
# What is read at once from the end of a file: enough for some dozen pages.
_TAIL = 4096
# The metadata of a column of a terabyte has fewer bytes.
_LONGEST = 64 << 20
# The kinds of fields: one number, and so many bytes.
_NUMBER, _LENGTH = 0, 2
# Bytes of a number below 2^63.
_LONGEST_NUMBER = 9
_VARINT = rb"[\x80-\xff]{0,8}[\x00-\x7f]"
# A page of one buffer: its position and its size, each in a list with its length, its rows, the length of its encoding, which
# is next, and its priority. A file has hundreds of them.
_PAGE = re.compile(
    rb"\x0a(.)(%(n)s)\x12(.)(%(n)s)\x18(%(n)s)\x22(%(n)s)(.*)" % {b"n": _VARINT},
    re.DOTALL,
)
_PRIORITY = re.compile(rb"\x28" + _VARINT)

# Fields of the messages in the metadata, by their numbers.
_PAGES = 2
_DIRECT, _BYTES = 2, 1
_NAME, _VALUE = 1, 2
_FULL_ZIP = 3
_ITEMS, _VISIBLE_ITEMS = 5, 6
_LENGTH_OF_FILE = 2


class Page(NamedTuple):
    """A page of a column: one buffer of `size` bytes at `position` in the file, for `rows` rows."""

    position: int
    size: int
    rows: int


class ColumnPages(NamedTuple):
    """A column of a Lance file.

    Attributes:
        file_size: Bytes of the file.
        pages: Its pages, in the order of their rows.
        encoding: The version of the format, the schema, and Lance's description of how the column and all its pages are
            encoded, without their rows.
    """

    file_size: int
    pages: list[Page]
    encoding: Hashable


def column_pages(file: str, column: int = 0) -> ColumnPages | None:
    """Read where a column of a file is; None if it is not of pages of plain values, all encoded alike, or damaged."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return _column_pages(descriptor, column)
    except (ValueError, struct.error):
        return None
    finally:
        os.close(descriptor)


def _column_pages(descriptor: int, column: int) -> ColumnPages | None:
    size = os.fstat(descriptor).st_size
    begin = max(size - _TAIL, 0)
    tail = os.pread(descriptor, _TAIL, begin)

    def read(position: int, count: int) -> bytes:
        if count > _LONGEST or position + count > size:
            raise ValueError(f"{count} bytes of metadata at {position}")
        if position >= begin:
            return tail[position - begin : position - begin + count]
        return os.pread(descriptor, count, position)

    _, table, buffer_table, buffers, columns, major, minor, magic = _FOOTER.unpack(tail[-_FOOTER.size :])
    if magic != MAGIC or (major, minor) not in _VERSIONS or column >= columns or not buffers:
        return None
    position, count = _ENTRY.unpack(read(table + column * _ENTRY.size, _ENTRY.size))
    pages = []
    encodings = set()
    others = []
    rows = 0
    for number, value in _fields(read(position, count)):
        if number == _PAGES:
            page, encoding = _page_of(value)
            pages.append(page)
            rows += page.rows
            encodings.add(_without_rows(encoding, page.rows))
        else:
            others.append((number, value))
    if len(encodings) != 1:
        return None
    # The first buffer has the schema, and the rows of the file.
    schema = _fields(read(*_ENTRY.unpack(read(buffer_table, _ENTRY.size))))
    length = (_LENGTH_OF_FILE, rows)
    if length not in schema:
        return None
    schema.remove(length)
    return ColumnPages(size, pages, (major, minor, tuple(schema), tuple(others), encodings.pop()))


def _page_of(message: int | bytes) -> tuple[Page, bytes]:
    """Return a page, and its encoding. ValueError if it has not one buffer, or another form."""
    found = _PAGE.fullmatch(message) if isinstance(message, bytes) else None
    if found is None:
        raise ValueError("a page in another form")
    length_of_position, position, length_of_size, size, rows, length, rest = found.groups()
    end = _number(length)
    if (length_of_position[0], length_of_size[0]) != (len(position), len(size)) or end > len(rest):
        raise ValueError("a page of several buffers")
    if end < len(rest) and not _PRIORITY.fullmatch(rest, end):
        raise ValueError("a page in another form")
    return Page(_number(position), _number(size), _number(rows)), rest[:end]


def _number(varint: bytes) -> int:
    """Return the number that a varint is."""
    value = 0
    for byte in reversed(varint):
        value = value << 7 | byte & 127
    return value


@lru_cache(maxsize=1024)
def _without_rows(encoding: bytes, rows: int) -> str:
    """Return an encoding without its number of rows. ValueError if it has another, or is not of plain values."""
    direct = dict(_fields(encoding)).get(_DIRECT)
    named = dict(_fields(dict(_fields(direct)).get(_BYTES)))
    layout = dict(_fields(named.get(_VALUE)))
    if [*layout] != [_FULL_ZIP]:
        raise ValueError("another layout")
    kept = []
    for number, value in _fields(layout[_FULL_ZIP]):
        if number not in (_ITEMS, _VISIBLE_ITEMS):
            kept.append((number, value))
        elif value != rows:
            raise ValueError(f"{value!r} of {rows} rows")
    return repr((named.get(_NAME), kept))


def _fields(message: int | bytes | None) -> list[tuple[int, int | bytes]]:
    """Return the fields of a protobuf message: number, and value. ValueError if it is damaged, or none."""
    if not isinstance(message, bytes):
        raise ValueError("not a message")
    found: list[tuple[int, int | bytes]] = []
    at = 0
    size = len(message)
    while at < size:
        # The number of a field, and its kind, are one byte.
        key = message[at]
        value, at = _varint(message, at + 1)
        if key & 0b10000111 == _NUMBER:
            found.append((key >> 3, value))
        elif key & 0b10000111 == _LENGTH and at + value <= size:
            found.append((key >> 3, message[at : at + value]))
            at += value
        else:
            raise ValueError("a field of another kind, or beyond its message")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    value = 0
    shift = 0
    for byte in message[at : at + _LONGEST_NUMBER]:
        at += 1
        if byte < 128:
            return value | byte << shift, at
        value |= (byte & 127) << shift
        shift += 7
    raise ValueError("a number that does not end")
