"""Documents by way of the `datasets` library: any Hub dataset, and Parquet or JSON files local, on the Hub or in a bucket."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.dataset import ParquetFragmentScanOptions

from lightning_lance.documents import TextFilter, bounded, check_words, document_batch, select_columns
from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.languages import (
    check_extensions,
    check_languages,
    folder_language,
    language_of_path,
    path_filter,
)
from lightning_lance.sources import BATCH_BYTES, BATCH_ROWS, OpenedSource, shard_order

# Rows that are decoded at a time: a hundred texts of 100 KB are 10 MB.
_FETCH_ROWS = 100

_HUB_FILE = re.compile(r"^hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<rest>.+)$")


@dataclass(frozen=True)
class DatasetSource:
    """Documents that `datasets` streams as Arrow batches: nothing is downloaded whole, and no Python rows are made.

    The language of a document comes from `language_column`; or from the extension of its path, where `extensions` is
    given; or from the folder of its file, where `data_files` has `{language}` in place of that folder. Without any of
    these, all documents are of one language, the empty string.

    Attributes:
        path: Name of a Hub dataset (`HuggingFaceFW/fineweb`), or of a file format of `datasets` (`parquet`, `json`).
        columns: Our word to the source's column: `text` is needed; `repo` (the group key of the split), `path`,
            `license` and any other word are kept with each document.
        config: Configuration ("subset") of a Hub dataset.
        data_files: Globs of files, local or with a protocol (`hf://datasets/...`, `s3://...`); `.gz` and `.zst` are read.
        split: The source's own split to read.
        revision: Branch, tag or commit of a Hub dataset. A build pins the commit that it first saw.
        languages: Languages to keep; empty keeps all.
        language_column: Column that holds the language.
        extensions: Language to its extensions; needs the word `path` in `columns`.
        where: Column to the values to keep, such as `{"license": ["mit", "apache-2.0"]}`; pushed down into the reader.
        text_filter: Texts to keep.
        shard_seed: Seed of the order in which shards are read; None keeps the order of the listing.
        storage_options: For the file system of `data_files`, such as `{"endpoint_url": "http://..."}` for s3.
        name: Short name, for folders and messages.
    """

    path: str
    columns: Mapping[str, str] = field(default_factory=lambda: {"text": "text"})
    config: str | None = None
    data_files: Sequence[str] = ()
    split: str = "train"
    revision: str | None = None
    languages: Sequence[str] = ()
    language_column: str | None = None
    extensions: Mapping[str, Sequence[str]] | None = None
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    text_filter: TextFilter = TextFilter()
    shard_seed: int | None = 0
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    name: str = "dataset"

    def __post_init__(self) -> None:
        check_words(self.columns, repr(self.name))
        if isinstance(self.data_files, str):
            raise ConfigError(
                f"source.data_files is the string {self.data_files!r}: write a list, [{self.data_files}]."
            )
        if isinstance(self.languages, str):
            raise ConfigError(f"languages is the string {self.languages!r}: write a list, [{self.languages}].")
        for column, values in self.where.items():
            if isinstance(values, str):
                raise ConfigError(f"source.where.{column} is the string {values!r}: write a list, [{values}].")
        if self.extensions is not None:
            if "path" not in self.columns:
                raise ConfigError(
                    f"Source {self.name!r} takes the language from the extension, but source.columns has no 'path'."
                )
            check_extensions(self.extensions)
            check_languages(self.languages, [*self.extensions], f"Source {self.name!r}")
        if self.languages and not (self.language_column or self.extensions or self.templates):
            raise ConfigError(
                f"Source {self.name!r} has no languages, got languages={list(self.languages)}: leave languages empty, or "
                "give source.language_column or source.extensions."
            )

    @property
    def wanted(self) -> Sequence[str]:
        return sorted({*self.languages})

    @property
    def metadata(self) -> Sequence[str]:
        return tuple(word for word in self.columns if word != "text")

    @property
    def templates(self) -> list[str]:
        """The patterns that have `{language}` in place of a folder."""
        return [pattern for pattern in self.data_files if "{language}" in pattern]

    @property
    def on_hub(self) -> bool:
        """Whether the documents come from the Hugging Face Hub."""
        if self.data_files:
            return all(pattern.startswith("hf://") for pattern in self.data_files)
        return not Path(self.path).exists()

    def patterns(self, commits: Mapping[str, str | None], fill: bool = True) -> list[str]:
        """Give the globs.

        Args:
            commits: Hub repository to the commit to read it at.
            fill: Whether to put the wanted languages (or `*` for all) in place of `{language}`.
        """
        patterns = []
        for pattern in self.data_files:
            for language in (self.wanted or ["*"]) if fill and "{language}" in pattern else ["{language}"]:
                filled = pattern.replace("{language}", language)
                match = _HUB_FILE.match(filled)
                if match and not match["revision"] and commits.get(match["repo"]):
                    filled = f"hf://datasets/{match['repo']}@{commits[match['repo']]}/{match['rest']}"
                patterns.append(filled)
        return patterns

    @property
    def file_system(self) -> dict[str, Any]:
        """Options for the file system of `data_files`: `storage_options`, and what a bucket needs besides."""
        options = dict(self.storage_options)
        if any(pattern.startswith("s3://") for pattern in self.data_files):
            from lightning_lance.access import s3_session

            options.setdefault("session", s3_session())
        return options

    def filters(self) -> pc.Expression | None:
        """Give the row filter that the reader applies, None for none."""
        terms = [pc.field(column).isin(list(values)) for column, values in sorted(self.where.items())]
        if self.languages and self.language_column:
            terms.append(pc.field(self.language_column).isin(list(self.wanted)))
        elif self.languages and self.extensions is not None:
            terms.append(path_filter(self.columns["path"], self.wanted, self.extensions))
        return reduce(and_, terms) if terms else None

    def identity(self) -> dict[str, Any]:
        decides = {
            "kind": "datasets",
            "path": self.path,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
            "data_files": list(self.data_files),
            "columns": dict(self.columns),
            "languages": self.wanted,
            "language_column": self.language_column,
            "extensions": self.extensions and {name: sorted(tails) for name, tails in self.extensions.items()},
            "where": {column: sorted(values, key=str) for column, values in self.where.items()},
            "text_filter": vars(self.text_filter).copy(),
            "shard_seed": self.shard_seed,
        }
        if not self.on_hub:
            from lightning_lance.access import files_identity

            decides.pop("data_files")
            decides["files"] = files_identity(_listing(self, None)[1], self.file_system)
        return decides

    def open(self, pin: Mapping[str, Any] | None = None) -> OpenedSource:
        return _OpenedDataset(self, (pin or {}).get("revision") or self.revision)


def _listing(source: DatasetSource, revision: str | None) -> tuple[Any, list[str]]:
    """Make the builder of a source, and list the files of its split; reads none of them."""
    from lightning_lance.access import open_builder

    builder = open_builder(source, revision)
    if hasattr(builder.config, "fragment_scan_options"):
        # Reading ahead inside Arrow goes on after a reader is closed: a build that stops in the middle of a shard because
        # its budget is met would abort or hang at exit. It also fetches 32 MB and more to give one batch.
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
    splits = builder.config.data_files or {}
    if source.split not in splits:
        raise ConfigError(
            f"Source {source.name!r} has no split {source.split!r}: there are {', '.join(map(str, splits)) or 'none'}."
        )
    files = [str(file) for file in splits[source.split]]
    if twice := sorted({file for file in files if files.count(file) > 1}) if len({*files}) < len(files) else []:
        raise ConfigError(
            f"Source {source.name!r} finds {twice[0]!r} by several of source.data_files: let one of them find it."
        )
    return builder, files


def _stream(builder: Any, source: DatasetSource) -> Any:
    """Begin to stream; reads the schema of the first file where the format has one."""
    from lightning_lance.access import explain

    try:
        return builder.as_streaming_dataset(split=source.split).with_format("arrow")
    except Exception as error:  # there are a dozen classes, from four libraries
        raise explain(error, source) from error


class _OpenedDataset:
    num_bytes: int | None = None  # files are compressed

    def __init__(self, source: DatasetSource, revision: str | None) -> None:
        self._source, self._revision = source, revision
        builder, self._files = _listing(source, revision)
        self._order = shard_order(len(self._files), source.shard_seed)
        self._batch_rows = _FETCH_ROWS
        config = builder.config
        # Parquet takes the columns and the filter into the reader; of the other formats, both are picked from each batch.
        self._pushed_down = hasattr(config, "filters")
        if self._pushed_down:
            config.batch_size, config.columns, config.filters = _FETCH_ROWS, self._column_names(), source.filters()
        self._dataset = _stream(builder, source)
        if self._pushed_down and (missing := set(self._column_names()) - set(self._dataset.features)):
            present = _stream(_listing(source, revision)[0], source).features
            raise SourceError(
                f"Source {source.name!r} has no column {', '.join(sorted(map(repr, missing)))}: there are "
                f"{', '.join(present)}; set source.columns."
            )

    def _column_names(self) -> list[str]:
        source = self._source
        extra = [source.language_column] if source.language_column else []
        return list(dict.fromkeys([*source.columns.values(), *extra, *source.where]))

    @property
    def shards(self) -> Sequence[str]:
        return [self._files[i] for i in self._order]

    @property
    def pin(self) -> dict[str, Any]:
        revisions = {match["revision"] for match in map(_HUB_FILE.match, self._files) if match}
        return {"revision": revisions.pop()} if len(revisions) == 1 else {}

    def present_languages(self) -> list[str]:
        source = self._source
        if source.templates:
            return sorted({folder_language(file, source.templates) for file in self._files})
        builder = _listing(source, self._revision)[0]
        column = source.language_column or source.columns["path"]
        if self._pushed_down:
            builder.config.columns = [column]
        found: set[str] = set()
        for table in self._tables(_stream(builder, source), 0):
            values = table.column(column)
            languages = language_of_path(values, source.extensions) if source.extensions is not None else values
            found.update(str(value) for value in pc.unique(languages).to_pylist())
        return sorted(found)

    def _tables(self, dataset: Any, shard: int) -> Generator[pa.Table, None, None]:
        # One data file is one shard of the streamed dataset, in the same order.
        place = self._order[shard]
        batches = dataset.shard(num_shards=len(self._files), index=place).iter(batch_size=_FETCH_ROWS)
        try:
            yield from batches
        finally:
            batches.close()

    def read(self, shard: int, row: int) -> Generator[pa.Table, None, None]:
        try:
            yield from self._read(shard, row)
        except LightningLanceError:
            raise
        except Exception as error:  # of the format, the network, the file system
            text = " ".join(str(error).split())
            raise SourceError(
                f"Shard {self.shards[shard]!r} of source {self._source.name!r} cannot be read: {type(error).__name__}: "
                f"{text[:300]}; what is committed stays, mend the shard or leave it out and run again."
            ) from error

    def _read(self, shard: int, row: int) -> Generator[pa.Table, None, None]:
        source, file, first = self._source, self._files[self._order[shard]], 0
        tables = self._tables(self._dataset, shard)
        pending: list[pa.Table] = []
        rows = size = 0
        with closing(tables):
            for table in tables:
                if not self._pushed_down and (expression := source.filters()) is not None:
                    table = table.filter(expression)
                first += len(table)
                # Few rows at a time where texts are long, a thousand where they are short.
                if fresh := min(max(first - row, 0), len(table)):
                    pending.append(table.slice(len(table) - fresh))
                    rows, size = rows + fresh, size + pending[-1].nbytes
                if rows >= self._batch_rows or size >= BATCH_BYTES:
                    # The first batches are smaller: the tokenizer waits for them.
                    self._batch_rows = min(2 * self._batch_rows, BATCH_ROWS)
                    yield from self._document_batches(pa.concat_tables(pending), first - rows, file)
                    pending, rows, size = [], 0, 0
        if pending:
            yield from self._document_batches(pa.concat_tables(pending), first - rows, file)

    def _document_batches(self, table: pa.Table, first_row: int, file: str) -> list[pa.Table]:
        source = self._source
        where = f"Source {source.name!r}"
        columns = select_columns(table, source.columns, where)
        if source.language_column:
            languages = select_columns(table, {"language": source.language_column}, where)["language"]
        elif source.extensions is not None:
            languages = language_of_path(columns["path"], source.extensions)
        else:
            language = folder_language(file, source.templates) if source.templates else ""
            languages = pa.repeat(pa.scalar(language), len(table))
        languages = pc.fill_null(languages, "")
        return bounded(document_batch(columns, languages, first_row, source.wanted, source.text_filter), BATCH_BYTES)
