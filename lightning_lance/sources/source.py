"""The interface of a source of documents.

A source is a small frozen description, and creating one reads nothing. `open` finds its shards. An opened source reads any
shard from any row on, so that a build can resume from a (shard, row) cursor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import xxhash

from lightning_lance.documents.dedup import Dedup
from lightning_lance.messages.formatting import pluralize
from lightning_lance.readers.cuts import Cut

# At most so many rows per Arrow batch.
BATCH_ROWS = 1000

# Text per batch: enough to outweigh the cost of a batch (three milliseconds), and small enough to reuse its memory.
BATCH_BYTES = 6 << 20


@dataclass
class ReadReport:
    """Problems while reading a source; grows as it is read.

    Attributes:
        incidents: Number of failures that were retried, by kind.
        bad_shards: Bad shards by position: `shard`, the first skipped `row`, and the `error`.
        remarks: Log lines about the files, before they are read: (level, text).
    """

    incidents: Counter[str] = field(default_factory=Counter)
    bad_shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    remarks: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} x {kind}" for kind, number in self.incidents.most_common())
        return f"{pluralize(self.incidents.total(), 'time')} and was retried: {kinds}"


class OpenedSource(Protocol):
    """A source whose shards are known."""

    @property
    def shards(self) -> Sequence[str]:
        """Names of the shards, in the order in which they are read."""
        ...

    @property
    def pin(self) -> dict[str, Any]:
        """Values that `Source.open` needs to find the same shards again, such as the resolved revision. JSON types."""
        ...

    @property
    def trouble(self) -> ReadReport:
        """Problems so far."""
        ...

    @property
    def num_bytes(self) -> int | None:
        """Total bytes of text, wanted or not; None if unknown before reading."""
        ...

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        """Yield the document batches (see documents/batch.py) of a shard (an index into `shards`), from a row on."""
        ...

    def present_languages(self) -> list[str]:
        """Return the languages of the first shard, wanted or not, to suggest one in an error message."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """An opened source whose shards can be read in parts, by several workers at once."""

    def cuts(self, shard: int, part_bytes: int) -> list[Cut]:
        """Return where a reading of a shard may begin besides its first row; each part holds about `part_bytes` of text.

        May read the shard's columns for its filter, but never its texts. None for a shard that cannot be divided.
        """
        ...

    def begin_at(self, shard: int, cut: Cut) -> None:
        """Note a place of a shard, so that `read` need not look for its row."""
        ...


@runtime_checkable
class Filtered(Protocol):
    """An opened source that keeps only the rows with some values."""

    def filter_hint(self) -> str:
        """Return a hint about a wanted value that the first shard lacks, as a clause; empty if none is similar to it."""
        ...


class Source(Protocol):
    """A description of documents."""

    @property
    def name(self) -> str:
        """Short name, for folders and messages."""
        ...

    @property
    def wanted(self) -> Sequence[str]:
        """The languages to keep; empty keeps all."""
        ...

    @property
    def metadata(self) -> Sequence[str]:
        """Names of further string columns in its document batches, such as `repo` and `path`."""
        ...

    @property
    def dedup(self) -> Dedup:
        """`exact` to skip copies of earlier texts, `none` to keep them. Part of the identity."""
        ...

    @property
    def has_validation(self) -> bool:
        """Whether its document batches have a column `split`. Otherwise a hash decides."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the documents and their order, for the fingerprint. JSON types; uses no Hub."""
        ...

    def open(self, pin: Mapping[str, Any] | None = None) -> OpenedSource:
        """Find the shards.

        Args:
            pin: `OpenedSource.pin` of the first build, to find the same shards when a build resumes.

        Raises:
            ConfigError: If a path, a name or a language does not exist.
            SourceError: If access is denied.
        """
        ...


def shard_order(count: int, seed: int | None) -> list[int]:
    """Return the order in which shards are read, from hashes that are stable across library versions; None does not shuffle."""
    if seed is None:
        return list(range(count))
    return sorted(range(count), key=lambda i: (xxhash.xxh3_64_intdigest(f"{seed}/{i}".encode()), i))
