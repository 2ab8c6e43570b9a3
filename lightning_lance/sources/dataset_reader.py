"""An opened `datasets` source: its shards, each read from any row on, with retries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.batch import (
    check_text,
    document_batch,
    in_yaml,
    next_row,
    select_columns,
    split_by_bytes,
)
from lightning_lance.documents.columns import (
    UnfitShard,
    check_unique,
    column_at,
    column_type,
    flattened,
    in_words,
    is_list,
    listed,
    missing_names,
    names_in,
    simple_table,
    steps_to,
)
from lightning_lance.documents.languages import folder_language, language_of_path, no_language, renamed
from lightning_lance.documents.spans import LOSS_SPANS, check_spans, flat_spans
from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import suggestion
from lightning_lance.messages.redaction import in_one_line, public_url, shown_cause
from lightning_lance.readers.cuts import Cut
from lightning_lance.readers.json_table import NOT_JSON
from lightning_lance.readers.jsonl import ENDINGS, LinesShard, NotLines
from lightning_lance.readers.parquet import ParquetShard
from lightning_lance.readers.retry import is_bad_data, is_transient, raise_own
from lightning_lance.sources.dataset_spec import HUB_FILE, DatasetSpec
from lightning_lance.sources.hub import explain, files_identity, open_builder
from lightning_lance.sources.local_paths import is_local, readable
from lightning_lance.sources.local_shards import LocalShards, all_local, local_shards, read_here, real_once
from lightning_lance.sources.source import BATCH_BYTES, BATCH_ROWS, ReadReport, shard_order

_log = logger(__name__)

# Rows that `datasets` yields at a time: a hundred texts of 100 KB are 10 MB.
_FETCH_ROWS = 100
# Words of this package for columns.
_OWN_WORDS = ("text", "language", "repo", "path", "license")
# At most so many shards are opened to find all columns. Mostly the first one has them.
_LOOKED_AT = 32
# A hint about a value is looked for among the first so many of a column, but for long texts, and for the first wanted ones.
_MOST_VALUES = 10_000
_LONGEST_VALUE = 100
_MOST_HINTS = 10
# Longest language, in bytes. Real ones have about ten.
_LONGEST_LANGUAGE = 64 << 10
# A batch of this size is yielded without waiting for more rows, since joining them costs a copy.
_ENOUGH_BYTES = BATCH_BYTES // 2


@dataclass
class Listing:
    """The files of a source.

    Attributes:
        files: Local paths and URLs, ordered by pattern and then by name.
        languages: The language of each file, from the place of `{language}`; empty if no pattern has it.
        builder: The `datasets` builder that lists and may read them; None if not needed.
        places: The index of each file among those of the builder.
        real: Path of each local file to the path without links.
        remarks: Log lines: (level, text).
    """

    files: list[str]
    languages: list[str]
    builder: Any
    places: list[int]
    real: dict[str, str]
    remarks: list[tuple[int, str]]


def listing(source: DatasetSpec, pin: Mapping[str, Any], reading: bool = False) -> Listing:
    """Return the files of a source without reading them.

    Args:
        source: The source.
        pin: `OpenedSource.pin` of the first build, else empty.
        reading: Whether the files will be read. Otherwise local files need no builder, and skipped files are not counted.

    Raises:
        ConfigError: If the source does not exist, or its options do not fit.
        SourceError: If access is denied.
    """
    local = local_shards(source, counting=reading)
    if read_here(source, local.files) or (all_local(source) and not reading):
        builder = None
        files = [*chain.from_iterable(local.files.values())]
    else:
        builder = open_builder(source, pin, local.files)
        files = _files_of(builder, source)
        if not source.data_files and not source.on_hub:
            # A local folder.
            places, real, remarks = real_once(source, files)
            chosen = [files[place] for place in places]
            return Listing(chosen, [], builder, places, real, remarks)
    languages = []
    if source.templates:
        languages = [_language(source, local, file) for file in files]
    return Listing(files, languages, builder, list(range(len(files))), local.real, local.remarks)


def _files_of(builder: Any, source: DatasetSpec) -> list[str]:
    splits = builder.config.data_files or {}
    if source.split not in splits:
        raise ConfigError(
            f"Source {source.name!r} has no split {source.split!r}: it has {', '.join(map(str, splits)) or 'none'}."
        )
    files = list(map(str, splits[source.split]))
    for name, count in Counter(map(public_url, files)).items():
        if count > 1:
            raise ConfigError(
                f"Source {source.name!r} finds {name!r} with several patterns of source.data_files: remove it from all but one."
            )
    return files


def _language(source: DatasetSpec, local: LocalShards, file: str) -> str:
    """Return the language of a file from the place of `{language}`, which all patterns must have."""
    if file in local.languages:
        return local.languages[file]
    if is_local(file):
        raise no_language(readable(file), source.templates)
    return folder_language(file, source.templates)


def identified_listing(source: DatasetSpec) -> tuple[Listing, str]:
    """Return the files of a source and their hash (see `files_identity`), with retries.

    Raises:
        ConfigError: If there are none, or the options do not fit.
        SourceError: If they cannot be reached, or access is denied.
    """

    def ask() -> tuple[Listing, str]:
        listed = listing(source, {})
        with explained(source):
            return listed, files_identity(listed.files, source.file_system)

    found: tuple[Listing, str] = source.patience().call("listing the files", ask)
    return found


@contextmanager
def explained(source: DatasetSpec) -> Iterator[None]:
    """Turn errors of other libraries into one of ours. Transient errors pass, for a retry."""
    try:
        yield
    except Exception as error:  # there are a dozen classes, from four libraries
        raise_own(error)
        if is_transient(error):
            raise
        raise explain(error, source) from shown_cause(error)


class OpenedDataset:
    """See `OpenedSource`.

    Args:
        source: The source.
        pin: `pin` of the first build, else empty.

    Raises:
        ConfigError: If the source, a column or a language does not exist.
        SourceError: If access is denied, or reading fails in spite of retries.
    """

    num_bytes: int | None = None  # files are compressed

    def __init__(self, source: DatasetSpec, pin: Mapping[str, Any]) -> None:
        self._source = source
        self._patience = source.patience(reached=bool(pin))
        self._listing: Listing = self._patience.call("listing the files", lambda: listing(source, pin, reading=True))
        self._builder = self._listing.builder
        self._files = self._listing.files
        self._order = shard_order(len(self._files), source.shard_seed)
        self.trouble = ReadReport(self._patience.incidents, remarks=self._listing.remarks)
        # For the current shard, the number of passing rows before each row group (in JSON Lines, before each offset).
        self._starts: tuple[int, dict[int, int]] = (-1, {})
        # Our own readers read Parquet (only the needed columns and row groups) and JSON Lines (each line by itself). `datasets`
        # reads the other formats.
        if self._builder is None:
            self._parquet = source.path == "parquet"
            self._lines = source.path == "json"
        else:
            self._parquet = hasattr(self._builder.config, "fragment_scan_options")
            self._lines = _are_lines(self._builder.config, list(map(public_url, self._files)))
        self._dataset: Any = None
        # Shards with a warning about missing columns.
        self._warned: set[str] = set()
        begin = self._check_columns if self._parquet or self._lines else self._begin
        with explained(source):
            self._patience.call(f"opening {self.shards[0]}", begin)

    def _check_columns(self) -> None:
        """Raise an error for columns that none of the first shards has. Mostly the first one has all."""
        source = self._source
        known = () if self._builder is None else self._builder.info.features or ()
        missing = {*self._column_names()} - {*known}
        there: list[str] = []
        unfit: UnfitShard | None = None
        for shard in range(min(len(self._files), _LOOKED_AT)):
            try:
                present = self._present(shard)
            except NotLines:
                self._begin()
                return
            except UnfitShard as error:
                unfit = unfit or error
                continue
            except Exception as error:
                if is_transient(error) or not is_bad_data(error):
                    raise
                if source.on_bad_shard != "skip":
                    return  # reading it raises an error
                continue
            there = there or present
            missing -= {*present}
            if present and not missing:
                return
        if unfit is not None:
            raise self._unfit(unfit)
        if there:
            raise self._no_column(missing, there)

    def _no_column(self, missing: Collection[str], there: Sequence[str]) -> ConfigError:
        turned = self._turned(missing, there)
        if turned:
            right = dict(zip(turned.values(), turned, strict=True))
            return ConfigError(
                f"Source {self._source.name!r} has no column {', '.join(map(repr, sorted(turned.values())))}, but "
                f"{', '.join(map(repr, sorted(turned)))}: source.columns has {in_yaml(turned)} the wrong way round; our words "
                f"come first, as in {in_yaml(right)}."
            )
        named = _with_suggestions(sorted(missing), there)
        # The fields of a column only if one of them is missing.
        opened = {column.partition(".")[0] for column in missing}
        columns: list[str] = []
        for name in there:
            column, dot, _ = name.partition(".")
            if not dot or column in opened:
                columns.append(name)
        return ConfigError(
            f"Source {self._source.name!r} has no column {named}: it has {', '.join(columns) or 'none'}; set "
            f"{self._source.naming(missing)}."
        )

    def _turned(self, missing: Collection[str], there: Sequence[str]) -> dict[str, str]:
        """Return the entries of `columns` in which a word of ours and the name of a column have changed places."""
        turned = {}
        for word, name in self._source.columns.items():
            # No other word may be in the place of this one.
            if word == "text" or word not in there or name not in missing:
                continue
            # A name that is like its word is misspelled, not in its place.
            if name in _OWN_WORDS or not suggestion(name, [word]):
                turned[word] = name
        return turned

    def _unfit(self, error: UnfitShard) -> LightningLanceError:
        """Return the error for a problem of all shards, whose cure is in the settings."""
        if error.of_text:
            return SourceError(f"{error}; set source.columns.")
        return ConfigError(f"{error}.")

    def _present(self, shard: int) -> list[str]:
        """Return the names of the columns of a shard, none if it has no rows.

        Raises:
            UnfitShard: If a column has an unreadable type.
        """
        text = self._source.columns["text"]
        if self._lines:
            return self._lines_shard(shard).columns(self._column_names(), text)
        with self._parquet_shard(shard) as file:
            if not file.num_rows:
                return []
            names = self._column_names()
            missing = missing_names(file.schema, names)
            # That the text is missing is said once all shards have been looked at.
            checked = list(names)
            if text in missing:
                checked.remove(text)
            self._check_types(file.schema, checked, file.name)
            found = [name for name in names if name not in missing]
            return list(dict.fromkeys([*names_in(file.schema), *found]))

    def _begin(self) -> None:
        """Start streaming with `datasets`, which reads the beginning of the first file for its columns."""
        source = self._source
        if self._builder is None:
            self._builder = open_builder(source, {})
        with explained(source):
            self._dataset = self._builder.as_streaming_dataset(split=source.split).with_format("arrow")

    def _parquet_shard(self, shard: int) -> ParquetShard:
        return ParquetShard(self._place(shard), self._source.file_system)

    def _lines_shard(self, shard: int) -> LinesShard:
        return LinesShard(self._place(shard), self._source.file_system)

    def _column_names(self) -> list[str]:
        source = self._source
        names = list(source.columns.values())
        if source.language_column:
            names.append(source.language_column)
        if source.loss_mask_column:
            names.append(source.loss_mask_column)
        names += source.where
        return list(dict.fromkeys(names))

    @property
    def shards(self) -> Sequence[str]:
        return [readable(public_url(self._files[i])) for i in self._order]

    def _place(self, shard: int) -> str:
        """Return the path or URL of a shard. Unlike its name, it may hold a password or a signature."""
        return self._files[self._order[shard]]

    @property
    def real(self) -> Mapping[str, str]:
        """Path of each local file to the path without links."""
        return self._listing.real

    @property
    def pin(self) -> dict[str, Any]:
        commits: dict[str, str] = {}
        for match in map(HUB_FILE.match, self._files):
            if match and commits.setdefault(match["repo"], match["revision"]) != match["revision"]:
                raise ConfigError(
                    f"Source {self._source.name!r} reads the dataset {match['repo']!r} at two revisions: build two stores."
                )
        if len(commits) == 1:
            return {"revision": commits.popitem()[1]}
        if commits:
            return {"revisions": commits}
        return {}

    def present_languages(self) -> list[str]:
        source = self._source
        if source.templates:
            return sorted({*self._listing.languages})
        column = source.language_column or source.columns["path"]

        def find() -> set[str]:
            found: set[str] = set()
            with closing(self._first_values([column])) as parts:
                for _, values in parts:
                    languages, _ = in_words(values)
                    if source.extensions is not None and not source.language_column:
                        languages = language_of_path(languages, source.extensions)
                    found.update(map(str, pc.unique(renamed(languages, source.aliases)).to_pylist()))
            return found

        with explained(source):
            return sorted(self._patience.call(f"reading {self.shards[0]}", find))

    def filter_hint(self) -> str:
        where = self._source.where
        if not where:
            return ""
        try:
            present = self._patience.call(f"reading {self.shards[0]}", lambda: self._first_present(list(where)))
        except Exception:  # this is only for the hint
            return ""
        for column, wanted in where.items():
            known = present[column]
            # Where one of them is there, the filter has kept something, and the rows are missing for another reason.
            if not known.isdisjoint(wanted):
                continue
            for value in wanted[:_MOST_HINTS]:
                near = suggestion(value, sorted(known))
                if near:
                    return f"source.where.{column} has {value!r}{near}"
        return ""

    def _first_present(self, columns: Sequence[str]) -> dict[str, set[str]]:
        """Return the values of columns at the beginning of the first shard, as text, without long ones."""
        found: dict[str, set[str]] = defaultdict(set)
        read = 0
        with closing(self._first_values(columns)) as parts:
            for column, values in parts:
                while is_list(values.type):
                    values, _ = flattened(values)
                words = in_words(values)[0].drop_null()
                words = words.filter(pc.less_equal(pc.utf8_length(words), _LONGEST_VALUE))
                found[column].update(pc.unique(words).to_pylist())
                read += len(values)
                if read >= _MOST_VALUES * len(columns):
                    break
        return found

    def _first_values(self, columns: Sequence[str]) -> Generator[tuple[str, pa.Array], None, None]:
        """Yield the values of columns in the first shard, wanted or not: the name of a column, and some of its values."""
        with closing(self._tables(0, 0, {}, columns, filtered=False)) as tables:
            for _, table in tables:
                for column in columns:
                    values = column_at(table, column)
                    if values is not None:
                        yield column, values

    def cuts(self, shard: int, part_bytes: int) -> list[Cut]:
        def find() -> list[Cut]:
            filters = self._source.filters()
            if self._parquet:
                with self._parquet_shard(shard) as file:
                    return file.cuts(self._column_names(), filters, part_bytes)
            return self._lines_shard(shard).cuts(self._source.columns["text"], filters, part_bytes)

        if not self._parquet and not self._lines:
            return []
        try:
            return self._patience.call(f"reading {self.shards[shard]}", find)
        except Exception as error:
            if is_transient(error) or not (is_bad_data(error) or isinstance(error, (NotLines, UnfitShard))):
                raise
            return []  # reading it says what is wrong

    def begin_at(self, shard: int, cut: Cut) -> None:
        self._starts = (shard, {cut.place: cut.row})

    def __getstate__(self) -> dict[str, Any]:
        # What is streamed is begun anew in another process.
        return {**vars(self), "_dataset": None, "_starts": (-1, {}), "trouble": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.trouble = ReadReport(self._patience.incidents)

    def _tables(
        self, shard: int, row: int, starts: dict[int, int], columns: Sequence[str], filtered: bool
    ) -> Generator[tuple[int, pa.Table], None, None]:
        """Yield tables of a shard, each with the position of its first row among those that pass the filter."""
        source = self._source
        filters = source.filters() if filtered else None
        if self._parquet:
            with self._parquet_shard(shard) as file, closing(file.tables(columns, filters, row, starts)) as tables:
                if file.num_rows:
                    self._check_schema(file.schema, columns, file.name)
                yield from tables
            return
        if self._lines:
            lines = self._lines_shard(shard).tables(columns, source.columns["text"], filters, row, starts)
            with closing(lines), suppress(NotLines):
                yield from lines
                return
        if self._dataset is None:
            self._begin()
        # One data file is one shard of the streamed dataset, in the same order.
        num_shards = len(self._builder.config.data_files[source.split])
        rows = self._dataset.shard(num_shards=num_shards, index=self._listing.places[self._order[shard]])
        first = 0
        name = f"shard {self.shards[shard]!r}"
        with closing(rows.iter(batch_size=_FETCH_ROWS)) as batches:
            for batch in batches:
                table = simple_table(batch)
                if first == 0:
                    self._check_whole(shard, table.schema, columns, name)
                passed = table if filters is None else filters.passing(table, name)
                yield first, passed
                first += len(passed)

    def _check_schema(self, schema: pa.Schema, columns: Sequence[str], name: str) -> None:
        """Raise UnfitShard if a column has an unreadable type; warn about missing columns, whose values are null."""
        self._check_types(schema, columns, name)
        missing = missing_names(schema, columns)
        if missing and name not in self._warned:
            self._warned.add(name)
            _log.warning(
                "The %s of source %r has no column %s: null is stored for it; the columns of this shard are %s.",
                name,
                self._source.name,
                _with_suggestions(missing, names_in(schema)),
                listed(schema, missing),
            )

    def _check_types(self, schema: pa.Schema, columns: Sequence[str], name: str) -> None:
        check_unique(schema, columns, name)
        text = self._source.columns["text"]
        filters = self._source.filters()
        if text in columns:
            check_text(schema, text, name)
        spans = self._source.loss_mask_column
        if spans is not None and spans in columns:
            steps = steps_to(schema, spans)
            # A shard without the column is trained on as a whole, with a warning.
            if steps is not None:
                check_spans(column_type(schema, steps), spans, name)
        if filters is not None:
            filters.check(schema, name)

    def _check_whole(self, shard: int, schema: pa.Schema, columns: Sequence[str], name: str) -> None:
        """Check a shard that `datasets` reads. If all shards have the same problem, its cure is in the settings."""
        if self._lines:  # other shards were checked when the source was opened
            self._check_schema(schema, columns, name)
            return
        missing = {*missing_names(schema, columns)}
        if missing:
            for other in self._other_schemas(shard):
                missing.intersection_update(missing_names(other, columns))
        if missing:
            raise self._no_column(missing, names_in(schema))
        try:
            self._check_schema(schema, columns, name)
        except UnfitShard as error:
            for other in self._other_schemas(shard):
                if self._fits(other, columns):
                    raise
            raise self._unfit(error) from error

    def _other_schemas(self, shard: int) -> list[pa.Schema]:
        """Return the schemas of some other shards, read with `datasets`. Unreadable ones are ignored."""
        found: list[pa.Schema] = []
        others = [*range(shard), *range(shard + 1, len(self._files))]
        for other in others[:_LOOKED_AT]:
            rows = self._dataset.shard(num_shards=len(self._files), index=self._order[other])
            try:
                with closing(rows.iter(batch_size=1)) as batches:
                    for batch in islice(batches, 1):
                        found.append(simple_table(batch).schema)
            except Exception as error:
                if not is_bad_data(error):
                    raise
        return found

    def _fits(self, schema: pa.Schema, columns: Sequence[str]) -> bool:
        try:
            self._check_types(schema, columns, "")
        except UnfitShard:
            return False
        return True

    def read(self, shard: int, row: int) -> Generator[pa.Table, None, None]:
        source = self._source
        name = self.shards[shard]
        tries = 0
        doubted = -1
        while True:
            try:
                with self._patience.active():
                    for batch in self._read(shard, row):
                        end = next_row(batch)
                        row = int(batch.column("row")[-1].as_py()) + 1 if end is None else end
                        tries = 0
                        yield batch
                return
            except UnfitShard as error:
                if source.on_bad_shard != "skip":
                    raise SourceError(
                        f"{error}; committed documents are safe: repair the shard, or skip it with source.on_bad_shard=skip, "
                        "then run it again."
                    ) from error
                self._skip_rest(shard, row, error)
                return
            except LightningLanceError:
                raise
            except Exception as error:  # of the format, the network, the file system
                raise_own(error)
                if is_transient(error):
                    tries += 1
                    self._patience.wait(tries, f"reading {name}", error)
                elif is_bad_data(error) and doubted != row:
                    doubted = row  # data may be garbled in transit, so it is read a second time
                elif is_bad_data(error) and source.on_bad_shard == "skip":
                    self._skip_rest(shard, row, error)
                    return
                else:
                    skip = ", or skip the rest of it with source.on_bad_shard=skip" if is_bad_data(error) else ""
                    raise SourceError(
                        f"Shard {name!r} of source {source.name!r} cannot be read: {_brief(error)}; committed documents are "
                        f"safe: repair the shard{skip}, then run it again."
                    ) from shown_cause(error)

    def _skip_rest(self, shard: int, row: int, error: Exception) -> None:
        name = self.shards[shard]
        self.trouble.bad_shards[shard] = {"shard": name, "row": row, "error": _brief(error)}
        _log.warning(
            "Shard %r of source %r cannot be read from row %d on; the rest of it is skipped: %s",
            name,
            self._source.name,
            row,
            _brief(error),
        )

    def _read(self, shard: int, row: int) -> Generator[pa.Table, None, None]:
        if self._starts[0] != shard:
            self._starts = (shard, {})
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
                except Exception as error:  # raised after the rows before it are yielded
                    failed = error
                    break
                after = first + len(table)
                fresh = min(max(after - row, 0), len(table))
                if fresh:
                    pending.append(table.slice(len(table) - fresh))
                    rows += fresh
                    size += pending[-1].nbytes
                # Few rows at a time if texts are long, up to a thousand if they are short.
                if rows >= BATCH_ROWS or size >= _ENOUGH_BYTES:
                    yield from self._document_batches(_joined(pending), after - rows, shard)
                    pending = []
                    rows = size = 0
        if pending:
            yield from self._document_batches(_joined(pending), after - rows, shard)
        if failed is not None:
            raise failed

    def _document_batches(self, table: pa.Table, first_row: int, shard: int) -> list[pa.Table]:
        source = self._source
        file = self.shards[shard]
        words = dict(source.columns)
        if source.language_column:
            words["language"] = source.language_column
        columns = select_columns(table, words, f"shard {file!r}")
        if NOT_JSON in table.column_names and pc.any(table.column(NOT_JSON)).as_py():
            columns["not_json"] = as_single_chunk(table.column(NOT_JSON))
        if source.language_column:
            languages = columns.pop("language")
            _check_lengths(languages, source.language_column, file)
            languages = renamed(languages, source.aliases)
        elif source.extensions is not None:
            languages = language_of_path(columns["path"], source.extensions)
        else:
            language = ""
            if source.templates:
                language = self._listing.languages[self._order[shard]]
            languages = pa.repeat(pa.scalar(language), len(table))
        languages = pc.fill_null(languages, "")
        if source.loss_mask_column:
            spans = column_at(table, source.loss_mask_column)
            spans = pa.nulls(len(table)) if spans is None else spans
            columns[LOSS_SPANS] = flat_spans(spans, source.loss_mask_column, f"shard {file!r}")
        batch = document_batch(columns, languages, first_row, source.wanted, source.text_filter)
        return split_by_bytes(batch, 2 * BATCH_BYTES)


def _with_suggestions(columns: Collection[str], there: Sequence[str]) -> str:
    """Return missing columns for a message, each with the most similar one that is there."""
    named: list[str] = []
    for column in columns:
        named.append(f"{column!r}{suggestion(column, there)}")
    return ", ".join(named)


def _check_lengths(languages: pa.Array, column: str, file: str) -> None:
    """Check the length of languages, since each block of a stream stores its language."""
    longest = pc.max(pc.binary_length(languages)).as_py() or 0
    if longest > _LONGEST_LANGUAGE:
        raise SourceError(
            f"Column {column!r} of shard {file!r} holds a language of {longest:,} bytes, expected at most "
            f"{_LONGEST_LANGUAGE:,}: set source.language_column to the column of the language, or list the languages to keep "
            "with languages=[...]."
        )


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables joined to one; some may have a column about repaired strings."""
    alike = all(table.schema.equals(tables[0].schema) for table in tables)
    return pa.concat_tables(tables, promote_options="none" if alike else "default")


def _are_lines(config: Any, files: Sequence[str]) -> bool:
    """Return whether files are JSON Lines, judged by their names and the options of their builder."""
    for option in ("field", "encoding_errors", "features"):
        if getattr(config, option, "none") is not None:
            return False
    if config.encoding.lower() not in ("utf-8", "utf8"):
        return False
    return all(map(_is_named_lines, files))


def _is_named_lines(file: str) -> bool:
    return file.endswith(ENDINGS) and (is_local(file) or "::" not in file)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {in_one_line(error)}"
