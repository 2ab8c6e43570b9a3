"""Documents as they come: which are left out, and what is remarkable about those that are kept.

Arrow looks at whole columns; there is no loop over documents.
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
    """Return which documents are left out, and why.

    Args:
        batch: A document batch.
        sizes: (n,) bytes of its texts, -1 for null.
        long: The rule for long documents.

    Returns:
        Reason to (n,) bool; a document has one reason at most: `null` (no text), `not_utf8`, `not_json`, `empty`, `blank`
        (nothing but white space), `long`.
    """
    spaces = [pc.fill_null(pc.utf8_is_space(chunk), False) for chunk in batch.column("text").chunks]
    none = np.zeros(len(batch), bool)
    invalid, garbled = (
        np.asarray(batch.column(name)) if name in batch.column_names else none for name in ("not_utf8", "not_json")
    )
    blank = np.concatenate([np.asarray(part) for part in spaces]) if spaces else none
    too_long = (sizes > long.max_bytes) & ~blank if long.how == "skip" else none
    null = (sizes < 0) & ~invalid & ~garbled
    reasons = {"null": null, "not_utf8": invalid, "not_json": garbled}
    return {**reasons, "empty": sizes == 0, "blank": blank, "long": too_long}


def flags_of(documents: pa.Table, special: Sequence[str], long: LongDocuments) -> dict[str, np.ndarray]:
    """Return what is remarkable about documents that are kept.

    Args:
        documents: Rows of a document batch, none of them null.
        special: Regular expressions for the spellings of special tokens; see `spelled`.
        long: The rule for long documents.

    Returns:
        Remark to (n,) bool: `special` (spells a special token: encoded as text), `nul` (holds a NUL byte), `crlf` (has Windows
        line ends), `bom` (began with a byte order mark, which was taken off), `split` (encoded in pieces), and, if any was,
        `metadata_not_utf8` (something of its path, language or such was replaced).
    """
    texts = documents.column("text")
    bom = documents.column("bom") if "bom" in documents.column_names else pa.array(np.zeros(len(documents), bool))
    spells = [_finds(texts, pattern) for pattern in special]
    return {
        "special": np.logical_or.reduce(spells) if spells else np.zeros(len(documents), bool),
        "nul": _finds(texts, r"\x00"),
        "crlf": _finds(texts, "\r\n"),
        "bom": np.asarray(bom),
        "split": np.asarray(pc.greater(pc.binary_length(texts), long.max_bytes)),
        **({"metadata_not_utf8": np.asarray(documents.column(REPLACED))} if REPLACED in documents.column_names else {}),
    }


def spelled(tokens: Sequence[str]) -> list[str]:
    """Make RE2 expressions that find any of some strings, one for each first character.

    An expression that begins with literal text is searched for that text at the speed of memory, forty times faster than the
    alternatives one by one.
    """
    groups: dict[str, list[str]] = {}
    for token in sorted({*tokens} - {""}):
        groups.setdefault(token[0], []).append(token)
    patterns = []
    for group in groups.values():
        # Sorted, so that all share what the first and the last share.
        same = [a == b for a, b in zip(group[0], group[-1], strict=False)]
        prefix = group[0][: [*same, False].index(False)]
        rest = "|".join(re.escape(token[len(prefix) :]) for token in group)
        patterns.append(re.escape(prefix) + (f"(?:{rest})" if len(group) > 1 else ""))
    return patterns


def _finds(texts: pa.ChunkedArray, pattern: str) -> np.ndarray:
    return np.asarray(pc.match_substring_regex(texts, pattern))


def count_reasons(found: Mapping[str, np.ndarray], end: int) -> dict[str, int]:
    """Count each kind among the first `end` documents; kinds of which there is none are left out."""
    counts = {kind: int(np.count_nonzero(mask[:end])) for kind, mask in found.items()}
    return {kind: count for kind, count in counts.items() if count}


# Longest text that is encoded at once: 1 MiB is more than nearly any source file or book chapter, takes the slowest engine
# about a second, and some 150 MB of its memory.
MAX_DOCUMENT_BYTES = 1 << 20


@dataclass(frozen=True)
class LongDocuments:
    """What becomes of documents with much text.

    Attributes:
        max_bytes: Longest text that is encoded at once, in bytes of UTF-8.
        how: `split` encodes a longer one piece by piece, `skip` leaves it out.
    """

    max_bytes: int = MAX_DOCUMENT_BYTES
    how: Literal["split", "skip"] = "split"

    def __post_init__(self) -> None:
        if not is_count(self.max_bytes) or self.max_bytes < 16:
            raise ConfigError(
                f"max_document_bytes is {described(self.max_bytes)}: expected a whole number of bytes, 16 at least."
            )
        object.__setattr__(self, "max_bytes", int(self.max_bytes))
        if not isinstance(self.how, str) or self.how not in ("split", "skip"):
            raise ConfigError(f"long_documents is {described(self.how)}: expected split or skip.")
