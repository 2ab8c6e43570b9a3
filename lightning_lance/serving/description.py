"""The description of a selection in a state: what it says of the stores, and how it differs from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_lance.format.layout import StoreContent
from lightning_lance.store.token_store import TokenStore


def selected_by(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a `WindowSelection`, but for its stores, in a checked state."""
    names = ("split", "context_length", "order", "seed", "shuffle_block", "where", "mix")
    optional = ("windows", "mix_schedule", "max_epochs", "at_max_epochs", "mix_by")
    selected: dict[str, Any] = {}
    for name in (*names, *optional):
        if name in state:
            selected[name] = state[name]
    return selected


def known_differences(
    state: Mapping[str, Any], selected: Mapping[str, Any], fingerprints: Mapping[str, str | None]
) -> dict[str, tuple[Any, Any]]:
    """Compare a state with what a run will serve, before its stores are there; see `WindowSelection.differences`.

    Args:
        state: Of a loader, checked.
        selected: The arguments of the run's `WindowSelection`, but for its stores.
        fingerprints: Name to fingerprint of its stores, in their order; None where it is not known yet.
    """
    stores: list[dict[str, Any]] = []
    for name, fingerprint in fingerprints.items():
        stores.append({"name": name, "fingerprint": fingerprint, "forgotten": []})
    before = comparable(state)
    now = comparable({"split": "train", **selected, "stores": stores})
    if before["stores.name"] == now["stores.name"]:
        for place, known in enumerate(fingerprints.values()):
            if known is None:
                now["stores.fingerprint"][place] = before["stores.fingerprint"][place]
    elif None in now["stores.fingerprint"]:
        del before["stores.fingerprint"]
    # Only a store that is there says what it forgot.
    del before["stores.forgotten"]
    return changes(before, now)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields of `before` that have another value now: (value before, value now)."""
    changed: dict[str, tuple[Any, Any]] = {}
    for name, value in before.items():
        if value != now[name]:
            changed[name] = (value, now[name])
    return changed


def described_changes(differences: Mapping[str, tuple[Any, Any]], state: Mapping[str, Any], uris: Sequence[str]) -> str:
    """Return the differences between a state and the data, for a message.

    Args:
        differences: Field to the state's value and that of the data; see `WindowSelection.differences`.
        state: The state.
        uris: Places of the stores now.
    """
    sentences: list[str] = []
    for name, (before, now) in differences.items():
        if name == "stores.fingerprint":
            sentences.append(_other_stores(state, uris))
        else:
            sentences.append(f"{name}: {before!r} -> {now!r}")
    return "; ".join(sentences)


def _other_stores(state: Mapping[str, Any], uris: Sequence[str]) -> str:
    """Return, for a message, that the stores of a state were built in another way."""
    before = ", ".join(entry["uri"] for entry in state["stores"])
    now = ", ".join(uris)
    if before == now:
        return "stores: built with other settings"
    return f"stores: {before!r} -> {now!r}, built with other settings"


def comparable(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description that `WindowSelection.differences` compares."""
    fields: dict[str, Any] = {}
    for name in ("split", "order", "seed", "shuffle_block", "where"):
        fields[name] = described[name]
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
