"""Documents that are taken out of a store for good: by a rule, without a new tokenization, in one transaction.

The rule stays in the note, so that documents which come by later growth are left out too: to forget and then to grow is to grow
and then to forget.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate
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
from lightning_lance.location import store_place
from lightning_lance.maintenance.compaction import (
    announce_purge,
    clean_up,
    fence_stale_builders,
    find_orphans,
    versions_from_before,
)
from lightning_lance.maintenance.repacking import DocumentFilter, RewriteStats, read_part, rewrite_fragments
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import nearest
from lightning_lance.process.locks import exclusive, lock_file
from lightning_lance.type_hints import check_arguments

Rule = Mapping[str, str]

# In a bucket a builder may commit at any time, and then all is done again on top of that.
_TRIES = 5
# Different values of a key among which those are looked for that somebody may have meant.
_MOST_VALUES = 10_000
# Where a document begins, and what de-duplication goes by.
_NOT_KEYS = ("offset", "hash")


class Forgotten(NamedTuple):
    """What was forgotten.

    Attributes:
        documents: Documents that the rule took out of the store now.
        tokens: Their tokens, EOS included.
        version: The version that holds.
        kept: What keeps older versions, which hold the documents of this rule or of others before: names of tags, also of a run
            that has just started, and `branch NAME`.
        purged: Tags of such versions that were removed.
        rule_kept: Whether the rule stays for documents that will be added; not if all of the source is there.
        near: If no document matches, key to a value that the store has and that may have been meant.
    """

    documents: int
    tokens: int
    version: int
    kept: list[str]
    purged: list[str]
    rule_kept: bool
    near: Mapping[str, str]


def forget(
    uri: str,
    rule: Rule,
    storage_options: Mapping[str, str] | None = None,
    purge: bool = False,
    tell: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Forgotten:
    """Take documents out of a store: no window of its versions from the next one on shows them, nor of its growth.

    Killed at any moment, it leaves the old version or the new one; done again, it ends what was begun.

    Args:
        uri: The store.
        rule: Key to value; documents for which all hold are forgotten. Keys are `id`, `language`, and the words of
            `source.columns`.
        storage_options: Credentials and such for object stores.
        purge: Whether tags of older versions are removed, checkpoints' too, so that nothing of the tokens stays.
        tell: Is told how many documents and tokens there are to forget, before anything is done.

    Raises:
        ConfigError: If there is no such key, or no rule.
        StoreError: If there is no store, or it cannot be written.
        CommitConflict: If other processes committed each time.
    """
    uri = store_place(uri)
    check_arguments(forget, {"rule": rule, "purge": purge})
    refuse_in_fork("Forgetting")
    # Before a lease is taken, which would make a folder.
    dataset = _opened(uri, storage_options)
    read_commit(dataset, uri)
    check_no_links(uri)
    check_unchanged(dataset, uri, storage_options)
    _check(dataset, rule)
    file = lock_file(uri)
    alone: AbstractContextManager[None] = nullcontext() if file is None else exclusive(file, f"writing to {uri}")
    stopped = threading.Event()

    def matches(documents: pa.StructArray, language: str) -> np.ndarray:
        if stopped.is_set():
            raise StoreError(f"Nothing of {uri!r} was forgotten: it was interrupted.")
        return _matches_within(rule, documents, language)

    # Not in this thread, which may be interrupted: within Lance, that would leave files, or a commit that nobody knows of.
    with alone, ThreadPoolExecutor(1, thread_name_prefix="forget") as thread:
        try:
            with reading_documents(uri):
                return thread.submit(_forget, uri, rule, matches, storage_options, purge, tell).result()
        finally:
            stopped.set()


def _forget(
    uri: str,
    rule: Rule,
    matches: DocumentFilter,
    storage_options: Mapping[str, str] | None,
    purge: bool,
    tell: Callable[[int, int], None],
) -> Forgotten:
    if leftovers := find_orphans(uri):
        fence_stale_builders(uri, int(_opened(uri, storage_options).version), leftovers, storage_options)
    for left in reversed(range(_TRIES)):
        try:
            done = _forget_once(uri, rule, matches, storage_options, tell)
            break
        except CommitConflict:
            if not left:
                raise
    purged = _remove_older(uri, storage_options, purge)
    return done._replace(kept=_still_kept(uri, storage_options), purged=purged)


def _remove_older(uri: str, storage_options: Mapping[str, str] | None, purge: bool) -> list[str]:
    """Remove the versions that hold what was forgotten, unless they are kept; give the tags that went with them."""
    if not purge:
        retag(uri, storage_options, purge)
        clean_up(uri, storage_options)
        return []
    # A run that starts sees either this, or its tag is seen and goes like those of older runs.
    announce_purge(uri, storage_options)
    purged = retag(uri, storage_options, purge)
    for _ in range(_TRIES):
        clean_up(uri, storage_options)
        before = versions_from_before(uri, _opened(uri, storage_options), storage_options)
        # A run that was told that its version goes takes its tag away, which may have kept it until now.
        if not before or _still_kept(uri, storage_options):
            return purged
    raise StoreError(
        f"The documents are forgotten, and older versions of {uri!r} that hold them could not be removed (the log says why): "
        "run it again with purge=true, it ends what was begun."
    )


def _still_kept(uri: str, storage_options: Mapping[str, str] | None) -> list[str]:
    """List what keeps versions that hold what was forgotten: tags, also of a run that has just started, and branches."""
    dataset = _opened(uri, storage_options)
    before = {*versions_from_before(uri, dataset, storage_options)}
    refs = read_refs(uri, storage_options)
    tags = [name for name, version in refs.tags.items() if version in before]
    branches = [f"branch {name}" for name, version in refs.branches.items() if version in before]
    return [shown(name) for name in sorted(tags) + sorted(branches)]


def _forget_once(
    uri: str,
    rule: Rule,
    matches: DocumentFilter,
    storage_options: Mapping[str, str] | None,
    tell: Callable[[int, int], None],
) -> Forgotten:
    dataset = _opened(uri, storage_options)
    commit, files, fragments = read_commit(dataset, uri), data_file_infos(dataset), fragments_of(dataset)
    check_unchanged(dataset, uri, storage_options)
    if layout_of(fragments, files) is None:
        raise StoreError(
            f"The rows of the token store {uri!r} were moved or deleted by others, so its documents cannot be told apart: "
            "build it anew."
        )
    found = [_count(dataset, fragment, files, rule, matches) for fragment in fragments]
    tell(sum(documents for documents, _ in found), sum(tokens for _, tokens in found))
    known = any(entry["rule"] == dict(rule) for entry in commit.forgotten)
    near, rule_kept = {}, not commit.exhausted
    if not any(documents for documents, _ in found):
        # What was forgotten before is there no more, and was meant.
        near = {} if known else _near(rule, commit, lambda key: _values(dataset, fragments, files, key))
        if known or commit.exhausted:
            return Forgotten(0, 0, int(dataset.version), [], [], rule_kept, near)
    whole, written = RewriteStats(), list[str]()
    try:
        for place in reversed(range(len(fragments))):
            if found[place][0]:
                made, notes, dropped = rewrite_fragments(
                    uri, dataset, [fragments[place]], files, storage_options, matches
                )
                written += notes
                fragments[place : place + 1] = made
                files |= notes
                whole.documents += dropped.documents
                whole.tokens += dropped.tokens
                whole.languages = dict(Counter(whole.languages) + Counter(dropped.languages))
    except BaseException:
        delete_uncommitted(uri, written, [dataset], storage_options)
        raise
    noted = _noted(commit, rule, whole.documents, whole.tokens, whole.languages)
    version = replace_fragments(uri, dataset, dataset.schema, fragments, files, noted, storage_options)
    return Forgotten(whole.documents, whole.tokens, version, [], [], rule_kept, near)


def _noted(
    commit: CommitMetadata, rule: Rule, documents: int, tokens: int, languages: Mapping[str, int]
) -> CommitMetadata:
    entries = [dict(entry) for entry in commit.forgotten]
    mine = next((entry for entry in entries if entry["rule"] == dict(rule)), None)
    if mine is None:
        mine = {"rule": dict(rule), "documents": 0, "tokens": 0, "languages": {}}
        entries.append(mine)
    mine["documents"] += documents
    mine["tokens"] += tokens
    mine["languages"] = dict(sorted((Counter(mine["languages"]) + Counter(languages)).items()))
    return replace(commit, forgotten=entries)


def apply_forget_rules(
    commit: CommitMetadata, documents: pa.Table, lengths: np.ndarray
) -> tuple[np.ndarray, CommitMetadata]:
    """Apply the rules of a store to documents that are new.

    Args:
        commit: The note; its rules go in their order.
        documents: With `language`, `id` and the metadata.
        lengths: (n,) tokens of each, EOS included.

    Returns:
        (n,) whether each is left out; and the note with those counted.
    """
    gone = np.zeros(len(documents), bool)
    for entry in commit.forgotten:
        mine = ~gone & _matches(entry["rule"], documents.column, len(documents))
        if mine.any():
            languages = documents.column("language").filter(pa.array(mine)).to_pylist()
            commit = _noted(commit, entry["rule"], int(mine.sum()), int(lengths[mine].sum()), Counter(languages))
            gone |= mine
    return gone, commit


def _matches(rule: Rule, column: Callable[[str], Any], count: int) -> np.ndarray:
    """Tell of documents, (n,) bool, for which all conditions hold."""
    found = np.ones(count, bool)
    for key, value in rule.items():
        equal = pc.equal(column(key).cast(pa.large_string()), pa.scalar(value, pa.large_string()))
        found &= np.asarray(pc.fill_null(equal, False))
    return found


def _matches_within(rule: Rule, documents: pa.StructArray, language: str) -> np.ndarray:
    """Tell the same of documents of one language."""
    if rule.get("language", language) != language:
        return np.zeros(len(documents), bool)
    others = {key: value for key, value in rule.items() if key != "language"}
    return _matches(others, documents.field, len(documents))


def _count(
    dataset: Any, fragment: Any, files: Mapping[str, DataFileInfo], rule: Rule, matching: DocumentFilter
) -> tuple[int, int]:
    """Count the documents and tokens of a fragment that match, from its small columns."""
    documents = tokens = 0
    # Whether the document that goes on into the next batch of a stream matches: streams take turns.
    open_matches: dict[str, bool] = {}
    for split, language, batch in _batches(dataset, fragment, files, rule.get("language")):
        stream = f"{split}/{language}"
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        lists = batch.column("documents")
        described = lists.flatten()
        starts = np.repeat(np.cumsum(counts) - counts, np.asarray(lists.value_lengths().fill_null(0)))
        starts = starts + np.asarray(described.field("offset"))
        matches = matching(described, language)
        flags = np.append(open_matches.get(stream, False), matches)
        tokens += int(np.diff(np.concatenate([[0], starts, [counts.sum()]]))[flags].sum())
        documents += int(matches.sum())
        open_matches[stream] = bool(flags[-1])
    return documents, tokens


def _batches(
    dataset: Any, fragment: Any, files: Mapping[str, DataFileInfo], language: str | None
) -> Iterator[tuple[str, str, pa.RecordBatch]]:
    """Read the small columns of a fragment, of one language or all: split, language, rows."""
    parts = files[fragment.files[0].path].parts
    for part, end in zip(parts, accumulate(part.rows for part in parts), strict=True):
        if part.split in SPLITS and language in (None, part.language):
            for batch in read_part(dataset, fragment.id, end - part.rows, part.rows, ["num_tokens", "documents"]):
                yield part.split, part.language, batch


def _values(dataset: Any, fragments: Sequence[Any], files: Mapping[str, DataFileInfo], key: str) -> set[str]:
    """Collect the different values of a key, empty if there are too many to look through."""
    found: set[str] = set()
    for fragment in fragments:
        for _, _, batch in _batches(dataset, fragment, files, None):
            column = batch.column("documents").flatten().field(key)
            found.update(value for value in pc.unique(column).to_pylist() if value is not None)
            if len(found) > _MOST_VALUES:
                return set()
    return found


def _near(rule: Rule, commit: CommitMetadata, values: Callable[[str], set[str]]) -> dict[str, str]:
    """Find, for values of a rule that the store has not, those that somebody may have meant."""
    near: dict[str, str] = {}
    for key, value in rule.items():
        known = {*commit.stored_languages} if key == "language" else values(key)
        if value not in known and (meant := nearest(value, sorted(known))):
            near[key] = meant
    return near


def _opened(uri: str, storage_options: Mapping[str, str] | None) -> Any:
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None:
        raise StoreError(f"There is no committed token store at {uri!r}: check the address.")
    return dataset


def keys_of(dataset: Any) -> Sequence[str]:
    """Give the keys that rules for a store may have."""
    struct = dataset.schema.field("documents").type.value_type
    return sorted(["language", *(field.name for field in struct if field.name not in _NOT_KEYS)])


def _check(dataset: Any, rule: Rule) -> None:
    keys = keys_of(dataset)
    if not rule:
        raise ConfigError(f"There is nothing to go by: give key=value, of {', '.join(keys)}.")
    if unknown := sorted({*rule} - {*keys}):
        raise ConfigError(f"Documents of this store have no {unknown[0]!r}: they have {', '.join(keys)}.")
