"""The cursor: the position of a run in the order of its windows, and how a checkpoint continues it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np

from lightning_lance.errors import ConfigError, StoreError, one_of
from lightning_lance.format.channels import TOKENS
from lightning_lance.format.layout import tokens_by_language
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_tokens
from lightning_lance.process.ranks import broadcast_from_rank_zero, is_rank_zero, raise_on_all_ranks
from lightning_lance.serving.continuing import Continued, continued, unchanged
from lightning_lance.serving.description import described_changes, selected_by
from lightning_lance.serving.options import OnDataChange
from lightning_lance.serving.ordering.components import weights_of
from lightning_lance.serving.ordering.growth import GrownOrder, Growth, Ordered
from lightning_lance.serving.ordering.mixture import WindowLocations
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.serving.ordering.packing import PackedOrder, Pieces
from lightning_lance.serving.ordering.permutation import splitmix64
from lightning_lance.serving.ordering.schedule import Schedule
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.skips import Skip, Skips
from lightning_lance.serving.states import MOST, check_epoch, checked_state
from lightning_lance.serving.step_sizes import CountedFrom
from lightning_lance.store.token_store import KEEP_TRIES, TokenStore, extents_of, not_kept, stores_at

_log = logger(__name__)

_RESTORE = "restore the earlier setting"


def continues_other_data(changes: str, cure: str = _RESTORE) -> StoreError:
    """Return the error for a checkpoint of other data.

    Args:
        changes: The differences; see `described_changes`.
        cure: What to do first.
    """
    return StoreError(
        f"The checkpoint continues other data ({changes}): {cure}, start without the checkpoint, or set "
        "on_data_change=restart or on_data_change=continue."
    )


class Cursor:
    """The position in the order: one global integer, the windows consumed by all ranks in all epochs.

    The other integers are the positions that it is counted from: the begin of its epoch, and the begin of its mixture
    (`origin`), which changes with the weights, the context length or the stores.

    Args:
        serving: The windows that are served.
        on_data_change: See `WindowLoader`.
        grows: Whether a state that is loaded goes on, within its epoch, with what was appended to the stores since.
        skip_steps: Ranges of steps that the run leaves out. Their positions depend on the size of the batches, which the
            cursor does not know: see `leave_out`.

    Raises:
        ConfigError: If `on_data_change` is unknown.
    """

    def __init__(
        self,
        serving: WindowSelection,
        on_data_change: OnDataChange = "error",
        grows: bool = False,
        skip_steps: Sequence[Sequence[int]] = (),
    ) -> None:
        self._grows = grows
        self._skip_steps = [(begin, end) for begin, end in skip_steps]
        self._on_data_change = one_of("on_data_change", on_data_change, get_args(OnDataChange))
        self.serving = serving
        # Store versions adopted during the run. Their tags go once the run has moved on.
        self._adopted: list[TokenStore] = []
        # The differences between the data and the state that was loaded last.
        self._changes = ""
        # What loading it did about a store that has grown.
        self._grew = ""
        self.restart()

    def restart(self) -> None:
        """Go to the first window of epoch 0."""
        self._grown: tuple[Growth, ...] = ()  # the growths of the stores within an epoch that is still served
        self._mixture = self.serving.mixture()
        self.value = self.epoch = self.epoch_start = self._digest = self._digest_from = 0
        #: The position at which the mixture begins. Before it, other data, weights or another context length were served.
        self.origin = 0
        #: Whether the epoch's last batch was handed out. The windows after it stay dropped, even for a resume with smaller
        #: batches.
        self.ended = False
        #: The positions that are left out.
        self.skips = Skips()
        #: Where steps are counted from, if their sizes change and the stores have; the cursor only keeps it.
        self.counted_from: CountedFrom | None = None

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return self._mixture.num_windows

    @property
    def epoch_end(self) -> int:
        """The position at which the next epoch begins."""
        return self.epoch_start + self.num_windows

    @property
    def position(self) -> int:
        """Windows of this epoch that have been consumed."""
        return self.value - self.epoch_start

    @property
    def left(self) -> int:
        """Windows of this epoch that are still to be served."""
        return self.skips.served(self.value, self.bounded(self.epoch_end))

    @property
    def last(self) -> int | None:
        """The position at which the mixture ends; None if it goes on for ever."""
        if self._mixture.end is None:
            return None
        return self.origin + self._mixture.end

    def bounded(self, position: int) -> int:
        """Return a position, or that at which the mixture ends, if it does so before."""
        if self.last is None:
            return position
        return min(position, self.last)

    def check_not_over(self) -> None:
        """Check that there is something left to serve.

        Raises:
            StoreError: If components have had all the epochs that they may have.
        """
        if self.last is None or self.value < self.last:
            return
        name = self._mixture.ended_by
        how = "all components of mix have had their epochs"
        if self.serving.at_max_epochs == "error":
            how = f"{name!r} has had its {self.serving.max_epochs[name]:g} epochs"
        raise StoreError(
            f"The mixture ends at window {self.last:,}, since {how}: raise max_epochs, store more of it, lower its "
            "weight, or train fewer steps."
        )

    def locate(self, positions: np.ndarray) -> WindowLocations:
        """Return the windows at some positions, (n,) int64, in the cursor's count."""
        return self._mixture.locate(positions - self.origin)

    def read(self, found: WindowLocations) -> np.ndarray:
        """Return windows: (n, context_length + 1) tokens, in the dtype of the stores."""
        return self._read_later(found, TOKENS)()

    def read_later(self, found: WindowLocations) -> Callable[[], tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Return a function that reads windows as `read` does, and what the channels of the stores have for their tokens.

        See `TokenStore.read_later`.
        """
        tokens = self._read_later(found, TOKENS)
        channels = {name: self._read_later(found, name) for name in self.serving.reader.channels}
        return lambda: (tokens(), {name: read() for name, read in channels.items()})

    def _read_later(self, found: WindowLocations, column: str) -> Callable[[], np.ndarray]:
        if self.serving.windows == "packed":
            return partial(self._mixture.read_packed, found, self.serving.reader.dtype_of(column), column)
        return self.serving.reader.read_later(found, column)

    def pieces(self, found: WindowLocations) -> list[Pieces] | None:
        """Return the pieces of packed windows; see `Mixture.pieces`."""
        return self._mixture.pieces(found) if self.serving.windows == "packed" else None

    def find(self, store: int, begin: int, end: int, until: int) -> np.ndarray:
        """Return the positions, up to `until`, whose windows have one of some tokens of a stream; see `Mixture.find`.

        Those before the mixture began are not known, and those that are left out are not among them.
        """
        found = self._mixture.find(store, begin, end, range(max(until - self.origin, 0))) + self.origin
        return found[~self.skips.holding(found)]

    def digests(self, positions: np.ndarray, found: WindowLocations) -> np.ndarray:
        """Return hashes of windows and their positions, (n,) uint64; a sum modulo 2**64 identifies a sequence of windows."""
        places = found.start.astype(np.uint64) ^ (found.store.astype(np.uint64) << np.uint64(56))
        hashed = splitmix64(splitmix64(places) + positions.astype(np.uint64))
        # A wrapped batch ends with windows of the next epoch, which it does not consume.
        hashed[positions >= self.epoch_end] = 0
        return hashed

    def advance_to(self, position: int, digest: int) -> None:
        """Consume the windows up to a position, or to the end of the epoch. Their digests add up to `digest`."""
        self.value = min(position, self.epoch_end)
        self._digest = (self._digest + digest) % 2**64

    def steps_to_leave_out(self) -> list[tuple[int, int]]:
        """Return the ranges of steps, of those asked for, whose positions are not known yet."""
        return [steps for steps in self._skip_steps if not self.skips.knows(steps)]

    def leave_out(self, skips: Sequence[Skip]) -> None:
        """Leave out some ranges, from here on.

        Raises:
            StoreError: If all windows of one were served before.
        """
        ahead: list[Skip] = []
        for skip in skips:
            if skip.end <= self.value:
                raise StoreError(
                    f"skip_steps has [{skip.first_step:,}, {skip.last_step:,}], but these steps were served before: begin "
                    "at a checkpoint from before them, or take them out of skip_steps."
                )
            ahead.append(skip._replace(begin=max(skip.begin, self.value)))
        self.skips = Skips((*self.skips.ranges, *ahead))

    def next_epoch(self, extend: bool) -> None:
        """Go to the first window of the next epoch; with `extend`, of the newest versions of the stores.

        Raises:
            StoreReplaced: With `extend`, if a store was replaced by another; the cursor has not moved then.
            StoreError: If a newest version cannot be opened, on this rank or another.
        """
        newest = self._newest_on_all_ranks() if extend else {}
        self.epoch_start = self.epoch_end
        self.epoch += 1
        self.value = self._digest_from = self.epoch_start
        self._digest = 0
        self.ended = False
        self._drop_growths()
        if extend:
            self._adopt(newest)

    def _drop_growths(self) -> None:
        """Forget the growths of the stores once all components have left the epochs in which they came."""
        if self._grown and (self._places()[0] > np.asarray(self._grown[-1].epochs)).all():
            self._grown = ()
            self._mixture = self.serving.mixture(self._mixture.taken.tolist(), origin=self.origin)

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch of each component, and the place in it of its next window."""
        return np.divmod(self._consumed(), np.maximum(self._mixture.sizes, 1))

    def _adopt(self, newest: Mapping[str, TokenStore]) -> None:
        """Serve the newest versions of rank 0 from here on, if their content is new."""
        extents = broadcast_from_rank_zero(extents_of(newest.values()))
        if extents == extents_of(self.serving.stores.values()):
            return
        before = self.serving.stores
        stores = stores_at(newest, extents)
        # Each component begins a new epoch, since the borders of its unserved windows have moved.
        epochs = -(-self._consumed() // self._mixture.sizes)
        self.serving = replace(self.serving, stores=stores)
        self._grown = ()
        for store in stores.values():
            store.keep_for_training()
        for store in _without(self._adopted, stores.values()):
            store.let_go()
        # Not the stores that the run began with: other loaders may serve them too.
        first = _without(before.values(), self._adopted)
        self._adopted = _without(stores.values(), first)
        self._move((epochs * self.serving.mixture().sizes).tolist())
        _log.info("Epoch %d has %s windows, from stores that have changed.", self.epoch, f"{self.num_windows:,}")
        if self.serving.means and is_rank_zero():
            _log.warning("%s", self.serving.means)

    def _newest_on_all_ranks(self) -> dict[str, TokenStore]:
        """Open the newest versions of the stores, or raise on all ranks."""
        newest: dict[str, TokenStore] = {}
        failure: StoreError | None = None
        try:
            newest = self._newest()
        except StoreError as error:
            failure = error
        raise_on_all_ranks(failure)
        return newest

    def _newest(self) -> dict[str, TokenStore]:
        """Open the newest versions of the stores and tag them. A store with unchanged content stays at its version.

        Raises:
            StoreReplaced: If a store was replaced by another.
            StoreError: If builders remove each version before it is tagged.
        """
        for _ in range(KEEP_TRIES):
            newest = dict(self.serving.stores)
            for name, store in self.serving.stores.items():
                found = store.newest()
                if found.commit.extent != store.commit.extent:
                    newest[name] = found
            if not is_rank_zero() or all(store.keep_for_training() for store in newest.values()):
                return newest
            # A builder has removed one of these versions meanwhile.
            for name, store in newest.items():
                if store is not self.serving.stores[name]:
                    store.let_go()
        raise not_kept(self.serving.stores.values())

    def components(self) -> dict[str, dict[str, float]]:
        """Return the windows and epochs that each component of the mixture has served so far."""
        windows = self._had(self.value)
        rows = zip(self._mixture.orders, windows.tolist(), (windows / self._mixture.sizes).tolist(), strict=True)
        components: dict[str, dict[str, float]] = {}
        for name, consumed, epochs in rows:
            components[name] = {"windows": consumed, "epochs": epochs}
        return components

    def _had(self, position: int) -> np.ndarray:
        """Return the windows that each component has served up to a position."""
        windows = self._mixture.consumed(position - self.origin)
        for span in self.skips.spans:
            begin, end = (np.clip(span, self.origin, position) - self.origin).tolist()
            windows = windows - (self._mixture.consumed(end) - self._mixture.consumed(begin))
        return windows

    def epochs_of(self, windows: int, ahead: int) -> dict[str, float]:
        """Return the epochs that each component has had after as many windows of a run, some of which are ahead."""
        if not self.origin:
            return self._mixture.epochs_of(windows)
        # What was served before the mixture began is in what each component has had.
        had = self._had(self.skips.after(self.value, ahead))
        epochs = had / np.maximum(self._mixture.sizes, 1)
        return dict(zip(self._mixture.orders, epochs.tolist(), strict=True))

    def _consumed(self) -> np.ndarray:
        """Return the windows that each component has served, in the order of `mix`."""
        return self._mixture.consumed(self.value - self.origin)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain types, the same on all ranks."""
        state = {
            "cursor": self.value,
            "epoch": self.epoch,
            "epoch_start": self.epoch_start,
            "ended": self.ended,
            "origin": self.origin,
            "taken": self._mixture.taken.tolist(),
            "digest": f"{self._digest:016x}",
            "digest_from": self._digest_from,
            "num_windows": self.num_windows,
            **self.serving.describe(),
        }
        if self._grown:
            state["grown"] = [growth.described() for growth in self._grown]
        if self.serving.keeps_counts:
            state["consumed"] = self._consumed().tolist()
        if self.skips.ranges:
            state["skips"] = self.skips.described()
        if self.counted_from is not None:
            state["counted_from"] = self.counted_from._asdict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the tokens that the stores had then. A state that is refused changes nothing.

        Raises:
            StoreError: If the state is damaged; if its data or order differs and `on_data_change` is `error`, naming each
                field that differs; or if the stores never had its tokens.
        """
        resumed = self._resumed(state)
        # Lightning loads the same state more than once.
        if resumed._changes not in ("", self._changes):
            _log.warning("The data differs from the checkpoint's (%s): %s.", resumed._changes, self._on_data_change)
        if resumed._grew not in ("", self._grew) and is_rank_zero():
            _log.warning("%s", resumed._grew)
        vars(self).update(vars(resumed))

    def without_growth(self, state: Mapping[str, Any]) -> Cursor:
        """Return a cursor that continues from a state with the tokens that the stores had then. Raises as `load_state_dict`."""
        pinned = copy(self)
        pinned._grows = False
        return pinned._resumed(state)

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise as `load_state_dict` does, and change nothing."""
        self._resumed(state)

    def _resumed(self, state: Mapping[str, Any]) -> Cursor:
        """Return a copy of this cursor that continues from a state."""
        resumed = copy(self)
        try:
            resumed._continue_from(checked_state(state))
        except ConfigError as error:
            raise StoreError(f"The checkpoint does not fit this data: {error}") from error
        return resumed

    def _continue_from(self, state: Mapping[str, Any]) -> None:
        opened = self.serving
        self._grown = ()
        self._grew = ""
        same_windows = self._take_over(state)
        self._take_over_skips(state, same_windows)
        if self._grows:
            self._grow(opened)

    def _take_over_skips(self, state: Mapping[str, Any], same_windows: bool) -> None:
        """Leave out what a state leaves out: all that it has begun, and the rest if it is still asked for."""
        saved = Skips.of(state.get("skips", ()))
        begun: list[Skip] = []
        ahead: list[Skip] = []
        for skip in saved.ranges:
            if skip.begin < state["cursor"]:
                begun.append(skip)
            elif skip.steps in self._skip_steps:
                ahead.append(skip)
        if same_windows:
            self.skips = Skips((*begun, *ahead))
            return
        if self._changes and self._on_data_change == "restart":
            return
        unfinished = [*ahead, *Skips(tuple(begun)).unfinished(state["cursor"])]
        if unfinished:
            first = unfinished[0]
            raise StoreError(
                f"The checkpoint still leaves out steps {first.first_step:,} to {first.last_step - 1:,}, which have no place "
                "among other windows: change context_length, mix or the data after these steps, or take them out of "
                "skip_steps."
            )
        # Their positions are those of other windows. What was left out stays known.
        known = [skip._replace(begin=0, end=0) for skip in begun]
        self.skips = Skips(tuple(known))

    def _take_over(self, state: Mapping[str, Any]) -> bool:
        """Continue at the position of a state, and return whether that is among the very windows of the state."""
        differences = self.serving.differences(state)
        uris = [store.uri for store in self.serving.stores.values()]
        self._changes = described_changes(differences, state, uris)
        if differences:
            self._continue_with_other_data(state, "stores.forgotten" in differences)
            return False
        self.serving = self.serving.pinned(state)
        before = self._selection_of(state)
        check_epoch(state)
        # Components are counted in the order of `mix`, which equal dicts need not share.
        if [*before.mix] != [*self.serving.mix] or before.describe() != self.serving.describe():
            self._grown = self._kept_growths(state, before)
            self._convert(state, unchanged(self.serving, before))
            return False
        self._grown = _growths_in(state)
        self._mixture = self.serving.mixture(state["taken"], self._grown, state["origin"])
        self.value = state["cursor"]
        self.epoch = state["epoch"]
        self.epoch_start = state["epoch_start"]
        self.ended = state["ended"]
        self.origin = state["origin"]
        self._digest = int(state["digest"], 16)
        self._digest_from = state["digest_from"]
        self.counted_from = _counted_from(state)
        return True

    def _continue_with_other_data(self, state: Mapping[str, Any], forgotten: bool) -> None:
        """Restart or continue, as `on_data_change` says. StoreError if it is `error`."""
        if self._on_data_change == "error":
            cure = _RESTORE
            if forgotten:
                cure = (
                    "documents were forgotten since, and the version that holds them was removed, as by purge=true; it cannot "
                    "come back"
                )
            raise continues_other_data(self._changes, cure)
        check_epoch(state)
        if self._on_data_change == "restart":
            self.restart()
        else:
            self._convert(state, continued(self.serving, state))

    def _grow(self, opened: WindowSelection) -> None:
        """Go on, within the epoch, with what the stores held when they were opened, if more than the state says."""
        if self.ended or self.value == self.epoch_end:
            return  # the next epoch adopts it
        if self.steps_to_leave_out() or self.skips.unfinished(self.value):
            self._grew = "Steps are left out (skip_steps), so what was appended is adopted by the next epoch."
            return
        stores = dict(self.serving.stores)
        for name, store in opened.stores.items():
            before = self.serving.stores[name]
            if store.commit.tokens <= before.commit.tokens:
                continue
            if _continues(before, store, self.serving.split):
                stores[name] = store
            else:
                self._grew = (
                    "Documents were forgotten since the checkpoint, so what was appended is adopted by the next epoch."
                )
        if stores == self.serving.stores:
            return
        now = replace(self.serving, stores=stores)
        epochs, places = self._places()
        growth = Growth(self.serving.content(), epochs.tolist(), places.tolist())
        single = len(places) == 1 and places[0] == self.position
        added = now.num_tokens - self.serving.num_tokens
        self.serving = now
        self._grown = (*self._grown, growth)
        orders = now.mixture(None, self._grown).orders
        taken = _taken_before(growth, orders)
        if single:
            # The epoch of the only component ends with that of the run.
            self.value = self.epoch_start + taken[0] % now.mixture().num_windows
        if not any(isinstance(order, GrownOrder) for order in orders.values()):
            self._grown = ()
        self._move(taken)
        grew = f"The rest of epoch {self.epoch} also has the {format_tokens(added)} that were appended."
        self._grew = f"{grew} {now.means}".rstrip()

    def _selection_of(self, state: Mapping[str, Any]) -> WindowSelection:
        """Return the selection of a state of the very same stores. StoreError if its epoch has another length."""
        before = WindowSelection(self.serving.stores, **selected_by(state))
        windows = before.mixture().num_windows
        if windows != state["num_windows"]:
            raise StoreError(
                f"The checkpoint's epoch had {state['num_windows']:,} windows, but with this store it has {windows:,}: rows "
                "were deleted or added by another program; restore them, or start without the checkpoint."
            )
        return before

    def _kept_growths(self, state: Mapping[str, Any], before: WindowSelection) -> tuple[Growth, ...]:
        """Return the growths in a state, for the components in today's order; none for another context length."""
        grown = _growths_in(state)
        if grown and before.context_length != self.serving.context_length:
            if self.serving.order == "sequential":
                raise StoreError(
                    "The stores have grown within the epoch of the checkpoint (extend=now), so in sequential order the rest "
                    f"of it has no place with another context_length: finish it with {before.context_length}."
                )
            return ()
        names = [*weights_of(before.mix)]
        now = [*map(names.index, weights_of(self.serving.mix))]
        return tuple(growth.of_components(now) for growth in grown)

    def _convert(self, state: Mapping[str, Any], found: Continued) -> None:
        """Continue each component of a state with another context length, other weights or other data."""
        self.serving = found.serving
        orders = self.serving.orders()
        if state["ended"]:
            # Drop the windows that the epoch left over, as the begin of the next epoch does.
            state = {**state, "cursor": state["epoch_start"] + state["num_windows"]}
        position = self._convert_position(state, found, orders)
        self.epoch = state["epoch"]
        self.ended = state["ended"]
        self.epoch_start = self._convert_windows(state["epoch_start"], state)
        self.value = self.epoch_start + position
        self.counted_from = self._convert_count(_counted_from(state), state)
        consumed = _consumed_in(state)
        taken = dict.fromkeys(orders, 0)
        for name, order in orders.items():
            if name in found.known:
                known = found.known[name]
                taken[name] = self._convert_component(state, consumed[known.name], known.order, order)
            elif name == "":
                taken[name] = self.epoch * order.num_windows + position
            elif name in found.parts:
                taken[name] = self.epoch * order.num_windows
        self._move([*taken.values()])

    def _convert_component(
        self,
        state: Mapping[str, Any],
        windows: int,
        before: WindowOrder | PackedOrder | None,
        now: WindowOrder | PackedOrder,
    ) -> int:
        """Return the windows of a component that correspond to `windows` of its former order, over all epochs."""
        if before is not None:
            epochs, within = divmod(windows, before.num_windows)
            return epochs * now.num_windows + now.after(within, before)
        if state["mix"]:
            return self._convert_windows(windows, state)
        # Of a single component, the state records the length.
        size: int = state["num_windows"]
        epochs, within = divmod(windows, size)
        return epochs * now.num_windows + min(self._convert_windows(within, state), now.num_windows)

    def _convert_position(
        self, state: Mapping[str, Any], found: Continued, orders: Mapping[str, WindowOrder | PackedOrder]
    ) -> int:
        """Return the position in the epoch, in windows of today; the end of an epoch stays its end."""
        consumed = state["cursor"] - state["epoch_start"]
        size = sum(order.num_windows for order in orders.values())
        if consumed == state["num_windows"]:
            return size
        if len(orders) == len(state["taken"]) == 1:
            # With a single component, its epochs are those of the run.
            [(name, order)] = orders.items()
            known = found.known.get(name)
            if known is not None and known.order is not None:
                return order.after(consumed, known.order)
        return min(self._convert_windows(consumed, state), size)

    def _convert_windows(self, windows: int, state: Mapping[str, Any]) -> int:
        """Return the number of windows that have the tokens of `windows` of the state's context length, rounded up."""
        length: int = state["context_length"]
        return -(-windows * length // self.serving.context_length)

    def _convert_count(self, counted: CountedFrom | None, state: Mapping[str, Any]) -> CountedFrom | None:
        """Return where steps are counted from, in windows of today."""
        if counted is None:
            return None
        most = self.position if counted.epoch == self.epoch else self.serving.mixture().num_windows
        return counted._replace(place=min(self._convert_windows(counted.place, state), most))

    def _move(self, taken: Sequence[int]) -> None:
        """Begin a mixture at the cursor; `taken` are the windows that each component has served before."""
        furthest = max(self.value, *taken)
        if furthest > MOST:
            raise StoreError(
                f"The position in the data is {furthest:,} windows: expected 2**60 at most; use an unmodified checkpoint, or "
                "start without it."
            )
        self._mixture = self.serving.mixture(taken, self._grown, self.value)
        self.origin = self._digest_from = self.value
        self._digest = 0


def _continues(before: TokenStore, now: TokenStore, split: str) -> bool:
    """Return whether a store holds all that it held before, in streams that have grown at their ends only."""
    if now.commit.extent.forgotten != before.commit.extent.forgotten:
        return False
    sizes = tokens_by_language(now.streams(split))
    return all(sizes.get(stream.language, 0) >= stream.num_tokens for stream in before.streams(split))


def _without(stores: Iterable[TokenStore], others: Collection[TokenStore]) -> list[TokenStore]:
    """Return the stores that are not among others."""
    return [store for store in stores if store not in others]


def _growths_in(state: Mapping[str, Any]) -> tuple[Growth, ...]:
    """Return the growths in a state."""
    return tuple(map(Growth.of, state.get("grown", ())))


def _taken_before(growth: Growth, orders: Mapping[str, Ordered | PackedOrder]) -> list[int]:
    """Return the windows that each component had served when the stores grew, as its grown order counts them."""
    taken = []
    for epoch, place, order in zip(growth.epochs, growth.places, orders.values(), strict=True):
        here = place
        if isinstance(order, GrownOrder) and order.epoch == epoch:
            here = order.first_place
        taken.append(epoch * order.num_windows + here)
    return taken


def _counted_from(state: Mapping[str, Any]) -> CountedFrom | None:
    """Return where a state counts steps from; None for the begin of the run."""
    if "counted_from" in state:
        return CountedFrom(**state["counted_from"])
    return None


def _consumed_in(state: Mapping[str, Any]) -> dict[str, int]:
    """Return the windows that each component of a state has served in all epochs, by name."""
    weights = weights_of(state["mix"])
    if "consumed" in state:
        return dict(zip(weights, state["consumed"], strict=True))
    consumed = np.asarray(state["taken"]) + Schedule(weights).counts(state["cursor"] - state["origin"])
    return dict(zip(weights, consumed.tolist(), strict=True))
