"""Where a run is in the order of its windows: the cursor, what it is counted from, and how it is kept and continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from lightning_lance.errors import ConfigError, StoreError, one_of
from lightning_lance.messages.escaping import logger
from lightning_lance.process.ranks import broadcast_from_rank_zero, is_rank_zero, raise_on_all_ranks
from lightning_lance.serving.continuing import Continued, continued, unchanged
from lightning_lance.serving.mixture import Mixture, Schedule, WindowLocations
from lightning_lance.serving.options import OnDataChange
from lightning_lance.serving.order import WindowOrder
from lightning_lance.serving.permutation import splitmix64
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.states import MOST, check_epoch, checked_state
from lightning_lance.store.token_store import KEEP_TRIES, TokenStore, not_kept

_log = logger(__name__)


class Cursor:
    """The place in the order: one global integer, windows consumed by all ranks in all epochs.

    The other integers say what it is counted from: where its epoch began, and where its mixture (`origin`), which changes with
    the weights, the context length or the stores.

    Args:
        serving: What is served.
        on_data_change: See `WindowLoader`.

    Raises:
        ConfigError: If `on_data_change` is none of the three.
    """

    def __init__(self, serving: WindowSelection, on_data_change: OnDataChange = "error") -> None:
        self._on_data_change = one_of("on_data_change", on_data_change, get_args(OnDataChange))
        self.serving = serving
        # Stores as they were adopted on the way: their tags go when the run has gone on from them.
        self._adopted: list[TokenStore] = []
        # How the data differs from that of the state that was loaded last.
        self._changes = ""
        self.restart()

    def restart(self) -> None:
        """Go to the first window of all."""
        self._mixture = self.serving.mixture()
        self.value = self.epoch = self.epoch_start = self._origin = self._digest = self._digest_from = 0
        #: Whether the epoch's last batch was handed out: what it left over stays so, also for a resume with smaller batches.
        self.ended = False

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return self._mixture.num_windows

    @property
    def epoch_end(self) -> int:
        """Where the next epoch begins."""
        return self.epoch_start + self.num_windows

    @property
    def position(self) -> int:
        """Windows of this epoch that are consumed."""
        return self.value - self.epoch_start

    def locate(self, positions: np.ndarray) -> WindowLocations:
        """Find the windows at some positions, (n,) int64, counted as the cursor is."""
        return self._mixture.locate(positions - self._origin)

    def digests(self, positions: np.ndarray, found: WindowLocations) -> np.ndarray:
        """Hash windows and their positions to (n,) uint64; their sum modulo 2**64 tells sequences of windows apart."""
        places = found.start.astype(np.uint64) ^ (found.store.astype(np.uint64) << np.uint64(56))
        hashed = splitmix64(splitmix64(places) + positions.astype(np.uint64))
        # What a wrapped batch has of the next epoch is not consumed by it.
        hashed[positions >= self.epoch_end] = 0
        return hashed

    def advance(self, windows: int, digest: int) -> None:
        """Move behind some windows, whose digests add up to `digest`; not beyond the end of the epoch."""
        self.value = min(self.value + windows, self.epoch_end)
        self._digest = (self._digest + digest) % 2**64

    def next_epoch(self, extend: bool) -> None:
        """Go to the first window of the next epoch; with `extend`, of the stores as they are now.

        Raises:
            StoreReplaced: With `extend`, if another store was built at the place of one; then nothing has changed here.
            StoreError: If a store cannot be opened as it is now, on this rank or another.
        """
        newest = self._newest_together() if extend else {}
        self.epoch, self.epoch_start = self.epoch + 1, self.epoch_end
        self.value = self._digest_from = self.epoch_start
        self._digest, self.ended = 0, False
        if not extend:
            return
        told = broadcast_from_rank_zero([store.commit.extent for store in newest.values()])
        if told != [store.commit.extent for store in self.serving.stores.values()]:
            stores = {name: newest[name].at(extent) for name, extent in zip(newest, told, strict=True)}
            # Each component begins an epoch: of what was left of its last one, the borders have moved.
            epochs = -(-self._mixture.consumed(self.value - self._origin) // self._mixture.sizes)
            before = [*self.serving.stores.values()]
            self.serving = replace(self.serving, stores=stores)
            for store in stores.values():
                store.keep_for_training()
            for store in self._adopted:
                if store not in stores.values():
                    store.let_go()
            # Not those that were here from the beginning: others may serve them too.
            self._adopted = [store for store in stores.values() if store in self._adopted or store not in before]
            self._move([int(windows) for windows in epochs * self.serving.mixture().sizes])
            _log.info("Epoch %d has %s windows, of stores that have changed.", self.epoch, f"{self.num_windows:,}")

    def _newest_together(self) -> dict[str, TokenStore]:
        """Open the stores as they are now, or fail on all ranks."""
        newest: dict[str, TokenStore] = {}
        failure: StoreError | None = None
        try:
            newest = self._newest()
        except StoreError as error:
            failure = error
        raise_on_all_ranks(failure)
        return newest

    def _newest(self) -> dict[str, TokenStore]:
        """Open the stores as they are now, those that hold what they held at the versions that are read; tag the others.

        Raises:
            StoreReplaced: If another store was built at the place of one.
            StoreError: If builders remove each version before it is tagged.
        """
        for _ in range(KEEP_TRIES):
            found = {name: (store, store.newest()) for name, store in self.serving.stores.items()}
            newest = {
                name: now if now.commit.extent != store.commit.extent else store for name, (store, now) in found.items()
            }
            if not is_rank_zero() or all(store.keep_for_training() for store in newest.values()):
                return newest
            # A builder has removed one meanwhile.
            for name, store in newest.items():
                if store is not self.serving.stores[name]:
                    store.let_go()
        raise not_kept(self.serving.stores.values())

    def components(self) -> dict[str, dict[str, float]]:
        """Tell, for each component of the mixture, the windows it has given so far and how often it was gone through."""
        consumed = self._mixture.consumed(self.value - self._origin)
        return {
            name: {"windows": int(windows), "epochs": float(windows / size)}
            for name, windows, size in zip(self._mixture.names, consumed, self._mixture.sizes, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Give the state in plain types, the same on all ranks."""
        return {
            "cursor": self.value,
            "epoch": self.epoch,
            "epoch_start": self.epoch_start,
            "ended": self.ended,
            "origin": self._origin,
            "taken": [int(count) for count in self._mixture.taken],
            "digest": f"{self._digest:016x}",
            "digest_from": self._digest_from,
            "num_windows": self.num_windows,
            **self.serving.describe(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the tokens that the stores had when it was taken; one that is refused changes nothing.

        Raises:
            StoreError: If it is no state; if it is of other data or another order and `on_data_change` is `error`, naming
                each field that differs; or if the stores never had its tokens.
        """
        tried = self._tried(state)
        if tried._changes not in ("", self._changes):  # Lightning gives a state more than once
            _log.warning("The data differs from the checkpoint's (%s): %s.", tried._changes, self._on_data_change)
        vars(self).update(vars(tried))

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse a state as `load_state_dict` does, and change nothing."""
        self._tried(state)

    def _tried(self, state: Mapping[str, Any]) -> Cursor:
        tried = copy(self)
        try:
            tried._continue_from(checked_state(state))
        except ConfigError as error:
            raise StoreError(f"The checkpoint cannot be of this data: {error}") from error
        return tried

    def _continue_from(self, state: Mapping[str, Any]) -> None:
        self._changes = ""
        if differences := self.serving.differences(state):
            changes = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in differences.items())
            if self._on_data_change == "error":
                cure = "set it as it was"
                if "stores.forgotten" in differences:
                    cure = (
                        "documents were forgotten since, and the version that holds them was removed, as purge=true does; it "
                        "cannot come back"
                    )
                raise StoreError(
                    f"The checkpoint continues other data ({changes}): {cure}, start without the checkpoint, or say "
                    "on_data_change=restart or on_data_change=continue."
                )
            check_epoch(state)
            if self._on_data_change == "restart":
                self.restart()
            else:
                self._go_on(state, continued(self.serving, state))
            self._changes = changes
            return
        self.serving = self.serving.pinned(state)
        before = self._as_it_was(state)
        check_epoch(state)
        # Components are counted in the order of `mix`, which equal dicts need not share.
        if [*before.mix] != [*self.serving.mix] or before.describe() != self.serving.describe():
            self._go_on(state, unchanged(self.serving, before))
            return
        self._mixture = self.serving.mixture(state["taken"])
        self.value, self.epoch, self.epoch_start = state["cursor"], state["epoch"], state["epoch_start"]
        self._origin, self.ended = state["origin"], state["ended"]
        self._digest, self._digest_from = int(state["digest"], 16), state["digest_from"]

    def _as_it_was(self, state: Mapping[str, Any]) -> WindowSelection:
        """Return what was served when a state was taken, of the very same stores. StoreError if it cannot have been."""
        before = replace(self.serving, context_length=state["context_length"], mix=state["mix"])
        windows = before.mixture().num_windows
        if windows != state["num_windows"]:
            raise StoreError(
                f"The checkpoint's epoch had {state['num_windows']:,} windows, of this store it has {windows:,}: rows were "
                "deleted or added by others; bring them back, or start without the checkpoint."
            )
        return before

    def _go_on(self, state: Mapping[str, Any], found: Continued) -> None:
        """Say a place in other units (another context length, other weights, other data): each component where it was."""
        self.serving = found.serving
        mixture = self.serving.mixture()
        orders = dict(zip(mixture.names, mixture.orders, strict=True))
        if state["ended"]:
            # What the epoch had left over is passed over, as when the next one begins.
            state = {**state, "cursor": state["epoch_start"] + state["num_windows"]}
        position = self._position(state, found, mixture)
        self.epoch, self.ended = state["epoch"], state["ended"]
        self.epoch_start = self._as_many(state["epoch_start"], state)
        self.value = self.epoch_start + position
        consumed = _consumed(state)
        taken = dict.fromkeys(orders, 0)
        for name, order in orders.items():
            if name in found.known:
                known = found.known[name]
                taken[name] = self._moved(state, consumed[known.name], known.order, order)
            elif name == "":
                taken[name] = self.epoch * order.num_windows + position
            elif name in found.parts:
                taken[name] = self.epoch * order.num_windows
        self._move([*taken.values()])

    def _moved(self, state: Mapping[str, Any], windows: int, before: WindowOrder | None, now: WindowOrder) -> int:
        """Count the windows of one component that stand for those that it had given, over all epochs."""
        if before is not None:
            epochs, within = divmod(windows, before.num_windows)
            return epochs * now.num_windows + now.after(within, before)
        if state["mix"]:
            return self._as_many(windows, state)
        # Of a single component the state itself tells how long it was.
        size: int = state["num_windows"]
        epochs, within = divmod(windows, size)
        return epochs * now.num_windows + min(self._as_many(within, state), now.num_windows)

    def _position(self, state: Mapping[str, Any], found: Continued, now: Mixture) -> int:
        """Return how far the epoch is, in windows as they are now; its end stays its end."""
        consumed = state["cursor"] - state["epoch_start"]
        if consumed == state["num_windows"]:
            return now.num_windows
        if len(now.names) == len(state["taken"]) == 1 and now.names[0] in found.known:
            # With a single component, its epochs are those of the run.
            before = found.known[now.names[0]].order
            if before is not None:
                return now.orders[0].after(consumed, before)
        return min(self._as_many(consumed, state), now.num_windows)

    def _as_many(self, windows: int, state: Mapping[str, Any]) -> int:
        """Say how many windows have as many tokens as `windows` of a state's context length, rounded up."""
        length: int = state["context_length"]
        return -(-windows * length // self.serving.context_length)

    def _move(self, taken: Sequence[int]) -> None:
        """Begin a mixture here, of whose components so many windows were taken before."""
        if max(self.value, *taken) > MOST:
            raise StoreError(
                f"The place in the data is {max(self.value, *taken):,} windows in: expected 2**60 at most; take a checkpoint "
                "as it was saved, or start without it."
            )
        self._mixture = self.serving.mixture(taken)
        self._origin = self._digest_from = self.value
        self._digest = 0


def _consumed(state: Mapping[str, Any]) -> dict[str, int]:
    """Count the windows that each component of a state has given, ever: name to number."""
    counts = Schedule(state["mix"] or {"": 1}).counts(state["cursor"] - state["origin"])
    names = [*state["mix"]] or [""]
    return {name: taken + int(count) for name, taken, count in zip(names, state["taken"], counts, strict=True)}
