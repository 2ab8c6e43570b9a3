"""The state of a loader in a checkpoint: its fields, and checks that they are consistent."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, StoreError, integer, word
from lightning_lance.serving.ordering.order import Order

# More windows than any run consumes, and few enough that sums of a few such numbers fit into 64 bits.
MOST = 1 << 60

_CURE = "use an unmodified checkpoint, or start without it"

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def _shown(value: Any) -> str:
    """Return a short description of a value of any size."""
    try:
        return _short.repr(value)
    except ValueError:
        # Python prints no number of thousands of digits.
        return f"a {type(value).__name__} too long to show"


class _Wrong(Exception):  # noqa: N818 # never leaves this module
    """A field has a wrong value; the message is the expected one."""


def _count(value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= MOST:
        raise _Wrong(f"a whole number from {least} to 2**60")
    return int(value)


def _positive(value: Any) -> int:
    return _count(value, 1)


def _seed(value: Any) -> int:
    try:
        return integer("seed", value)
    except ConfigError:
        raise _Wrong("a whole number") from None


def _block(value: Any) -> int | None:
    return None if value is None else _positive(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise _Wrong("true or false")
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong("a string")
    return word(value)


def _chosen(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _Wrong(f"one of {', '.join(choices)}")
        return word(value)

    return read


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{16}", value):
        raise _Wrong("16 hexadecimal digits")
    return word(value)


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def read_list(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise _Wrong("a list")
        return [*map(read, value)]

    return read_list


def _mapping_of(read: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def read_mapping(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _Wrong("a mapping")
        return {_text(name): read(part) for name, part in value.items()}

    return read_mapping


def _entry(value: Any, fields: Mapping[str, Callable[[Any], Any]], expected: str) -> dict[str, Any]:
    """Return a mapping that has just these fields, each as it is read."""
    if not isinstance(value, Mapping) or {*value} != {*fields}:
        raise _Wrong(expected)
    plain: dict[str, Any] = {}
    for name, read in fields.items():
        plain[name] = read(value[name])
    return plain


def _words(value: Any) -> list[str]:
    return sorted(set(_list_of(_text)(value)))


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise _Wrong("weights above 0")
    return float(value)


_STORE: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "uri": _text,
    "fingerprint": _text,
    "tokens": _count,
    "forgotten": _list_of(_text),
    "version": _positive,
}


def _stores(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _Wrong("a list of stores")
    entries = []
    names = set()
    for entry in value:
        plain = _entry(entry, _STORE, f"stores with {', '.join(_STORE)} each")
        entries.append(plain)
        names.add(plain["name"])
    if len(names) < len(entries):
        raise _Wrong("stores of different names")
    return entries


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "cursor": _count,
    "epoch": _count,
    "epoch_start": _count,
    "ended": _flag,
    "origin": _count,
    "taken": _list_of(_count),
    "digest": _digest,
    "digest_from": _count,
    "num_windows": _positive,
    "stores": _stores,
    "split": _chosen(SPLITS),
    "context_length": _positive,
    "order": _chosen(get_args(Order)),
    "seed": _seed,
    "shuffle_block": _block,
    "where": _mapping_of(_words),
    "mix": _mapping_of(_weight),
}


def _growths(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _Wrong("a list of growths")
    growths = []
    for growth in value:
        growths.append(_entry(growth, _GROWTH, f"growths with {', '.join(_GROWTH)} each"))
    return growths


_GROWTH: dict[str, Callable[[Any], Any]] = {
    "tokens": _list_of(_count),
    "streams": _list_of(_mapping_of(_count)),
    "epochs": _list_of(_count),
    "places": _list_of(_count),
}


def _phases(value: Any) -> list[list[Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _Wrong("a list of weights, and the tokens from which on they count")
    phases = []
    for entry in value:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise _Wrong("pairs of a token and weights")
        phases.append([_count(entry[0]), _mapping_of(_weight)(entry[1])])
    return phases


def _skips(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _Wrong("a list of steps that are left out")
    skips = []
    for entry in value:
        plain = _entry(entry, _SKIP, f"ranges with {', '.join(_SKIP)} each")
        if len(plain["steps"]) != 2 or plain["begin"] > plain["end"]:
            raise _Wrong("ranges of two steps, with a begin up to the end")
        skips.append(plain)
    return skips


_SKIP: dict[str, Callable[[Any], Any]] = {"steps": _list_of(_count), "begin": _count, "end": _count}

_COUNTED_FROM: dict[str, Callable[[Any], Any]] = {"epoch": _count, "first": _count, "step": _count, "place": _count}


def _counted_from(value: Any) -> dict[str, int]:
    return _entry(value, _COUNTED_FROM, f"a mapping with {', '.join(_COUNTED_FROM)}")


# Where the stores have grown within an epoch that is still served; where the run leaves steps out; and where windows are not
# pieces of the streams; and where the weights change, or count documents.
_OPTIONAL_FIELDS: dict[str, Callable[[Any], Any]] = {
    "grown": _growths,
    "skips": _skips,
    "windows": _chosen(("packed",)),
    "mix_schedule": _phases,
    "max_epochs": _mapping_of(_weight),
    "at_max_epochs": _chosen(("redistribute", "error")),
    "consumed": _list_of(_count),
    "mix_by": _chosen(("documents",)),
    "counted_from": _counted_from,
}

#: The names of the fields that every state has.
FIELDS = frozenset(_FIELDS)


def checked_state(state: Any) -> dict[str, Any]:
    """Return a state of a `WindowLoader` in plain values, after checking each field and their consistency.

    Nothing is read, and the time does not depend on the numbers. `check_epoch` checks the rest, once the length of the
    epoch is known to be right.

    Raises:
        StoreError: If a field is missing, unknown or wrong, or two fields contradict each other.
    """
    if not isinstance(state, Mapping):
        raise StoreError(f"The state is {_shown(state)}: expected the mapping that WindowLoader.state_dict() returned.")
    missing = sorted(FIELDS - state.keys())
    if missing:
        raise StoreError(
            f"The state lacks {', '.join(missing)}: expected a state saved by this version of lightning-lance; {_CURE}."
        )
    for name in state:
        if name not in FIELDS and name not in _OPTIONAL_FIELDS:
            raise StoreError(
                f"The state has the unknown field {_shown(name)}: expected a state saved by this version of lightning-lance; "
                f"{_CURE}."
            )
    plain: dict[str, Any] = {}
    for name, read in (*_FIELDS.items(), *_OPTIONAL_FIELDS.items()):
        if name not in state:
            continue
        try:
            plain[name] = read(state[name])
        except _Wrong as expected:
            raise StoreError(f"The state's {name} is {_shown(state[name])}: expected {expected}; {_CURE}.") from None
    contradiction = _contradiction(plain)
    if contradiction:
        raise _contradicts(contradiction)
    return plain


def checked_begins(begins: Any) -> dict[int, int]:
    """Return the position of each epoch, of pairs; see `WindowLoader.begins`. StoreError if they are none."""
    expected = "pairs of an epoch and a position"
    try:
        pairs = _list_of(_list_of(_count))(begins)
    except _Wrong:
        raise StoreError(f"The begins of batches are {_shown(begins)}: expected {expected}; {_CURE}.") from None
    for pair in pairs:
        if len(pair) != 2:
            raise StoreError(f"The begins of batches have {_shown(pair)}: expected {expected}; {_CURE}.")
    return dict(pairs)


def check_epoch(state: Mapping[str, Any]) -> None:
    """Check the numbers of a checked state against its length of an epoch.

    Raises:
        StoreError: If they contradict each other.
    """
    cursor = state["cursor"]
    epoch = state["epoch"]
    begin = state["epoch_start"]
    size = state["num_windows"]
    if cursor > begin + size:
        raise _contradicts(f"the cursor is at {cursor:,}, beyond the end of its epoch at {begin + size:,}")
    if state["origin"]:
        # All epochs since the origin have this size. The origin lies in the epoch before them.
        since = max(0, -(-(begin - state["origin"]) // size))
        consistent = epoch >= since and begin >= since * size
    else:
        consistent = begin == epoch * size
    if not consistent:
        raise _contradicts(f"epoch {epoch:,} begins at {begin:,}, with epochs of {size:,} windows")


def _contradicts(contradiction: str) -> StoreError:
    return StoreError(f"The state contradicts itself: {contradiction}; {_CURE}.")


def _contradiction(state: Mapping[str, Any]) -> str:
    """Return the contradiction in a state of valid fields; empty if there is none."""
    cursor = state["cursor"]
    begin = state["epoch_start"]
    origin = state["origin"]
    wrong = _wrong_components(state)
    if wrong:
        return wrong
    if begin > cursor:
        return f"its epoch begins at {begin:,}, beyond the cursor at {cursor:,}"
    if not max(origin, begin) <= state["digest_from"] <= cursor:
        return (
            f"digest_from is {state['digest_from']:,}, with an epoch from {begin:,}, a mixture from {origin:,} and the "
            f"cursor at {cursor:,}"
        )
    if state["digest_from"] == cursor and int(state["digest"], 16):
        return f"the digest covers no window, but is {state['digest']}"
    if state["ended"] and cursor == begin:
        return "the epoch has ended, but none of its windows is consumed"
    if not origin and any(state["taken"]):
        return f"taken is {_shown(state['taken'])}, but the mixture begins at 0"
    if "counted_from" in state and not _may_be_counted_from(state):
        return f"steps are counted from {state['counted_from']}, with epoch {state['epoch']:,} from {begin:,}"
    if state["shuffle_block"] is not None and state["order"] != "shuffle":
        return f"shuffle_block is {state['shuffle_block']} with order {state['order']!r}"
    return ""


def _may_be_counted_from(state: Mapping[str, Any]) -> bool:
    """Return whether steps may be counted from the place that a state says."""
    counted = state["counted_from"]
    most = state["num_windows"]
    if counted["epoch"] == state["epoch"]:
        most = state["cursor"] - state["epoch_start"]
    return bool(counted["epoch"] <= state["epoch"] and counted["first"] <= counted["step"] and counted["place"] <= most)


def _wrong_components(state: Mapping[str, Any]) -> str:
    """Return what is wrong with the numbers of a state's components; empty if nothing is."""
    components = len(state["mix"]) or 1
    if len(state["taken"]) != components:
        return f"taken has {len(state['taken']):,} numbers, but there are {components} components"
    if len(state.get("consumed", state["taken"])) != components:
        return f"consumed has {len(state['consumed']):,} numbers, but there are {components} components"
    for growth in state.get("grown", ()):
        stores = len(state["stores"])
        sizes = [len(growth["tokens"]), len(growth["streams"]), len(growth["epochs"]), len(growth["places"])]
        if sizes != [stores, stores, components, components]:
            return f"grown has {sizes} entries, but there are {stores} stores and {components} components"
    return ""
