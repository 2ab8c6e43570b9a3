"""Where documents come from: local files, and everything that the `datasets` library can stream.

A source is a small frozen description. Making one reads nothing; `open` finds its shards, and an opened source reads any
shard from any row on, so that one (shard, row) cursor is enough to continue a build.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import xxhash

from lightning_lance.documents.dedup import Dedup
from lightning_lance.messages.formatting import pluralize

# Rows per Arrow batch at most.
BATCH_ROWS = 1000

_PIECES, _PIECE_BYTES = 64, 1 << 16

# Text per batch: much enough for what each batch costs besides (three milliseconds), little enough to use its memory again.
BATCH_BYTES = 6 << 20


@dataclass
class ReadReport:
    """What went wrong while a source was read; grows as it is read.

    Attributes:
        incidents: Failures that were waited for and tried again, by what happened.
        bad_shards: Shards that are no good, by their place: `shard`, the `row` from which on it is left out, and the `error`.
        remarks: What the log has to say about the files before they are read, each with its level.
    """

    incidents: Counter[str] = field(default_factory=Counter)
    bad_shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    remarks: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} x {kind}" for kind, number in self.incidents.most_common())
        return f"{pluralize(sum(self.incidents.values()), 'time')} and was tried again: {kinds}"


class OpenedSource(Protocol):
    """A source whose shards are known."""

    @property
    def shards(self) -> Sequence[str]:
        """Names of the shards, in the order in which they are read."""
        ...

    @property
    def pin(self) -> dict[str, Any]:
        """What `Source.open` needs to find the same shards again, such as the resolved revision. JSON types."""
        ...

    @property
    def trouble(self) -> ReadReport:
        """What went wrong so far."""
        ...

    @property
    def num_bytes(self) -> int | None:
        """Bytes of text in all, wanted or not, if that is known without reading; else None."""
        ...

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        """Read a shard (by its place in `shards`) from a row on, as document batches (see documents/batch.py)."""
        ...

    def present_languages(self) -> list[str]:
        """Return the languages of the first shard, wanted or not: what a message offers for a language that isn't there."""
        ...


class Source(Protocol):
    """What the build side needs of a source."""

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
        """Names of the further string columns of its document batches, such as `repo` and `path`."""
        ...

    @property
    def dedup(self) -> Dedup:
        """`exact` to leave out texts that came before, `none` to keep them; part of the identity."""
        ...

    @property
    def has_validation(self) -> bool:
        """Whether its document batches tell the split themselves, in a column `split`; else a hash decides."""
        ...

    def identity(self) -> dict[str, Any]:
        """Describe all that decides the documents and their order, for the fingerprint. JSON types; uses no Hub."""
        ...

    def open(self, pin: Mapping[str, Any] | None = None) -> OpenedSource:
        """Find the shards.

        Args:
            pin: `OpenedSource.pin` of the first build, to see the same shards when a build continues.

        Raises:
            ConfigError: If a path, a name or a language is not there.
            SourceError: If there is no access.
        """
        ...


def shard_order(count: int, seed: int | None) -> list[int]:
    """Draw the order in which shards are read, from hashes that no library version changes. None keeps the listing's."""
    order = range(count)
    return (
        list(order)
        if seed is None
        else sorted(order, key=lambda i: (xxhash.xxh3_64_intdigest(f"{seed}/{i}".encode()), i))
    )
