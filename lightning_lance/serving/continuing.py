"""What of a checkpoint's place is known where the data has changed since: which component is which, and how long it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lightning_lance.errors import StoreError
from lightning_lance.serving.order import WindowOrder
from lightning_lance.serving.selection import WindowSelection, extent_in
from lightning_lance.store.token_store import TokenStore


class Known(NamedTuple):
    """A component that was served before: its name then, and the order that it had; None where its tokens are not known."""

    name: str
    order: WindowOrder | None


@dataclass(frozen=True)
class Continued:
    """What goes on, and how.

    Attributes:
        serving: What is served from now on: stores that the state knows, at the tokens that they had then.
        known: Component to what it was.
        parts: Components that were served as a part of a larger one, so that their own place is not known.
    """

    serving: WindowSelection
    known: Mapping[str, Known]
    parts: frozenset[str]


class _Identity(NamedTuple):
    """What a component is, whatever it is called: the stores that it is of, and the language if it is of one alone."""

    stores: frozenset[str]
    language: str | None


def unchanged(serving: WindowSelection, before: WindowSelection) -> Continued:
    """Say that all components are known, by their names, of the very same stores."""
    mixture = before.mixture()
    known = {name: Known(name, order) for name, order in zip(mixture.names, mixture.orders, strict=True)}
    return Continued(serving, known, frozenset())


def continued(serving: WindowSelection, state: Mapping[str, Any]) -> Continued:
    """Find the components of a state, a checked one, in what is served now.

    A store is known by its name, or, where it was renamed, by its fingerprint. Of a store whose content is another one the
    length of an epoch is not known any more.
    """
    entries = {entry["name"]: entry for entry in state["stores"]}
    names = _names_then(serving.stores, entries)
    stores = {name: _as_it_was(store, entries.get(names[name])) for name, store in serving.stores.items()}
    same = {names[name]: store for name, store in stores.items() if store is not None}
    serving = replace(serving, stores={name: stores[name] or store for name, store in serving.stores.items()})

    then = {_identity(name, [*entries], bool(state["mix"])): name for name in [*state["mix"]] or [""]}
    every = frozenset(entries)
    known, parts = {}, set()
    for name in [*serving.mix] or [""]:
        identity = _identity_now(name, serving, names)
        if identity in then:
            known[name] = Known(then[identity], _order_then(identity, state, same))
        elif _Identity(every, None) in then and identity.stores <= every:
            parts.add(name)
    return Continued(serving, known, frozenset(parts))


def _names_then(stores: Mapping[str, TokenStore], entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Find what each store was called: name to name then. One that was not there gets a name that no store had."""
    left = {name: entry for name, entry in entries.items() if name not in stores}
    names = {}
    for name, store in stores.items():
        renamed = [old for old, entry in left.items() if entry["fingerprint"] == store.fingerprint]
        if name in entries:
            names[name] = name
        elif renamed:
            names[name] = renamed[0]
            del left[renamed[0]]
        else:
            names[name] = f"\0{name}"
    return names


def _as_it_was(store: TokenStore, entry: Mapping[str, Any] | None) -> TokenStore | None:
    """Return a store with the tokens that it had; None if it is not the same one, or cannot go back."""
    if entry is None or entry["fingerprint"] != store.fingerprint:
        return None
    extent = extent_in(entry)
    try:
        return None if store.forgot(extent) else store.at(extent)
    except StoreError:
        return None


def _identity(name: str, stores: list[str], mixed: bool) -> _Identity:
    if not mixed:
        return _Identity(frozenset(stores), None)
    if len(stores) > 1:
        return _Identity(frozenset([name]), None)
    return _Identity(frozenset(stores), name)


def _identity_now(name: str, serving: WindowSelection, names: Mapping[str, str]) -> _Identity:
    """Return what a component of now is, by the names that the stores had."""
    if serving.mix and len(serving.stores) > 1:
        name = names[name]
    return _identity(name, [*names.values()], bool(serving.mix))


def _order_then(identity: _Identity, state: Mapping[str, Any], same: Mapping[str, TokenStore]) -> WindowOrder | None:
    """Return the order that a component had, for counting; None if a store of it is not the same one."""
    if not identity.stores <= {*same}:
        return None
    wanted = {*state["where"].get("language", ())}
    streams = [
        stream
        for entry in state["stores"]
        if entry["name"] in identity.stores
        for stream in same[entry["name"]].streams(state["split"])
        if (not wanted or stream.language in wanted) and identity.language in (None, stream.language)
    ]
    order = WindowOrder(streams, state["context_length"], state["order"], (), state["shuffle_block"])
    wrong = not state["mix"] and order.num_windows != state["num_windows"]
    return None if wrong or not order.num_windows else order
