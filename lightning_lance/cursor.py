"""Where a run is in the order of its windows: the cursor, what it is counted from, and how it is kept and continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from lightning_lance.agreement import is_first, raise_together, told_by_first
from lightning_lance.errors import StoreError, one_of
from lightning_lance.escaping import logger
from lightning_lance.mixture import Located
from lightning_lance.options import OnDataChange
from lightning_lance.serving import Serving
from lightning_lance.store import KEEP_TRIES, TokenStore, not_kept
from lightning_lance.windows import mix

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

    def __init__(self, serving: Serving, on_data_change: OnDataChange = "error") -> None:
        one_of("on_data_change", on_data_change, get_args(OnDataChange))
        self._on_data_change = on_data_change
        self.serving = serving
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

    def locate(self, positions: np.ndarray) -> Located:
        """Find the windows at some positions, (n,) int64, counted as the cursor is."""
        return self._mixture.locate(positions - self._origin)

    def digests(self, positions: np.ndarray, found: Located) -> np.ndarray:
        """Hash windows and their positions to (n,) uint64; their sum modulo 2**64 tells sequences of windows apart."""
        places = found.start.astype(np.uint64) ^ (found.store.astype(np.uint64) << np.uint64(56))
        hashed = mix(mix(places) + positions.astype(np.uint64))
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
        told = told_by_first([store.commit.extent for store in newest.values()])
        if told != [store.commit.extent for store in self.serving.stores.values()]:
            stores = {name: newest[name].at(extent) for name, extent in zip(newest, told, strict=True)}
            # Each component begins an epoch: of what was left of its last one, the borders have moved.
            epochs = -(-self._mixture.consumed(self.value - self._origin) // self._mixture.sizes)
            self.serving = replace(self.serving, stores=stores)
            for store in stores.values():
                store.keep_for_training()
            self._move(epochs * self.serving.mixture().sizes)
            _log.info("Epoch %d has %s windows, of stores that have changed.", self.epoch, f"{self.num_windows:,}")

    def _newest_together(self) -> dict[str, TokenStore]:
        """Open the stores as they are now, or fail on all ranks."""
        newest: dict[str, TokenStore] = {}
        failure: StoreError | None = None
        try:
            newest = self._newest()
        except StoreError as error:
            failure = error
        raise_together(failure)
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
            if not is_first() or all(store.keep_for_training() for store in newest.values()):
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
        """Continue from a state, with the tokens that the stores had when it was taken.

        Raises:
            StoreError: If it is of other data or another order and `on_data_change` is `error`, naming each field that
                differs; or if the stores never had its tokens.
        """
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise StoreError(
                f"The state lacks {', '.join(missing)}: expected what a WindowLoader of this version of lightning-lance gave."
            )
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
            _log.warning("The data differs from the checkpoint's (%s): %s.", changes, self._on_data_change)
            if self._on_data_change == "restart":
                self.restart()
            else:
                self._continue_elsewhere(state)
            return
        self.serving = self.serving.pinned(state)
        before = replace(self.serving, context_length=state["context_length"], mix=state["mix"])
        if (windows := before.mixture(state["taken"]).num_windows) != state["num_windows"]:
            raise StoreError(
                f"The checkpoint's epoch had {state['num_windows']:,} windows, of this store it has {windows:,}: rows were "
                "deleted or added by others; bring them back, or start without the checkpoint."
            )
        self._mixture = self.serving.mixture(state["taken"])
        self.value, self.epoch, self.epoch_start = state["cursor"], state["epoch"], state["epoch_start"]
        self._origin, self.ended = state["origin"], state["ended"]
        self._digest, self._digest_from = int(state["digest"], 16), state["digest_from"]
        # Components are counted in the order of `mix`, which equal dicts need not share.
        if [*before.mix] != [*self.serving.mix] or before.describe() != self.serving.describe():
            self._convert(before, state["taken"])

    def _continue_elsewhere(self, state: Mapping[str, Any]) -> None:
        self.value, self.epoch, self.ended = state["cursor"], state["epoch"], state["ended"]
        position = min(self.value - state["epoch_start"], self.num_windows)
        self.epoch_start = self.value - position
        # Which components were in the other data is not known: of several, each begins an epoch.
        self._move(self.epoch * self._mixture.sizes + (position if len(self._mixture.names) == 1 else 0))

    def _convert(self, before: Serving, taken: list[int]) -> None:
        """Say a place of another context length or of other weights: as many tokens on, each component where it was."""
        old, length = before.mixture(taken), before.context_length
        consumed = old.consumed(self.value - self._origin)
        position = min(self._as_many(self.position, length), self.num_windows)
        self.value = self._as_many(self.value, length)
        self.epoch_start = self.value - position
        order = [old.names.index(name) for name in self._mixture.names]
        epochs, within = np.divmod(consumed[order], old.sizes[order])
        sizes = self._mixture.sizes
        self._move(epochs * sizes + np.minimum(self._as_many(within, length), sizes))

    def _as_many(self, windows: Any, length: int) -> Any:
        """Say how many windows have as many tokens as `windows` of another length, rounded up."""
        return -(-windows * length // self.serving.context_length)

    def _move(self, taken: np.ndarray) -> None:
        """Begin a mixture here, of whose components so many windows were taken before."""
        self._mixture = self.serving.mixture([int(count) for count in taken])
        self._origin = self._digest_from = self.value
        self._digest = 0
