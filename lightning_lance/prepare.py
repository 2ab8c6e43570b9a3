"""The build: read, tokenize, pack and commit, overlapped, in bounded memory, and continued where it stopped."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.errors import ConfigError, SourceError, StoreError
from lightning_lance.languages import check_languages, nearest
from lightning_lance.locking import only_one
from lightning_lance.packing import Packer
from lightning_lance.progress import BuildProgress
from lightning_lance.sources import OpenedSource, Source
from lightning_lance.splits import check_val_fraction, split_codes
from lightning_lance.store import FORMAT_VERSION, Commit, TokenStore, append_commit, first_version, last_commit
from lightning_lance.tokenization import Tokenizer, token_dtype
from lightning_lance.tokenizer_choice import TokenizerChoice

_log = logging.getLogger(__name__)

# Large commits keep fragments and versions few; slow sources commit by the clock, so that little work can be lost.
COMMIT_TOKENS = 1 << 24
COMMIT_SECONDS = 120.0

# Batches read ahead of the tokenizer: enough to overlap, few enough for memory.
_READ_AHEAD = 2


@dataclass(frozen=True)
class Budget:
    """How much of a source to store; whatever is reached first ends the reading.

    Attributes:
        max_documents: Documents; None for no bound.
        max_tokens: Tokens, EOS included. The document that reaches it is stored whole. None for no bound.
    """

    max_documents: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: expected a positive number, or null for no bound.")

    def met(self, commit: Commit) -> bool:
        """Whether a store with this commit needs no more documents."""
        return (
            commit.exhausted
            or (self.max_documents is not None and commit.documents >= self.max_documents)
            or (self.max_tokens is not None and commit.tokens >= self.max_tokens)
        )

    def share(self, commit: Commit, num_shards: int) -> float:
        """Tell how much is done, 0 to 1: of the budget, or of the shards where there is none."""
        shares = [commit.shard / max(num_shards, 1)]
        if self.max_documents is not None:
            shares.append(commit.documents / self.max_documents)
        if self.max_tokens is not None:
            shares.append(commit.tokens / self.max_tokens)
        return 1.0 if commit.exhausted else max(shares)


@dataclass(frozen=True)
class Plan:
    """What a build will store, and where.

    Attributes:
        recipe: All that decides the stored tokens, and nothing else; JSON types.
        fingerprint: Hash of the recipe.
        uri: Place of the store.
        tokenizer: The loaded tokenizer.
    """

    recipe: dict[str, Any] = field(repr=False)
    fingerprint: str
    uri: str
    tokenizer: Tokenizer

    @property
    def tokenizer_file(self) -> Path | None:
        """Where the tokenizer is kept beside a local store."""
        return None if "://" in self.uri else Path(self.uri).with_suffix(".tokenizer.json")


def make_plan(
    source: Source,
    tokenizer: TokenizerChoice,
    uri: str | None = None,
    *,
    data_dir: str | Path = "data",
    val_fraction: float = 0.01,
) -> Plan:
    """Work out the fingerprint, and from it the place of the store. Reads no documents (but may train a tokenizer).

    Args: as for `prepare`.

    Raises:
        ConfigError: If source or tokenizer cannot be had.
    """
    loaded = tokenizer.load(source, Path(data_dir) / "tokenizers")
    recipe = {
        "format": FORMAT_VERSION,
        "source": source.identity(),
        "tokenizer": loaded.digest,
        "eos_token": loaded.eos_token,
        "eos": "after every document",
        "dtype": str(token_dtype(loaded.vocab_size)),
        "split": "xxh3_64 of repo, else text",
        "val_fraction": check_val_fraction(val_fraction),
    }
    recipe = json.loads(json.dumps(recipe))
    fingerprint = xxhash.xxh3_128_hexdigest(json.dumps(recipe, sort_keys=True).encode())
    return Plan(recipe, fingerprint, uri or str(Path(data_dir) / f"{source.name}-{fingerprint[:12]}.lance"), loaded)


def open_prepared(plan: Plan, budget: Budget, storage_options: Mapping[str, str] | None = None) -> TokenStore:
    """Open the store of a plan, at the first version that meets the budget.

    Raises:
        StoreError: If it is not committed, not complete, or another store.
    """
    commit = last_commit(plan.uri, storage_options=storage_options)
    if commit is None:
        raise StoreError(f"There is no committed token store at {plan.uri!r}: run 'lightning-lance prepare' first.")
    check_same(commit, plan)
    if not budget.met(commit):
        raise StoreError(
            f"The token store {plan.uri!r} is unfinished ({commit.documents:,} documents, {commit.tokens:,} tokens; asked "
            f"for {budget}): run 'lightning-lance prepare' again, it continues."
        )
    return TokenStore.open(plan.uri, first_version(plan.uri, budget.met, storage_options), storage_options)


def check_same(commit: Commit, plan: Plan) -> None:
    """Refuse a store that another recipe made.

    Raises:
        StoreError: Naming each field that differs, stored -> asked.
    """
    if commit.fingerprint != plan.fingerprint:
        stored, asked = _flat(commit.recipe), _flat(plan.recipe)
        fields = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
        changes = "; ".join(f"{key}: {stored.get(key)!r} -> {asked.get(key)!r}" for key in fields)
        raise StoreError(
            f"The token store {plan.uri!r} was made by another recipe ({changes}): give another uri, or none, to build "
            "another store."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def prepare(
    source: Source,
    tokenizer: TokenizerChoice,
    uri: str | None = None,
    *,
    data_dir: str | Path = "data",
    max_documents: int | None = None,
    max_tokens: int | None = None,
    val_fraction: float = 0.01,
    storage_options: Mapping[str, str] | None = None,
    commit_tokens: int = COMMIT_TOKENS,
    commit_seconds: float = COMMIT_SECONDS,
) -> TokenStore:
    """Make sure that a token store is there and complete, and open it.

    A store that already meets the budget is opened and nothing is read; an unfinished one, or one made with a smaller
    budget, is continued from its last commit. One process builds; others that ask for the same store wait for it.

    Args:
        source: Where the documents come from.
        tokenizer: Which tokenizer.
        uri: Place of the store, local or in an object store; None derives it from the fingerprint, under `data_dir`.
        data_dir: Folder of derived stores and trained tokenizers.
        max_documents: Budget in documents.
        max_tokens: Budget in tokens, EOS included.
        val_fraction: Share of the documents (of the repositories, where known) that is for validation.
        storage_options: Credentials and such for an object store.
        commit_tokens: Tokens per commit.
        commit_seconds: Longest time between two commits, while documents come in.

    Returns:
        The store, at the first version that meets the budget.

    Raises:
        ConfigError: If source, tokenizer or budget cannot be used.
        SourceError: If the source cannot be read, or has no documents.
        StoreError: If `uri` holds another store.
    """
    budget = Budget(max_documents, max_tokens)
    plan = make_plan(source, tokenizer, uri, data_dir=data_dir, val_fraction=val_fraction)
    local = "://" not in plan.uri
    lock = only_one(Path(plan.uri).with_suffix(".lock"), f"building {plan.uri}") if local else nullcontext()
    with lock:
        commit = last_commit(plan.uri, storage_options=storage_options)
        if commit is not None:
            check_same(commit, plan)
        if commit is None or not budget.met(commit):
            build = _Build(source, plan, budget, commit, storage_options)
            build.run(commit_tokens, commit_seconds)
    return open_prepared(plan, budget, storage_options)


class _Build:
    """One run of a build: holds the commit note as it grows."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        budget: Budget,
        commit: Commit | None,
        storage_options: Mapping[str, str] | None,
    ) -> None:
        self._source, self._plan, self._budget, self._storage_options = source, plan, budget, storage_options
        self._opened: OpenedSource = source.open(commit.pin if commit else None)
        shards = xxhash.xxh3_64_hexdigest("\0".join(self._opened.shards).encode())
        if commit is not None and commit.shards != shards:
            raise SourceError(
                f"The files of source {source.name!r} are not those that the store {plan.uri!r} was begun with: bring them "
                "back, or remove the store to build it anew."
            )
        tokenizer = plan.tokenizer
        self._commit = commit or Commit(
            plan.fingerprint,
            plan.recipe,
            self._opened.pin,
            shards,
            tokenizer.eos_token,
            tokenizer.eos_id,
            tokenizer.vocab_size,
        )
        self._val_fraction = float(plan.recipe["val_fraction"])
        self._packer = self._new_packer()

    def _new_packer(self) -> Packer:
        tokenizer = self._plan.tokenizer
        return Packer(tokenizer.eos_id, token_dtype(tokenizer.vocab_size), self._source.metadata)

    def run(self, commit_tokens: int, commit_seconds: float) -> None:
        """Read until the budget is met or the source ends."""
        if (file := self._plan.tokenizer_file) is not None:
            file.write_text(self._plan.tokenizer.to_json(), encoding="utf-8")
        first, num_shards = self._commit, len(self._opened.shards)
        share = self._budget.share(first, num_shards)
        batches = _read_ahead(_batches(self._opened, first.shard, first.row), _READ_AHEAD)
        pending: Future[int] | None = None
        last = time.monotonic()
        with (
            closing(batches),
            ThreadPoolExecutor(1, thread_name_prefix="commit") as writer,
            BuildProgress(self._source.name, share, first.documents) as progress,
        ):
            for shard, batch in batches:
                before = self._commit.text_bytes
                if batch is None:
                    self._commit = replace(self._commit, shard=shard + 1, row=0)
                    self._check_first_shard()
                else:
                    self._add(shard, batch)
                now, share = self._commit, self._budget.share(self._commit, num_shards)
                progress.update(share, now.documents, now.tokens, now.text_bytes - before)
                if self._budget.met(now):
                    break
                enough = self._packer.num_tokens >= commit_tokens
                if enough or (self._packer.num_tokens and time.monotonic() - last > commit_seconds):
                    if pending is not None:
                        pending.result()
                    pending, last = self._submit(writer), time.monotonic()
                    progress.committed(share, now.documents, now.tokens)
            else:
                self._commit = replace(self._commit, exhausted=True)
                self._check_not_empty()
            if pending is not None:
                pending.result()
            self._submit(writer).result()
            now = self._commit
            progress.update(1.0, now.documents, now.tokens, 0)
            progress.committed(1.0, now.documents, now.tokens)
        if self._commit.exhausted:
            self._check_found(self._opened)

    def _submit(self, writer: ThreadPoolExecutor) -> Future[int]:
        packer, commit = self._packer, self._commit
        self._packer = self._new_packer()
        return writer.submit(lambda: append_commit(self._plan.uri, packer.take(), commit, self._storage_options))

    def _add(self, shard: int, batch: pa.Table) -> None:
        """Tokenize and pack one document batch, up to the budget, and move the cursor behind it."""
        commit, budget = self._commit, self._budget
        sizes = np.asarray(pc.fill_null(pc.binary_length(batch.column("text")), -1))
        wanted = np.flatnonzero(sizes > 0)
        if budget.max_documents is not None:
            wanted = wanted[: budget.max_documents - commit.documents]
        documents = batch if len(wanted) == len(batch) else batch.take(pa.array(wanted))
        texts = documents.column("text").combine_chunks()
        encoded = self._plan.tokenizer.encode_batch(texts)
        count = len(texts)
        if budget.max_tokens is not None:
            ends = encoded.offsets[1:] + np.arange(1, count + 1)
            count = min(count, int(np.searchsorted(ends, budget.max_tokens - commit.tokens)) + 1)
        offsets = encoded.offsets[: count + 1]
        documents, texts = documents.slice(0, count), texts.slice(0, count)
        self._packer.add(encoded.ids[: offsets[-1]], offsets, self._splits(documents), self._described(shard, documents))
        added = replace(
            commit,
            documents=commit.documents + count,
            tokens=commit.tokens + int(offsets[-1]) + count,
            text_bytes=commit.text_bytes + int(sizes[wanted[:count]].sum()),
            languages=_add_counts(commit.languages, _counts(documents.column("language"))),
        )
        rows = batch.column("row")
        # A met budget leaves what follows its last document, skipped ones too, for a later build.
        seen = int(wanted[count - 1]) + 1 if budget.met(added) else len(batch)
        skipped = {"null": int((sizes[:seen] < 0).sum()), "empty": int((sizes[:seen] == 0).sum())}
        row = int(rows[seen - 1].as_py()) + 1 if seen else commit.row
        self._commit = replace(added, shard=shard, row=row, skipped=_add_counts(commit.skipped, skipped))

    def _splits(self, documents: pa.Table) -> np.ndarray:
        texts = documents.column("text").combine_chunks()
        groups = texts
        if "repo" in documents.column_names:
            groups = pc.coalesce(documents.column("repo").combine_chunks().cast(pa.large_string()), texts)
        return split_codes(groups, self._val_fraction)

    def _described(self, shard: int, documents: pa.Table) -> pa.Table:
        """Give each document its id, `shard:row`, which finds it in the source again."""
        rows = documents.column("row").combine_chunks().cast(pa.string())
        ids = pc.binary_join_element_wise(pa.scalar(str(shard)), rows, ":")
        return documents.drop_columns(["row", "text"]).append_column("id", ids)

    def _check_first_shard(self) -> None:
        missing = [language for language in self._source.wanted if language not in self._commit.languages]
        if self._commit.shard != 1 or not missing or len(self._opened.shards) == 1:
            return
        known = self._opened.languages()
        if any(nearest(language, known) for language in missing if language not in known):
            self._check_found(self._opened)
        _log.warning(
            "The first of %d shards has no document of %s; it has %s.",
            len(self._opened.shards),
            ", ".join(missing),
            ", ".join(known),
        )

    def _check_found(self, opened: OpenedSource) -> None:
        missing = [language for language in self._source.wanted if language not in self._commit.languages]
        if missing:
            known = [language for language in opened.languages() if language not in missing]
            check_languages(missing, known, f"Source {self._source.name!r}")

    def _check_not_empty(self) -> None:
        if not self._commit.documents:
            self._check_found(self._opened)
            skipped = ", ".join(f"{count} {reason}" for reason, count in self._commit.skipped.items()) or "none"
            raise SourceError(
                f"Source {self._source.name!r} gave no documents (skipped: {skipped}): check its columns and filters."
            )


def _counts(languages: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(languages).to_pylist()}


def _add_counts(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {key: old.get(key, 0) + new.get(key, 0) for key in sorted(old.keys() | new.keys())}


def _batches(opened: OpenedSource, shard: int, row: int) -> Iterator[tuple[int, pa.Table | None]]:
    """Read from a cursor on: (shard, batch) pairs, and (shard, None) after the last batch of each shard."""
    for place in range(shard, len(opened.shards)):
        for batch in opened.read(place, row if place == shard else 0):
            yield place, batch
        yield place, None


def _read_ahead(
    items: Iterator[tuple[int, pa.Table | None]], depth: int
) -> Generator[tuple[int, pa.Table | None], None, None]:
    """Run an iterator in a thread, `depth` items ahead. Closing this closes it, and waits until its thread has ended."""
    ahead: queue.Queue[Any] = queue.Queue(depth)
    stop, done = threading.Event(), object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return ahead.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    break
            put(done)
        except BaseException as error:  # it belongs to the thread that asked
            put(error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=run, name="read", daemon=True)
    thread.start()
    try:
        while (item := ahead.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
