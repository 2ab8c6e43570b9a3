"""Packed windows: whole documents side by side, by best fit, as a pure function of the tokens, the seed and the epoch.

The tokens of the streams are cut into blocks of some hundred windows. The documents of a block are put into exactly as many
windows as its tokens fill, so the number of windows is known without reading anything, every token of a block is in one
window, and nothing is padded. Blocks are shuffled, and the windows of some blocks together, so that a place in the order is
found in O(1), and a few blocks are in memory at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_lance.format.channels import TOKENS
from lightning_lance.format.layout import StreamExtent, lengths_of, starts_of
from lightning_lance.serving.ordering.order import Counted, Order
from lightning_lance.serving.ordering.permutation import ROUNDS, key_words, permute, unpermute

Windows = Literal["stream", "packed"]

_Ints = npt.NDArray[np.int64]

# Tokens of a block, about, and blocks whose windows are shuffled together.
_BLOCK_TOKENS = 1 << 18
_TOGETHER = 32
# Blocks in memory, for each component: those that are served, and as many of the next ones.
_KEPT = 2 * _TOGETHER


class Pieces(NamedTuple):
    """Where the tokens of windows come from, (n,) int64 each, in the order of the windows and of the tokens in them.

    Attributes:
        window: Number of the window.
        column: Where the piece begins in it.
        source: Offset of its first token.
        size: Its tokens.
    """

    window: _Ints
    column: _Ints
    source: _Ints
    size: _Ints

    @classmethod
    def joined(cls, tables: Sequence[Pieces]) -> Pieces:
        """Return the pieces of several tables, at least one, as one table."""
        columns = zip(*tables, strict=True)
        return cls(*map(np.concatenate, columns))


def pack(ends: _Ints, tokens: int, length: int) -> Pieces:
    """Put documents into windows by best fit, the longest first ("best-fit decreasing": Johnson 1973).

    A document longer than a window fills windows of its own, and its rest counts as a document. What fits into no window
    as a whole fills the holes that are left, cut where a hole ends. Within a window, only the last piece may lack the end
    of its document, so a border is wherever EOS is.

    Args:
        ends: (n,) ascending offsets after each EOS.
        tokens: Of all documents: a multiple of `length`. The last document may go on behind them.
        length: Tokens of a window.
    """
    begins = [0, *ends.tolist()]
    if begins[-1] == tokens:
        begins.pop()
    sizes = np.diff([*begins, tokens]).tolist()
    windows: list[list[tuple[int, int]]] = []
    rests: list[tuple[int, int]] = []
    for begin, size in zip(begins, sizes, strict=True):
        whole, rest = divmod(size, length)
        end = begin + whole * length
        for first in range(begin, end, length):
            windows.append([(first, length)])
        if rest:
            rests.append((end, rest))
    # The one that lacks its end can only be the last of its window.
    is_open = not len(ends) or int(ends[-1]) != tokens
    unended = []
    if is_open and rests and rests[-1][0] + rests[-1][1] == tokens:
        unended.append(rests.pop())
    bins, left = _best_fit(rests, tokens // length - len(windows), length)
    _fill(bins, [*left, *unended], length)
    windows += bins
    counts = np.fromiter(map(len, windows), np.int64)
    number = np.repeat(np.arange(len(windows)), counts)
    pieces = np.asarray([*chain.from_iterable(windows)], np.int64).reshape(-1, 2)
    source, size = pieces.T
    before = np.cumsum(size) - size
    return Pieces(number, before - number * length, source, size)


def _best_fit(
    pieces: list[tuple[int, int]], count: int, length: int
) -> tuple[list[list[tuple[int, int]]], list[tuple[int, int]]]:
    """Put pieces into bins, each into the one that it fills best. Return the bins, and the pieces that fit into none."""
    bins: list[list[tuple[int, int]]] = []
    left = []
    # Bins by the room that they have, and a bit for each room that there is.
    by_room: dict[int, list[int]] = {}
    rooms = 0
    for source, size in sorted(pieces, key=lambda piece: (-piece[1], piece[0])):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        elif len(bins) < count:
            room, number = length, len(bins)
            bins.append([])
        else:
            left.append((source, size))
            continue
        bins[number].append((source, size))
        if room > size:
            by_room.setdefault(room - size, []).append(number)
            rooms |= 1 << (room - size)
    while len(bins) < count:
        bins.append([])
    return bins, left


def _fill(bins: list[list[tuple[int, int]]], pieces: list[tuple[int, int]], length: int) -> None:
    """Fill what is left of bins with pieces, one after the other, cut where a bin is full. They fit exactly."""
    ahead = iter(pieces)
    source = size = 0
    for window in bins:
        window.sort()
        room = length - sum(part for _, part in window)
        while room:
            if not size:
                source, size = next(ahead)
            taken = min(room, size)
            window.append((source, taken))
            source, size, room = source + taken, size - taken, room - taken


def _laid_out(tokens: npt.NDArray[Any], pieces: Pieces) -> npt.NDArray[Any]:
    """Return the tokens of pieces, one after the other."""
    # Some hundred copies take less than one gather, which would need a place for each token.
    laid_out = np.empty_like(tokens)
    at = 0
    for source, size in zip(pieces.source.tolist(), pieces.size.tolist(), strict=True):
        laid_out[at : at + size] = tokens[source : source + size]
        at += size
    return laid_out


class Block(NamedTuple):
    """A block that was packed.

    Attributes:
        tokens: (windows, length) tokens.
        stream: (n,) the stream of each piece.
        pieces: All pieces; the sources are offsets among the tokens of the split.
        channels: What channels have for the tokens, by name.
    """

    tokens: npt.NDArray[Any]
    stream: _Ints
    pieces: Pieces
    channels: Mapping[str, npt.NDArray[Any]] = {}


class _Segment(NamedTuple):
    """Neighbouring windows of a block in one stream."""

    stream: int
    start: int
    windows: int


@dataclass(frozen=True)
class PackedOrder:
    """The sequence of packed windows in every epoch: each token once, but for a rest of each stream shorter than a window.

    A window is named by a `start`: the offset of its place if all tokens were cut into windows as they are. Its tokens are
    others, of the same block; see `read`.

    Attributes:
        streams: The streams of the split.
        stores: Index of the store of each stream.
        context_length: Tokens that the model sees; a window has one more.
        key: The key of the random order; see `WindowOrder`.
        read_tokens: Reads `(store, start, length)`: neighbouring tokens of a split.
        eos_id: The id that ends every document.
        channels: The channels that are packed with the tokens.
        read_channel: Reads `(channel, store, start, length)`, as `read_tokens`.
    """

    streams: Sequence[StreamExtent]
    stores: Sequence[int]
    context_length: int
    key: tuple[object, ...]
    read_tokens: Callable[[int, int, int], npt.NDArray[Any]] = field(repr=False, compare=False)
    eos_id: int
    order: Order = "shuffle"
    channels: Sequence[str] = ()
    read_channel: Callable[[str, int, int, int], npt.NDArray[Any]] | None = field(
        default=None, repr=False, compare=False
    )
    _counts: _Ints = field(init=False, repr=False, compare=False)
    _ends: _Ints = field(init=False, repr=False, compare=False)
    _kept: OrderedDict[tuple[int, int], Block] = field(
        init=False, repr=False, compare=False, default_factory=OrderedDict
    )
    _lock: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_counts", lengths_of(self.streams) // self.length)
        object.__setattr__(self, "_ends", np.cumsum(self._counts))

    def __getstate__(self) -> dict[str, Any]:
        # What is kept can be read again.
        state = {**vars(self)}
        del state["_kept"]
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _kept=OrderedDict(), _lock=threading.Lock())

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.context_length + 1

    @property
    def num_windows(self) -> int:
        """Windows per epoch, the same in every epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def block_windows(self) -> int:
        """Windows of a block."""
        return max(1, min(_BLOCK_TOKENS // self.length, self.num_windows))

    @property
    def used(self) -> float:
        """The share of the tokens that an epoch has."""
        total = int(lengths_of(self.streams).sum())
        return self.num_windows * self.length / total if total else 1.0

    def after(self, windows: int, before: Counted) -> int:
        """Return the position that follows as many tokens as the first `windows` of another order; see `WindowOrder.after`."""
        if windows <= 0:
            return 0
        if windows >= before.num_windows:
            return self.num_windows
        return min(-(-windows * before.context_length // self.context_length), self.num_windows)

    def locate(self, epoch: int, positions: _Ints) -> tuple[_Ints, _Ints]:
        """Return the stream indices and the starts of the windows at some positions of an epoch, (n,) int64 each."""
        slots = (self._shuffled(epoch, positions) + self._turn(epoch)) % max(self.num_windows, 1)
        stream = np.searchsorted(self._ends, slots, side="right")
        within = slots - (self._ends - self._counts)[stream]
        return stream, self._bases(epoch)[stream] + within * self.length

    def find(self, epoch: int, stream: int, begin: int, end: int) -> _Ints:
        """Return the positions of an epoch whose windows have one of the tokens from `begin` to `end` of a stream.

        It reads the blocks with these tokens.
        """
        base, count = int(self._bases(epoch)[stream]), int(self._counts[stream])
        first, last = max((begin - base) // self.length, 0), min((end - 1 - base) // self.length, count - 1)
        if end <= begin or last < first:
            return np.empty(0, np.int64)
        slots = np.arange(first, last + 1) + int(self._ends[stream]) - count
        places = (slots - self._turn(epoch)) % self.num_windows
        found = []
        for number in np.unique(places // self.block_windows).tolist():
            block = self.block(epoch, number)
            pieces = block.pieces
            hit = (block.stream == stream) & (pieces.source < end) & (pieces.source + pieces.size > begin)
            found.append(np.unique(pieces.window[hit]) + number * self.block_windows)
        return np.sort(self._unshuffled(epoch, np.concatenate(found)))

    def read(self, epoch: int, starts: _Ints, column: str = TOKENS) -> npt.NDArray[Any]:
        """Return the tokens of windows of an epoch by their starts, or what a channel has for them.

        Returns:
            (n, length), in the dtype of the stores.
        """
        numbers, rows = self._blocks_of(epoch, starts)
        windows: npt.NDArray[Any] | None = None
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number)
            block = self.block(epoch, number)
            tokens = block.tokens if column == TOKENS else block.channels[column]
            if windows is None:
                windows = np.empty((len(starts), self.length), tokens.dtype)
            windows[mine] = tokens[rows[mine]]
        return np.empty((0, self.length), np.int64) if windows is None else windows

    def pieces(self, epoch: int, start: int) -> tuple[int, Pieces]:
        """Return the stream of a window, by its start, and its pieces, whose sources are offsets among the split's tokens."""
        [number], [row] = self._blocks_of(epoch, np.asarray([start]))
        block = self.block(epoch, int(number))
        mine = block.pieces.window == row
        return int(block.stream[mine][0]), Pieces(*(part[mine] for part in block.pieces))

    def block(self, epoch: int, number: int) -> Block:
        """Return a packed block of an epoch. The last ones are kept."""
        key = (epoch, number)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        packed = self._packed(epoch, number)
        with self._lock:
            self._kept[key] = packed
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return packed

    def _packed(self, epoch: int, number: int) -> Block:
        tokens = []
        streams = []
        tables = []
        channels: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in self.channels}
        windows = 0
        for segment in self._segments(epoch, number):
            size = segment.windows * self.length
            read = self.read_tokens(self.stores[segment.stream], segment.start, size)
            pieces = pack(np.flatnonzero(read == self.eos_id) + 1, size, self.length)
            tokens.append(_laid_out(read, pieces).reshape(segment.windows, self.length))
            for name, laid_out in channels.items():
                values = self._values(name, segment)
                laid_out.append(_laid_out(values, pieces).reshape(segment.windows, self.length))
            streams.append(np.full(len(pieces.size), segment.stream))
            tables.append(pieces._replace(window=pieces.window + windows, source=pieces.source + segment.start))
            windows += segment.windows
        together = Pieces.joined(tables)
        packed = {name: np.concatenate(laid_out) for name, laid_out in channels.items()}
        return Block(np.concatenate(tokens), np.concatenate(streams), together, packed)

    def _values(self, channel: str, segment: _Segment) -> npt.NDArray[Any]:
        """Return what a channel has for the tokens of a segment."""
        if self.read_channel is None:
            raise ValueError(f"nothing reads the channel {channel}")
        return self.read_channel(channel, self.stores[segment.stream], segment.start, segment.windows * self.length)

    def _segments(self, epoch: int, number: int) -> list[_Segment]:
        """Return what a block is of: neighbouring windows, up to the end of a stream, or of all."""
        first = number * self.block_windows
        left = min(self.block_windows, self.num_windows - first)
        slot = (first + self._turn(epoch)) % self.num_windows
        bases = self._bases(epoch)
        segments = []
        while left:
            stream = int(np.searchsorted(self._ends, slot, side="right"))
            windows = min(left, int(self._ends[stream]) - slot)
            within = slot - int(self._ends[stream] - self._counts[stream])
            segments.append(_Segment(stream, int(bases[stream]) + within * self.length, windows))
            left -= windows
            slot = (slot + windows) % self.num_windows
        return segments

    def _blocks_of(self, epoch: int, starts: _Ints) -> tuple[_Ints, _Ints]:
        """Return the block of each window, by its start, and its row in the block."""
        bases = self._bases(epoch)
        filled = np.flatnonzero(self._counts)
        stream = filled[np.searchsorted(bases[filled], starts, side="right") - 1]
        slots = (starts - bases[stream]) // self.length + (self._ends - self._counts)[stream]
        return np.divmod((slots - self._turn(epoch)) % self.num_windows, self.block_windows)

    def _bases(self, epoch: int) -> _Ints:
        """Return the first token of each stream that an epoch has: a random phase decides which rest is left out."""
        starts = starts_of(self.streams)
        leftover = lengths_of(self.streams) - self._counts * self.length
        draws = key_words(*self.key, "packed phase", epoch, count=len(starts))
        phases: _Ints = (draws % (leftover + 1).astype(np.uint64)).astype(np.int64)
        return starts + phases

    def _turn(self, epoch: int) -> int:
        """Return by how many windows the blocks are moved in an epoch, so that each has other neighbours in each."""
        return int(key_words(*self.key, "packed turn", epoch)[0] % np.uint64(max(self.num_windows, 1)))

    def _shuffled(self, epoch: int, positions: _Ints) -> _Ints:
        """Return the places, in the order of the blocks, of some positions."""
        return self._walk(epoch, positions, inverse=False)

    def _unshuffled(self, epoch: int, places: _Ints) -> _Ints:
        """Return the positions of some places."""
        return self._walk(epoch, places, inverse=True)

    def _walk(self, epoch: int, given: _Ints, inverse: bool) -> _Ints:
        block = self.block_windows
        blocks = self.num_windows // block
        rest = blocks * block
        of_blocks = key_words(*self.key, "packed blocks", epoch, count=ROUNDS)
        walked = np.empty(len(given), np.int64)
        # The windows that fill no block come last.
        last = given >= rest
        if last.any():
            keys = key_words(*self.key, "packed rest", epoch, count=ROUNDS)
            turn = unpermute if inverse else permute
            walked[last] = rest + turn(given[last] - rest, self.num_windows - rest, keys)
        mine = np.flatnonzero(~last)
        number, within = np.divmod(given[mine], block)
        if inverse and len(mine):
            number = unpermute(number, blocks, of_blocks)
        rounds = number // _TOGETHER
        for one in np.unique(rounds).tolist():
            these = np.flatnonzero(rounds == one)
            first = one * _TOGETHER
            size = min(_TOGETHER, blocks - first) * block
            keys = key_words(*self.key, "packed windows", epoch, one, count=ROUNDS)
            inside = (number[these] - first) * block + within[these]
            if inverse:
                walked[mine[these]] = first * block + unpermute(inside, size, keys)
                continue
            chosen, window = np.divmod(permute(inside, size, keys), block)
            walked[mine[these]] = permute(chosen + first, blocks, of_blocks) * block + window
        return walked
