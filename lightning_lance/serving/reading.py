"""Reading the windows of a selection from its stores, and what channels have for their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lightning_lance.format.channels import CHANNELS, TOKENS, ordered
from lightning_lance.format.layout import starts_of
from lightning_lance.serving.ordering.mixture import WindowLocations
from lightning_lance.store.token_store import TokenStore


def channels_of_all(stores: Iterable[TokenStore], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the channels that any of some stores has, and `more`, in the order of their columns."""
    names = [*more]
    for store in stores:
        names += store.channels
    return ordered(names)


@dataclass(frozen=True)
class WindowReader:
    """Reads windows of a split of some stores.

    Attributes:
        stores: Name to store.
        split: `train` or `val`.
        context_length: Tokens that the model sees; a window has one more.
        more_channels: Channels that batches have, even if none of the stores does.
    """

    stores: Mapping[str, TokenStore]
    split: str
    context_length: int
    more_channels: Sequence[str] = ()

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that batches have: those of any of the stores, and those that were asked for."""
        return channels_of_all(self.stores.values(), self.more_channels)

    def dtype_of(self, column: str) -> np.dtype[Any]:
        """Return the dtype of windows: one that fits the tokens of all stores, or that of a channel."""
        if column == TOKENS:
            return np.result_type(*(store.dtype for store in self.stores.values()))
        channel = CHANNELS[column]
        return channel.served if channel.served == np.bool_ else channel.stored

    def read(self, found: WindowLocations, column: str = TOKENS) -> np.ndarray:
        """Return windows that are pieces of the streams: (n, context_length + 1) tokens, in the dtype of the stores.

        With `column`, what a channel has for these tokens.
        """
        return self.read_later(found, column)()

    def read_later(self, found: WindowLocations, column: str = TOKENS) -> Callable[[], np.ndarray]:
        """Return a function that reads windows as `read` does; see `TokenStore.read_later`."""
        stores = list(self.stores.values())
        length = self.context_length + 1
        if len(stores) == 1:
            return self._read_store_later(stores[0], column, found.start, length)
        parts = []
        for place, store in enumerate(stores):
            mine = np.flatnonzero(found.store == place)
            if len(mine):
                parts.append((mine, self._read_store_later(store, column, found.start[mine], length)))

        def read_parts() -> np.ndarray:
            windows = np.empty((len(found.start), length), self.dtype_of(column))
            for mine, read in parts:
                windows[mine] = read()
            return windows

        return read_parts

    def streams_of(self, found: WindowLocations) -> list[tuple[str, str]]:
        """Return the store and language of each window, by name."""
        of_windows = [("", "")] * len(found.start)
        for place, (name, store) in enumerate(self.stores.items()):
            streams = store.streams(self.split)
            mine = np.flatnonzero(found.store == place)
            held = np.searchsorted(starts_of(streams), found.start[mine], side="right") - 1
            for window, stream in zip(mine.tolist(), held.tolist(), strict=True):
                of_windows[window] = (name, streams[stream].language)
        return of_windows

    def read_tokens(self, place: int, start: int, length: int) -> np.ndarray:
        """Return neighbouring tokens of a store's split, (length,)."""
        return self.read_channel(TOKENS, place, start, length)

    def read_channel(self, column: str, place: int, start: int, length: int) -> np.ndarray:
        """Return what a column has for neighbouring tokens of a store's split, (length,)."""
        store = [*self.stores.values()][place]
        values: np.ndarray = self._read_store_later(store, column, np.asarray([start]), length)()[0]
        return values

    def _read_store_later(
        self, store: TokenStore, column: str, starts: np.ndarray, length: int
    ) -> Callable[[], np.ndarray]:
        """Return a function that reads windows of a store, or what a channel has for their tokens, (n, length)."""
        if column == TOKENS:
            return store.read_later(starts, length, self.split)
        if column in store.channels:
            return store.read_channel_later(column, starts, length, self.split)
        return partial(np.full, (len(starts), length), CHANNELS[column].absent, self.dtype_of(column))
