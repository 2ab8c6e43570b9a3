"""Match the components of a checkpoint with today's, where the data has changed since it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lightning_lance.errors import StoreError
from lightning_lance.serving.description import entries_by_name, extent_in
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.serving.ordering.packing import PackedOrder
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.store.token_store import TokenStore


class Known(NamedTuple):
    """A component of the checkpoint: its name and order there. The order is None if its tokens are no longer known."""

    name: str
    order: WindowOrder | PackedOrder | None


@dataclass(frozen=True)
class Continued:
    """A selection that continues a checkpoint.

    Attributes:
        serving: The selection to serve. Stores of the checkpoint are opened at the tokens they had there.
        known: Name of a component to the same component in the checkpoint.
        parts: Components that were part of a larger one, so that their own position is unknown.
    """

    serving: WindowSelection
    known: Mapping[str, Known]
    parts: frozenset[str]


class _Identity(NamedTuple):
    """The content of a component, whatever its name: its stores, and its language if it is limited to one."""

    stores: frozenset[str]
    language: str | None


def unchanged(serving: WindowSelection, before: WindowSelection) -> Continued:
    """Return all components as known, where the stores are the very same."""
    known: dict[str, Known] = {}
    for name, order in before.orders().items():
        known[name] = Known(name, order)
    return Continued(serving, known, frozenset())


def continued(serving: WindowSelection, state: Mapping[str, Any]) -> Continued:
    """Find the components of a checked state in the selection.

    A store is recognized by its name or, if it was renamed, by its fingerprint. Once the content of a store is another, the
    length of its epoch in the checkpoint is unknown.
    """
    entries = entries_by_name(state)
    old_names = _old_names(serving.stores, entries)
    stores = dict(serving.stores)
    same: dict[str, TokenStore] = {}
    for name, store in serving.stores.items():
        restored = _restored(store, entries.get(old_names[name]))
        if restored is not None:
            stores[name] = restored
            same[old_names[name]] = restored
    serving = replace(serving, stores=stores)

    old_components: dict[_Identity, str] = {}
    for name in [*state["mix"]] or [""]:
        old_components[_identity(name, [*entries], bool(state["mix"]))] = name
    all_stores = frozenset(entries)
    known: dict[str, Known] = {}
    parts: set[str] = set()
    for name in [*serving.mix] or [""]:
        old_name = old_names[name] if serving.mix and len(serving.stores) > 1 else name
        identity = _identity(old_name, [*old_names.values()], bool(serving.mix))
        if identity in old_components:
            known[name] = Known(old_components[identity], _old_order(identity, state, same))
        elif _Identity(all_stores, None) in old_components and identity.stores <= all_stores:
            parts.add(name)
    return Continued(serving, known, frozenset(parts))


def _old_names(stores: Mapping[str, TokenStore], entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the name of each store in the checkpoint. A store that is new gets a name that no store had."""
    # Names in the checkpoint that no store has now, by fingerprint.
    unmatched: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if name not in stores:
            unmatched.setdefault(entry["fingerprint"], []).append(name)
    old_names: dict[str, str] = {}
    for name, store in stores.items():
        renamed = unmatched.get(store.fingerprint)
        if name in entries:
            old_names[name] = name
        elif renamed:
            old_names[name] = renamed.pop(0)
        else:
            old_names[name] = f"\0{name}"
    return old_names


def _restored(store: TokenStore, entry: Mapping[str, Any] | None) -> TokenStore | None:
    """Return a store with its tokens in the checkpoint; None if it is another store, or those tokens are gone."""
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


def _old_order(identity: _Identity, state: Mapping[str, Any], same: Mapping[str, TokenStore]) -> WindowOrder | None:
    """Return the order that a component had, for counting; None if one of its stores has changed."""
    if not identity.stores <= {*same}:
        return None
    languages = {*state["where"].get("language", ())}
    streams = []
    for entry in state["stores"]:
        if entry["name"] not in identity.stores:
            continue
        for stream in same[entry["name"]].streams(state["split"]):
            selected = not languages or stream.language in languages
            if selected and identity.language in (None, stream.language):
                streams.append(stream)
    if "windows" in state:
        return None
    order = WindowOrder(streams, state["context_length"], state["order"], (), state["shuffle_block"])
    if not order.num_windows or (not state["mix"] and order.num_windows != state["num_windows"]):
        return None
    return order
