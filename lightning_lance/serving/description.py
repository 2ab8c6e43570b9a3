"""The description of a selection in a state: what it says of the stores, and how it differs from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_lance.format.layout import StoreContent
from lightning_lance.store.token_store import TokenStore


def selected_by(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `WindowSelection`, but for its stores, in a checked state."""
    names = ("split", "context_length", "order", "seed", "shuffle_block", "where", "mix")
    optional = ("windows", "mix_schedule", "max_epochs", "at_max_epochs", "mix_by")
    return {name: state[name] for name in (*names, *optional) if name in state}


def known_differences(
    state: Mapping[str, Any], selected: Mapping[str, Any], fingerprints: Mapping[str, str | None]
) -> dict[str, tuple[Any, Any]]:
    """Compare a state with what a run will serve, before its stores are there; see `WindowSelection.differences`.

    Args:
        state: Of a loader, checked.
        selected: The arguments of the run's `WindowSelection`, but for its stores.
        fingerprints: Name to fingerprint of its stores, in their order; None where it is not known yet.
    """
    stores: list[dict[str, Any]] = [
        {"name": name, "fingerprint": known, "forgotten": []} for name, known in fingerprints.items()
    ]
    before = comparable(state)
    now = comparable({"split": "train", **selected, "stores": stores})
    if before["stores.name"] == now["stores.name"]:
        for place, fingerprint in enumerate(fingerprints.values()):
            if fingerprint is None:
                now["stores.fingerprint"][place] = before["stores.fingerprint"][place]
    elif None in now["stores.fingerprint"]:
        del before["stores.fingerprint"]
    # Only a store that is there says what it forgot.
    del before["stores.forgotten"]
    return changes(before, now)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields of `before` that have another value now: (value before, value now)."""
    return {name: (value, now[name]) for name, value in before.items() if value != now[name]}


def comparable(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description that `WindowSelection.differences` compares."""
    fields = {name: described[name] for name in ("split", "order", "seed", "shuffle_block", "where")}
    fields["mix"] = sorted(described["mix"])
    fields["windows"] = described.get("windows", "stream")
    for name in ("name", "fingerprint", "forgotten"):
        fields[f"stores.{name}"] = [entry[name] for entry in described["stores"]]
    return fields


def store_entry(name: str, store: TokenStore) -> dict[str, Any]:
    """Return the entry of a store in a description."""
    return {
        "name": name,
        "uri": store.uri,
        "fingerprint": store.fingerprint,
        "tokens": store.commit.tokens,
        "forgotten": [*store.commit.extent.forgotten],
        "version": store.version,
    }


def entries_by_name(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entries of the stores in a description."""
    return {entry["name"]: entry for entry in state["stores"]}


def extent_in(described: Mapping[str, Any]) -> StoreContent:
    """Return the content of a store from its entry in a description (`WindowSelection.describe`)."""
    return StoreContent(described["tokens"], tuple(described["forgotten"]))
