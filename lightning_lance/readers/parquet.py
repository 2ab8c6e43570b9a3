"""Row groups of a Parquet file, local or remote: only the wanted columns, and only the row groups that are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_lance.documents.columns import is_string, leaves, simple_table, steps_to, type_at
from lightning_lance.documents.filters import Condition, RowFilter
from lightning_lance.readers.cuts import Cut

# Rows decoded at a time: about so many bytes, and so many rows at most, since some rows are much longer than others.
_DECODED_BYTES, _DECODED_ROWS = 8 << 20, 512
# Smaller gaps between two columns are fetched too: a request takes as long as so many bytes.
_HOLE_BYTES = 64 << 10
# Larger row groups are fetched piece by piece, so that memory does not follow them.
_AHEAD_BYTES, _PIECE_BYTES = 64 << 20, 8 << 20
# Read at a time of each column of a local file.
_LOCAL_PIECE_BYTES = 1 << 20
# Behind any row.
_BEHIND = 1 << 62
# Read at the end of a file: most footers are smaller.
_FOOTER_BYTES = 64 << 10


class _Parts:
    """Fetches parts of a remote file ahead, and other bytes as they are read.

    fsspec's `KnownPartsOfAFile` fails, warns or returns zeros for other bytes, by its version; `cat_ranges` opens a file of the
    Hub anew for each range, with a cache that fetches more.
    """

    def __init__(self, fetcher: Callable[[int, int], bytes], size: int) -> None:
        self._fetcher = fetcher
        self._size = size
        self._known: dict[tuple[int, int], bytes] = {}

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch (begin, end) ranges, and forget earlier ones."""
        self._known = {}
        for begin, end in ranges:
            self._known[begin, end] = self._whole(begin, end)

    def fetch(self, start: int, end: int) -> bytes:
        """Return bytes of the file."""
        end = min(end, self._size)
        for (low, high), data in self._known.items():
            if low <= start and end <= high:
                return data[start - low : end - low]
        return self._whole(start, end)

    def _whole(self, start: int, end: int) -> bytes:
        data = bytes(self._fetcher(start, end)) if start < end else b""
        if len(data) < end - start:
            raise ConnectionError(f"{len(data)} of {end - start} bytes came")
        return data


class ParquetShard:
    """An open Parquet file. Use as a context.

    Args:
        path: Local path, or a URL that fsspec knows.
        storage_options: For its file system.
    """

    def __init__(self, path: str, storage_options: Mapping[str, Any]) -> None:
        #: For messages.
        self.name = f"shard {path!r}"
        self._parts: _Parts | None = None
        piece = _LOCAL_PIECE_BYTES
        if "://" in path:
            from fsspec.caching import BaseCache
            from fsspec.core import url_to_fs

            piece = _PIECE_BYTES
            fs, place = url_to_fs(path, **storage_options)
            # Without a cache of fsspec, which would fetch more than is needed.
            self._source: Any = fs.open(place, "rb", cache_type="none")
            cache: Any = getattr(self._source, "cache", None)
            # Else it is in memory, on a disk, behind one lasting connection, or in a cache that the user has chosen.
            if type(cache) is BaseCache:
                size = int(self._source.size)
                self._parts = _Parts(cache.fetcher, size)
                self._source.cache = BaseCache(cache.blocksize, self._parts.fetch, size)
                self._parts.ahead([(max(0, size - _FOOTER_BYTES), size)])
        else:
            # As bytes, since some names are not UTF-8.
            self._source = pa.OSFile(os.fsencode(path))
        # Arrow's own reading ahead (`pre_buffer`) goes on after a reader is closed: a build that stops in the middle of a shard
        # because its budget is met would abort or hang at exit.
        opened = partial(pq.ParquetFile, self._source, buffer_size=piece, pre_buffer=False)
        self._file = opened()
        coded = [field.name for field in self._file.schema_arrow if _is_coded_text(field.type)]
        if coded:
            # Read as such they may hold what is not UTF-8. Otherwise Arrow makes them of strings, and checks those.
            self._file = opened(metadata=self._file.metadata, read_dictionary=coded)
        #: The names and types of its columns.
        self.schema: pa.Schema = self._file.schema_arrow

    def __enter__(self) -> ParquetShard:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close(force=True)
        self._source.close()

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return list(self.schema.names)

    @property
    def num_rows(self) -> int:
        """The number of its rows, wanted or not."""
        return int(self._file.metadata.num_rows)

    def cuts(self, columns: Sequence[str], filters: RowFilter | None, part_bytes: int) -> list[Cut]:
        """Return where parts begin, each of whole row groups with about `part_bytes` of some columns, but for the first part.

        Where a filter is, its columns are read, since it decides the number of each row.
        """
        found = self._leaves(columns)
        sizes = [self._size(group, found) for group in range(self._file.num_row_groups)]
        if sum(sizes) < 2 * part_bytes:
            return []
        rows: dict[int, int] = {}
        for _ in self.tables([], filters, _BEHIND, rows):
            pass
        cuts: list[Cut] = []
        size = 0
        for group, group_size in enumerate(sizes):
            if size >= part_bytes and group in rows:
                cuts.append(Cut(rows[group], group))
                size = 0
            size += group_size
        return cuts

    def tables(
        self, columns: Sequence[str], filters: RowFilter | None, row: int, starts: dict[int, int]
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Read the rows that a filter lets through.

        Args:
            columns: Columns to read, or fields of them (see columns.py), with those of the filter; missing ones are skipped.
            filters: The filter. Row groups that cannot hold such rows, by their statistics, are not read.
            row: Rows to skip. Of the row groups before it, only the columns of the filter are read, if any.
            starts: Row group to the rows that pass before it, as far as known. Filled here for a later reading.

        Yields:
            The place of a table's first row among the rows that pass, and the table. Its first rows may lie before `row`.
        """
        filters = filters or RowFilter(())
        groups: list[int] = []
        for group in range(self._file.num_row_groups):
            # By the statistics of the row group.
            if not self._may_pass(group, filters):
                continue
            # The row is not in an earlier group.
            if starts.get(group, row + 1) <= row:
                groups.clear()
            groups.append(group)
        first = 0
        # No row group has the number -1.
        for group, following in zip(groups, [*groups[1:], -1], strict=False):
            first = starts.setdefault(group, first)
            if row > first:
                after = starts.get(following)
                if after is None:
                    after = first + self._count(group, filters)
                if after <= row:
                    first = after
                    continue
            for table in self._decoded(group, columns, filters):
                yield first, table
                first += len(table)

    def _may_pass(self, group: int, filters: RowFilter) -> bool:
        return all(self._possible(group, condition) for condition in filters.conditions)

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
        rows = None
        if len(steps) == 1 and not pa.types.is_nested(kind):
            rows = column.num_values
        return condition.possible(kind, column.statistics, rows)

    def _leaves(self, columns: Sequence[str]) -> list[int]:
        """Return the places of the leaves of some columns among those of the file, without missing ones."""
        found: set[int] = set()
        for name in columns:
            steps = steps_to(self.schema, name)
            if steps is not None:
                found.update(leaves(self.schema, steps))
        return sorted(found)

    def _count(self, group: int, filters: RowFilter) -> int:
        if not filters.conditions:
            return int(self._file.metadata.row_group(group).num_rows)
        return sum(map(len, self._decoded(group, filters.columns, filters)))

    def _decoded(self, group: int, columns: Sequence[str], filters: RowFilter) -> Generator[pa.Table, None, None]:
        found = self._leaves(columns)
        described = self._file.metadata.row_group(group)
        if not found:  # all columns are missing, so all rows are alike
            rows = pa.table({"": pa.nulls(described.num_rows)})
            yield filters.passing(rows, self.name)
            return
        if self._parts is not None:
            self._parts.ahead(self._ranges(group, found))
        size = self._size(group, found)
        rows = min(max(_DECODED_BYTES * described.num_rows // max(size, 1), 1), _DECODED_ROWS)
        paths = [self._file.schema.column(i).path for i in found]
        # Without threads: a remote file is read by this thread only, and by none after its end.
        for batch in self._file.iter_batches(rows, [group], paths, use_threads=False):
            table = simple_table(pa.Table.from_batches([batch]))
            yield filters.passing(table, self.name)

    def _size(self, group: int, found: Sequence[int]) -> int:
        """Return the bytes of some columns of a row group, without compression."""
        described = self._file.metadata.row_group(group)
        return sum(described.column(i).total_uncompressed_size for i in found)

    def _ranges(self, group: int, found: Sequence[int]) -> list[tuple[int, int]]:
        """Return the places of a row group's columns in the file, neighbours joined; none if they are too large together."""
        from fsspec.utils import merge_offset_ranges

        described = self._file.metadata.row_group(group)
        begins: list[int] = []
        ends: list[int] = []
        for place in found:
            column = described.column(place)
            begin = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
            begins.append(begin)
            ends.append(begin + column.total_compressed_size)
        _, begins, ends = merge_offset_ranges([""] * len(found), begins, ends, max_gap=_HOLE_BYTES)
        if sum(ends) - sum(begins) > _AHEAD_BYTES:
            return []
        return list(zip(begins, ends, strict=True))


def _is_coded_text(kind: pa.DataType) -> bool:
    """Return whether a column holds strings as numbers, as pandas and Polars write categories."""
    return bool(pa.types.is_dictionary(kind) and is_string(kind.value_type))
