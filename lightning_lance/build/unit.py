"""A unit of build work, and its result.

A unit reads, screens and encodes some rows of one shard. It knows no other unit, no commit, and only an upper bound of the
budget. So it can run in another process, or again. With its result the ledger decides which documents to store (see
`ledger.py`). Both are plain values, without texts or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Unit:
    """A shard, or a row range of one.

    Attributes:
        shard: Index of the shard in the source.
        row: First row.
        end: Row after the last one; None for the rest of the shard.
        max_documents: Documents after which no more are needed; None for no bound.
        max_tokens: Tokens, EOS included, after which no more are needed; None for no bound.
    """

    shard: int
    row: int = 0
    end: int | None = None
    max_documents: int | None = None
    max_tokens: int | None = None


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
