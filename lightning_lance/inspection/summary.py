"""Say what stores hold: a line for each store of a folder, and all about one. Reads commit metadata, and writes nothing."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_lance.errors import ConfigError, FormatError, LightningLanceError, StoreError
from lightning_lance.format.commit import data_file_infos, last_commit, read_commit
from lightning_lance.format.lance_io import (
    data_bytes,
    dataset_at,
    folders_in_bucket,
    fragments_of,
    reading,
    removal_folder,
    stream_columns,
    times_of,
)
from lightning_lance.format.layout import StreamPart, layout_of, layout_of_rows
from lightning_lance.format.lineage import lineage_of
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import sizes_of
from lightning_lance.format.refs import Refs, read_refs
from lightning_lance.format.schema import block_of
from lightning_lance.format.tags import lacks_build_tag
from lightning_lance.lance_names import DATA, VERSIONS
from lightning_lance.location import (
    StoreLocation,
    folder_of_stores,
    given_place,
    is_local,
    no_store_at,
    store_place,
)
from lightning_lance.maintenance.disk_usage import DiskUsage, disk_usage
from lightning_lance.process.build_status import read_status, status_file
from lightning_lance.process.locks import lock_file, seems_held
from lightning_lance.store.provenance import count_documents

_LANCE = ".lance"
_REMOVING = removal_folder("").name
# Settings of sources whose labels are better than the recipe, if they are known.
_GIVEN = (
    "path", "config", "split", "val_split", "data_files", "val_files", "patterns", "root", "exclude", "revision",
)  # fmt: skip
# The label of a trained tokenizer.
_TRAINED = re.compile(r"bpe of [\d,]+ ids")
# Attempts while a builder removes versions.
_TRIES = 5


@dataclass(frozen=True)
class StoreSummary:
    """A store in a line. What is unknown is None.

    Attributes:
        name: Its name in the folder.
        uri: Its place.
        state: `complete`, `building`, `unfinished`, or `failed` if its last build did. Of a folder that cannot be opened as a
            store, one word why: `empty` (nothing is committed), `removing` (a removal was killed), `foreign` (a dataset of
            others), `newer` or `older` (of another version of this package), `denied`, `damaged`.
        source: The name of its source.
        tokenizer: The name of its tokenizer.
        documents: Documents.
        tokens: Tokens, EOS included.
        bytes: Size on disk; in a bucket, of the data files of its newest version.
        built: When its newest version was made.
        used: When its tokens were last read, as far as the file system notes it, or a training run tagged it.
    """

    name: str
    uri: str
    state: str
    source: str | None = None
    tokenizer: str | None = None
    documents: int | None = None
    tokens: int | None = None
    bytes: int | None = None
    built: datetime | None = None
    used: datetime | None = None


@dataclass(frozen=True)
class LanguageCount:
    """The documents and tokens of a language; by split, None where the documents of the splits are unknown."""

    language: str
    documents: int
    tokens: int
    split_documents: Mapping[str, int | None]
    split_tokens: Mapping[str, int]


@dataclass(frozen=True)
class VersionSummary:
    """A version of a store.

    Attributes:
        version: Its number.
        made: When it was made.
        documents: Documents in it; None if it is damaged.
        tokens: Tokens in it; None if it is damaged.
        kept_by: Its tags, and branches as `branch NAME`; `newest` for the newest version.
    """

    version: int
    made: datetime | None
    documents: int | None
    tokens: int | None
    kept_by: tuple[str, ...]


@dataclass(frozen=True)
class StoreInfo:
    """All about a store.

    Attributes:
        summary: The store in a line.
        fingerprint: Hash of the settings that decide its tokens.
        settings: Its settings in the words of the user, as far as they are known.
        languages: Its documents and tokens.
        skipped: Documents that the build left out, by reason.
        forgotten: The rules by which documents were removed, with `documents` and `tokens`.
        versions: Its versions, the newest first.
        disk: Its disk space; None while a builder changes it.
    """

    summary: StoreSummary
    fingerprint: str
    settings: Mapping[str, Any]
    languages: tuple[LanguageCount, ...]
    skipped: Mapping[str, int]
    forgotten: tuple[Mapping[str, Any], ...]
    versions: tuple[VersionSummary, ...]
    disk: DiskUsage | None = field(default=None)


def list_stores(folder: str | os.PathLike[str], storage_options: Mapping[str, str] | None = None) -> list[StoreSummary]:
    """Return the stores in a folder, or at a place in an object store; of a store itself, that store.

    Args:
        folder: The folder.
        storage_options: Credentials and other options of object stores.

    Raises:
        ConfigError: If there is no such folder.
        StoreError: If it cannot be listed.
    """
    place = given_place(folder, "the folder")
    if not is_local(place):
        names = [name for name in folders_in_bucket(StoreLocation(place, storage_options)) if name.endswith(_LANCE)]
        if not names and place.endswith(_LANCE):
            place, _, name = place.rpartition("/")
            names = [name]
        return _summaries(place, names, storage_options)
    if not os.path.isdir(place):
        raise ConfigError(
            f"There is no folder {str(folder)!r}: give the folder of the stores, as in lightning-lance list DIR."
        )
    if _is_a_store(place):
        return [_summary_of(StoreLocation(place), Path(place).name)]
    try:
        names = sorted(os.listdir(place))  # noqa: PTH208 - names
    except OSError as error:
        raise StoreError(f"The folder {place!r} cannot be listed ({error.strerror}): grant read access.") from error
    stores = _begun(place, names)
    for name in names:
        if _is_a_store(f"{place}/{name}"):
            stores.add(name)
    return _summaries(place, sorted(stores))


def _summaries(
    place: str, names: Sequence[str], storage_options: Mapping[str, str] | None = None
) -> list[StoreSummary]:
    """Return the stores of some names in a folder."""
    return [_summary_of(StoreLocation(f"{place}/{name}", storage_options), name) for name in names]


def _begun(folder: str, names: Collection[str]) -> set[str]:
    """Return the names of stores of which there is only the status of a build, which has committed nothing."""
    found = set()
    for name in names:
        for ending, store in ((".store-building.json", ""), (".building.json", _LANCE)):
            stem = name.removesuffix(ending)
            if stem in ("", name):
                continue
            if f"{stem}{store}" not in names and read_status(Path(folder, name)) is not None:
                found.add(f"{stem}{store}")
            break
    return found


def describe_store(uri: str | os.PathLike[str], storage_options: Mapping[str, str] | None = None) -> StoreInfo:
    """Return all about a store.

    Args:
        uri: The store.
        storage_options: Credentials and other options of object stores.

    Raises:
        StoreError: If there is none, or it cannot be read.
    """
    location = StoreLocation(store_place(uri), storage_options)
    tries = 0
    while True:
        try:
            with reading(location.uri):
                return _described(location)
        except FormatError:
            raise
        except StoreError:
            # A builder may have removed a version meanwhile.
            tries += 1
            if tries == _TRIES or not _is_building(location):
                raise


def _described(location: StoreLocation) -> StoreInfo:
    dataset = dataset_at(location, None)
    if dataset is None:
        raise _nothing_committed(location)
    commit = read_commit(dataset, location.uri)
    disk = None
    # The tags of a store may be damaged, which `clean` repairs.
    with suppress(StoreError):
        disk = disk_usage(location, dataset)
    refs = read_refs(location)
    return StoreInfo(
        _opened_summary(location, Path(location.uri).name, dataset, commit, refs),
        commit.fingerprint,
        settings_of(commit),
        _languages(location, dataset, commit),
        {reason: count for reason, count in commit.skipped.items() if count},
        tuple(commit.forgotten),
        _versions(location, dataset, refs),
        disk,
    )


def _nothing_committed(location: StoreLocation) -> StoreError:
    status = read_status(status_file(location.uri))
    if status is None and is_folder_of_stores(location.uri) and list_stores(location.uri):
        return folder_of_stores(location.uri)
    if status is None:
        return no_store_at(location.uri)
    if status.failure is None:
        how = "it was stopped" if not _is_building(location) else "it goes on"
        return StoreError(f"The build of {location.uri!r} has committed nothing so far, and {how} ({status}).")
    return StoreError(
        f"The build of {location.uri!r} failed before its first commit ({status.failure}): mend the cause and run it again, or "
        f"remove what it left: lightning-lance clean {location.uri}"
    )


def settings_of(commit: CommitMetadata) -> dict[str, Any]:
    """Return the settings of a store in the words of the user: their labels where they are known, then the recipe."""
    source = commit.recipe.get("source")
    source = source if isinstance(source, dict) else {}
    words = _of_import if source.get("kind") == "tokens" else _of_build
    known = words(commit, source)
    return {name: value for name, value in known.items() if value not in (None, "", [], {})}


def _of_build(commit: CommitMetadata, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a store of texts."""
    recipe = commit.recipe
    labels = commit.labels
    known: dict[str, Any] = {"source": labels.get("source"), "format": labels.get("format")}
    for name in _GIVEN:
        known[name] = labels.get(name) or source.get(name)
    if known["format"]:
        known["path"] = None
    commit_of_source = commit.pin.get("revision")
    known["commit"] = None
    if isinstance(commit_of_source, str):
        known["commit"] = commit_of_source
    for name in ("columns", "language_column", "loss_mask_column", "languages"):
        known[name] = source.get(name)
    known["channels"] = recipe.get("channels")
    known["where"] = _where(source.get("where"))
    known["text_filter"] = _changed(source.get("text_filter"), {"min_bytes": 1})
    known["dedup"] = None
    if source.get("dedup") != "none":
        known["dedup"] = source.get("dedup")
    known.update(_of_tokenizer(commit))
    for name in ("val_fraction", "max_document_bytes", "long_documents"):
        known[name] = recipe.get(name)
    return known


def _of_import(commit: CommitMetadata, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a store of tokens that another tool has made: those that `import` takes."""
    known: dict[str, Any] = {
        "format": source.get("format"),
        "place": commit.labels.get("path"),
        "val": next(iter(commit.labels.get("val_files") or ()), None),
    }
    for name in ("documents", "columns", "language_column", "language"):
        known[name] = source.get(name)
    if source.get("empty") != "refuse":
        known["empty"] = source.get("empty")
    if source.get("format") == "mds":
        known["dtype"] = source.get("dtype")
    if source.get("val_fraction"):
        known["val_fraction"] = source.get("val_fraction")
    return {**known, "channels": commit.recipe.get("channels"), **_of_tokenizer(commit)}


def _of_tokenizer(commit: CommitMetadata) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if commit.labels.get("tokenizer"):
        made["tokenizer"] = _tokenizer_of(commit)
    return {**made, "vocab_size": commit.vocab_size, "eos_token": commit.eos_token}


def _where(stored: Any) -> Any:
    """Return `source.where` as it was given: the recipe holds its values as JSON."""
    if not isinstance(stored, dict):
        return stored
    with suppress(ValueError, TypeError):
        given = {}
        for column, values in stored.items():
            given[column] = list(map(json.loads, values))
        return given
    return stored


def _changed(stored: Any, usual: Mapping[str, Any]) -> Any:
    if not isinstance(stored, dict):
        return stored
    return {name: value for name, value in stored.items() if value != usual.get(name)}


def is_folder_of_stores(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a local folder, and not a store itself."""
    folder = given_place(place, "the folder")
    return is_local(folder) and os.path.isdir(folder) and not _is_a_store(folder)


def _is_a_store(place: str) -> bool:
    """Return whether a local folder is, or was, a Lance dataset, by its name or its content."""
    if not os.path.isdir(place):
        return False
    return place.endswith((_LANCE, _REMOVING)) or os.path.isdir(f"{place}/{VERSIONS}")


def _summary_of(location: StoreLocation, name: str) -> StoreSummary:
    if name.endswith(_REMOVING):
        return StoreSummary(name, location.uri, "removing", bytes=_bytes_of(location))
    try:
        with reading(location.uri):
            dataset = dataset_at(location, None)
            if dataset is None:
                return StoreSummary(name, location.uri, _state_before_commit(location), bytes=_bytes_of(location))
            commit = read_commit(dataset, location.uri)
            return _opened_summary(location, name, dataset, commit, read_refs(location))
    except LightningLanceError as error:
        return StoreSummary(name, location.uri, _why(location, error), bytes=_bytes_of(location))


def _opened_summary(
    location: StoreLocation, name: str, dataset: Any, commit: CommitMetadata, refs: Refs
) -> StoreSummary:
    return StoreSummary(
        name,
        location.uri,
        _state(location, dataset, commit),
        _source_of(name, commit),
        _tokenizer_of(commit),
        commit.stored_documents,
        commit.stored_tokens,
        _bytes_of(location, dataset),
        times_of(dataset).get(int(dataset.version)),
        _last_used(location, refs),
    )


def _state_before_commit(location: StoreLocation) -> str:
    if _is_building(location):
        return "building"
    if _has_failed(location):
        return "failed"
    return "empty"


def _has_failed(location: StoreLocation) -> bool:
    status = read_status(status_file(location.uri))
    return status is not None and status.failure is not None


def _state(location: StoreLocation, dataset: Any, commit: CommitMetadata) -> str:
    if _is_building(location):
        return "building"
    if commit.exhausted:
        return "complete"
    if _has_failed(location):
        return "failed"
    if lacks_build_tag(dataset, location):
        return "unfinished"
    return "complete"


def _is_building(location: StoreLocation) -> bool:
    lock = lock_file(location.uri)
    return lock is not None and seems_held(lock)


def _why(location: StoreLocation, error: LightningLanceError) -> str:
    """Return in one word why a store cannot be opened."""
    if isinstance(error, FormatError):
        if error.newer:
            return "newer"
        return "older"
    if is_local(location.uri) and not os.access(location.uri, os.R_OK | os.X_OK):
        return "denied"
    if re.search(r"[Pp]ermission denied|access is denied|credentials are", str(error)):
        return "denied"
    with suppress(LightningLanceError), reading(location.uri):
        dataset = dataset_at(location, None)
        if dataset is not None and lineage_of(dataset).committed is None:
            return "foreign"
    return "damaged"


def _source_of(name: str, commit: CommitMetadata) -> str | None:
    """Return the name of the source: its label, or from the derived name of the store, or the dataset or kind."""
    label = commit.labels.get("source")
    if isinstance(label, str) and label:
        return label
    stem, dash, fingerprint = name.removesuffix(_LANCE).rpartition("-")
    if dash and len(fingerprint) == 12 and commit.fingerprint.startswith(fingerprint):
        return stem
    source = commit.recipe.get("source")
    if not isinstance(source, dict):
        return None
    known = source.get("path") or source.get("kind")
    if isinstance(known, str):
        return known
    return None


def _tokenizer_of(commit: CommitMetadata) -> str | None:
    made = f"{commit.vocab_size:,} ids"
    label = commit.labels.get("tokenizer")
    if not isinstance(label, str) or not label:
        return made
    # The label of a trained tokenizer has the ids that were asked for: a small source makes fewer.
    asked = _TRAINED.fullmatch(label)
    if asked:
        return f"bpe of {made}"
    return label


def _bytes_of(location: StoreLocation, dataset: Any = None) -> int | None:
    with suppress(LightningLanceError, OSError):
        if is_local(location.uri):
            return sum(sizes_of(location.uri).values())
        if dataset is not None:
            return data_bytes(dataset)
    return None


def _last_used(location: StoreLocation, refs: Refs) -> datetime | None:
    """Return when a store was read last, or a training run tagged it; None if neither is known."""
    times = [_last_read(location)]
    for tag in refs.tags:
        if tag.startswith("checkpoint-") and tag in refs.times:
            times.append(_time_of(refs.times[tag]))
    return max(filter(None, times), default=None)


def _last_read(location: StoreLocation) -> datetime | None:
    """Return when a data file of a local store was read last. Many file systems note it once a day, and some never."""
    times = []
    with suppress(OSError):
        if is_local(location.uri):
            with os.scandir(f"{location.uri}/{DATA}") as entries:
                times = [entry.stat().st_atime for entry in entries if entry.is_file()]
    if times:
        return datetime.fromtimestamp(max(times), timezone.utc)
    return None


def _time_of(text: str) -> datetime | None:
    """Return a time in the spelling of Lance, `2026-11-28T11:03:14.991148269Z`."""
    with suppress(ValueError):
        return datetime.fromisoformat(text[:19]).replace(tzinfo=timezone.utc)
    return None


def _languages(location: StoreLocation, dataset: Any, commit: CommitMetadata) -> tuple[LanguageCount, ...]:
    documents = commit.stored_languages
    tokens: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
    parts = layout_of(fragments_of(dataset), data_file_infos(dataset))
    for part in _rows(location, dataset) if parts is None else parts:
        if part.split in tokens:
            tokens[part.split][part.language] += part.tokens
    val: Mapping[str, int] | None = {}
    if parts is None:
        val = None
    elif tokens["val"]:
        try:
            val = count_documents(location, dataset, "val")
        except StoreError:
            val = None
    counts = []
    for language in sorted({*documents, *tokens["train"], *tokens["val"]}):
        total = documents.get(language, 0)
        in_splits = {"train": tokens["train"][language], "val": tokens["val"][language]}
        of_splits: dict[str, int | None] = {"train": None, "val": None}
        if val is not None:
            held_out = val.get(language, 0)
            of_splits = {"train": total - held_out, "val": held_out}
        counts.append(LanguageCount(language, total, sum(in_splits.values()), of_splits, in_splits))
    return tuple(counts)


def _rows(location: StoreLocation, dataset: Any) -> list[StreamPart]:
    """Return the parts of the rows of a store that other programs have changed, from the rows themselves."""
    return layout_of_rows(stream_columns(dataset), block_of(location.uri, dataset.schema)[0])


def _versions(location: StoreLocation, dataset: Any, refs: Refs) -> tuple[VersionSummary, ...]:
    times = times_of(dataset)
    newest = int(dataset.version)
    kept_by = _kept_by(refs, newest)
    found = []
    for version in sorted({*times, newest}, reverse=True):
        commit = _commit_at(location, version)
        documents, tokens = (None, None) if commit is None else (commit.stored_documents, commit.stored_tokens)
        found.append(VersionSummary(version, times.get(version), documents, tokens, tuple(kept_by.get(version, ()))))
    return tuple(found)


def _kept_by(refs: Refs, newest: int) -> dict[int, list[str]]:
    """Return what keeps each version, in the words of a summary."""
    kept_by = {newest: ["newest"]}
    for name, version in sorted(refs.tags.items()):
        kept_by.setdefault(version, []).append(name)
    for name, version in sorted(refs.branches.items()):
        kept_by.setdefault(version, []).append(f"branch {name}")
    return kept_by


def _commit_at(location: StoreLocation, version: int) -> CommitMetadata | None:
    with suppress(StoreError):
        return last_commit(location, version)
    return None
