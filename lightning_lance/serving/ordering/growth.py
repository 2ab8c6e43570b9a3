"""An epoch that goes on with what was appended to its streams: each window of it once, whatever was served before."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_lance.errors import StoreError
from lightning_lance.format.layout import StreamExtent, lengths_of, starts_of, tokens_by_language
from lightning_lance.serving.ordering.order import WindowOrder, scan
from lightning_lance.serving.ordering.permutation import ROUNDS, key_words, permute

_Ints = npt.NDArray[np.int64]


class Content(NamedTuple):
    """What stores hold of a split.

    Attributes:
        tokens: Tokens of each store, of both splits.
        streams: Streams of each store.
    """

    tokens: Sequence[int]
    streams: Sequence[Sequence[StreamExtent]]


class Growth(NamedTuple):
    """The place in a mixture at which its stores have grown.

    Attributes:
        content: What the stores held until then.
        epochs: The epoch that each component was in.
        places: The place in that epoch.
    """

    content: Content
    epochs: Sequence[int]
    places: Sequence[int]

    def described(self) -> dict[str, Any]:
        """Return it in plain types, for a checkpoint."""
        return {
            "tokens": [*self.content.tokens],
            "streams": [*map(tokens_by_language, self.content.streams)],
            "epochs": [*self.epochs],
            "places": [*self.places],
        }

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Growth:
        """Return what `described` gave."""
        streams = [*map(_extents, described["streams"])]
        return cls(Content(described["tokens"], streams), described["epochs"], described["places"])

    def of_components(self, components: Sequence[int]) -> Growth:
        """Return the growth of some components, by index, in their order."""
        epochs = []
        places = []
        for component in components:
            epochs.append(self.epochs[component])
            places.append(self.places[component])
        return Growth(self.content, epochs, places)


def _extents(sizes: Mapping[str, int]) -> list[StreamExtent]:
    """Return streams one behind the other, by their tokens."""
    extents = []
    start = 0
    for language, size in sizes.items():
        extents.append(StreamExtent(language, start, size))
        start += size
    return extents


@dataclass(frozen=True)
class GrownOrder:
    """The order of streams that have grown within an epoch.

    The rest of that epoch is one order of the windows that the earlier streams had left and of those that were appended,
    each once. They go on in each stream where its earlier windows end. All other epochs are those of the grown streams.

    Places are counted from the end of the epoch, which may have a few windows fewer than the later ones: its first place
    is then beyond the number of windows that were served before.

    Attributes:
        before: The order of the earlier streams.
        now: The order of the grown streams.
        index: For each earlier stream, its index among the grown ones.
        epoch: The epoch within which the streams have grown.
        place: The place in that epoch, in `before`.
    """

    before: Ordered
    now: WindowOrder
    index: _Ints
    epoch: int
    place: int
    _extras: _Ints = field(init=False, repr=False, compare=False)
    _begins: _Ints = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = np.zeros(len(self.now.streams), np.int64)
        counts[self.index] = self.before.counts(self.epoch)
        sizes = lengths_of(self.now.streams)
        whole = self.now.counts(self.epoch)
        # Within their streams. A stream that had no window begins as in any other epoch.
        begins = self.now.ends(self.epoch) - whole * self.now.context_length
        ends = np.zeros(len(sizes), np.int64)
        ends[self.index] = self.before.ends(self.epoch)
        begins = np.where(counts > 0, ends, begins)
        fitting = np.maximum(sizes - 1 - begins, 0) // self.now.context_length
        object.__setattr__(self, "_extras", np.clip(whole - counts, 0, fitting))
        object.__setattr__(self, "_begins", begins)

    @property
    def streams(self) -> Sequence[StreamExtent]:
        """The grown streams."""
        return self.now.streams

    @property
    def context_length(self) -> int:
        """Tokens that the model sees."""
        return self.now.context_length

    @property
    def num_windows(self) -> int:
        """Windows of each later epoch."""
        return self.now.num_windows

    @property
    def left(self) -> int:
        """Windows of the epoch that were not served before: the earlier ones and those that were appended."""
        return self.before.num_windows - self.place + int(self._extras.sum())

    @property
    def first_place(self) -> int:
        """The place at which the epoch goes on."""
        return self.num_windows - self.left

    def counts(self, epoch: int) -> _Ints:
        """Return the number of windows of each stream in an epoch."""
        counts = self.now.counts(epoch).copy()
        if epoch == self.epoch:
            counts[:] = self._extras
            np.add.at(counts, self.index, self.before.counts(epoch))
        return counts

    def ends(self, epoch: int) -> _Ints:
        """Return where the windows of each stream end in an epoch."""
        if epoch != self.epoch:
            return self.now.ends(epoch)
        return self._begins + self._extras * self.context_length

    def locate(self, epoch: int, positions: _Ints) -> tuple[_Ints, _Ints]:
        """Return the stream indices and the starts of the windows at some places of an epoch, (n,) int64 each."""
        if epoch != self.epoch:
            return self.now.locate(epoch, positions)
        places = self._ordered(positions - self.first_place)
        earlier = self.before.num_windows - self.place
        stream = np.empty(len(places), np.int64)
        start = np.empty(len(places), np.int64)
        known = places < earlier
        of, begin = self.before.locate(epoch, self.place + places[known])
        stream[known] = self.index[of]
        starts = starts_of(self.streams)
        moved = starts[self.index] - starts_of(self.before.streams)
        start[known] = begin + moved[of]
        ends = np.cumsum(self._extras)
        appended = places[~known] - earlier
        of = np.searchsorted(ends, appended, side="right")
        stream[~known] = of
        within = appended - (ends - self._extras)[of]
        firsts = starts + self._begins
        start[~known] = firsts[of] + within * self.context_length
        return stream, start

    def find(self, epoch: int, stream: int, begin: int, end: int) -> _Ints:
        """Return the places of an epoch whose windows have one of the tokens from `begin` to `end` of a stream.

        The epoch within which the streams have grown is looked through, from the place at which it goes on.
        """
        if epoch != self.epoch:
            return self.now.find(epoch, stream, begin, end)
        return scan(self, epoch, range(self.first_place, self.num_windows), stream, begin, end)

    def _ordered(self, positions: _Ints) -> _Ints:
        """Return the places, among all windows that are left, of some positions."""
        draw = ("grown", self.epoch, self.place)
        if self.now.order == "shuffle":
            return self.now.shuffled(positions, self.left, *draw)
        if self.now.order == "fixed":
            return permute(positions, self.left, key_words(*self.now.key, *draw, count=ROUNDS))
        return positions


Ordered = WindowOrder | GrownOrder


def grown_order(
    before: Ordered,
    now: WindowOrder,
    known: Sequence[Hashable],
    present: Sequence[Hashable],
    epoch: int,
    place: int,
) -> Ordered:
    """Return the order of a component whose streams have grown at a place of an epoch.

    Args:
        before: Its order until then.
        now: The order of the grown streams.
        known: The identity of each earlier stream.
        present: The identity of each grown stream.
        epoch: The epoch that it was in.
        place: The place in that epoch.

    Raises:
        StoreError: If the streams of `now` do not continue those of `before`.
    """
    indices = {stream: number for number, stream in enumerate(present)}
    index = np.asarray([indices.get(stream, -1) for stream in known], np.int64)
    # A stream that is not there any more has no tokens: fewer than it had.
    sizes = np.append(lengths_of(now.streams), -1)[index]
    shrunk = (sizes < lengths_of(before.streams)).any()
    if shrunk or not 0 <= place <= before.num_windows:
        raise StoreError(
            "The state does not fit its stores: they do not continue the streams that it says they have grown from; use an "
            "unmodified checkpoint, or start without it."
        )
    # Windows drawn with replacement have no rest, and an epoch that has not begun is one of the grown streams.
    if now.order == "random" or not place:
        return now
    return GrownOrder(before, now, index, epoch, place)
