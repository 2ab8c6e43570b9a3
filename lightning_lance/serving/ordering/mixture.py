"""Mixtures: the component of each window, and its place within the component, as pure functions of the position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import numpy as np

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.channels import TOKENS
from lightning_lance.format.layout import lengths_of, starts_of
from lightning_lance.messages.formatting import pluralize
from lightning_lance.serving.ordering.growth import Ordered
from lightning_lance.serving.ordering.packing import PackedOrder, Pieces
from lightning_lance.serving.ordering.phases import Phase, PhasedSchedule
from lightning_lance.serving.ordering.schedule import Schedule


class WindowLocations(NamedTuple):
    """Located windows: store, start in its split, epoch of the component, and component, (n,) int64 each."""

    store: np.ndarray
    start: np.ndarray
    epoch: np.ndarray
    component: np.ndarray

    def cut(self, low: int, high: int) -> WindowLocations:
        """Return the windows [low, high) of these."""
        return WindowLocations(
            self.store[low:high], self.start[low:high], self.epoch[low:high], self.component[low:high]
        )


class Mixture:
    """The windows of one or more components, in the order of serving.

    Each component has an order and epochs of its own, independent of the others.

    Args:
        orders: The order of each component, by name.
        stores: For each component, the index of the store of each of its streams.
        weights: Weight of each component.
        taken: Windows that each component has served before; 0 by default.
        phases: Other weights from some positions on, in place of `weights`.
        max_epochs: The epochs that components may have, those before included.
        redistribute: Whether the others go on where a component has had its epochs; otherwise the mixture ends there.

    Raises:
        ConfigError: If one of several components has no window, or a weight is not a positive number.
    """

    def __init__(
        self,
        orders: Mapping[str, Ordered | PackedOrder],
        stores: Sequence[Sequence[int]],
        weights: Mapping[str, float | Fraction],
        taken: Sequence[int] | None = None,
        phases: Sequence[Phase] = (),
        max_epochs: Mapping[str, float] | None = None,
        redistribute: bool = True,
    ) -> None:
        #: The order of each component, by name.
        self.orders = dict(orders)
        self._stores = [np.asarray(places, np.int64) for places in stores]
        for name, order in orders.items():
            if not order.num_windows and len(orders) > 1:
                tokens = int(lengths_of(order.streams).sum())
                raise ConfigError(
                    f"mix.{name} has {pluralize(tokens, 'token')}, too few for a window of {order.context_length} + 1: remove "
                    "it from mix, or lower context_length."
                )
        #: Windows of an epoch of each component: (components,) int64.
        self.sizes = np.asarray([order.num_windows for order in orders.values()], np.int64)
        #: Windows of all components together.
        self.num_windows = int(self.sizes.sum())
        self.taken = np.zeros(len(orders), np.int64) if taken is None else np.asarray(taken, np.int64)
        #: The position at which the mixture ends, since components have had their epochs; None if it goes on for ever.
        self.end: int | None = None
        #: The component that ends it.
        self.ended_by = ""
        self._schedule: Schedule | PhasedSchedule = Schedule(weights)
        if phases or max_epochs:
            left = self._left(max_epochs or {})
            phased = PhasedSchedule([*orders], phases or [Phase(0, weights)], left, redistribute)
            self._schedule, self.end, self.ended_by = phased, phased.end, phased.ended

    def _left(self, max_epochs: Mapping[str, float]) -> list[int | None]:
        """Return the windows that each component may still have; None for no bound."""
        left: list[int | None] = []
        for name, size, taken in zip(self.orders, self.sizes.tolist(), self.taken.tolist(), strict=True):
            if name in max_epochs:
                left.append(int(max_epochs[name] * size) - taken)
            else:
                left.append(None)
        return left

    def consumed(self, positions: int) -> np.ndarray:
        """Return the windows that each component has served in total after `positions` of this mixture."""
        consumed: np.ndarray = self.taken + self._schedule.counts(positions)
        return consumed

    def epochs_of(self, positions: int) -> dict[str, float]:
        """Return the epochs of each component that as many positions make from the begin of a run."""
        epochs = self._schedule.counts(positions) / np.maximum(self.sizes, 1)
        return dict(zip(self.orders, epochs.tolist(), strict=True))

    def read_packed(self, found: WindowLocations, dtype: np.dtype[Any], column: str = TOKENS) -> np.ndarray:
        """Return packed windows: (n, context_length + 1) tokens of a dtype that fits those of all stores.

        With `column`, what a channel has for these tokens.
        """
        orders = [*self.orders.values()]
        windows = np.empty((len(found.start), orders[0].context_length + 1), dtype)
        for component, epoch in sorted({*zip(found.component.tolist(), found.epoch.tolist(), strict=True)}):
            mine = np.flatnonzero((found.component == component) & (found.epoch == epoch))
            windows[mine] = cast(PackedOrder, orders[component]).read(epoch, found.start[mine], column)
        return windows

    def pieces(self, found: WindowLocations) -> list[Pieces] | None:
        """Return the pieces of packed windows, one table for each; None for windows that are pieces of a stream."""
        orders = [*self.orders.values()]
        tables = []
        rows = zip(found.component.tolist(), found.epoch.tolist(), found.start.tolist(), strict=True)
        for component, epoch, start in rows:
            order = orders[component]
            if not isinstance(order, PackedOrder):
                return None
            tables.append(order.pieces(epoch, start)[1])
        return tables

    def find(self, store: int, begin: int, end: int, positions: range) -> np.ndarray:
        """Return the positions, of some, whose windows have one of the tokens from `begin` to `end` of a store's split.

        Args:
            store: Index of the store.
            begin: Offset of the first token.
            end: Offset after the last one. All of them lie in one stream.
            positions: Where to look: a range from 0 on.

        Returns:
            (n,) int64, ascending.
        """
        found = [np.empty(0, np.int64)]
        counts = zip(self.consumed(positions.start).tolist(), self.consumed(positions.stop).tolist(), strict=True)
        for component, (order, (first, last)) in enumerate(zip(self.orders.values(), counts, strict=True)):
            of_store = self._stores[component] == store
            starts = starts_of(order.streams)
            ends = starts + lengths_of(order.streams)
            [streams] = np.nonzero(of_store & (starts <= begin) & (begin < ends))
            if not len(streams) or not order.num_windows:
                continue
            for epoch in range(first // order.num_windows, -(-last // order.num_windows)):
                numbers = order.find(epoch, int(streams[0]), begin, end) + epoch * order.num_windows
                numbers = numbers[(first <= numbers) & (numbers < last)] - self.taken[component]
                found.append(numbers if len(self.orders) == 1 else self._schedule.find(component, numbers))
        return np.sort(np.concatenate(found))

    def locate(self, positions: np.ndarray) -> WindowLocations:
        """Return the windows at some positions.

        Args:
            positions: (n,) int64, at least 0, unbounded.
        """
        if self.end is not None and len(positions) and int(positions.max()) >= self.end:
            raise StoreError(f"The mixture ends at window {self.end:,}: see max_epochs.")
        if len(self.orders) == 1:
            component = np.zeros(len(positions), np.int64)
            index = positions + self.taken[0]
        else:
            component, index = self._schedule.deal(positions)
            index += self.taken[component]
        store = np.empty(len(positions), np.int64)
        start = np.empty(len(positions), np.int64)
        epoch = np.empty(len(positions), np.int64)
        for i, order in enumerate(self.orders.values()):
            mine = np.flatnonzero(component == i) if len(self.orders) > 1 else np.arange(len(positions))
            epochs, places = np.divmod(index[mine], order.num_windows)
            # Positions mostly lie within one epoch, which needs no sorting.
            one_epoch = not (epochs != epochs[:1]).any()
            for now in epochs[:1] if one_epoch else np.unique(epochs):
                these = mine[epochs == now]
                stream, start[these] = order.locate(int(now), places[epochs == now])
                store[these] = self._stores[i][stream]
            epoch[mine] = epochs
        return WindowLocations(store, start, epoch, component)
