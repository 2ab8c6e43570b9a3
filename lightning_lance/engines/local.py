"""The engine that builds a store in this process: read, tokenize, pack and commit, overlapped, in bounded memory."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from lightning_lance.build.builder import Build, Pace
from lightning_lance.build.coordination import BuildCoordinator
from lightning_lance.build.ledger import Ledger
from lightning_lance.build.packing import pack_stored
from lightning_lance.build.pipeline import EncodedBatch, encoded_batches
from lightning_lance.build.plan import Budget, Plan
from lightning_lance.build.progress import BuildProgress
from lightning_lance.build.row_writer import RowWriter, forget_written
from lightning_lance.errors import NotForcedError, StoreError
from lightning_lance.format.commit import append_commit
from lightning_lance.format.lance_io import PendingFragments
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.maintenance.compaction import commit_final, compact
from lightning_lance.sources.source import Source


@dataclass(frozen=True)
class LocalEngine:
    """Builds in this process."""

    name: ClassVar[str] = "local"

    def begin(
        self, source: Source, plan: Plan, budget: Budget, version: int, commit: CommitMetadata | None, durable: bool
    ) -> Build:
        """Open the source, and return a build that continues from this version; see `Build`."""
        return LocalBuild(source, plan, budget, version, commit, durable)


class LocalBuild(Build):
    """A build in this process: batches are read, folded into the ledger, packed and committed."""

    # The data file of the next commit; None before its first row.
    _rows: RowWriter | None = None

    def close(self) -> None:
        if self._rows is not None:
            self._rows.abandon()
            self._rows = None

    def _fill(self, ledger: Ledger, turn: BuildCoordinator, progress: BuildProgress, pace: Pace) -> None:
        batches = self._encoded(ledger)
        with closing(batches), ThreadPoolExecutor(1, thread_name_prefix="commit") as commits, closing(self):
            for shard, batch in batches:
                before = ledger.commit.text_bytes
                if batch is None:
                    ledger.end_shard(self._opened.trouble.bad_shards.get(shard))
                    self._check_first_shard(ledger)
                else:
                    self._add(ledger, shard, batch)
                    del batch  # it may be large, and reading the next one takes time
                now = ledger.commit
                self._look(ledger, turn, progress, now.text_bytes - before)
                if ledger.met:
                    break
                if pace.due(now, self._packer.num_tokens):
                    self._commit_rows(commits, now)
                    pace.committed(now)
                    progress.committed(self._share(now), now.documents, now.tokens)
            else:
                self._end_source(ledger)
            now = ledger.commit
            self._commit_rows(commits, now, final=True)
            progress.update(1.0, now.documents, now.tokens, 0)

    def _encoded(self, ledger: Ledger) -> Generator[tuple[int, EncodedBatch | None], None, None]:
        """Read and encode from the ledger's cursor on; see `encoded_batches`."""
        unit = ledger.next_unit()
        return encoded_batches(
            self._opened,
            self._plan.tokenizer,
            unit.shard,
            unit.row,
            unit.max_documents,
            unit.max_tokens,
            self._plan.long_documents,
            ledger.seen,
        )

    def _write(self, rows: Sequence[pa.RecordBatch]) -> None:
        """Write rows to the data file of the next commit."""
        try:
            for batch in rows:
                if self._rows is None:
                    fingerprint = self._first.fingerprint
                    self._rows = RowWriter(self._location, self._version, fingerprint, self._packer.schema)
                self._rows.put(batch)
        except (StoreError, ValueError, OSError):
            self._check_no_other_builder()
            raise

    def _commit_rows(self, commits: ThreadPoolExecutor, commit: CommitMetadata, final: bool = False) -> None:
        """Commit all rows and their metadata. Not in this thread, which may be interrupted."""
        self._write(self._packer.flush())
        rows = self._rows

        def append() -> None:
            written: PendingFragments | None = None
            try:
                # A commit without rows moves the cursor.
                writer = rows or RowWriter(self._location, self._version, commit.fingerprint, self._packer.schema)
                written = writer.close()
                if final:
                    self._version = commit_final(self._location, written, commit, durable=self._durable)
                else:
                    self._version = append_commit(self._location, written, commit, self._durable)
                self.committed = commit
                written = None
                if not final:
                    self._version = compact(self._location, self._version, durable=self._durable)
            except BaseException as error:
                if written is not None:
                    forget_written(self._location, written)
                # After NotForcedError the newest version is this builder's own, and not a conflict.
                if isinstance(error, (StoreError, ValueError, OSError)) and not isinstance(error, NotForcedError):
                    self._check_no_other_builder()
                raise

        commits.submit(append).result()
        self._rows = None

    def _add(self, ledger: Ledger, shard: int, batch: EncodedBatch) -> None:
        """Fold a batch into the ledger, and pack the documents to store."""
        result = batch.result(shard)
        folded = ledger.fold(result)
        self._write(pack_stored(self._packer, batch, result, folded, self._val_fraction))
