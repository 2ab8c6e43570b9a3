"""A unit of build work, and its result.

A unit reads, screens and encodes some rows of one shard. It knows no other unit, no commit, and only an upper bound of the
budget. So it can run in another process, or again. With its result the ledger decides which documents to store (see
`ledger.py`). Both are plain values, without texts or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lightning_lance.readers.cuts import Cut


@dataclass(frozen=True)
class Unit:
    """A shard, or a row range of one.

    Attributes:
        shard: Index of the shard in the source.
        row: First row.
        end: Row after the last one; None for the rest of the shard.
        max_documents: Documents after which no more are needed; None for no bound.
        max_tokens: Tokens, EOS included, after which no more are needed; None for no bound.
        cut: A place of the shard at that row or before it; None if none is known.
    """

    shard: int
    row: int = 0
    end: int | None = None
    max_documents: int | None = None
    max_tokens: int | None = None
    cut: Cut | None = None


@dataclass(frozen=True)
class UnitResult:
    """The result of a unit, or of its first rows: n documents that passed the screening, and the skipped rows.

    Attributes:
        shard: Index of the shard.
        rows: (n,) int64 rows of the documents, rising.
        num_tokens: (n,) int64 tokens of each, EOS included.
        text_bytes: (n,) int64 bytes of their texts.
        documents: n rows: `language`, `id`, and the metadata; the columns that a forget rule may name.
        noted: By remark, (n,) bool.
        skipped: By reason, the skipped rows, rising.
        next_row: First row that was not read; None if it is not known, because there was no row.
        ends_shard: Whether no row follows.
        bad_shard: Why the rest of the shard is skipped, if it is.
        hashes: (n,) uint64 hashes of the texts, by which the ledger finds duplicates; None if there are no duplicates.
    """

    shard: int
    rows: np.ndarray
    num_tokens: np.ndarray
    text_bytes: np.ndarray
    documents: pa.Table
    noted: Mapping[str, np.ndarray] = field(default_factory=dict)
    skipped: Mapping[str, np.ndarray] = field(default_factory=dict)
    next_row: int | None = None
    ends_shard: bool = False
    bad_shard: Mapping[str, Any] | None = None
    hashes: np.ndarray | None = None

    def before(self, count: int) -> UnitResult:
        """Return the result of the first documents, up to and with the last of `count`. There must be so many, at least one."""
        row = int(self.rows[count - 1]) + 1
        return replace(
            self,
            rows=self.rows[:count],
            num_tokens=self.num_tokens[:count],
            text_bytes=self.text_bytes[:count],
            documents=self.documents.slice(0, count),
            noted={remark: mask[:count] for remark, mask in self.noted.items()},
            skipped=self.skipped_before(row),
            next_row=row,
            ends_shard=False,
            bad_shard=None,
            hashes=None if self.hashes is None else self.hashes[:count],
        )

    def skipped_before(self, row: int) -> dict[str, np.ndarray]:
        """Return the skipped rows that lie before a row, by reason."""
        return {reason: rows[: np.searchsorted(rows, row)] for reason, rows in self.skipped.items()}


def joined(results: Sequence[UnitResult]) -> UnitResult:
    """Return the results of consecutive parts of a shard, at least one, as one. The last one says how it ends."""
    rows: list[np.ndarray] = []
    num_tokens: list[np.ndarray] = []
    text_bytes: list[np.ndarray] = []
    documents: list[pa.Table] = []
    hashes: list[np.ndarray] = []
    next_row: int | None = None
    for result in results:
        rows.append(result.rows)
        num_tokens.append(result.num_tokens)
        text_bytes.append(result.text_bytes)
        documents.append(result.documents)
        if result.hashes is not None:
            hashes.append(result.hashes)
        if result.next_row is not None:
            next_row = result.next_row
    return replace(
        results[-1],
        rows=np.concatenate(rows),
        num_tokens=np.concatenate(num_tokens),
        text_bytes=np.concatenate(text_bytes),
        documents=pa.concat_tables(documents, promote_options="default"),
        noted=_joined_masks(results),
        skipped=_joined_skipped(results),
        next_row=next_row,
        hashes=np.concatenate(hashes) if hashes else None,
    )


def _joined_masks(results: Sequence[UnitResult]) -> dict[str, np.ndarray]:
    """Return the remarks on all documents. A result without a remark has no document that it applies to."""
    masks: dict[str, np.ndarray] = {}
    count = sum(len(result.rows) for result in results)
    begin = 0
    for result in results:
        end = begin + len(result.rows)
        for remark, mask in result.noted.items():
            if remark not in masks:
                masks[remark] = np.zeros(count, bool)
            masks[remark][begin:end] = mask
        begin = end
    return masks


def _joined_skipped(results: Sequence[UnitResult]) -> dict[str, np.ndarray]:
    by_reason: dict[str, list[np.ndarray]] = {}
    for result in results:
        for reason, rows in result.skipped.items():
            by_reason.setdefault(reason, []).append(rows)
    return {reason: np.concatenate(rows) for reason, rows in by_reason.items()}
