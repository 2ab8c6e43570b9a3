"""The components of a mixture: their weights, their streams, and their orders as the streams grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lightning_lance.errors import StoreError
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.ordering.growth import Growth, Ordered, grown_order
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.serving.ordering.packing import PackedOrder


def weights_of(mix: Mapping[str, float]) -> Mapping[str, float]:
    """Return the weight of each component. Without a mixture, there is one, without a name."""
    return mix or {"": 1}


class Component(NamedTuple):
    """A component of a mixture.

    Attributes:
        stores: Index of the store of each stream.
        streams: Its streams.
    """

    stores: list[int]
    streams: list[StreamExtent]

    @property
    def identities(self) -> list[tuple[int, str]]:
        """What a stream is known by, however it grows: its store and its language."""
        return [(store, stream.language) for store, stream in zip(*self, strict=True)]


def grown_orders(
    orders: Mapping[str, Ordered | PackedOrder],
    orders_now: Mapping[str, WindowOrder | PackedOrder],
    before: Mapping[str, Component],
    now: Mapping[str, Component],
    growth: Growth,
) -> dict[str, Ordered | PackedOrder]:
    """Return the orders of components whose streams have grown within an epoch.

    Args:
        orders: Their orders until then.
        orders_now: The orders of the grown streams.
        before: The streams until then.
        now: The grown streams.
        growth: Where they have grown.

    Raises:
        StoreError: If windows are packed, or the streams do not continue the earlier ones.
    """
    grown: dict[str, Ordered | PackedOrder] = {}
    for name, epoch, place in zip(now, growth.epochs, growth.places, strict=True):
        earlier = orders[name]
        later = orders_now[name]
        if isinstance(earlier, PackedOrder) or isinstance(later, PackedOrder):
            raise StoreError(
                "The state contradicts itself: packed windows do not grow within an epoch; use an unmodified checkpoint, or "
                "start without it."
            )
        grown[name] = grown_order(earlier, later, before[name].identities, now[name].identities, epoch, place)
    return grown
