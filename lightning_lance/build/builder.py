"""One run of a build: read, tokenize, pack and commit, overlapped, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pyarrow as pa
import xxhash

from lightning_lance.build.coordination import BuildCoordinator
from lightning_lance.build.disk_space import DiskSpaceCheck
from lightning_lance.build.kept_tokenizer import keep_tokenizer
from lightning_lance.build.ledger import Folded, Ledger
from lightning_lance.build.packing import Packer
from lightning_lance.build.pipeline import EncodedBatch, encoded_batches
from lightning_lance.build.plan import Budget, Plan
from lightning_lance.build.progress import BuildProgress
from lightning_lance.build.row_writer import RowWriter, forget_written
from lightning_lance.build.unit import UnitResult
from lightning_lance.documents.languages import check_languages
from lightning_lance.documents.splits import splits_of
from lightning_lance.errors import CommitConflict, NotForcedError, SourceError, StoreError
from lightning_lance.format.commit import append_commit, last_version
from lightning_lance.format.lance_io import PendingFragments, conflict
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links
from lightning_lance.maintenance.compaction import FULL_BYTES, commit_final, compact
from lightning_lance.maintenance.removal import clean_up, fence_stale_builders, find_orphans
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import nearest
from lightning_lance.sources.source import OpenedSource, Source
from lightning_lance.store.provenance import stored_hashes
from lightning_lance.tokenization.tokenizer import token_dtype

_log = logger(__name__)


class Build:
    """One run of a build: batches are read, folded into the ledger, packed and committed.

    Args:
        source: Where the documents come from.
        plan: What is stored, and where.
        budget: When it ends.
        version: Version of the store that it goes on from, 0 if there is none.
        commit: The note of that version.
        storage_options: Credentials and such for an object store.
        durable: Whether each commit of a local store is forced onto the disk.

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
        durable: bool = True,
    ) -> None:
        self._source, self._plan, self._budget, self._storage_options = source, plan, budget, storage_options
        self._durable = durable
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
        self._first = commit or CommitMetadata(
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
        plan, first = self._plan, self._first
        num_shards = len(self._opened.shards)
        # What is stored is what is committed: the hashes are read from the store, so they can be no other than its documents'.
        hashes = stored_hashes(plan.uri, self._storage_options) if self._dedup else None
        ledger = Ledger(first, self._budget, self._opened.shards, self._source.wanted, hashes)
        unit = ledger.next_unit()
        batches = encoded_batches(
            self._opened,
            plan.tokenizer,
            unit.shard,
            unit.row,
            unit.max_documents,
            unit.max_tokens,
            plan.long_documents,
            ledger.seen,
        )
        share = self._budget.share(first, num_shards)
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
                before = ledger.commit.text_bytes
                if batch is None:
                    ledger.end_shard(self._opened.trouble.bad_shards.get(shard))
                    self._check_first_shard(ledger)
                else:
                    self._add(ledger, shard, batch)
                    del batch  # it may be large, and the next one takes its time
                now = ledger.commit
                space.look(now, self.committed)
                share = self._budget.share(now, num_shards)
                progress.update(share, now.documents, now.tokens, now.text_bytes - before)
                turn.progress(now.documents, now.tokens, share)
                if turn.lost:
                    raise CommitConflict(f"Another process has taken over the build of {self._plan.uri!r}.")
                if ledger.met:
                    break
                # By the clock also where nothing was kept: the cursor has moved, and that was work.
                late = now != asked and time.monotonic() - last > commit_seconds
                if late or self._packer.num_tokens >= commit_tokens:
                    self._commit_rows(commits, now)
                    asked, last = now, time.monotonic()
                    progress.committed(share, now.documents, now.tokens)
            else:
                self._check_not_empty(ledger)
                ledger.end_source()
            now = ledger.commit
            self._commit_rows(commits, now, final=True)
            progress.update(1.0, now.documents, now.tokens, 0)
            progress.committed(1.0, now.documents, now.tokens)
            progress.ended(now.skipped, now.noted)
        if self._opened.trouble.incidents:
            _log.warning("Source %r failed %s.", self._source.name, self._opened.trouble)
        if not ledger.met:
            self._check_found(ledger)

    def _take_over(self) -> None:
        """Begin without what killed builders left, before as much is written again."""
        uri, options = self._plan.uri, self._storage_options
        check_no_links(uri)
        left = find_orphans(uri, options)
        if left and self._version:
            self._version = fence_stale_builders(uri, self._version, left, options, self._durable)
        elif left:
            # A version without rows: so nobody can make the first one any more out of what goes.
            nothing = PendingFragments(None, self._packer.schema, [], {})
            self._version = append_commit(uri, nothing, self._first, options, self._durable)
            self.committed = self._first
            clean_up(uri, options, left)

    def _keep_tokenizer(self) -> None:
        """Write the tokenizer beside a local store; one that an earlier version spelled otherwise stays as it is."""
        file = self._plan.tokenizer_file
        spelled_so = self._first.recipe.get("tokenizer") == self._plan.tokenizer.digest
        if file is not None and (spelled_so or not file.exists()):
            keep_tokenizer(self._plan)

    def _write(self, rows: Sequence[pa.RecordBatch]) -> None:
        """Give rows to the data file of the next commit."""
        plan = self._plan
        try:
            for batch in rows:
                if self._rows is None:
                    fingerprint = self._first.fingerprint
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

    def _commit_rows(self, commits: ThreadPoolExecutor, commit: CommitMetadata, final: bool = False) -> None:
        """Commit all rows and their metadata. Not in this thread, which may be interrupted."""
        self._write(self._packer.flush())
        rows = self._rows
        uri, options, version = self._plan.uri, self._storage_options, self._version

        def append() -> None:
            written: PendingFragments | None = None
            try:
                written = (rows or RowWriter(uri, version, commit.fingerprint, self._packer.schema, options)).close()
                if final:
                    self._version = commit_final(uri, written, commit, options, durable=self._durable)
                else:
                    self._version = append_commit(uri, written, commit, options, self._durable)
                self.committed, written = commit, None
                if not final:
                    self._version = compact(uri, self._version, options, durable=self._durable)
            except BaseException as error:
                if written is not None:
                    forget_written(uri, written, options)
                # What the disk has not taken is this builder's own, though it does not count as made.
                if isinstance(error, (StoreError, ValueError, OSError)) and not isinstance(error, NotForcedError):
                    self._check_alone()
                raise

        commits.submit(append).result()
        self._rows = None

    def _add(self, ledger: Ledger, shard: int, made: EncodedBatch) -> None:
        """Fold a batch into the ledger, and pack the documents that are to be stored."""
        result = made.result(shard)
        folded = ledger.fold(result)
        if self._dedup and folded.forgotten.any():
            self._packer.forget(np.asarray(result.documents.column("hash"))[folded.forgotten])
        self._pack(made, result, folded)

    def _pack(self, made: EncodedBatch, result: UnitResult, folded: Folded) -> None:
        stored = folded.stored
        count = int(np.count_nonzero(stored))
        if not count:
            return
        ids, offsets = made.encoded.ids, made.encoded.offsets
        if stored[:count].all():
            # The first ones, up to the budget: without a copy.
            ids, offsets = ids[: offsets[count]], offsets[: count + 1]
            texts, described = made.documents.slice(0, count), result.documents.slice(0, count)
        else:
            lengths = np.diff(offsets)
            ids, offsets = ids[np.repeat(stored, lengths)], np.append(0, np.cumsum(lengths[stored]))
            texts, described = (table.filter(pa.array(stored)) for table in (made.documents, result.documents))
        self._write(self._packer.add(ids, offsets, splits_of(texts, self._val_fraction), described))

    def _check_first_shard(self, ledger: Ledger) -> None:
        """Tell early that a language may be misspelt, or is rare: the corpus may be a terabyte."""
        shards, missing = len(self._opened.shards), ledger.missing
        if ledger.commit.shard != 1 or not missing or shards == 1:
            return
        present = self._opened.present_languages()
        if not ledger.commit.documents and all(nearest(language, present) for language in missing):
            self._check_found(ledger)
        # Where folders are languages, those of other shards are known.
        missing = [language for language in missing if language not in present]
        if missing:
            named = ", ".join(language for language in present if language)
            there = f"it has {named}" if named else "its documents name no language"
            _log.warning("The first of %d shards has no document of %s; %s.", shards, ", ".join(missing), there)

    def _check_found(self, ledger: Ledger) -> None:
        if missing := ledger.missing:
            known = {*self._opened.present_languages(), *ledger.commit.languages} - {*missing}
            check_languages(missing, sorted(known), f"Source {self._source.name!r}")

    def _check_not_empty(self, ledger: Ledger) -> None:
        if not ledger.commit.documents:
            self._check_found(ledger)
            named = {"blank": "blank (nothing but white space)"}
            skipped = [f"{count} {named.get(why, why)}" for why, count in ledger.commit.skipped.items()] or ["none"]
            what = f"Source {self._source.name!r} gave no documents (skipped: {', '.join(skipped)})"
            raise SourceError(f"{what}: check what it reads and what it filters.")
