"""One run of a build: read, tokenize, pack and commit, overlapped, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.build.coordination import BuildCoordinator
from lightning_lance.build.disk_space import DiskSpaceCheck
from lightning_lance.build.packing import Packer
from lightning_lance.build.pipeline import EncodedBatch, encoded_batches
from lightning_lance.build.plan import Budget, Plan, keep_tokenizer
from lightning_lance.build.progress import BuildProgress
from lightning_lance.build.row_writer import RowWriter, forget_written
from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.batch import next_row
from lightning_lance.documents.dedup import SeenHashes
from lightning_lance.documents.languages import check_languages
from lightning_lance.documents.splits import splits_of
from lightning_lance.errors import CommitConflict, SourceError, StoreError
from lightning_lance.format.commit import append_commit, last_version
from lightning_lance.format.lance_io import PendingFragments, conflict
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links
from lightning_lance.maintenance.compaction import (
    FULL_BYTES,
    clean_up,
    commit_final,
    compact,
    fence_stale_builders,
    find_orphans,
)
from lightning_lance.maintenance.forgetting import apply_forget_rules
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import nearest
from lightning_lance.sources.source import OpenedSource, Source
from lightning_lance.store.provenance import stored_hashes
from lightning_lance.tokenization.tokenizer import token_dtype

_log = logger(__name__)

# Files that a commit note names: enough for small budgets, few enough that many commits of a terabyte stay small.
_LISTED_FILES = 20


class Build:
    """One run of a build: holds the commit note as it grows.

    Args:
        source: Where the documents come from.
        plan: What is stored, and where.
        budget: When it ends.
        version: Version of the store that it goes on from, 0 if there is none.
        commit: The note of that version.
        storage_options: Credentials and such for an object store.

    Attributes:
        committed: The note of the last commit, None before the first.

    Raises:
        SourceError: If the source cannot be opened, or is not the one that the store was begun with.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        budget: Budget,
        version: int,
        commit: CommitMetadata | None,
        storage_options: Mapping[str, str] | None,
    ) -> None:
        self._source, self._plan, self._budget, self._storage_options = source, plan, budget, storage_options
        self._opened: OpenedSource = source.open(commit.pin if commit else None)
        shards = xxhash.xxh3_64_hexdigest("\0".join(self._opened.shards).encode())
        # The fingerprint of a source that hashes its files has told already that they are the same, wherever they lie by now.
        hashes_files = "files" in plan.recipe["source"]
        if commit is not None and commit.shards != shards and not hashes_files:
            raise SourceError(
                f"The files of source {source.name!r} are not those that the store {plan.uri!r} was begun with: bring them "
                "back, or remove the store to build it anew."
            )
        tokenizer = plan.tokenizer
        self._commit = commit or CommitMetadata(
            plan.fingerprint,
            plan.recipe,
            self._opened.pin,
            shards,
            tokenizer.eos_token,
            tokenizer.eos_id,
            tokenizer.vocab_size,
        )
        self._version, self.committed = version, commit
        self._val_fraction = float(plan.recipe["val_fraction"])
        self._dedup = source.dedup == "exact"
        self._packer = Packer(tokenizer.eos_id, token_dtype(tokenizer.vocab_size), source.metadata, self._dedup)
        # The data file of the next commit; None before its first row.
        self._rows: RowWriter | None = None

    def close(self) -> None:
        """Leave behind nothing that is not committed."""
        if self._rows is not None:
            self._rows.abandon()
            self._rows = None

    def run(self, turn: BuildCoordinator, commit_tokens: int | None, commit_seconds: float) -> None:
        """Read until the budget is met or the source ends.

        Args:
            turn: Is told the progress, and tells whether another process has taken over.
            commit_tokens: Tokens per commit; None for a fragment that is never merged.
            commit_seconds: Longest time between two commits, whether documents were kept or not: what is read twice after a
                kill.

        Raises:
            CommitConflict: If another process has committed meanwhile, or has taken over.
            SourceError: If the source cannot be read, or has no documents.
        """
        for level, remark in self._opened.trouble.remarks:
            _log.log(level, "%s", remark)
        # Before anything is written here; not in `__init__`, after which a store may be replaced.
        self._take_over()
        self._keep_tokenizer()
        first, num_shards = self._commit, len(self._opened.shards)
        share = self._budget.share(first, num_shards)
        limits = (self._budget.max_documents, self._budget.max_tokens)
        documents, tokens = (
            None if most is None else most - had
            for most, had in zip(limits, (first.documents, first.tokens), strict=True)
        )
        # What is known is what is committed: read back from the store, so it can be no other than its documents.
        plan = self._plan
        known = SeenHashes(stored_hashes(plan.uri, self._storage_options)) if self._dedup else None
        batches = encoded_batches(
            self._opened, plan.tokenizer, first.shard, first.row, documents, tokens, plan.long_documents, known
        )
        if commit_tokens is None:
            commit_tokens = FULL_BYTES // token_dtype(plan.tokenizer.vocab_size).itemsize
        space = DiskSpaceCheck(plan, self._budget, self._opened)
        asked, last = first, time.monotonic()
        with (
            closing(batches),
            ThreadPoolExecutor(1, thread_name_prefix="commit") as commits,
            closing(self),
            BuildProgress(self._source.name, share, first.documents) as progress,
        ):
            for shard, batch in batches:
                before = self._commit.text_bytes
                if batch is None:
                    bad = self._opened.trouble.bad_shards.get(shard)
                    left_out = [*self._commit.bad_shards, *([bad] if bad else [])]
                    self._commit = replace(self._commit, shard=shard + 1, row=0, bad_shards=left_out)
                    self._check_first_shard()
                else:
                    self._add(shard, batch)
                    del batch  # it may be large, and the next one takes its time
                space.look(self._commit, self.committed)
                now, share = self._commit, self._budget.share(self._commit, num_shards)
                progress.update(share, now.documents, now.tokens, now.text_bytes - before)
                turn.progress(now.documents, now.tokens, share)
                if turn.lost:
                    raise CommitConflict(f"Another process has taken over the build of {self._plan.uri!r}.")
                if self._budget.met(now):
                    break
                # By the clock also where nothing was kept: the cursor has moved, and that was work.
                late = now != asked and time.monotonic() - last > commit_seconds
                if late or self._packer.num_tokens >= commit_tokens:
                    self._commit_rows(commits)
                    asked, last = now, time.monotonic()
                    progress.committed(share, now.documents, now.tokens)
            else:
                self._check_not_empty()
                # With a language missing the build stays open: asked again, it says so again.
                self._commit = replace(self._commit, exhausted=not self._missing())
            self._commit_rows(commits, final=True)
            now = self._commit
            progress.update(1.0, now.documents, now.tokens, 0)
            progress.committed(1.0, now.documents, now.tokens)
            progress.ended(now.skipped, now.noted)
        if self._opened.trouble.incidents:
            _log.warning("Source %r failed %s.", self._source.name, self._opened.trouble)
        if not self._budget.met(self._commit):
            self._check_found()

    def _take_over(self) -> None:
        """Begin without what killed builders left, before as much is written again."""
        uri, options = self._plan.uri, self._storage_options
        check_no_links(uri)
        left = find_orphans(uri, options)
        if left and self._version:
            self._version = fence_stale_builders(uri, self._version, left, options)
        elif left:
            # A version without rows: so nobody can make the first one any more out of what goes.
            nothing = PendingFragments(None, self._packer.schema, [], {})
            self._version, self.committed = append_commit(uri, nothing, self._commit, options), self._commit
            clean_up(uri, options, left)

    def _keep_tokenizer(self) -> None:
        """Write the tokenizer beside a local store; one that an earlier version spelled otherwise stays as it is."""
        file = self._plan.tokenizer_file
        spelled_so = self._commit.recipe.get("tokenizer") == self._plan.tokenizer.digest
        if file is not None and (spelled_so or not file.exists()):
            keep_tokenizer(self._plan)

    def _write(self, rows: Sequence[pa.RecordBatch]) -> None:
        """Give rows to the data file of the next commit."""
        plan = self._plan
        try:
            for batch in rows:
                if self._rows is None:
                    fingerprint = self._commit.fingerprint
                    self._rows = RowWriter(
                        plan.uri, self._version, fingerprint, self._packer.schema, self._storage_options
                    )
                self._rows.put(batch)
        except (StoreError, ValueError, OSError):
            self._check_alone()
            raise

    def _check_alone(self) -> None:
        """If another has gone on meanwhile, and removed what was being read, it is that which went wrong."""
        version, now = last_version(self._plan.uri, self._storage_options)
        # By the note: what this builder has merged has the same.
        if now != self.committed:
            raise conflict(self._plan.uri, self._version, version)

    def _commit_rows(self, commits: ThreadPoolExecutor, final: bool = False) -> None:
        """Commit all rows and the note. Not in this thread, which may be interrupted."""
        self._write(self._packer.flush())
        rows = self._rows
        uri, options, commit, version = self._plan.uri, self._storage_options, self._commit, self._version

        def append() -> None:
            written: PendingFragments | None = None
            try:
                written = (rows or RowWriter(uri, version, commit.fingerprint, self._packer.schema, options)).close()
                if final:
                    self._version = commit_final(uri, written, commit, options)
                else:
                    self._version = append_commit(uri, written, commit, options)
                self.committed, written = commit, None
                if not final:
                    self._version = compact(uri, self._version, options)
            except BaseException as error:
                if written is not None:
                    forget_written(uri, written, options)
                if isinstance(error, (StoreError, ValueError, OSError)):
                    self._check_alone()
                raise

        commits.submit(append).result()
        self._rows = None

    def _add(self, shard: int, made: EncodedBatch) -> None:
        """Pack a batch, up to the budget, and move the cursor behind it."""
        commit, budget = self._commit, self._budget
        count = len(made.wanted)
        if budget.max_tokens is not None:
            ends = made.encoded.offsets[1:] + np.arange(1, count + 1)
            count = min(count, int(np.searchsorted(ends, budget.max_tokens - commit.tokens)) + 1)
        offsets = made.encoded.offsets[: count + 1]
        documents = made.documents.slice(0, count)
        ids = made.encoded.ids[: offsets[-1]]
        described, lengths = self._described(shard, documents), np.diff(offsets)
        gone, noted_commit = apply_forget_rules(commit, described, lengths + 1)
        if gone.any():
            left, ids = pa.array(~gone), ids[np.repeat(~gone, lengths)]
            if self._dedup:
                self._packer.forget(np.asarray(described.column("hash").filter(pa.array(gone))))
            self._pack(ids, np.append(0, np.cumsum(lengths[~gone])), documents.filter(left), described.filter(left))
        else:
            self._pack(ids, offsets, documents, described)
        added = replace(
            noted_commit,
            documents=commit.documents + count,
            tokens=commit.tokens + int(offsets[-1]) + count,
            text_bytes=commit.text_bytes + int(made.sizes[made.wanted[:count]].sum()),
            languages=_add_counts(commit.languages, _counts(documents.column("language"))),
        )
        # A met budget leaves what follows its last document, skipped ones too, for a later build.
        seen = int(made.wanted[count - 1]) + 1 if budget.met(added) else len(made.batch)
        skipped, noted = made.counts(count, seen)
        row = int(made.batch.column("row")[seen - 1].as_py()) + 1 if seen else commit.row
        if not budget.met(added):
            row = next_row(made.batch) or row
        skipped, noted = _add_counts(commit.skipped, skipped), _add_counts(commit.noted, noted)
        files = dict([*(commit.files | {self._opened.shards[shard]: row}).items()][-_LISTED_FILES:])
        self._commit = replace(added, shard=shard, row=row, skipped=skipped, noted=noted, files=files)

    def _pack(self, ids: np.ndarray, offsets: np.ndarray, documents: pa.Table, described: pa.Table) -> None:
        if len(documents):
            self._write(self._packer.add(ids, offsets, splits_of(documents, self._val_fraction), described))

    def _described(self, shard: int, documents: pa.Table) -> pa.Table:
        """Give each document its id, `shard:row`, which finds it in the source again."""
        rows = as_single_chunk(documents.column("row")).cast(pa.string())
        ids = pc.binary_join_element_wise(pa.scalar(str(shard)), rows, ":")
        return documents.drop_columns(["row", "text"]).append_column("id", ids)

    def _missing(self) -> list[str]:
        return [language for language in self._source.wanted if language not in self._commit.languages]

    def _check_first_shard(self) -> None:
        """Tell early that a language may be misspelt, or is rare: the corpus may be a terabyte."""
        shards, missing = len(self._opened.shards), self._missing()
        if self._commit.shard != 1 or not missing or shards == 1:
            return
        present = self._opened.present_languages()
        if not self._commit.documents and all(nearest(language, present) for language in missing):
            self._check_found()
        # Where folders are languages, those of other shards are known.
        missing = [language for language in missing if language not in present]
        if missing:
            named = ", ".join(language for language in present if language)
            there = f"it has {named}" if named else "its documents name no language"
            _log.warning("The first of %d shards has no document of %s; %s.", shards, ", ".join(missing), there)

    def _check_found(self) -> None:
        if missing := self._missing():
            known = {*self._opened.present_languages(), *self._commit.languages} - {*missing}
            check_languages(missing, sorted(known), f"Source {self._source.name!r}")

    def _check_not_empty(self) -> None:
        if not self._commit.documents:
            self._check_found()
            named = {"blank": "blank (nothing but white space)"}
            skipped = [f"{count} {named.get(why, why)}" for why, count in self._commit.skipped.items()] or ["none"]
            what = f"Source {self._source.name!r} gave no documents (skipped: {', '.join(skipped)})"
            raise SourceError(f"{what}: check what it reads and what it filters.")


def _counts(languages: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(languages).to_pylist()}


def _add_counts(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {key: old.get(key, 0) + new.get(key, 0) for key in sorted(old.keys() | new.keys())}
