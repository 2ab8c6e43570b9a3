"""Screening of documents: which are skipped, and what is counted about those that are kept.

Arrow works on whole columns; there is no loop over documents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.documents.columns import REPLACED
from lightning_lance.errors import ConfigError, described, is_count


def skip_reasons(batch: pa.Table, sizes: np.ndarray, long: LongDocuments) -> dict[str, np.ndarray]:
    """Return the documents to skip, by reason.

    Args:
        batch: A document batch.
        sizes: (n,) bytes of its texts, -1 for null.
        long: The rule for long documents.

    Returns:
        Reason to (n,) bool. A document has at most one reason: `null` (no text), `not_utf8`, `not_json`, `empty`, `blank`
        (only white space), `long`.
    """
    invalid = flag_of(batch, "not_utf8")
    garbled = flag_of(batch, "not_json")
    blank = np.asarray(pc.fill_null(pc.utf8_is_space(batch.column("text")), False))
    too_long = np.zeros(len(batch), bool)
    if long.how == "skip":
        too_long = (sizes > long.max_bytes) & ~blank
    return {
        "null": (sizes < 0) & ~invalid & ~garbled,
        "not_utf8": invalid,
        "not_json": garbled,
        "empty": sizes == 0,
        "blank": blank,
        "long": too_long,
    }


def flags_of(documents: pa.Table, special: Sequence[str], long: LongDocuments) -> dict[str, np.ndarray]:
    """Return the properties of kept documents that are counted.

    Args:
        documents: Rows of a document batch, none of them null.
        special: Regular expressions for the spellings of special tokens; see `spelled`.
        long: The rule for long documents.

    Returns:
        Property to (n,) bool: `special` (spells a special token, which is encoded as text), `nul` (holds a NUL byte), `crlf`
        (has Windows line ends), `bom` (began with a byte order mark, now removed), `split` (encoded in pieces), and, if the
        batch has it, `metadata_not_utf8` (invalid UTF-8 in its metadata was replaced).
    """
    texts = documents.column("text")
    special_spelled = np.zeros(len(documents), bool)
    for pattern in special:
        special_spelled |= _finds(texts, pattern)
    flags = {
        "special": special_spelled,
        "nul": _finds(texts, r"\x00"),
        "crlf": _finds(texts, "\r\n"),
        "bom": flag_of(documents, "bom"),
        "split": np.asarray(pc.greater(pc.binary_length(texts), long.max_bytes)),
    }
    if REPLACED in documents.column_names:
        flags["metadata_not_utf8"] = flag_of(documents, REPLACED)
    return flags


def flag_of(batch: pa.Table, name: str) -> np.ndarray:
    """Return an optional bool column, all false if the batch does not have it."""
    if name not in batch.column_names:
        return np.zeros(len(batch), bool)
    return np.asarray(batch.column(name))


def spelled(tokens: Sequence[str]) -> list[str]:
    """Return RE2 expressions that find any of the given strings, one for each first character.

    RE2 searches for a literal prefix at memory speed, forty times faster than for alternatives.
    """
    groups: dict[str, list[str]] = {}
    for token in sorted({*tokens} - {""}):
        groups.setdefault(token[0], []).append(token)
    patterns = []
    for group in groups.values():
        # Sorted, so all share the common prefix of the first and the last.
        prefix = group[0]
        while not group[-1].startswith(prefix):
            prefix = prefix[:-1]
        pattern = re.escape(prefix)
        if len(group) > 1:
            rests = [token.removeprefix(prefix) for token in group]
            pattern += f"(?:{'|'.join(map(re.escape, rests))})"
        patterns.append(pattern)
    return patterns


def _finds(texts: pa.ChunkedArray, pattern: str) -> np.ndarray:
    return np.asarray(pc.match_substring_regex(texts, pattern))


def count_reasons(found: Mapping[str, np.ndarray], end: int) -> dict[str, int]:
    """Return the count of each kind among the first `end` documents, without zeros."""
    counts: dict[str, int] = {}
    for kind, mask in found.items():
        count = int(np.count_nonzero(mask[:end]))
        if count:
            counts[kind] = count
    return counts


# 1 MiB is more than nearly any source file or book chapter. The slowest engine takes about a second and 150 MB for it.
MAX_DOCUMENT_BYTES = 1 << 20


@dataclass(frozen=True)
class LongDocuments:
    """The rule for long documents.

    Attributes:
        max_bytes: Longest text that is encoded at once, in bytes of UTF-8.
        how: `split` encodes a longer one piece by piece, `skip` skips it.
    """

    max_bytes: int = MAX_DOCUMENT_BYTES
    how: Literal["split", "skip"] = "split"

    def __post_init__(self) -> None:
        if not is_count(self.max_bytes) or self.max_bytes < 16:
            raise ConfigError(
                f"max_document_bytes is {described(self.max_bytes)}: expected a whole number of bytes, at least 16."
            )
        object.__setattr__(self, "max_bytes", int(self.max_bytes))
        if not isinstance(self.how, str) or self.how not in ("split", "skip"):
            raise ConfigError(f"long_documents is {described(self.how)}: expected split or skip.")
