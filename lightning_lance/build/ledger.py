"""The ledger of a build: the only place that knows the order of the source.

It folds the results of units in that order, and decides which documents the store holds, where the budget ends, and the
metadata of the next commit. It reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.build.plan import Budget
from lightning_lance.build.unit import Unit, UnitResult
from lightning_lance.documents.dedup import SeenHashes
from lightning_lance.documents.screening import count_reasons
from lightning_lance.errors import SourceError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.maintenance.forgetting import apply_forget_rules

# Files that the commit metadata names: enough for small budgets, few enough to keep the many commits of a terabyte small.
_LISTED_FILES = 20


class Folded(NamedTuple):
    """Which of the n documents of a result are stored.

    Documents that are neither stored nor forgotten are duplicates, or lie behind the end of the budget.

    Attributes:
        stored: (n,) bool: documents to store. If all are, the files of the unit can be committed as they are.
        forgotten: (n,) bool: documents that count, but are removed by a forget rule. De-duplication keeps their hashes.
    """

    stored: np.ndarray
    forgotten: np.ndarray


class Ledger:
    """Folds results, each from the cursor on.

    Args:
        commit: Metadata of the commit to continue from.
        budget: Where to end.
        shards: Names of the shards, in the order of the source.
        wanted: Languages that the source must have to be exhausted.
        hashes: Hashes of the stored texts, in pieces; None without de-duplication.

    Attributes:
        commit: Metadata of the next commit.
        seen: Hashes of the texts so far; None without de-duplication. To encode no duplicates, a build may add to it before
            `fold`, in source order. The results then come without hashes.
    """

    def __init__(
        self,
        commit: CommitMetadata,
        budget: Budget,
        shards: Sequence[str],
        wanted: Sequence[str] = (),
        hashes: Iterable[np.ndarray] | None = None,
    ) -> None:
        self.commit = commit
        self.seen = None if hashes is None else SeenHashes(hashes)
        self._budget = budget
        self._shards = shards
        self._wanted = wanted

    @property
    def met(self) -> bool:
        """Whether no more documents are needed."""
        return self._budget.met(self.commit)

    @property
    def missing(self) -> list[str]:
        """Wanted languages without a document so far."""
        return [language for language in self._wanted if language not in self.commit.languages]

    def next_unit(self) -> Unit:
        """Return the unit that begins at the cursor: the rest of its shard, up to the rest of the budget."""
        commit = self.commit
        documents = self._budget.max_documents
        if documents is not None:
            documents -= commit.documents
        tokens = self._budget.max_tokens
        if tokens is not None:
            tokens -= commit.tokens
        return Unit(commit.shard, commit.row, max_documents=documents, max_tokens=tokens)

    def fold(self, result: UnitResult) -> Folded:
        """Take the documents of a result up to the budget, and move the cursor behind them.

        The document that reaches the budget is taken whole. Everything behind it, skipped rows too, is left for a later build.

        Raises:
            SourceError: If the result does not follow the cursor, since the source repeats or reorders rows.
        """
        stored = np.zeros(len(result.rows), bool)
        forgotten = np.zeros(len(result.rows), bool)
        if self.met:
            return Folded(stored, forgotten)
        self._check_order(result)
        new = np.ones(len(result.rows), bool)
        if self.seen is not None and result.hashes is not None:
            new = self.seen.add(result.hashes)
        end, met = self._end(new, result.num_tokens)
        new[end:] = False
        documents = result.documents if new.all() else result.documents.filter(pa.array(new))
        removed, commit = apply_forget_rules(self.commit, documents, result.num_tokens[new])
        forgotten[new] = removed
        stored[new] = ~removed

        # The next build continues behind the last document, or behind all rows that were read.
        row = commit.row if result.next_row is None else result.next_row
        skipped_rows = result.skipped
        if met:
            row = int(result.rows[end - 1]) + 1
            skipped_rows = result.skipped_before(row)
        skipped = {reason: len(rows) for reason, rows in skipped_rows.items()}
        count = int(np.count_nonzero(new))
        skipped["duplicate"] = skipped.get("duplicate", 0) + end - count
        noted = {remark: mask[new] for remark, mask in result.noted.items()}
        files = [*(commit.files | {self._shards[result.shard]: row}).items()]
        self.commit = replace(
            commit,
            shard=result.shard,
            row=row,
            documents=commit.documents + count,
            tokens=commit.tokens + int(result.num_tokens[new].sum()),
            text_bytes=commit.text_bytes + int(result.text_bytes[new].sum()),
            languages=_add_counts(commit.languages, _counts(documents.column("language"))),
            skipped=_add_counts(commit.skipped, skipped),
            noted=_add_counts(commit.noted, count_reasons(noted, end)),
            files=dict(files[-_LISTED_FILES:]),
        )
        if result.ends_shard and not met:
            self.end_shard(result.bad_shard)
        return Folded(stored, forgotten)

    def needs(self, result: UnitResult) -> int:
        """Return how many documents of a result without duplicates are stored or forgotten: all, or those up to the budget."""
        end, _ = self._end(np.ones(len(result.rows), bool), result.num_tokens)
        return end

    def end_shard(self, bad: Mapping[str, Any] | None = None) -> None:
        """Move the cursor to the next shard; `bad` says why the rest of this one is skipped, if it is."""
        bad_shards = [*self.commit.bad_shards]
        if bad:
            bad_shards.append(dict(bad))
        self.commit = replace(self.commit, shard=self.commit.shard + 1, row=0, bad_shards=bad_shards)

    def end_source(self) -> None:
        """Record that no shard is left. If a language is missing, the store stays unfinished, and each run says so."""
        self.commit = replace(self.commit, exhausted=not self.missing)

    def _check_order(self, result: UnitResult) -> None:
        commit = self.commit
        first = int(result.rows[0]) if len(result.rows) else commit.row
        if result.shard != commit.shard or first < commit.row:
            raise SourceError(
                f"The source gave row {first:,} of shard {result.shard:,}, expected row {commit.row:,} of shard "
                f"{commit.shard:,} or a later one: read(shard, row) must give rows in order, from that row on."
            )

    def _end(self, new: np.ndarray, num_tokens: np.ndarray) -> tuple[int, bool]:
        """Return the number of documents up to the end of the budget, duplicates included, and whether it is met."""
        budget = self._budget
        reached = np.zeros(len(new), bool)
        if budget.max_documents is not None:
            reached |= self.commit.documents + np.cumsum(new) >= budget.max_documents
        if budget.max_tokens is not None:
            reached |= self.commit.tokens + np.cumsum(num_tokens * new) >= budget.max_tokens
        if not reached.any():
            return len(new), False
        return int(reached.argmax()) + 1, True


def _counts(languages: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(languages)
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def _add_counts(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    """Add counts by name, sorted. Names without a count are not added."""
    total = dict(old)
    for name, count in new.items():
        if count:
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
