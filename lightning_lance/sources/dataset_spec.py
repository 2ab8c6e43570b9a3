"""The description of a dataset to read: files, columns, languages, filters."""

from __future__ import annotations

import os
import os.path
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

from lightning_lance.documents.batch import validate_columns
from lightning_lance.documents.dedup import Dedup, check_dedup
from lightning_lance.documents.filters import Condition, EndsWith, OneOf, RowFilter, SpelledAs, checked_where
from lightning_lance.documents.languages import (
    check_extensions,
    check_languages,
    checked_aliases,
    language_list,
    path_tails,
)
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError, described
from lightning_lance.location import StorageOptions
from lightning_lance.messages.redaction import hidden_values, public_url, remember_options, remember_url
from lightning_lance.messages.reprs import short_repr
from lightning_lance.readers.retry import RetryPolicy
from lightning_lance.sources.local_paths import from_folder, is_local, local_path, path_list, readable, working_folder
from lightning_lance.type_hints import as_text, check_arguments

# A file of a dataset on the Hub: `hf://datasets/owner/name[@revision]/path`.
HUB_FILE = re.compile(
    r"^hf://datasets/(?P<key>(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?)/(?P<rest>.+)$"
)

_ON_BAD_SHARD = ("error", "skip")


# Options with their own checks.
_CHECKED_ELSEWHERE = (
    "columns",
    "data_files",
    "val_files",
    "where",
    "on_bad_shard",
    "dedup",
    "max_retries",
    "timeout_seconds",
)


class SharedOptions(TypedDict, total=False):
    """Options of every `DatasetSource`; see `DatasetSpec`."""

    columns: Mapping[str, str]
    revision: str | None
    languages: str | Sequence[str] | Mapping[str, Sequence[str]]
    language_column: str | None
    loss_mask_column: str | None
    extensions: Mapping[str, Sequence[str]] | None
    where: Mapping[str, Sequence[Any]]
    text_filter: TextFilter
    shard_seed: int | None
    dedup: Dedup
    timeout_seconds: float
    max_retries: int
    on_bad_shard: str
    name: str


class FileOptions(SharedOptions, total=False):
    """Options of a `DatasetSource` of files."""

    val_files: str | Sequence[str | Path]
    storage_options: Mapping[str, Any]
    follow_links: bool


class HubOptions(SharedOptions, total=False):
    """Options of a `DatasetSource` of a Hub dataset."""

    val_split: str | None


@dataclass(frozen=True, repr=False)
class DatasetSpec:
    """Documents that `datasets` streams as Arrow batches, without downloading whole files or creating Python rows.

    The language of a document comes from `language_column`; or, with `extensions`, from the extension of its path; or, if
    `data_files` has `{language}` in place of a folder, from the name of that folder. Without any of these, all documents have
    one language, the empty string.

    Attributes:
        path: Name of a Hub dataset (`HuggingFaceFW/fineweb`), or of a file format of `datasets` (`parquet`, `json`).
        columns: Our word to the source's column: `text` is required; `repo` (the group key of the split), `path`, `license` and
            any other word are stored with each document. `meta.set` is the field `set` of the column `meta`.
        config: Configuration ("subset") of a Hub dataset.
        data_files: Files, folders and globs, local or with a protocol (`hf://datasets/...`, `s3://...`), also `.gz` and `.zst`.
            A local folder stands for the files of the format in it and below. A local name that exists is taken literally, even
            if it has `*`, `?` or brackets in it. Each real file is read once, however many links lead to it.
        split: The source's own split to read.
        val_split: Another split of the source, with validation documents; then `val_fraction` is not used.
        val_files: The same for `data_files`: files with validation documents.
        revision: Branch, tag or commit of a Hub dataset. A build pins the commit that it first resolves.
        languages: Languages to keep, a list or a single one; empty keeps all. Where `language_column` says some of them in
            other words, a mapping, such as `{"Python": ["PY", "python"]}`: documents of PY, python and Python are stored as
            Python.
        language_column: Column that holds the language.
        loss_mask_column: Column with the parts of each text that are trained on: lists of pairs [begin, end) of character
            offsets. Null means the whole text. See documents/spans.py.
        extensions: Language to its extensions; needs the word `path` in `columns`.
        where: Column to the values to keep, such as `{"license": ["mit", None]}`. A list is kept if it has one of them. See
            documents/filters.py. The reader skips row groups without such values.
        text_filter: Texts to keep.
        shard_seed: Seed of the order in which shards are read; None keeps the order of the listing.
        dedup: `exact` skips documents with the same text as an earlier one, `none` keeps them.
        storage_options: Options for the file system of `data_files`, such as `{"endpoint_url": "http://..."}` for s3.
        timeout_seconds: How long a server may be silent before a request is repeated.
        max_retries: Number of retries in a row without progress before a build stops.
        on_bad_shard: What to do with a bad shard: `error`, or `skip` the rest of it. Documents before the error stay, and the
            commit metadata records the shard.
        name: Short name, for folders and messages.
        follow_links: Whether links of local files are followed out of the folder that a pattern names before its first
            wildcard.
    """

    path: str
    columns: Mapping[str, str] = field(default_factory=lambda: {"text": "text"})
    config: str | None = None
    data_files: str | Sequence[str | Path] = ()
    split: str = "train"
    val_split: str | None = None
    val_files: str | Sequence[str | Path] = ()
    revision: str | None = None
    languages: str | Sequence[str] | Mapping[str, Sequence[str]] = ()
    language_column: str | None = None
    extensions: Mapping[str, Sequence[str]] | None = None
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    text_filter: TextFilter = TextFilter()
    shard_seed: int | None = 0
    dedup: Dedup = "none"
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float = 30.0
    max_retries: int = 20
    on_bad_shard: str = "error"
    name: str = "dataset"
    follow_links: bool = False
    loss_mask_column: str | None = None
    # The folder that relative paths are relative to, whatever folder the process changes to later.
    base: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", working_folder())
        self._keep_secrets()
        # Strings, since they are keys and part of the fingerprint.
        for key in ("data_files", "val_files"):
            object.__setattr__(self, key, [*path_list(f"source.{key}", getattr(self, key), "corpus/*.parquet")])
        self._take_languages()
        self._check_kinds()
        self._take_columns()
        check_dedup(self.dedup)
        if isinstance(self.path, Path) or str(self.path).startswith("~"):
            object.__setattr__(self, "path", local_path(str(self.path)))
        if self.data_files and self.val_split:
            raise ConfigError(f"Source {self.name!r} has data_files: use source.val_files instead of source.val_split.")
        if self.val_files and not self.data_files:
            raise ConfigError(
                f"Source {self.name!r} has no data_files: use source.val_split instead of source.val_files."
            )
        if not isinstance(self.on_bad_shard, str) or self.on_bad_shard not in _ON_BAD_SHARD:
            raise ConfigError(
                f"source.on_bad_shard is {described(self.on_bad_shard)}: expected {' or '.join(_ON_BAD_SHARD)}."
            )
        self.patience()  # checks its numbers
        object.__setattr__(self, "where", checked_where(self.where))
        if self.extensions is not None:
            if "path" not in self.columns:
                raise ConfigError(
                    f"Source {self.name!r} has source.extensions, but no 'path' in source.columns: add it, such as path: NAME."
                )
            check_extensions(self.extensions)
            check_languages(self.wanted, [*self.extensions], f"Source {self.name!r}")
        if self.languages and not (self.language_column or self.extensions or self.templates):
            raise ConfigError(
                f"Source {self.name!r} has no languages, got languages={list(self.languages)}: leave languages empty, or set "
                "source.language_column or source.extensions."
            )

    def _take_columns(self) -> None:
        """Take the names of columns as text, and check them."""
        if isinstance(self.columns, Mapping):
            # YAML reads names of digits as numbers.
            columns: dict[str, str] = {}
            for word, name in self.columns.items():
                columns[as_text(word)] = as_text(name)
            object.__setattr__(self, "columns", columns)
        validate_columns(self.columns, repr(self.name))
        if self.loss_mask_column is not None and self.loss_mask_column == self.columns["text"]:
            raise ConfigError(
                f"source.loss_mask_column is {self.loss_mask_column!r}, the column of the text: expected one with the parts of "
                "it that are trained on."
            )

    def _take_languages(self) -> None:
        """Take a single language as a list of one, and a mapping without other names as a list."""
        object.__setattr__(self, "languages", language_list(self.languages))
        if not isinstance(self.languages, Mapping):
            return
        aliases = checked_aliases(self.languages)
        if all(names == [language] for language, names in aliases.items()):
            object.__setattr__(self, "languages", [*aliases])
            return
        if not self.language_column or self.templates:
            where = "folders" if self.templates else "no column"
            raise ConfigError(
                f"Source {self.name!r} has {where} of languages, got the mapping {aliases}: list the languages to keep; other "
                "names are for a source.language_column."
            )
        object.__setattr__(self, "languages", aliases)

    def _check_kinds(self) -> None:
        """Check the types of the options. Paths, and names of digits only, become text."""
        for name in ("path", "config", "revision"):
            object.__setattr__(self, name, as_text(getattr(self, name)))
        if not isinstance(self.where, Mapping):
            raise ConfigError(
                f"source.where is {described(self.where)}: expected a mapping of columns to values to keep, such as "
                "{license: [mit]}."
            )
        given: dict[str, Any] = {}
        for part in fields(self):
            if part.name not in _CHECKED_ELSEWHERE:
                given[part.name] = getattr(self, part.name)
        check_arguments(DatasetSpec, given, "source.")

    def _keep_secrets(self) -> None:
        """Hide file system options, and passwords and signatures in URLs, from all messages."""
        if not isinstance(self.storage_options, Mapping):
            raise ConfigError(
                f"source.storage_options is of type {type(self.storage_options).__name__}: expected a mapping, such as "
                "{anon: true}."
            )
        remember_options(self.storage_options)
        object.__setattr__(self, "storage_options", StorageOptions(self.storage_options))
        urls: list[Any] = [self.path]
        for files in (self.data_files, self.val_files):
            if isinstance(files, Sequence):
                urls += files
        for url in urls:
            if isinstance(url, str):
                remember_url(url)

    def __repr__(self) -> str:
        return short_repr(self, storage_options=hidden_values(self.storage_options))

    def at_base(self, path: str) -> str:
        """Return a local path as it was when the source was made."""
        return from_folder(self.base, path)

    @property
    def wanted(self) -> Sequence[str]:
        # A language may be the name of a folder, which need not be UTF-8.
        return sorted(set(map(readable, self.languages)))

    @property
    def aliases(self) -> dict[str, list[str]]:
        """Language to its names in the source; empty unless `languages` is a mapping."""
        if not isinstance(self.languages, Mapping):
            return {}
        return {language: [*names] for language, names in self.languages.items()}

    @property
    def metadata(self) -> Sequence[str]:
        return tuple(sorted(self.columns.keys() - {"text"}))

    def naming(self, columns: Collection[str]) -> str:
        """Return the keys of the settings that name some columns of the source."""
        keys: dict[str, Collection[str | None]] = {
            "source.columns": self.columns.values(),
            "source.language_column": [self.language_column],
            "source.loss_mask_column": [self.loss_mask_column],
            "source.where": self.where,
        }
        naming: list[str] = []
        for key, named in keys.items():
            if not {*columns}.isdisjoint(named):
                naming.append(key)
        return " and ".join(naming)

    @property
    def channels(self) -> Sequence[str]:
        """The channels that its tokens have; see `CHANNELS`."""
        return ["loss_mask"] if self.loss_mask_column else []

    @property
    def has_validation(self) -> bool:
        return bool(self.val_split or self.val_files)

    @property
    def labels(self) -> dict[str, str | list[str]]:
        """The words of the user that the identity lacks, for people who look at a store."""
        words = {"path": self.path, "config": self.config, "split": self.split, "val_split": self.val_split}
        if self.data_files:
            # `datasets` calls JSON Lines json.
            words = {"format": "jsonl" if self.path == "json" else self.path}
        labels: dict[str, str | list[str]] = {}
        for name, word in {**words, "revision": self.revision}.items():
            if word:
                labels[name] = word
        for name, files in (("data_files", self.data_files), ("val_files", self.val_files)):
            if files:
                labels[name] = list(map(str, files))
        return labels

    @property
    def templates(self) -> list[str]:
        """The patterns with `{language}` in place of a folder."""
        return [pattern for pattern in self._data_files if "{language}" in pattern]

    @property
    def _data_files(self) -> Sequence[str]:
        return list(map(str, self.data_files))

    @property
    def on_hub(self) -> bool:
        """Whether the documents come from the Hugging Face Hub."""
        if self.data_files:
            return all(pattern.startswith("hf://") for pattern in self._data_files)
        return not os.path.exists(self.at_base(self.path))

    @property
    def tells_language_by_folder(self) -> bool:
        """Whether `{language}` in `data_files` determines the language of the documents."""
        return bool(self.templates) and not self.language_column and self.extensions is None

    def patience(self, reached: bool = False) -> RetryPolicy:
        """Return the retry policy of this source; `reached` if an earlier build has read it."""
        what, cure = self._address()
        return RetryPolicy(self.name, self.max_retries, self.timeout_seconds, what, cure, reached)

    def _address(self) -> tuple[str, str]:
        """Return what is read, as the user calls it, and what to do if it cannot be reached."""
        repository = self._first_repository()
        if repository is not None:
            cure = (
                "check the network, set HF_ENDPOINT to a mirror of the Hub, or download the files and read them by "
                "source=parquet or source=jsonl"
            )
            return f"The dataset {repository!r}", cure
        what = f"Source {self.name!r}"
        for pattern in self._data_files:
            if not is_local(pattern):
                what += f" ({public_url(pattern)!r})"
                break
        return what, "check the place and the network, then run it again"

    def _first_repository(self) -> str | None:
        """Return the first Hub repository that is read, None if there is none."""
        if not self.data_files:
            return self.path
        for repository, _ in self.repositories().values():
            return repository
        return None

    def repositories(self) -> dict[str, tuple[str, str | None]]:
        """Return the Hub repositories in `data_files`, as spelled there, with their names and revisions."""
        found: dict[str, tuple[str, str | None]] = {}
        for pattern in self._data_files:
            match = HUB_FILE.match(pattern)
            if match:
                found[match["key"]] = (match["repo"], match["revision"] or self.revision)
        return found

    def patterns(self, commits: Mapping[str, str], fill: bool = True) -> list[str]:
        """Return the globs.

        Args:
            commits: Hub repository, as spelled in `data_files`, to the commit to read.
            fill: Whether to replace `{language}` by the wanted languages, or by `*` for all.
        """
        patterns = self._data_files
        if fill:
            patterns = [pattern for _, pattern, _ in self.filled()]
        pinned: list[str] = []
        for pattern in patterns:
            match = HUB_FILE.match(pattern)
            if match and match["key"] in commits:
                pattern = f"hf://datasets/{match['repo']}@{commits[match['key']]}/{match['rest']}"
            pinned.append(pattern)
        return pinned

    def filled(self) -> list[tuple[str | None, str, str | None]]:
        """Return (template, glob, language); the template and the language are None for a glob without them."""
        made: list[tuple[str | None, str, str | None]] = []
        for pattern in self._data_files:
            if "{language}" not in pattern:
                made.append((None, pattern, None))
            elif self.languages:
                for name in sorted({*self.languages}):
                    made.append((pattern, pattern.replace("{language}", name), readable(name)))
            else:
                made.append((pattern, pattern.replace("{language}", "*"), None))
        return made

    @property
    def file_system(self) -> dict[str, Any]:
        """Options for the file system of `data_files`: `storage_options`, with defaults for a bucket."""
        options = dict(self.storage_options)
        if any(pattern.startswith("s3://") for pattern in self._data_files):
            from lightning_lance.readers.remote import s3_session

            options.setdefault("session", s3_session())
            times = {"connect_timeout": self.timeout_seconds, "read_timeout": self.timeout_seconds}
            options["config_kwargs"] = {**times, **options.get("config_kwargs", {})}
        return options

    def filters(self) -> RowFilter | None:
        """Return the row filter of the reader, None if all rows pass."""
        conditions: list[Condition] = []
        for column, values in sorted(self.where.items()):
            conditions.append(OneOf(column, tuple(values)))
        if self.languages and self.language_column:
            spelled = sorted({*chain.from_iterable(self.aliases.values())}) or self.wanted
            conditions.append(SpelledAs(self.language_column, tuple(spelled)))
        elif self.languages and self.extensions is not None:
            conditions.append(EndsWith(self.columns["path"], tuple(path_tails(self.wanted, self.extensions))))
        if conditions:
            return RowFilter(tuple(conditions))
        return None
