"""A source of `datasets`, opened: its shards, each read from any row on, again where the reading fails."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.access import HUB_FILE, explain, files_identity, open_builder
from lightning_lance.documents import bounded, covered, document_batch, one_array, select_columns
from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.json_lines import ENDINGS, LinesShard, NotLines
from lightning_lance.json_rows import NOT_JSON
from lightning_lance.languages import folder_language, language_of_path
from lightning_lance.parquet import ParquetShard
from lightning_lance.patience import is_bad_data, is_transient
from lightning_lance.redaction import in_one_line, public_url, shown_cause
from lightning_lance.sources import BATCH_BYTES, BATCH_ROWS, Trouble, shard_order

if TYPE_CHECKING:
    from lightning_lance.streaming import DatasetSource

_log = logging.getLogger(__name__)

# Rows that `datasets` gives at a time: a hundred texts of 100 KB are 10 MB.
_FETCH_ROWS = 100
# A batch of so many bytes goes on its way: with what comes next, it would have to be copied.
_ENOUGH_BYTES = BATCH_BYTES // 2


def listing(source: DatasetSource, pin: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Make the builder of a source, and list the files of its split; reads none of them."""
    builder = open_builder(source, pin)
    splits = builder.config.data_files or {}
    if source.split not in splits:
        raise ConfigError(
            f"Source {source.name!r} has no split {source.split!r}: there are {', '.join(map(str, splits)) or 'none'}."
        )
    files = [str(file) for file in splits[source.split]]
    names = [public_url(file) for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}) if len({*names}) < len(names) else []:
        raise ConfigError(
            f"Source {source.name!r} finds {twice[0]!r} by several of source.data_files: let one of them find it."
        )
    return builder, files


def identity_of_files(source: DatasetSource) -> str:
    """Hash the files of a source, see `files_identity`; asks for them again while that fails in a way that time may cure.

    Raises:
        ConfigError: If there are none, or they cannot be.
        SourceError: If they cannot be reached, or there is no access.
    """

    def ask() -> str:
        files = listing(source, {})[1]
        with explained(source):
            return files_identity(files, source.file_system)

    return source.patience().call("listing the files", ask)


@contextmanager
def explained(source: DatasetSource) -> Iterator[None]:
    """Turn errors of other libraries into sentences; those that time may cure are left to who tries again."""
    try:
        yield
    except Exception as error:  # there are a dozen classes, from four libraries
        if isinstance(error, LightningLanceError) or is_transient(error):
            raise
        raise explain(error, source) from shown_cause(error)


class OpenedDataset:
    """See `OpenedSource`.

    Args:
        source: The source.
        pin: `pin` of the first build, else empty.

    Raises:
        ConfigError: If the source, a column or a language cannot be.
        SourceError: If there is no access, also after many tries.
    """

    num_bytes: int | None = None  # files are compressed

    def __init__(self, source: DatasetSource, pin: Mapping[str, Any]) -> None:
        self._source, self._patience = source, source.patience()
        self._builder, self._files = self._patience.call("listing the files", lambda: listing(source, pin))
        self._order = shard_order(len(self._files), source.shard_seed)
        self.trouble = Trouble(self._patience.incidents)
        # Of the row groups (in JSON Lines, the places) of the shard that is being read, how many rows pass before each.
        self._starts: tuple[int, dict[int, int]] = (-1, {})
        # Parquet is read here: only the columns and row groups that are needed. So are JSON Lines, of which each line stands
        # for itself. The other formats are read by `datasets`.
        self._parquet = hasattr(self._builder.config, "fragment_scan_options")
        self._lines = _are_lines(self._builder.config, [public_url(file) for file in self._files])
        self._dataset: Any = None
        begin = self._check_columns if self._parquet or self._lines else self._begin
        with explained(source):
            self._patience.call(f"opening {self.shards[0]}", begin)

    def _check_columns(self) -> None:
        wanted = self._column_names()
        for shard in range(len(self._files)):
            try:
                present = self._present(shard, wanted)
            except NotLines:
                self._begin()
                return
            except Exception as error:
                if is_transient(error) or not is_bad_data(error):
                    raise
                if self._source.on_bad_shard != "skip":
                    return  # whoever reads it says so
                present = []
            if not present:
                continue
            if missing := {*wanted} - {*present} - {*(self._builder.info.features or ())}:
                raise ConfigError(
                    f"Source {self._source.name!r} has no column {', '.join(sorted(map(repr, missing)))}: there are "
                    f"{', '.join(present)}; set {self._source.naming(missing)}."
                )
            return

    def _present(self, shard: int, wanted: Sequence[str]) -> list[str]:
        """Give the names of the columns of a shard, none if it has no rows to tell them."""
        if self._lines:
            return self._lines_shard(shard).columns(wanted)
        with self._parquet_shard(shard) as file:
            return file.columns

    def _begin(self) -> None:
        """Begin to stream, by `datasets`; reads the beginning of the first file for its columns."""
        source, builder = self._source, self._builder
        with explained(source):
            self._dataset = builder.as_streaming_dataset(split=source.split).with_format("arrow")

    def _parquet_shard(self, shard: int) -> ParquetShard:
        return ParquetShard(self._place(shard), self._source.file_system)

    def _lines_shard(self, shard: int) -> LinesShard:
        return LinesShard(self._place(shard), self._source.file_system)

    def _column_names(self) -> list[str]:
        source = self._source
        extra = [source.language_column] if source.language_column else []
        return list(dict.fromkeys([*source.columns.values(), *extra, *source.where]))

    @property
    def shards(self) -> Sequence[str]:
        return [public_url(self._files[i]) for i in self._order]

    def _place(self, shard: int) -> str:
        """Give where a shard is read from; unlike its name, this may hold a password or a signature."""
        return self._files[self._order[shard]]

    @property
    def pin(self) -> dict[str, Any]:
        commits = {match["repo"]: match["revision"] for match in map(HUB_FILE.match, self._files) if match}
        pairs = {(match["repo"], match["revision"]) for match in map(HUB_FILE.match, self._files) if match}
        if len(pairs) > len(commits):
            raise ConfigError(f"Source {self._source.name!r} reads one dataset at two revisions: make them two stores.")
        return (
            {"revision": next(iter(commits.values()))}
            if len(commits) == 1
            else {"revisions": commits}
            if commits
            else {}
        )

    def present_languages(self) -> list[str]:
        source = self._source
        if source.templates:
            return sorted({folder_language(file, source.templates) for file in self._files})
        column = source.language_column or source.columns["path"]

        def find() -> set[str]:
            found: set[str] = set()
            with closing(self._tables(0, 0, {}, [column], filtered=False)) as tables:
                for _, table in tables:
                    values = table.column(column)
                    languages = language_of_path(values, source.extensions) if source.extensions is not None else values
                    found.update(str(value) for value in pc.unique(languages).to_pylist())
            return found

        with explained(source):
            return sorted(self._patience.call(f"reading {self.shards[0]}", find))

    def _tables(
        self, shard: int, row: int, starts: dict[int, int], columns: Sequence[str], filtered: bool
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Read tables of a shard, each with the place of its first row among those that pass the filter."""
        source = self._source
        filters = source.filters() if filtered else None
        if self._parquet:
            with self._parquet_shard(shard) as file, closing(file.tables(columns, filters, row, starts)) as tables:
                yield from tables
            return
        if self._lines:
            spelled = source.filters(spelled=True) if filtered else None
            lines = self._lines_shard(shard).tables(columns, source.columns["text"], spelled, row, starts)
            with closing(lines), suppress(NotLines):
                yield from lines
                return
        if self._dataset is None:
            self._begin()
        # One data file is one shard of the streamed dataset, in the same order.
        rows = self._dataset.shard(num_shards=len(self._files), index=self._order[shard])
        first = 0
        with closing(rows.iter(batch_size=_FETCH_ROWS)) as batches:
            for table in batches:
                passed = table if filters is None else table.filter(filters)
                yield first, passed
                first += len(passed)

    def read(self, shard: int, row: int) -> Generator[pa.Table, None, None]:
        source, name, tries, doubted = self._source, self.shards[shard], 0, -1
        while True:
            try:
                with self._patience.active():
                    for batch in self._read(shard, row):
                        end = covered(batch)
                        row, tries = (int(batch.column("row")[-1].as_py()) + 1 if end is None else end), 0
                        yield batch
                return
            except LightningLanceError:
                raise
            except Exception as error:  # of the format, the network, the file system
                if is_transient(error):
                    tries += 1
                    self._patience.wait(tries, f"reading {name}", error)
                elif is_bad_data(error) and doubted != row:
                    doubted = row  # it may have been garbled on its way: it is read again before that is believed
                elif is_bad_data(error) and source.on_bad_shard == "skip":
                    self.trouble.bad_shards[shard] = {"shard": name, "row": row, "error": _brief(error)}
                    _log.warning(
                        "Shard %r of source %r is no good from row %d on, and is left out from there: %s",
                        name,
                        source.name,
                        row,
                        _brief(error),
                    )
                    return
                else:
                    skip = ", or leave out the rest of it by source.on_bad_shard=skip" if is_bad_data(error) else ""
                    raise SourceError(
                        f"Shard {name!r} of source {source.name!r} cannot be read: {_brief(error)}; what is committed stays, "
                        f"mend the shard{skip}, and run again."
                    ) from shown_cause(error)

    def _read(self, shard: int, row: int) -> Generator[pa.Table, None, None]:
        if self._starts[0] != shard:
            self._starts = (shard, {})
        file = self._place(shard)
        tables = self._tables(shard, row, self._starts[1], self._column_names(), filtered=True)
        pending: list[pa.Table] = []
        rows = size = after = 0
        failed: Exception | None = None
        with closing(tables):
            while True:
                try:
                    first, table = next(tables)
                except StopIteration:
                    break
                except Exception as error:  # after what was read before it
                    failed = error
                    break
                after = first + len(table)
                if fresh := min(max(after - row, 0), len(table)):
                    pending.append(table.slice(len(table) - fresh))
                    rows, size = rows + fresh, size + pending[-1].nbytes
                # Few rows at a time where texts are long, a thousand where they are short.
                if rows >= BATCH_ROWS or size >= _ENOUGH_BYTES:
                    yield from self._document_batches(pa.concat_tables(pending), after - rows, file)
                    pending, rows, size = [], 0, 0
        if pending:
            yield from self._document_batches(pa.concat_tables(pending), after - rows, file)
        if failed is not None:
            raise failed

    def _document_batches(self, table: pa.Table, first_row: int, file: str) -> list[pa.Table]:
        source = self._source
        where = f"Source {source.name!r}"
        columns = select_columns(table, source.columns, where)
        if NOT_JSON in table.column_names and pc.any(table.column(NOT_JSON)).as_py():
            columns["not_json"] = one_array(table.column(NOT_JSON))
        if source.language_column:
            languages = select_columns(table, {"language": source.language_column}, where)["language"]
        elif source.extensions is not None:
            languages = language_of_path(columns["path"], source.extensions)
        else:
            language = folder_language(file, source.templates) if source.templates else ""
            languages = pa.repeat(pa.scalar(language), len(table))
        languages = pc.fill_null(languages, "")
        batch = document_batch(columns, languages, first_row, source.wanted, source.text_filter)
        return bounded(batch, 2 * BATCH_BYTES)


def _are_lines(config: Any, files: Sequence[str]) -> bool:
    """Tell whether files are JSON Lines by their names and the options of their builder."""
    options = [getattr(config, name, "none") for name in ("field", "encoding_errors", "features")]
    plain = options == [None] * 3 and config.encoding.lower() in ("utf-8", "utf8")
    return plain and all(file.endswith(ENDINGS) and "::" not in file for file in files)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {in_one_line(error)}"
