"""Checkpoints: where they are, the position in the data that they have, and the stores that it is of."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.location import StoreLocation
from lightning_lance.serving.states import FIELDS, checked_state
from lightning_lance.store.token_store import TokenStore

# Lightning's name for it.
_WITHOUT_WEIGHTS = "meta.pt"


def checkpoint_at(place: str) -> str:
    """Return a checkpoint; of the folder of a run, or of its checkpoints, the newest `last.ckpt`.

    Of a checkpoint that is a folder, as FSDP saves its shards, it is the file with all but the weights.
    """
    if not Path(place).is_dir():
        return place
    if Path(place, _WITHOUT_WEIGHTS).is_file():
        return str(Path(place, _WITHOUT_WEIGHTS))
    found = []
    for folder in ("checkpoints", "."):
        for checkpoint in Path(place, folder).glob("last*.ckpt"):
            file = checkpoint if checkpoint.is_file() else checkpoint / _WITHOUT_WEIGHTS
            if file.is_file():
                found.append(file)
    if not found:
        raise ConfigError(
            f"There is no checkpoint in the folder {place!r}: expected a file, or the folder of a run, which has "
            "checkpoints/last.ckpt."
        )
    return str(max(found, key=lambda file: file.stat().st_mtime))


def find_loader_states(checkpoint: Any) -> Iterator[dict[str, Any]]:
    """Yield the states of loaders in a checkpoint of Lightning: the datamodule's and the loop's.

    The checkpoint may be nested to any depth, and may contain itself.
    """
    seen: set[int] = set()
    ahead = [checkpoint]
    while ahead:
        part = ahead.pop()
        if not isinstance(part, (Mapping, list, tuple)) or id(part) in seen:
            continue
        seen.add(id(part))
        # Including damaged states: `checked_state` reports missing and unknown fields.
        if isinstance(part, Mapping) and _is_loader_state(part):
            yield dict(part)
            continue
        inner = part.values() if isinstance(part, Mapping) else part
        # The first one is taken next.
        ahead += reversed([*inner])


def load_checkpoint(file: str) -> Any:
    """Read a checkpoint. Its tensors are loaded into memory when they are used.

    Raises:
        ConfigError: If the file is missing, or is not a checkpoint of plain data and tensors.
    """
    import torch

    if not Path(file).is_file():
        raise ConfigError(
            f"There is no checkpoint {file!r}: expected a file such as outputs/checkpoints/last.ckpt, or the folder of a run."
        )
    try:
        # Checkpoints in torch's legacy format cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    # pickle, zip and torch each raise their own.
    except Exception as error:
        objects = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if objects:
            raise ConfigError(
                f"The checkpoint {file!r} contains objects of {objects[1]}, which weights_only=True does not load: expected "
                "plain data and tensors; save it without these objects."
            ) from error
        raise ConfigError(
            f"{file!r} is not a checkpoint that loads with weights_only=True: expected a file from Lightning or torch.save, "
            "such as outputs/checkpoints/last.ckpt."
        ) from error


def state_in(checkpoint: Any, file: str) -> dict[str, Any]:
    """Return the state of a loader in a checkpoint, in plain types.

    Raises:
        ConfigError: If there is none.
        StoreError: If there are two that differ, or a damaged one.
    """
    states = list(map(checked_state, find_loader_states(checkpoint)))
    if not states:
        raise ConfigError(
            f"The checkpoint {file!r} contains no position in the data: expected one that was saved with a LanceDataModule."
        )
    first = states[0]
    for other in states[1:]:
        for name, value in first.items():
            if other.get(name) != value:
                raise StoreError(
                    f"The checkpoint {file!r} contains two positions in the data: {name} is {str(value)[:100]} and "
                    f"{str(other.get(name))[:100]}; use an unmodified checkpoint."
                )
    return first


def open_stores(
    state: Mapping[str, Any], uris: Mapping[str, str], storage_options: Mapping[str, str] | None
) -> dict[str, TokenStore]:
    """Open the stores of a state, by name.

    Args:
        state: Of a loader, checked.
        uris: Name to new address of stores that have moved; "" is the name of a single store.
        storage_options: Credentials and other options of object stores.

    Raises:
        ConfigError: If `uris` has a name that the state lacks.
        StoreError: If a store is not there.
    """
    names = [entry["name"] for entry in state["stores"]]
    for name in sorted(uris):
        if name not in names:
            expected = f"one of {', '.join(map(repr, names))}"
            if names == [""]:
                expected = "uri=PLACE for its only store"
            raise ConfigError(f"The checkpoint has no store {name!r}: expected {expected}.")
    stores = {}
    for entry in state["stores"]:
        name = entry["name"]
        if name not in uris and last_commit(StoreLocation(entry["uri"], storage_options)) is None:
            raise StoreError(
                f"There is no token store at {entry['uri']!r}, which the checkpoint was trained on: if it has moved, give its "
                f"new place with {name or 'uri'}=PLACE."
            )
        stores[name] = TokenStore.open(uris.get(name, entry["uri"]), storage_options=storage_options)
    return stores


def _is_loader_state(part: Mapping[Any, Any]) -> bool:
    return {"cursor", "digest", "stores"} <= {*part} or len(FIELDS & {*part}) > len(FIELDS) // 2
