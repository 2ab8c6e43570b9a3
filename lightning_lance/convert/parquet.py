"""Parquet and datasets of the Hub with a column of token ids: a row is a document."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightning_lance.convert.channels import CHANNEL_WORDS, Aligned, holds_channel, not_taken
from lightning_lance.convert.documents import Shard, TokenDocuments, TokenShards
from lightning_lance.convert.places import SPLIT_NAMES, Places, denied, nothing_at
from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.columns import (
    UnfitShard,
    begin,
    check_unique,
    column_at,
    column_type,
    in_words,
    is_list,
    names_in,
    steps_to,
)
from lightning_lance.errors import ConfigError, LightningLanceError, SourceError
from lightning_lance.messages.formatting import format_list, suggestion
from lightning_lance.sources.dataset_reader import OpenedDataset
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.local_paths import from_folder, hint, is_denied, is_local, local_path

ENDING = ".parquet"
USUAL_COLUMN = "input_ids"
# `fineweb` or `owner/name`.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Words of a source of texts that an import calls otherwise.
_OURS = {"text": "tokens"}
# How errors of a source of texts name what an import calls otherwise, or has not.
_SPELLED = (
    (re.compile(r"source\.data_files finds"), "The place has"),
    (re.compile(r"source\.data_files"), "the place"),
    (re.compile(r"source\.(columns|language_column)"), r"\1"),
    (re.compile(r": use source=jsonl"), ": write it as Parquet"),
    (re.compile(r"read them by source=parquet or source=jsonl"), "give their folder"),
    (
        re.compile(r"Choose source\.config of ('[^']*')"),
        r"Give the files of one configuration of \1 as hf://datasets/...",
    ),
    (re.compile(r",? or (skip (it|the rest of it) with source\.on_bad_shard=skip|source\.storage_options)"), ""),
    (re.compile(r" \(for a public bucket, source\.storage_options=[^)]*\)"), ""),
)


class _TokenRows(DatasetSource):
    """A source whose text is a column of token ids."""

    def naming(self, columns: Collection[str]) -> str:
        """Return the arguments of an import that name some columns."""
        keys = []
        for word, column in self.columns.items():
            if column in columns:
                keys.append(f"columns.{_OURS.get(word, word)}")
        if self.language_column in columns:
            keys.append("language_column")
        return " and ".join(keys)


def dataset_of(places: Places, columns: Mapping[str, str], language_column: str | None) -> DatasetSource:
    """Return the rows of a set, as a source whose text is the column of tokens.

    Args:
        places: Where it is: files, a folder, a glob, a URL, or the name of a dataset on the Hub.
        columns: Our word to the name of a column.
        language_column: Column that holds the language.

    Raises:
        ConfigError: If the place cannot be one.
    """
    words = dict(columns)
    if "tokens" in words:
        words["text"] = words.pop("tokens")
    # The rows stay in their order.
    options: dict[str, Any] = {
        "columns": {"text": USUAL_COLUMN, **words},
        "language_column": language_column,
        "shard_seed": None,
        "name": "parquet",
    }
    place = places.place
    if may_be_on_hub(places):
        return _TokenRows.hub(place, val_split=places.val, **options)
    _check_local("place", place, places.base)
    if places.val is not None:
        _check_local("val", places.val, places.base)
    local = Path(from_folder(places.base, local_path(place))) if is_local(place) else None
    if places.val is None and local is not None and local.is_dir():
        by_split: defaultdict[str | None, list[str]] = defaultdict(list)
        for file in sorted(map(str, local.rglob(f"*{ENDING}"))):
            by_split[_split_of(Path(file))].append(file)
        if by_split["train"] and by_split["val"]:
            return _TokenRows.parquet(by_split["train"], val_files=by_split["val"], **options)
    return _TokenRows.parquet(place, val_files=places.val or (), **options)


def may_be_on_hub(places: Places) -> bool:
    """Return whether a place is the name of a dataset, as `datasets` tells them apart: what is not there is a name."""
    if _HUB_NAME.fullmatch(places.place) is None or places.place.endswith(ENDING):
        return False
    return not os.path.lexists(from_folder(places.base, places.place))


def _check_local(name: str, place: str, base: str) -> None:
    """Refuse a local place without Parquet files. A pattern is left to the source."""
    if not is_local(place):
        return
    path = from_folder(base, local_path(place))
    if is_denied(path):
        raise denied(name, place)
    if not os.path.lexists(path) and has_magic(place):
        return
    is_file = os.path.isfile(path)
    if not is_file and not any(Path(path).rglob(f"*{ENDING}")):
        what = f"*{ENDING} files, their folder or a pattern of them, or the name of a dataset on the Hub"
        raise nothing_at(name, place, base, what)


@contextmanager
def in_words_of_an_import(places: Places) -> Iterator[None]:
    """Let errors name the arguments of an import, where they name those of a source of texts."""
    try:
        yield
    except LightningLanceError as error:
        sentence = str(error)
        for pattern, words in _SPELLED:
            sentence = pattern.sub(words, sentence)
        if may_be_on_hub(places):
            near = hint(places.place, places.base)
            also = f" ({near})" if near else ""
            sentence = f"{sentence.rstrip('.')}; {places.place!r} is no file or folder here{also}."
        error.args = (sentence,)
        raise


def _split_of(file: Path) -> str | None:
    # `train.parquet`, and `train-00000-of-00003.parquet` as on the Hub.
    return SPLIT_NAMES.get(file.stem.partition("-")[0])


class _OpenedTokens(OpenedDataset):
    """A dataset whose text is a column of token ids."""

    def _present(self, shard: int) -> list[str]:
        if self._lines:
            raise ConfigError(
                f"{begin(self.shards[shard])} is JSON Lines, expected Parquet with a column of token ids: write it as Parquet."
            )
        with self._parquet_shard(shard) as file:
            if not file.num_rows:
                return []
            found = [name for name in self._column_names() if steps_to(file.schema, name) is not None]
            self._check_types(file.schema, found, file.name)
            self._tell_not_taken(file.schema)
            return list(dict.fromkeys([*names_in(file.schema), *found]))

    def _check_types(self, schema: pa.Schema, columns: Sequence[str], name: str) -> None:
        check_unique(schema, columns, name)
        column = self._source.columns["text"]
        if column not in columns:
            return
        steps = steps_to(schema, column)
        if steps is None:
            raise UnfitShard(
                f"{begin(name)} has no column {column!r}{suggestion(column, names_in(schema))}, expected one of token ids: it "
                f"has {format_list(names_in(schema))}; name it by columns.tokens"
            )
        self._check_channels(schema, columns, name)
        kind = column_type(schema, steps)
        if not is_list(kind) or not pa.types.is_integer(kind.value_type):
            raise UnfitShard(
                f"Column {column!r} of {name} holds {kind}, expected lists of whole numbers: name another by columns.tokens"
            )

    def _unfit(self, error: UnfitShard) -> LightningLanceError:
        """See `OpenedDataset`. What is wrong with a column of tokens already has its cure."""
        if error.of_text:
            return SourceError(f"{error}.")
        return super()._unfit(error)

    def _tell_not_taken(self, schema: pa.Schema) -> None:
        """Note columns that look like channels, and are not asked for."""
        lists = [field.name for field in schema if is_list(field.type)]
        for remark in not_taken(lists, self._source.columns.values()):
            if (logging.INFO, remark) not in self.trouble.remarks:
                self.trouble.remarks.append((logging.INFO, remark))

    def _check_channels(self, schema: pa.Schema, columns: Sequence[str], name: str) -> None:
        """Check the columns of channels, which a shard must have."""
        for word, column in self._source.columns.items():
            if word not in CHANNEL_WORDS or column not in columns:
                continue
            steps = steps_to(schema, column)
            if steps is None:
                raise UnfitShard(
                    f"{begin(name)} has no column {column!r}{suggestion(column, names_in(schema))}, which columns.{word} "
                    f"names: it has {format_list(names_in(schema))}",
                    of_text=False,
                )
            kind = column_type(schema, steps)
            if not is_list(kind) or not holds_channel(word, kind.value_type):
                raise UnfitShard(
                    f"Column {column!r} of {name} holds {kind}, expected lists with a value for each id: name another by "
                    f"columns.{word}",
                    of_text=False,
                )

    def _document_batches(self, table: pa.Table, first_row: int, shard: int) -> list[pa.Table]:
        source = self._source
        words = dict(source.columns)
        column = words.pop("text")
        columns: dict[str, pa.Array] = {"tokens": column_at(table, column)}
        if columns["tokens"] is None:
            raise ConfigError(
                f"{begin(self.shards[shard])} has no column {column!r}: name the one with the tokens by columns.tokens."
            )
        if source.language_column:
            words["language"] = source.language_column
        for word, name in words.items():
            values = column_at(table, name)
            if word in CHANNEL_WORDS:
                columns[word] = values
                continue
            columns[word] = pa.nulls(len(table), pa.string()) if values is None else in_words(values)[0]
        rows = np.arange(first_row, first_row + len(table))
        return [pa.table({"row": rows, **columns})]


class ParquetShards(TokenShards):
    """The rows of Parquet files, or of a dataset that is stored as such.

    Args:
        source: The source, see `dataset_of`.
        places: Where it is.
        pin: See `Source.open`.

    Raises:
        ConfigError: If there is no such dataset or column.
        SourceError: If it cannot be read.
    """

    def __init__(self, source: DatasetSource, places: Places, pin: Mapping[str, Any]) -> None:
        super().__init__()
        self._places = places
        self._parts: list[tuple[str, _OpenedTokens]] = []
        if source.has_validation:
            # Validation first, as in a build.
            for split, val in (("val", True), ("train", False)):
                opened = _OpenedTokens(source.part(val), pin.get(split) or {})
                self._parts.append((split, opened))
                self.pin[split] = opened.pin
        else:
            opened = _OpenedTokens(source, pin)
            self._parts.append(("", opened))
            self.pin = opened.pin
        self.shards = []
        for split, opened in self._parts:
            for name in opened.shards:
                self.shards.append(Shard(name, split, split))
            self.trouble.remarks += opened.trouble.remarks

    def read(self, shard: int, row: int) -> Iterator[TokenDocuments]:
        """See `TokenShards.read`."""
        place = shard
        for _, opened in self._parts:
            if place < len(opened.shards):
                with in_words_of_an_import(self._places):
                    for table in opened.read(place, row):
                        yield _documents(table)
                return
            place -= len(opened.shards)


def _documents(table: pa.Table) -> TokenDocuments:
    columns = {}
    channels = {}
    for word in table.column_names:
        if word in CHANNEL_WORDS:
            channels[word] = _aligned(table, word, f"values of {word}")
        elif word not in ("row", "tokens"):
            columns[word] = table.column(word).combine_chunks()
    tokens = _aligned(table, "tokens", "token ids")
    return TokenDocuments(tokens.values, tokens.offsets, columns, channels)


def _aligned(table: pa.Table, word: str, what: str) -> Aligned:
    """Return the values of a column of lists. ConfigError if there is null among them."""
    lists = as_single_chunk(table.column(word))
    # A list that is null is a document without tokens.
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0)).astype(np.int64)
    values = lists.flatten()
    if values.null_count:
        raise ConfigError(f"A row has null among its {what}, expected whole numbers: write the dataset anew.")
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return Aligned(np.asarray(values), np.append(0, np.cumsum(lengths)))


class ParquetWriter:
    """Writes a Parquet file: a row for each document, with EOS at the end of its `input_ids`, its channels and its metadata.

    Args:
        vocab_size: Largest id plus one.
    """

    endings = (ENDING,)

    def __init__(self, vocab_size: int) -> None:
        # As `datasets` writes token ids.
        self._kind = pa.int32() if vocab_size <= 1 << 31 else pa.int64()
        self._writer: pq.ParquetWriter | None = None

    def write(
        self,
        files: Sequence[BinaryIO],
        tokens: np.ndarray,
        offsets: np.ndarray,
        described: pa.Table,
        channels: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write documents, EOS included, with their metadata and channels."""
        ids = pa.array(tokens).cast(self._kind)
        borders = pa.array(offsets)
        rows = described.add_column(0, USUAL_COLUMN, pa.LargeListArray.from_arrays(borders, ids))
        for place, (name, values) in enumerate((channels or {}).items(), 1):
            rows = rows.add_column(place, name, pa.LargeListArray.from_arrays(borders, pa.array(values)))
        if self._writer is None:
            self._writer = pq.ParquetWriter(files[0], rows.schema, compression="zstd")
        self._writer.write_table(rows)

    def finish(self, files: Sequence[BinaryIO]) -> None:
        """Write the footer."""
        self.close()

    def close(self) -> None:
        """Let go of the file, after an error too."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
