"""Forget documents: remove those that match a rule from a store, without a new tokenization, in one transaction.

The commit metadata keeps the rule, so that documents added later are left out too. To forget and then to grow gives the same
store as to grow and then to forget.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import CommitConflict, ConfigError, StoreError
from lightning_lance.format.commit import data_file_infos, read_commit, replace_fragments
from lightning_lance.format.lance_io import (
    dataset_at,
    delete_uncommitted,
    fragments_of,
    reading_documents,
    refuse_in_fork,
)
from lightning_lance.format.layout import DataFileInfo, layout_of
from lightning_lance.format.lineage import check_unchanged
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links
from lightning_lance.format.refs import read_refs
from lightning_lance.format.tags import retag
from lightning_lance.location import StoreLocation, check_not_on_hub, no_store_at, store_place
from lightning_lance.maintenance.removal import (
    announce_purge,
    clean_up,
    fence_stale_builders,
    find_orphans,
    versions_from_before,
)
from lightning_lance.maintenance.repacking import DocumentFilter, RewriteStats, read_part, rewrite_fragments
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import as_pairs, nearest
from lightning_lance.process.locks import exclusive, lock_file
from lightning_lance.type_hints import check_arguments

Rule = Mapping[str, str]

# Attempts in a bucket, where a builder may commit at any time.
_TRIES = 5
# The most distinct values of a key that are searched for a likely spelling.
MOST_VALUES = 10_000
# Fields of a document that are not metadata.
_NOT_KEYS = {"offset", "hash"}


class Forgotten(NamedTuple):
    """The result of forgetting.

    Attributes:
        documents: Documents that were removed.
        tokens: Their tokens, EOS included.
        version: The newest version.
        kept: Tags, and branches as `branch NAME`, that keep older versions with documents of this rule or earlier ones.
        purged: Tags of such versions that were removed.
        rule_kept: Whether the rule is kept for documents that are added later; False once the source has ended.
        near: If no document matches: key to a similar value in the store.
    """

    documents: int
    tokens: int
    version: int
    kept: list[str]
    purged: list[str]
    rule_kept: bool
    near: Mapping[str, str]


class Matching(NamedTuple):
    """The documents that a rule would remove.

    Attributes:
        languages: Language to its documents and their tokens, EOS included; languages without one are left out.
        near: If no document matches: key to a similar value in the store.
    """

    languages: dict[str, tuple[int, int]]
    near: Mapping[str, str]

    @property
    def documents(self) -> int:
        """Documents of all languages."""
        return sum(documents for documents, _ in self.languages.values())

    @property
    def tokens(self) -> int:
        """Their tokens, EOS included."""
        return sum(tokens for _, tokens in self.languages.values())


def matching(uri: str, rule: Rule, storage_options: Mapping[str, str] | None = None) -> Matching:
    """Count the documents that `forget` would remove. Writes nothing, and needs no right to.

    Args: as for `forget`.

    Raises:
        ConfigError: If the rule is empty, or has an unknown key.
        StoreError: If there is no store, or it cannot be read.
    """
    location = StoreLocation(store_place(uri), storage_options)
    check_arguments(forget, {"rule": rule})
    refuse_in_fork("Forgetting")
    dataset = _opened(location)
    commit = read_commit(dataset, location.uri)
    check_unchanged(dataset, location)
    check_rule(dataset, rule)

    def matches(documents: pa.StructArray, language: str) -> np.ndarray:
        return documents_matching(rule, documents, language)

    with reading_documents(location.uri):
        fragments, files = _whole(dataset, location)
        found: dict[str, tuple[int, int]] = {}
        for fragment in fragments:
            _add(found, _count(dataset, fragment, files, rule, matches))
        languages = [*commit.stored_languages]
        near = {} if found else near_values(rule, languages, lambda key: _values(dataset, fragments, files, key))
    return Matching(dict(sorted(found.items())), near)


def forget(
    uri: str,
    rule: Rule,
    storage_options: Mapping[str, str] | None = None,
    purge: bool = False,
    tell: Callable[[int, int], None] = lambda documents, tokens: None,
    future: bool = False,
) -> Forgotten:
    """Remove documents from a store. No window of the next version, or of later growth, contains them.

    A kill at any moment leaves the old version or the new one. Run again, it completes the removal.

    Args:
        uri: The store.
        rule: Key to value; a document is forgotten if all of them match. Keys are `id`, `language`, and the keys of
            `source.columns`.
        storage_options: Credentials and other options of object stores.
        purge: Whether to remove the tags of older versions, checkpoints' too, so that none of the tokens remain.
        tell: Called with the number of documents and tokens to forget, before anything is changed.
        future: Whether a rule is kept that matches no document so far. A rule cannot be taken back.

    Raises:
        ConfigError: If the rule is empty, has an unknown key, or matches no document and `future` does not allow it.
        StoreError: If there is no store, or it cannot be written.
        CommitConflict: If another process committed first in every attempt.
    """
    location = StoreLocation(store_place(uri), storage_options)
    check_not_on_hub(location.uri, "Forgetting")
    check_arguments(forget, {"rule": rule, "purge": purge, "future": future})
    refuse_in_fork("Forgetting")
    # Checked before the lease, which would make a folder.
    dataset = _opened(location)
    read_commit(dataset, location.uri)
    check_no_links(location.uri)
    check_unchanged(dataset, location)
    check_rule(dataset, rule)
    file = lock_file(location.uri)
    alone: AbstractContextManager[None] = (
        nullcontext() if file is None else exclusive(file, f"writing to {location.uri}")
    )
    stopped = threading.Event()

    def matches(documents: pa.StructArray, language: str) -> np.ndarray:
        if stopped.is_set():
            raise StoreError(
                f"No documents of {location.uri!r} were forgotten: the command was interrupted; run it again."
            )
        return documents_matching(rule, documents, language)

    # In another thread: an interruption within Lance would leave files, or a commit that is not reported.
    with alone, ThreadPoolExecutor(1, thread_name_prefix="forget") as thread:
        try:
            with reading_documents(location.uri):
                return thread.submit(_forget, location, rule, matches, purge, tell, future).result()
        finally:
            stopped.set()


def _forget(
    location: StoreLocation,
    rule: Rule,
    matches: DocumentFilter,
    purge: bool,
    tell: Callable[[int, int], None],
    future: bool,
) -> Forgotten:
    orphans = find_orphans(location)
    if orphans:
        fence_stale_builders(location, int(_opened(location).version), orphans)
    for attempt in range(1, _TRIES + 1):
        try:
            done = _forget_once(location, rule, matches, tell, future)
            break
        except CommitConflict:
            if attempt == _TRIES:
                raise
    purged = _remove_older(location, purge)
    return done._replace(kept=_still_kept(location), purged=purged)


def _remove_older(location: StoreLocation, purge: bool) -> list[str]:
    """Remove the versions with forgotten documents, unless they are kept. Return the purged tags."""
    if not purge:
        retag(location, purge)
        clean_up(location)
        return []
    # A starting run either sees this announcement, or made its tag before, which is then removed like those of older runs.
    announce_purge(location)
    purged = retag(location, purge)
    for _ in range(_TRIES):
        clean_up(location)
        before = versions_from_before(location, _opened(location))
        # A starting run that sees the announcement removes its tag, which may have kept the version until now.
        if not before or _still_kept(location):
            return purged
    raise StoreError(
        f"The documents are forgotten, but older versions of {location.uri!r} that contain them could not be removed (see the "
        "log): run it again with purge=true."
    )


def _still_kept(location: StoreLocation) -> list[str]:
    """Return the tags and branches that keep versions with forgotten documents."""
    dataset = _opened(location)
    before = {*versions_from_before(location, dataset)}
    refs = read_refs(location)
    kept: list[str] = []
    for name, version in sorted(refs.tags.items()):
        if version in before:
            kept.append(shown(name))
    for name, version in sorted(refs.branches.items()):
        if version in before:
            kept.append(shown(f"branch {name}"))
    return kept


def _forget_once(
    location: StoreLocation, rule: Rule, matches: DocumentFilter, tell: Callable[[int, int], None], future: bool
) -> Forgotten:
    dataset = _opened(location)
    commit = read_commit(dataset, location.uri)
    check_unchanged(dataset, location)
    fragments, files = _whole(dataset, location)
    found: dict[str, tuple[int, int]] = {}
    affected: list[int] = []
    for place, fragment in enumerate(fragments):
        counts = _count(dataset, fragment, files, rule, matches)
        _add(found, counts)
        if counts:
            affected.append(place)
    total = Matching(found, {})
    documents = total.documents
    # A rule that was given before may match nothing any more.
    known = _entry_of(rule, commit.forgotten) is not None
    near: dict[str, str] = {}
    rule_kept = not commit.exhausted
    if not documents and not known:
        languages = [*commit.stored_languages]
        near = near_values(rule, languages, lambda key: _values(dataset, fragments, files, key))
        if not future:
            raise _no_match(location.uri, rule, near, rule_kept)
    tell(documents, total.tokens)
    if not documents and (known or commit.exhausted):
        return Forgotten(0, 0, int(dataset.version), [], [], rule_kept, near)
    removed = RewriteStats()
    written: list[str] = []
    try:
        for place in reversed(affected):
            rewritten, infos, dropped = rewrite_fragments(location, dataset, [fragments[place]], files, matches)
            written += infos
            fragments[place : place + 1] = rewritten
            files |= infos
            removed.documents += dropped.documents
            removed.tokens += dropped.tokens
            removed.languages = dict(Counter(removed.languages) + Counter(dropped.languages))
    except BaseException:
        delete_uncommitted(location, written, [dataset])
        raise
    commit = _with_rule(commit, rule, removed.documents, removed.tokens, removed.languages)
    version = replace_fragments(location, dataset, dataset.schema, fragments, files, commit)
    return Forgotten(removed.documents, removed.tokens, version, [], [], rule_kept, near)


def _no_match(uri: str, rule: Rule, near: Mapping[str, str], would_keep: bool) -> ConfigError:
    """Return the error for a rule that matches nothing: it may be mistyped, and it could not be taken back."""
    given = " and ".join(as_pairs(rule))
    hint = ""
    if near:
        hint = f"did you mean {' and '.join(as_pairs(near))}? "
    cure = "check the value, since its source has no more to add"
    if would_keep:
        later = "give future=true to leave out such documents when the store grows, which cannot be taken back"
        cure = f"check the value, or {later}"
    return ConfigError(f"No document of {uri!r} has {given}: {hint}{cure}.")


def _whole(dataset: Any, location: StoreLocation) -> tuple[list[Any], dict[str, DataFileInfo]]:
    """Return the fragments of a dataset, and the descriptions of their files. StoreError if these do not cover all rows."""
    fragments = fragments_of(dataset)
    files = data_file_infos(dataset)
    if layout_of(fragments, files) is None:
        raise StoreError(
            f"The rows of the token store {location.uri!r} were moved or deleted by another program, so its documents cannot "
            "be found: build it again."
        )
    return fragments, files


def _add(found: dict[str, tuple[int, int]], more: Mapping[str, tuple[int, int]]) -> None:
    for language, (documents, tokens) in more.items():
        before = found.get(language, (0, 0))
        found[language] = (before[0] + documents, before[1] + tokens)


def _entry_of(rule: Rule, entries: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the entry of a rule among those of a commit; None if it has none."""
    for entry in entries:
        if entry["rule"] == dict(rule):
            return entry
    return None


def _with_rule(
    commit: CommitMetadata, rule: Rule, documents: int, tokens: int, languages: Mapping[str, int]
) -> CommitMetadata:
    """Return a commit with a rule, and the documents that it has removed added to its counts."""
    entries = [dict(entry) for entry in commit.forgotten]
    entry = _entry_of(rule, entries)
    if entry is None:
        entry = {"rule": dict(rule), "documents": 0, "tokens": 0, "languages": {}}
        entries.append(entry)
    entry["documents"] += documents
    entry["tokens"] += tokens
    entry["languages"] = dict(sorted((Counter(entry["languages"]) + Counter(languages)).items()))
    return replace(commit, forgotten=entries)


def apply_forget_rules(
    commit: CommitMetadata, documents: pa.Table, lengths: np.ndarray
) -> tuple[np.ndarray, CommitMetadata]:
    """Apply the rules of a store to new documents.

    Args:
        commit: The commit metadata; its rules apply in order.
        documents: New documents, with `language`, `id` and the metadata.
        lengths: (n,) tokens of each, EOS included.

    Returns:
        (n,) whether each document is left out; and the commit metadata that counts these.
    """
    gone = np.zeros(len(documents), bool)
    for entry in commit.forgotten:
        mine = ~gone & _matches(entry["rule"], documents.column, len(documents))
        if mine.any():
            languages = documents.column("language").filter(pa.array(mine)).to_pylist()
            commit = _with_rule(commit, entry["rule"], int(mine.sum()), int(lengths[mine].sum()), Counter(languages))
            gone |= mine
    return gone, commit


def _matches(rule: Rule, column: Callable[[str], Any], count: int) -> np.ndarray:
    """Return for which documents all conditions hold, (n,) bool."""
    found = np.ones(count, bool)
    for key, value in rule.items():
        equal = pc.equal(column(key).cast(pa.large_string()), pa.scalar(value, pa.large_string()))
        found &= np.asarray(pc.fill_null(equal, False))
    return found


def documents_matching(rule: Rule, documents: pa.StructArray, language: str) -> np.ndarray:
    """Return which documents of one language a rule matches, (n,) bool."""
    if rule.get("language", language) != language:
        return np.zeros(len(documents), bool)
    return _matches(without_language(rule), documents.field, len(documents))


def without_language(rule: Rule) -> Rule:
    """Return a rule without its language, which the store keeps for each row, not for each document."""
    others = dict(rule)
    others.pop("language", None)
    return others


def _count(
    dataset: Any, fragment: Any, files: Mapping[str, DataFileInfo], rule: Rule, selects: DocumentFilter
) -> dict[str, tuple[int, int]]:
    """Return the number of matching documents of a fragment and of their tokens, by language, from its small columns."""
    found: dict[str, tuple[int, int]] = {}
    # Stream to whether its last document matches, which may continue in the stream's next batch: streams alternate.
    open_matches: dict[str, bool] = {}
    for split, language, batch in _batches(dataset, fragment, files, rule.get("language")):
        stream = f"{split}/{language}"
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        lists = batch.column("documents")
        described = lists.flatten()
        starts = np.repeat(np.cumsum(counts) - counts, np.asarray(lists.value_lengths().fill_null(0)))
        starts = starts + np.asarray(described.field("offset"))
        matches = selects(described, language)
        flags = np.append(open_matches.get(stream, False), matches)
        tokens = int(np.diff(np.concatenate([[0], starts, [counts.sum()]]))[flags].sum())
        open_matches[stream] = bool(flags[-1])
        if tokens:
            _add(found, {language: (int(matches.sum()), tokens)})
    return found


def _batches(
    dataset: Any, fragment: Any, files: Mapping[str, DataFileInfo], language: str | None
) -> Iterator[tuple[str, str, pa.RecordBatch]]:
    """Yield the small columns of a fragment, of one language or all: split, language, rows."""
    parts = files[fragment.files[0].path].parts
    first = 0
    for part in parts:
        if part.split in SPLITS and language in (None, part.language):
            for batch in read_part(dataset, fragment.id, first, part.rows, ["num_tokens", "documents"]):
                yield part.split, part.language, batch
        first += part.rows


def _values(dataset: Any, fragments: Sequence[Any], files: Mapping[str, DataFileInfo], key: str) -> set[str]:
    """Return the distinct values of a key; none if there are too many to search."""
    found: set[str] = set()
    for fragment in fragments:
        for _, _, batch in _batches(dataset, fragment, files, None):
            values = pc.unique(batch.column("documents").flatten().field(key))
            found.update(values.drop_null().to_pylist())
            if len(found) > MOST_VALUES:
                return set()
    return found


def near_values(rule: Rule, languages: Sequence[str], values: Callable[[str], set[str]]) -> dict[str, str]:
    """Return similar values in the store for values of a rule that the store lacks.

    Args:
        rule: Key to value.
        languages: Those of the store.
        values: Returns the distinct values of another key.
    """
    near: dict[str, str] = {}
    for key, value in rule.items():
        known = {*languages} if key == "language" else values(key)
        similar = nearest(value, sorted(known))
        if similar is not None and value not in known:
            near[key] = similar
    return near


def _opened(location: StoreLocation) -> Any:
    dataset = dataset_at(location, None)
    if dataset is None:
        raise no_store_at(location.uri)
    return dataset


def keys_of(dataset: Any) -> Sequence[str]:
    """Return the keys that a rule may have."""
    struct = dataset.schema.field("documents").type.value_type
    return sorted({"language", *struct.names} - _NOT_KEYS)


def keys_at(uri: str, storage_options: Mapping[str, str] | None = None) -> Sequence[str]:
    """Return the keys that a rule for a store may have. StoreError if there is no store."""
    return keys_of(_opened(StoreLocation(store_place(uri), storage_options)))


def check_rule(dataset: Any, rule: Rule) -> None:
    """Check the keys of a rule. ConfigError if there are none, or the documents of the store lack one."""
    keys = keys_of(dataset)
    if not rule:
        raise ConfigError(f"The rule is empty: expected key=value, with one of the keys {', '.join(keys)}.")
    for key in sorted(rule):
        if key not in keys:
            raise ConfigError(f"Documents of this store have no {key!r}: expected one of {', '.join(keys)}.")
