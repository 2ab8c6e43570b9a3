"""The order of windows: pure functions of (key, epoch, position), without any list of windows.

A window is `context_length + 1` consecutive tokens of one stream; neighbours share one token, so that every token but the
first of a stream is a target once. Starts are offsets among the tokens of the split, the arguments of `TokenStore.read`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from lightning_lance.errors import ConfigError, one_of, whole_number
from lightning_lance.format.layout import StreamExtent, lengths_of, starts_of
from lightning_lance.serving.ordering.permutation import ROUNDS, key_words, permute, splitmix64, unpermute

Order = Literal["shuffle", "random", "sequential", "fixed"]

# Windows that are looked through at a time.
_AT_ONCE = 1 << 18
# Orders whose windows are the same in every epoch: each stream is cut from its first token on.
_SAME_WINDOWS = ("sequential", "fixed")


def windows_of(num_tokens: int, context_length: int, order: Order) -> int:
    """Return the number of windows of one stream in an epoch.

    In `sequential` and `fixed` order the first window begins at the first token. In the other orders the borders shift from
    epoch to epoch by up to the number of leftover tokens. One window fewer leaves room for a shift of a whole
    `context_length`, so that every epoch has the same number of windows and every token is served in some epoch. A stream
    of `context_length` tokens or fewer has no window in any order.
    """
    whole = (num_tokens - 1) // context_length if num_tokens else 0
    if order in _SAME_WINDOWS:
        return whole
    return max(num_tokens // context_length - 1, min(whole, 1))


def check_order(context_length: int, order: str, shuffle_block: int | None) -> tuple[int, Order, int | None]:
    """Return the arguments of an order as plain values.

    Raises:
        ConfigError: If one cannot be used.
    """
    context_length = whole_number("context_length", context_length)
    chosen = cast(Order, one_of("order", order, get_args(Order)))
    if shuffle_block is None:
        return context_length, chosen, None
    shuffle_block = whole_number("shuffle_block", shuffle_block)
    if chosen != "shuffle":
        raise ConfigError(f"shuffle_block is {shuffle_block} with order {chosen!r}: expected 'shuffle'.")
    return context_length, chosen, shuffle_block


class Counted(Protocol):
    """An order, for counting its windows."""

    @property
    def num_windows(self) -> int:
        """Windows per epoch."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens that the model sees."""
        ...


class _Blocks(NamedTuple):
    """Places in blocks that stay together.

    Attributes:
        size: Places of a block.
        rest: The first place that fills no block.
        keys: Of the order within a block.
        draw: Of the turn of each block.
        rotation: By how much all places are rotated.
    """

    size: int
    rest: int
    keys: npt.NDArray[np.uint64]
    draw: np.uint64
    rotation: int

    def turns(self, blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return by how much some blocks are rotated: all share one inner order, which begins elsewhere in each."""
        return (splitmix64(blocks.astype(np.uint64) + self.draw) % np.uint64(self.size)).astype(np.int64)


@dataclass(frozen=True)
class WindowOrder:
    """The sequence of windows in every epoch.

    Attributes:
        streams: The streams of the split.
        context_length: Tokens that the model sees; a window has one more.
        order: `shuffle` (each window once per epoch, in random order), `random` (drawn independently, at any offset, with
            replacement), `sequential` (as stored), `fixed` (each window once per epoch, in one random order over all streams
            that is the same in every epoch: for validation, the first windows are a sample of all).
        key: The key of the random orders besides the epoch: the fingerprint of the store, its tokens, and the seed. Not
            the version, which depends on the number of commits that a build happened to make.
        shuffle_block: In `shuffle`, the number of neighbouring windows that stay together: blocks are shuffled, and each
            block within itself, so that disks and object stores see longer reads. None shuffles all windows.

    Raises:
        ConfigError: If `context_length`, `order` or `shuffle_block` cannot be used.
    """

    streams: Sequence[StreamExtent]
    context_length: int
    order: Order
    key: tuple[object, ...]
    shuffle_block: int | None = None
    _counts: npt.NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _ends: npt.NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        context_length, order, shuffle_block = check_order(self.context_length, self.order, self.shuffle_block)
        object.__setattr__(self, "context_length", context_length)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "shuffle_block", shuffle_block)
        counts = [windows_of(stream.num_tokens, self.context_length, self.order) for stream in self.streams]
        object.__setattr__(self, "_counts", np.asarray(counts, dtype=np.int64))
        object.__setattr__(self, "_ends", np.cumsum(self._counts))

    @property
    def num_windows(self) -> int:
        """Windows per epoch, the same in every epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def after(self, windows: int, before: Counted) -> int:
        """Return the position in an epoch that follows the tokens of the first `windows` of another order.

        In `sequential` order of the same streams, tokens are counted within the stream in which those windows end, rounded
        down to a window of this order: no token is skipped, and less than one window repeats. In all other orders a
        position belongs to no stream: the tokens of all windows are counted, rounded up to a window. The end of the other
        epoch is the end of this one.
        """
        if windows <= 0:
            return 0
        if windows >= before.num_windows:
            return self.num_windows
        if isinstance(before, WindowOrder) and self._continues(before):
            # The stream of the last window, not of the next one: the rest of that stream may hold a window here.
            stream = int(np.searchsorted(before._ends, windows, side="left"))
            within = windows - int(before._ends[stream] - before._counts[stream])
            here = min(within * before.context_length // self.context_length, int(self._counts[stream]))
            return int(self._ends[stream] - self._counts[stream]) + here
        return min(-(-windows * before.context_length // self.context_length), self.num_windows)

    def _continues(self, before: WindowOrder) -> bool:
        """Return whether this and another order go through the same streams in sequence."""
        return self.order == before.order == "sequential" and [*self.streams] == [*before.streams]

    def starts(self, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the starts of the windows at some positions of an epoch.

        Args:
            epoch: 0 for the first.
            positions: (n,) int64 in [0, num_windows).

        Returns:
            (n,) int64 offsets among the tokens of the split.
        """
        return self.locate(epoch, positions)[1]

    def locate(
        self, epoch: int, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the stream indices and the starts of the windows at some positions of an epoch, (n,) int64 each."""
        if self.order == "random":
            return self._random(epoch, positions)
        if self.order == "shuffle":
            positions = self.shuffled(positions, self.num_windows, epoch)
        elif self.order == "fixed" and self.num_windows:
            positions = permute(positions, self.num_windows, key_words(*self.key, "fixed", count=ROUNDS))
        stream = np.searchsorted(self._ends, positions, side="right")
        within = positions - (self._ends - self._counts)[stream]
        return stream, self._bases(epoch)[stream] + within * self.context_length

    def find(self, epoch: int, stream: int, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Return the positions of an epoch whose windows have one of the tokens from `begin` to `end` of a stream.

        The inverse of `locate`: O(1) for each position, but in `random` order, which looks through the epoch.

        Args:
            epoch: 0 for the first.
            stream: Index of the stream.
            begin: Offset of the first token among the tokens of the split.
            end: Offset after the last one.

        Returns:
            (n,) int64, ascending.
        """
        if end <= begin or not self.num_windows:
            return np.empty(0, np.int64)
        if self.order == "random":
            return scan(self, epoch, range(self.num_windows), stream, begin, end)
        base = int(self._bases(epoch)[stream])
        # A window has the first token of the next one too, as a target.
        first = -(-(begin - base - self.context_length) // self.context_length)
        last = (end - 1 - base) // self.context_length
        count = int(self._counts[stream])
        within = np.arange(max(first, 0), min(last + 1, count))
        places = int(self._ends[stream]) - count + within
        if self.order == "shuffle":
            places = self.unshuffled(places, self.num_windows, epoch)
        elif self.order == "fixed":
            places = unpermute(places, self.num_windows, key_words(*self.key, "fixed", count=ROUNDS))
        return np.sort(places)

    def counts(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the number of windows of each stream in an epoch; the same in all."""
        return self._counts

    def ends(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return where the windows of each stream end in an epoch: the offset of the last target within the stream."""
        starts = starts_of(self.streams)
        ends: npt.NDArray[np.int64] = self._bases(epoch) - starts + self._counts * self.context_length
        return ends

    def shuffled(self, positions: npt.NDArray[np.int64], size: int, *draw: object) -> npt.NDArray[np.int64]:
        """Return the places of some positions in a random order of `size` places, which `draw` chooses."""
        keys = key_words(*self.key, "permutation", *draw, count=ROUNDS)
        if self.shuffle_block is None or not size:
            return permute(positions, size, keys)
        blocks = self._blocks(self.shuffle_block, size, *draw)
        chosen = permute(np.minimum(positions, blocks.rest - 1) // blocks.size, blocks.rest // blocks.size, keys)
        within = (permute(positions % blocks.size, blocks.size, blocks.keys) + blocks.turns(chosen)) % blocks.size
        # Windows that fill no block come last. Rotating all places by a draw makes them others in every epoch.
        places = np.where(positions < blocks.rest, chosen * blocks.size + within, positions)
        return (places + blocks.rotation) % size

    def unshuffled(self, places: npt.NDArray[np.int64], size: int, *draw: object) -> npt.NDArray[np.int64]:
        """Return the positions that `shuffled` gives these places."""
        keys = key_words(*self.key, "permutation", *draw, count=ROUNDS)
        if self.shuffle_block is None or not size:
            return unpermute(places, size, keys)
        blocks = self._blocks(self.shuffle_block, size, *draw)
        places = (places - blocks.rotation) % size
        chosen, within = np.divmod(np.minimum(places, blocks.rest - 1), blocks.size)
        first = unpermute(chosen, blocks.rest // blocks.size, keys) * blocks.size
        inner = unpermute((within - blocks.turns(chosen)) % blocks.size, blocks.size, blocks.keys)
        return np.where(places < blocks.rest, first + inner, places)

    def _blocks(self, shuffle_block: int, size: int, *draw: object) -> _Blocks:
        """Return how `size` places are cut into blocks that stay together."""
        block = min(shuffle_block, size)
        keys = key_words(*self.key, "block", *draw, count=ROUNDS)
        draws = key_words(*self.key, "turn", *draw, count=2)
        return _Blocks(block, size - size % block, keys, draws[0], int(draws[1] % np.uint64(size)))

    def _bases(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the start of the first window of each stream, in `shuffle` with a random phase."""
        bases = starts_of(self.streams)
        if self.order in _SAME_WINDOWS:
            return bases
        leftover = lengths_of(self.streams) - self._counts * self.context_length
        draws = key_words(*self.key, "phase", epoch, count=len(bases))
        phases: npt.NDArray[np.int64] = (draws % np.maximum(leftover, 1).astype(np.uint64)).astype(np.int64)
        return bases + phases

    def _random(
        self, epoch: int, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        # Offsets at which a window can begin, over all streams; 53 bits of the hash choose among them uniformly.
        possible = np.maximum(lengths_of(self.streams) - self.context_length, 0)
        ends = np.cumsum(possible)
        draws = splitmix64(positions.astype(np.uint64) + key_words(*self.key, "random", epoch)[0])
        places = ((draws >> np.uint64(11)) * 2.0**-53 * ends[-1]).astype(np.int64)
        stream = np.searchsorted(ends, places, side="right")
        bases = starts_of(self.streams) - (ends - possible)
        return stream, bases[stream] + places


class Locates(Counted, Protocol):
    """An order of windows."""

    def locate(
        self, epoch: int, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the stream indices and the starts of windows."""
        ...


def scan(order: Locates, epoch: int, positions: range, stream: int, begin: int, end: int) -> npt.NDArray[np.int64]:
    """Look through some positions of an epoch for windows with one of the tokens from `begin` to `end` of a stream."""
    found = [np.empty(0, np.int64)]
    for low in range(positions.start, positions.stop, _AT_ONCE):
        these = np.arange(low, min(low + _AT_ONCE, positions.stop))
        of, start = order.locate(epoch, these)
        found.append(these[(of == stream) & (start < end) & (start + order.context_length >= begin)])
    return np.concatenate(found)
