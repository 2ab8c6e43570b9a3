"""Row groups of a Parquet file, wherever it is: only the columns that are asked for, and not a row group too many."""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_lance.documents.columns import leaves, simple_table, steps_to, type_at
from lightning_lance.documents.filters import Condition, RowFilter

# What is decoded at a time: rows of about so many bytes, and so many at most, since some are much longer than the others.
_DECODED_BYTES, _DECODED_ROWS = 8 << 20, 512
# What lies between two columns is fetched too where it is less: a request takes as long as so many bytes.
_HOLE_BYTES = 64 << 10
# Larger row groups are fetched piece by piece, so that memory does not follow them.
_AHEAD_BYTES, _PIECE_BYTES = 64 << 20, 8 << 20
# The same of a local file, of each column.
_LOCAL_PIECE_BYTES = 1 << 20
# The footer is at the end, and mostly no larger.
_FOOTER_BYTES = 64 << 10


class _Parts(io.RawIOBase):
    """A remote file as Arrow reads it: out of parts that were fetched ahead, else by a request of its own."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file, self._size, self._place = file, int(file.size), 0
        self._footer = (self._size, b"")
        self._parts: list[tuple[int, bytes]] = []

    def ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch (begin, end) ranges, in place of those before."""
        self._parts = []
        self._parts = [(low, self._fetch(low, high)) for low, high in ranges]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        low = self._place
        high = self._size if size is None or size < 0 else min(low + size, self._size)
        self._place = max(low, high)
        for begin, data in (self._footer, *self._parts):
            if begin <= low and high <= begin + len(data):
                return data[low - begin : high - begin]
        if high == self._size and high - low <= _FOOTER_BYTES:
            # Asked for again and again: by the reader, and by who looks at the statistics.
            begin = max(0, high - _FOOTER_BYTES)
            self._footer = (begin, self._fetch(begin, high))
            return self._footer[1][low - begin :]
        return self._fetch(low, high)

    def _fetch(self, low: int, high: int) -> bytes:
        if low >= high:
            return b""
        self._file.seek(low)
        data = bytes(self._file.read(high - low))
        if len(data) < high - low:
            raise ConnectionError(f"{len(data)} of {high - low} bytes came")
        return data


class ParquetShard:
    """An open Parquet file. Use as a context.

    Args:
        path: Local path, or a URL that fsspec knows.
        storage_options: For its file system.
    """

    def __init__(self, path: str, storage_options: Mapping[str, Any]) -> None:
        #: In words, for messages.
        self.name = f"shard {path!r}"
        self._parts: _Parts | None = None
        self._remote: Any = None
        if "://" in path:
            from fsspec.core import url_to_fs

            fs, place = url_to_fs(path, **storage_options)
            # No cache of fsspec's: it fetches what is near, and we know what is needed.
            self._remote = fs.open(place, "rb", cache_type="none")
            self._parts = _Parts(self._remote)
        # Reading ahead inside Arrow goes on after a reader is closed: a build that stops in the middle of a shard because its
        # budget is met would abort or hang at exit.
        # As bytes, since some names are not UTF-8.
        self._source: Any = self._parts if self._parts is not None else pa.OSFile(os.fsencode(path))
        piece = _LOCAL_PIECE_BYTES if self._parts is None else _PIECE_BYTES
        self._file = pq.ParquetFile(self._source, buffer_size=piece, pre_buffer=False)
        coded = [field.name for field in self._file.schema_arrow if _is_coded_text(field.type)]
        if coded:
            # Read as such they may hold what is not UTF-8. Otherwise Arrow makes them of strings, and checks those.
            self._file = pq.ParquetFile(
                self._source,
                metadata=self._file.metadata,
                buffer_size=piece,
                pre_buffer=False,
                read_dictionary=coded,
            )
        #: The names and types of its columns.
        self.schema: pa.Schema = self._file.schema_arrow

    def __enter__(self) -> ParquetShard:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close(force=True)
        for file in (self._source, self._remote):
            if file is not None:
                file.close()

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return list(self.schema.names)

    @property
    def num_rows(self) -> int:
        """How many rows it has, wanted or not."""
        return int(self._file.metadata.num_rows)

    def tables(
        self, columns: Sequence[str], filters: RowFilter | None, row: int, starts: dict[int, int]
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Read the rows that a filter lets through.

        Args:
            columns: Columns, or fields of them (see columns.py), to read, those of the filter among them; those that are not
                there are passed over.
            filters: The filter; row groups that cannot hold such rows, by their statistics, are not read.
            row: How many of the rows to pass over. Of the row groups before it, only the filter's columns are read, if any.
            starts: Row group to the rows that pass before it, as far as known; filled here, for when a reading is taken up
                again.

        Yields:
            The place of a table's first row among the rows that pass, and the table; its first rows may lie before `row`.
        """
        groups = self._groups(filters)
        first = 0
        for place, group in enumerate(groups):
            first = starts.setdefault(group, first)
            following = groups[place + 1] if place + 1 < len(groups) else None
            if row > first:
                after = starts.get(following) if following is not None else None
                if after is None:
                    after = first + self._count(group, filters)
                if after <= row:
                    first = after
                    continue
            for table in self._decoded(group, columns, filters):
                yield first, table
                first += len(table)

    def _groups(self, filters: RowFilter | None) -> list[int]:
        """Return the row groups in which the filter may let a row through, by their statistics."""
        groups = range(self._file.num_row_groups)
        conditions = () if filters is None else filters.conditions
        return [group for group in groups if all(self._possible(group, condition) for condition in conditions)]

    def _possible(self, group: int, condition: Condition) -> bool:
        steps = steps_to(self.schema, condition.column)
        if steps is None:
            return condition.keeps(None)
        found = leaves(self.schema, steps)
        if len(found) != 1:
            return True
        kind = type_at(self.schema, steps)
        column = self._file.metadata.row_group(group).column(found[0])
        # In structs and lists, nulls are counted in other ways.
        rows = column.num_values if len(steps) == 1 and not pa.types.is_nested(kind) else None
        return condition.possible(kind, column.statistics, rows)

    def _leaves(self, columns: Sequence[str]) -> list[int]:
        """Return the places of the leaves of some columns among those of the file, without those that are not there."""
        ways = [steps for steps in (steps_to(self.schema, name) for name in columns) if steps is not None]
        return sorted({leaf for steps in ways for leaf in leaves(self.schema, steps)})

    def _count(self, group: int, filters: RowFilter | None) -> int:
        if filters is None:
            return int(self._file.metadata.row_group(group).num_rows)
        return sum(len(table) for table in self._decoded(group, filters.columns, filters))

    def _decoded(
        self, group: int, columns: Sequence[str], filters: RowFilter | None
    ) -> Generator[pa.Table, None, None]:
        found = self._leaves(columns)
        described = self._file.metadata.row_group(group)
        if not found:  # all that is asked of is missing, so each row is as the others
            rows = pa.table({"": pa.nulls(described.num_rows)})
            yield rows if filters is None else filters.passing(rows, self.name)
            return
        if self._parts is not None:
            ranges = self._ranges(group, found)
            self._parts.ahead(ranges if sum(high - low for low, high in ranges) <= _AHEAD_BYTES else [])
        size = sum(described.column(i).total_uncompressed_size for i in found)
        rows = min(max(_DECODED_BYTES * described.num_rows // max(size, 1), 1), _DECODED_ROWS)
        paths = [self._file.schema.column(i).path for i in found]
        # Without threads, so that a remote file is read by this one, and by none when it is done with.
        for batch in self._file.iter_batches(rows, [group], paths, use_threads=False):
            table = simple_table(pa.Table.from_batches([batch]))
            yield table if filters is None else filters.passing(table, self.name)

    def _ranges(self, group: int, found: Sequence[int]) -> list[tuple[int, int]]:
        """Return the places of a row group's columns in the file, neighbours joined."""
        described = self._file.metadata.row_group(group)
        ranges = []
        for i in found:
            column = described.column(i)
            low = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
            ranges.append((low, low + column.total_compressed_size))
        ranges.sort()
        joints = [i for i, (before, after) in enumerate(pairwise(ranges)) if after[0] - before[1] > _HOLE_BYTES]
        borders = [-1, *joints, len(ranges) - 1]
        return [(ranges[low + 1][0], ranges[high][1]) for low, high in pairwise(borders) if ranges]


def _is_coded_text(kind: pa.DataType) -> bool:
    """Return whether a column is of strings that are kept as numbers, as pandas and Polars write categories."""
    if not pa.types.is_dictionary(kind):
        return False
    return bool(pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))
