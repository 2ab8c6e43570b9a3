"""Documents that are tokens already: in shards, as a format has them, or cut out of a stream at EOS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.convert.channels import Aligned, check_aligned
from lightning_lance.errors import ConfigError
from lightning_lance.messages.escaping import logger
from lightning_lance.sources.source import ReadReport

_log = logger(__name__)

#: Tokens of a batch, about.
BATCH_TOKENS = 1 << 20
# Tokens of a document. Where none ends for so long, the id of EOS is wrong.
_LONGEST = 1 << 26


class Shard(NamedTuple):
    """A part of a set of tokens.

    Attributes:
        name: For messages.
        split: `train` or `val`; empty where the set does not say.
        stream: Shards that follow each other and have the same one are one stream of tokens.
    """

    name: str
    split: str
    stream: str


class TokenDocuments(NamedTuple):
    """Some documents of a shard.

    Attributes:
        ids: (total,) token ids of any whole-number type. EOS may end a document.
        offsets: (n + 1,) borders of the documents in `ids`, from 0 to its end.
        columns: Our word to (n,) strings.
        channels: Our word to values for each id; see `CHANNEL_WORDS`.
    """

    ids: np.ndarray
    offsets: np.ndarray
    columns: Mapping[str, pa.Array] = {}
    channels: Mapping[str, Aligned] = {}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def behind(self, count: int) -> TokenDocuments:
        """Return the documents behind the first `count`."""
        if not count:
            return self
        begin = self.offsets[count]
        columns = {word: values.slice(count) for word, values in self.columns.items()}
        channels = {word: aligned.behind(count) for word, aligned in self.channels.items()}
        return TokenDocuments(self.ids[begin:], self.offsets[count:] - begin, columns, channels)


class Piece(NamedTuple):
    """Neighbouring tokens of a stream.

    Attributes:
        ids: (n,) token ids of any whole-number type.
        channels: Our word to (n,) values; see `CHANNEL_WORDS`.
    """

    ids: np.ndarray
    channels: Mapping[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    def part(self, begin: int, end: int | None = None) -> Piece:
        """Return the tokens from one up to, not including, another one."""
        channels = {word: values[begin:end] for word, values in self.channels.items()}
        return Piece(self.ids[begin:end], channels)


class Listing:
    """The shards of a set of tokens.

    Attributes:
        shards: The shards, in the order in which they are read.
        files: The local files that they are made of, each with its split.
        pin: See `OpenedSource.pin`.
        trouble: See `OpenedSource.trouble`.
    """

    def __init__(self, other: Listing | None = None) -> None:
        self.shards: list[Shard] = []
        self.files: list[tuple[str, Path]] = []
        self.pin: dict[str, Any] = {}
        self.trouble = ReadReport()
        if other is not None:
            self.shards = other.shards
            self.files = other.files
            self.pin = other.pin
            self.trouble = other.trouble


class TokenShards(Listing, ABC):
    """A set of tokens that has documents."""

    @abstractmethod
    def read(self, shard: int, row: int) -> Iterator[TokenDocuments]:
        """Yield the documents of a shard from a row on."""


class TokenStream(Listing, ABC):
    """A set of tokens that has no documents."""

    @abstractmethod
    def pieces(self, shard: int) -> Iterator[Piece]:
        """Yield the tokens of a shard, in pieces."""


class ItemTokens(TokenStream):
    """The tokens of a set whose items are no documents."""

    def __init__(self, items: TokenShards) -> None:
        super().__init__(items)
        self._items = items

    def pieces(self, shard: int) -> Iterator[Piece]:
        """See `TokenStream.pieces`. ConfigError if an item has another number of values than of ids."""
        first = 0
        for found in self._items.read(shard, 0):
            name = partial(self._name, shard, first)
            channels = {}
            for word, aligned in found.channels.items():
                check_aligned(word, aligned, found.offsets, name)
                channels[word] = aligned.values
            yield Piece(found.ids, channels)
            first += len(found)

    def _name(self, shard: int, first: int, number: int) -> str:
        return f"Item {first + number:,} of {self.shards[shard].name!r}"


class CutAtEos(TokenShards):
    """Documents cut out of a stream: each ends with EOS, or with the stream. A shard has those that begin in it.

    Args:
        stream: The stream.
        eos_id: The id of EOS.
    """

    def __init__(self, stream: TokenStream, eos_id: int) -> None:
        super().__init__(stream)
        self._stream = stream
        self._eos_id = eos_id
        # The last token of the shards that were read; None for one without tokens.
        self._last: dict[int, int | None] = {}

    def read(self, shard: int, row: int) -> Iterator[TokenDocuments]:
        """See `TokenShards.read`."""
        first = 0
        for found in self._documents(shard):
            if first + len(found) > row:
                yield found.behind(max(row - first, 0))
            first += len(found)

    def _documents(self, shard: int) -> Iterator[TokenDocuments]:
        # The beginning of a document whose end is not found yet.
        begun: list[Piece] = []
        begins = self._begins_document(shard)
        last: int | None = None
        # Whether the stream begins here, and has had no EOS yet.
        unended = shard == 0 or self.shards[shard - 1].stream != self.shards[shard].stream
        for piece in self._stream.pieces(shard):
            if not piece.size:
                continue
            rest = piece
            last = int(piece.ids[-1])
            ends = np.flatnonzero(piece.ids == self._eos_id) + 1
            unended = unended and not len(ends)
            if not begins:
                if not len(ends):
                    continue
                # These belong to a document of an earlier shard.
                begins = True
                rest = rest.part(ends[0])
                ends = ends[1:] - ends[0]
            if len(ends):
                yield _joined([*begun, rest.part(0, ends[-1])], ends)
                begun = []
                rest = rest.part(ends[-1])
            if rest.size:
                begun.append(rest)
                self._check_length(begun, shard)
        self._last[shard] = last
        if begun:
            finished = self._finished(begun, shard)
            if unended and int(finished.ids[-1]) != self._eos_id:
                _log.warning(
                    "%r has no EOS, which is the id %d: all of it is one document; if it has several, give the tokenizer that "
                    "made the tokens, and its eos_token.",
                    self.shards[shard].name,
                    self._eos_id,
                )
            yield finished

    def _finished(self, begun: list[Piece], shard: int) -> TokenDocuments:
        """Return the last document of a shard, whose end is in a later one."""
        for later in range(shard + 1, len(self.shards)):
            if self.shards[later].stream != self.shards[shard].stream:
                break
            for piece in self._stream.pieces(later):
                ends = np.flatnonzero(piece.ids == self._eos_id) + 1
                if len(ends):
                    return _joined([*begun, piece.part(0, ends[0])], ends[:1])
                begun.append(piece)
                self._check_length(begun, shard)
        return _joined([*begun, begun[0].part(0, 0)], np.zeros(1, np.int64))

    def _begins_document(self, shard: int) -> bool:
        """Return whether the first token of a shard begins a document."""
        for before in range(shard - 1, -1, -1):
            if self.shards[before].stream != self.shards[shard].stream:
                break
            if before not in self._last:
                self._last[before] = None
                for piece in self._stream.pieces(before):
                    if piece.size:
                        self._last[before] = int(piece.ids[-1])
            last = self._last[before]
            if last is not None:
                return last == self._eos_id
        return True

    def _check_length(self, begun: Sequence[Piece], shard: int) -> None:
        length = _size_of(begun)
        if length > _LONGEST:
            raise ConfigError(
                f"No document of {self.shards[shard].name!r} ends within {length:,} tokens, expected the EOS id "
                f"{self._eos_id:,} at the end of each: give the tokenizer that made the tokens, and its eos_token."
            )


def _size_of(pieces: Sequence[Piece]) -> int:
    return sum(piece.size for piece in pieces)


def _joined(pieces: Sequence[Piece], ends: np.ndarray) -> TokenDocuments:
    """Return documents that end in the last one of some pieces, at `ends`, and of which the first begins with the first one."""
    offsets = np.append(0, ends.astype(np.int64) + _size_of(pieces[:-1]))
    channels = {}
    for word in pieces[0].channels:
        channels[word] = Aligned(_concatenated([piece.channels[word] for piece in pieces]), offsets)
    return TokenDocuments(_concatenated([piece.ids for piece in pieces]), offsets, channels=channels)


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    # Most documents are views of a single piece.
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts)


def in_batches(ids: np.ndarray, offsets: np.ndarray) -> Iterator[TokenDocuments]:
    """Yield documents with about `BATCH_TOKENS` tokens at a time; `offsets` are their (n + 1,) borders in `ids`."""
    low = 0
    while low < len(offsets) - 1:
        high = int(np.searchsorted(offsets, offsets[low] + BATCH_TOKENS, side="right")) - 1
        # A long document is a batch of its own; of many empty ones, not all are a batch.
        high = min(max(high, low + 1), low + BATCH_TOKENS)
        part = offsets[low : high + 1]
        yield TokenDocuments(ids[part[0] : part[-1]], part - part[0])
        low = high
