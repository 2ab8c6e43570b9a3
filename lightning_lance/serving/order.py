"""The order of windows: pure functions of (key, epoch, position), with no list of windows anywhere.

A window is `context_length + 1` consecutive tokens of one stream; neighbours share one token, so that every token but the
first of a stream is a target once. Starts are offsets among the tokens of the split, as `TokenStore.read` takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from lightning_lance.errors import ConfigError, one_of, whole_number
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.permutation import _ROUNDS, key_words, permute, splitmix64

Order = Literal["shuffle", "random", "sequential", "fixed"]

# Orders whose windows are the same in every epoch: each stream is cut from its first token on.
_SAME_WINDOWS = ("sequential", "fixed")


def windows_of(num_tokens: int, context_length: int, order: Order) -> int:
    """Count the windows of one stream in an epoch.

    In `sequential` and `fixed` order the first begins at the first token. In the other orders the borders move from epoch to
    epoch, by up to the tokens that are left over; one window less leaves room for a whole `context_length` of shift, so that
    every epoch has the same number of windows, and every token has its turn. A stream of `context_length` tokens or fewer has
    no window in any order.
    """
    whole = (num_tokens - 1) // context_length if num_tokens else 0
    if order in _SAME_WINDOWS:
        return whole
    return max(num_tokens // context_length - 1, min(whole, 1))


def check_order(context_length: int, order: str, shuffle_block: int | None) -> tuple[int, Order, int | None]:
    """Check what an order is made of, and return all three as plain values.

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


@dataclass(frozen=True)
class WindowOrder:
    """Which windows follow each other, in every epoch.

    Attributes:
        streams: The streams of the split.
        context_length: Tokens that the model sees; a window has one more.
        order: `shuffle` (each window once per epoch, in random order), `random` (drawn independently, at any offset, with
            replacement), `sequential` (as stored), `fixed` (each window once per epoch, in one random order over all streams
            that is the same in every epoch: the first ones are a sample of all, as validation wants it).
        key: What the random orders depend on besides the epoch: fingerprint of the store, its tokens, and the seed. Not
            its version, which says how many commits a build happened to make.
        shuffle_block: In `shuffle`, windows that stay together: the epoch goes through blocks of so many neighbours, each
            block in an order of its own, so that disks and object stores see longer reads. None shuffles over all.

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

    def after(self, windows: int, before: WindowOrder) -> int:
        """Return the position in an epoch after as many tokens as the first `windows` of another order have.

        In `sequential` order of the same streams, the tokens are counted in the very stream that those windows end in,
        rounded down to a window of this order: no token that follows is passed over, and less than one window comes again.
        In all other orders a position says nothing of a stream: the tokens of all windows are counted, rounded up to a
        window. The end of an epoch is the end of this one.
        """
        if not 0 < windows < before.num_windows:
            return 0 if windows <= 0 else self.num_windows
        if self.order == before.order == "sequential" and [*self.streams] == [*before.streams]:
            # The stream of the last window, not of the next one: what is left of it may make a window here.
            stream = int(np.searchsorted(before._ends, windows, side="left"))
            within = windows - int(before._ends[stream] - before._counts[stream])
            here = min(within * before.context_length // self.context_length, int(self._counts[stream]))
            return int(self._ends[stream] - self._counts[stream]) + here
        return min(-(-windows * before.context_length // self.context_length), self.num_windows)

    def starts(self, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the starts of the windows at some positions of an epoch.

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
        """Give the windows at some positions of an epoch, as (n,) int64 places of their streams and (n,) int64 starts."""
        if self.order == "random":
            return self._random(epoch, positions)
        if self.order == "shuffle":
            positions = self._shuffled(epoch, positions)
        elif self.order == "fixed" and self.num_windows:
            positions = permute(positions, self.num_windows, key_words(*self.key, "fixed", count=_ROUNDS))
        stream = np.searchsorted(self._ends, positions, side="right")
        within = positions - (self._ends - self._counts)[stream]
        return stream, self._bases(epoch)[stream] + within * self.context_length

    def _shuffled(self, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        keys, size = key_words(*self.key, "permutation", epoch, count=_ROUNDS), self.num_windows
        if self.shuffle_block is None or not size:
            return permute(positions, size, keys)
        block = min(self.shuffle_block, size)
        rest = size - size % block
        inner, draws = key_words(*self.key, "block", epoch, count=_ROUNDS), key_words(*self.key, "turn", epoch, count=2)
        chosen = permute(np.minimum(positions, rest - 1) // block, rest // block, keys)
        # One order for the insides of all blocks, begun at another place in each.
        turn = (splitmix64(chosen.astype(np.uint64) + draws[0]) % np.uint64(block)).astype(np.int64)
        places = chosen * block + (permute(positions % block, block, inner) + turn) % block
        # What fills no block comes last; turning all places by a draw makes it other windows in every epoch.
        places = np.where(positions < rest, places, positions)
        return (places + int(draws[1] % np.uint64(size))) % size

    def _bases(self, epoch: int) -> npt.NDArray[np.int64]:
        """Give the start of the first window of each stream: that of the stream, and in `shuffle` a random phase."""
        bases = np.asarray([stream.start for stream in self.streams], dtype=np.int64)
        if self.order in _SAME_WINDOWS:
            return bases
        room = np.asarray([stream.num_tokens for stream in self.streams]) - self._counts * self.context_length
        draws = key_words(*self.key, "phase", epoch, count=len(bases))
        phases = (draws % np.maximum(room, 1).astype(np.uint64)).astype(np.int64)
        return bases + phases

    def _random(
        self, epoch: int, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        # Offsets at which a window can begin, over all streams; 53 bits of the hash choose among them evenly.
        possible = np.asarray([max(stream.num_tokens - self.context_length, 0) for stream in self.streams])
        ends = np.cumsum(possible)
        draws = splitmix64(positions.astype(np.uint64) + key_words(*self.key, "random", epoch)[0])
        places = ((draws >> np.uint64(11)) * 2.0**-53 * ends[-1]).astype(np.int64)
        stream = np.searchsorted(ends, places, side="right")
        bases = np.asarray([stream.start for stream in self.streams], dtype=np.int64)
        return stream, bases[stream] + places - (ends - possible)[stream]
