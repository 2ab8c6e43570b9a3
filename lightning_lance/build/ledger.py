"""The ledger of a build: the only place that knows the order of the source.

It folds the results of units in that order, and decides which documents the store holds, where the budget ends, and what the
next commit says of itself. It reads and writes nothing.
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

# Files that the commit metadata names: enough for small budgets, few enough that many commits of a terabyte stay small.
_LISTED_FILES = 20


class Folded(NamedTuple):
    """What becomes of the n documents of a result.

    Documents that are neither stored nor forgotten are duplicates, or lie behind the end of the budget.

    Attributes:
        stored: (n,) bool: documents to store. If all are, the files of the unit can be committed as they are.
        forgotten: (n,) bool: documents that count, but that a forget rule leaves out. De-duplication keeps their hashes.
    """

    stored: np.ndarray
    forgotten: np.ndarray


class Ledger:
    """Folds results, each from the cursor on.

    Args:
        commit: Metadata of the commit to go on from.
        budget: Where to end.
        shards: Names of the shards, in the order of the source.
        wanted: Languages that the source must have to be exhausted.
        hashes: Hashes of the stored texts, in pieces; None without de-duplication.

    Attributes:
        commit: Metadata of the next commit.
        seen: The texts so far; None without de-duplication. To encode no duplicates, a build may ask it ahead of `fold`,
            in source order. Such results come without hashes.
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
        """Wanted languages of which there is no document yet."""
        return [language for language in self._wanted if language not in self.commit.languages]

    def next_unit(self) -> Unit:
        """Return the unit that begins at the cursor: the rest of its shard, up to the rest of the budget."""
        commit, budget = self.commit, self._budget
        documents = None if budget.max_documents is None else budget.max_documents - commit.documents
        tokens = None if budget.max_tokens is None else budget.max_tokens - commit.tokens
        return Unit(commit.shard, commit.row, max_documents=documents, max_tokens=tokens)

    def fold(self, result: UnitResult) -> Folded:
        """Take the documents of a result up to the budget, and move the cursor behind them.

        The document that reaches the budget is taken whole. Everything behind it, skipped rows too, is left for a later build:
        then nothing of a result is taken any more.

        Raises:
            SourceError: If the result does not follow the cursor: the source gives rows again, or in another order.
        """
        stored = np.zeros(len(result.rows), bool)
        forgotten = np.zeros(len(result.rows), bool)
        if self.met:
            return Folded(stored, forgotten)
        self._check_order(result)
        new = self._first_seen(result)
        end, met = self._end(new, result.num_tokens)
        new[end:] = False
        documents = result.documents if new.all() else result.documents.filter(pa.array(new))
        gone, commit = apply_forget_rules(self.commit, documents, result.num_tokens[new])
        forgotten[new] = gone
        stored[new] = ~gone

        # The store goes on behind the last document, or behind all rows that were read.
        row = commit.row if result.next_row is None else result.next_row
        if met:
            row = int(result.rows[end - 1]) + 1
        skipped = {why: int(np.searchsorted(rows, row)) if met else len(rows) for why, rows in result.skipped.items()}
        duplicates = end - int(np.count_nonzero(new))
        skipped["duplicate"] = skipped.get("duplicate", 0) + duplicates
        noted = {what: mask[new] for what, mask in result.noted.items()}
        files = [*(commit.files | {self._shards[result.shard]: row}).items()]
        self.commit = replace(
            commit,
            shard=result.shard,
            row=row,
            documents=commit.documents + int(np.count_nonzero(new)),
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

    def end_shard(self, bad: Mapping[str, Any] | None = None) -> None:
        """Move the cursor to the next shard.

        Args:
            bad: Why the rest of this one is left out, if it is.
        """
        bad_shards = [*self.commit.bad_shards]
        if bad:
            bad_shards.append(dict(bad))
        self.commit = replace(self.commit, shard=self.commit.shard + 1, row=0, bad_shards=bad_shards)

    def end_source(self) -> None:
        """Note that no shard is left. With a language missing the build stays open: run again, it says so again."""
        self.commit = replace(self.commit, exhausted=not self.missing)

    def _check_order(self, result: UnitResult) -> None:
        commit = self.commit
        first = int(result.rows[0]) if len(result.rows) else commit.row
        if result.shard != commit.shard or first < commit.row:
            raise SourceError(
                f"The source gave row {first:,} of shard {result.shard:,} where the build is at row {commit.row:,} of shard "
                f"{commit.shard:,}: read(shard, row) must give rows in order, from that row on."
            )

    def _first_seen(self, result: UnitResult) -> np.ndarray:
        """Return which documents have a text that none before them has, (n,) bool."""
        if self.seen is None or result.hashes is None:
            return np.ones(len(result.rows), bool)
        return self.seen.add(result.hashes)

    def _end(self, new: np.ndarray, num_tokens: np.ndarray) -> tuple[int, bool]:
        """Return how many documents come before the end of the budget, duplicates among them, and whether it is met."""
        commit, budget = self.commit, self._budget
        reached = np.zeros(len(new), bool)
        if budget.max_documents is not None:
            reached |= commit.documents + np.cumsum(new) >= budget.max_documents
        if budget.max_tokens is not None:
            reached |= commit.tokens + np.cumsum(num_tokens * new) >= budget.max_tokens
        if not reached.any():
            return len(new), False
        return int(reached.argmax()) + 1, True


def _counts(languages: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(languages).to_pylist()}


def _add_counts(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    """Add counts by name, sorted; new ones only where there are any."""
    total = dict(old)
    for name, count in new.items():
        if count:
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
