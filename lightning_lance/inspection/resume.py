"""Prove that a checkpoint resumes correctly: recompute the digest of its windows, and show the next ones."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.location import StoreLocation, check_place
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import pluralize
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.skips import Skip
from lightning_lance.serving.states import FIELDS, checked_state
from lightning_lance.store.token_store import TokenStore
from lightning_lance.type_hints import check_arguments

# Windows located at a time.
_AT_ONCE = 1 << 16
# Windows shown.
_NEXT = 4


def find_loader_states(checkpoint: Any) -> Iterator[dict[str, Any]]:
    """Yield the states of loaders in a checkpoint of Lightning: the datamodule's and the loop's.

    The checkpoint may be nested to any depth, and may contain itself.
    """
    seen: set[int] = set()
    ahead = [iter([checkpoint])]
    while ahead:
        part = next(ahead[-1], None)
        if part is None:
            ahead.pop()
        if not isinstance(part, (Mapping, list, tuple)) or id(part) in seen:
            continue
        seen.add(id(part))
        # Including damaged states: `checked_state` reports missing and unknown fields.
        if isinstance(part, Mapping) and _is_loader_state(part):
            yield dict(part)
            continue
        inner = part.values() if isinstance(part, Mapping) else part
        # None would end the iterator.
        ahead.append(iter([value for value in inner if value is not None]))


def load_checkpoint(file: str) -> Any:
    """Read a checkpoint. Its tensors are loaded into memory when they are used.

    Raises:
        ConfigError: If the file is missing, or is not a checkpoint of plain data and tensors.
    """
    import torch

    if not Path(file).is_file():
        raise ConfigError(f"There is no checkpoint {file!r}.")
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


def verify_resume(file: str, uris: Mapping[str, str], storage_options: Mapping[str, str] | None = None) -> str:
    """Recompute the digest of the windows of a checkpoint's epoch, compare it with the saved one, and show the next windows.

    Args:
        file: A checkpoint of Lightning, or any other with the `state_dict` of a `WindowLoader` in it; of the folder of a run,
            its newest `last.ckpt`.
        uris: Name to new address of stores that have moved; "" is the name of a single store.
        storage_options: Credentials and other options of object stores.

    Returns:
        The report, several lines.

    Raises:
        ConfigError: If `file` is not a checkpoint, or contains no state of a loader.
        StoreError: If the checkpoint contradicts itself, its stores, or this order.
    """
    check_arguments(verify_resume, {"uris": uris})
    file = checkpoint_at(check_place("file", file, "outputs/checkpoints/last.ckpt"))
    checkpoint = load_checkpoint(file)
    first = _state_in(checkpoint, file)
    try:
        return "\n".join(map(shown, _report(file, first, uris, storage_options)))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, LightningLanceError):
            raise
        raise _impossible(file, f"{type(error).__name__}: {error}") from error


def checkpoint_at(place: str) -> str:
    """Return a checkpoint; of the folder of a run, or of its checkpoints, the newest `last.ckpt`."""
    if not Path(place).is_dir():
        return place
    found = [
        file for folder in ("checkpoints", ".") for file in Path(place, folder).glob("last*.ckpt") if file.is_file()
    ]
    if not found:
        raise ConfigError(
            f"There is no checkpoint in the folder {place!r}: expected a file, or the folder of a run, which has "
            "checkpoints/last.ckpt."
        )
    return str(max(found, key=lambda file: file.stat().st_mtime))


def _is_loader_state(part: Mapping[Any, Any]) -> bool:
    return {"cursor", "digest", "stores"} <= {*part} or len(FIELDS & {*part}) > len(FIELDS) // 2


def _report(
    file: str, first: dict[str, Any], uris: Mapping[str, str], storage_options: Mapping[str, str] | None
) -> Iterator[str]:
    cursor = _open_cursor(first, uris, storage_options)
    begin = cursor.state_dict()["digest_from"]
    end = cursor.value
    if not cursor.epoch_start <= begin <= end <= cursor.epoch_end:
        raise _impossible(
            file, f"windows {begin:,} to {end:,} of an epoch from {cursor.epoch_start:,} to {cursor.epoch_end:,}"
        )
    began = time.monotonic()
    served = cursor.skips.served(begin, end)
    total = 0
    for low in range(begin, end, _AT_ONCE):
        high = min(low + _AT_ONCE, end)
        positions = cursor.skips.take(low, cursor.skips.served(low, high))
        total += int(cursor.digests(positions, cursor.locate(positions)).sum(dtype=np.uint64))
    seconds = time.monotonic() - began
    digest = f"{total % 2**64:016x}"
    if digest != first["digest"]:
        raise StoreError(
            f"The {pluralize(served, 'window')} that this version of lightning-lance serves differ from those of the "
            "checkpoint, so a resumed run would see other data: use the version that saved the checkpoint."
        )
    yield (
        f"{file}: epoch {cursor.epoch}, {cursor.position:,} of its {cursor.num_windows:,} windows of "
        f"{cursor.serving.context_length} tokens are consumed (cursor {cursor.value:,})."
    )
    versions = ", ".join(f"{store.uri} version {store.version}" for store in cursor.serving.stores.values())
    for skip in cursor.skips.ranges:
        yield f"steps {skip.first_step:,} to {skip.last_step - 1:,} are left out: {_places(skip)}."
    yield f"digest OK: {pluralize(served, 'window')} recomputed in {seconds:.1f} s, in {versions}"
    yield "next:"
    yield from _next_windows(cursor)


def _state_in(checkpoint: Any, file: str) -> dict[str, Any]:
    """Return the state of a loader in a checkpoint, in plain types.

    Raises:
        ConfigError: If there is none.
        StoreError: If there are two that differ, or a damaged one.
    """
    states = [checked_state(state) for state in find_loader_states(checkpoint)]
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


def _impossible(file: str, reason: str) -> ConfigError:
    return ConfigError(
        f"The checkpoint {file!r} has an impossible position in the data ({reason[:300]}): use an unmodified checkpoint."
    )


def _open_cursor(
    state: Mapping[str, Any], uris: Mapping[str, str], storage_options: Mapping[str, str] | None
) -> Cursor:
    names = [entry["name"] for entry in state["stores"]]
    for name in sorted(uris):
        if name not in names:
            expected = "uri=PLACE for its only store" if names == [""] else f"one of {', '.join(map(repr, names))}"
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
    fields = ("split", "context_length", "order", "seed", "shuffle_block", "where", "mix")
    try:
        skip_steps = [skip["steps"] for skip in state.get("skips", ())]
        cursor = Cursor(WindowSelection(stores, **{name: state[name] for name in fields}), skip_steps=skip_steps)
    except ConfigError as error:
        raise StoreError(f"The checkpoint does not fit these stores: {error}") from error
    cursor.load_state_dict(state)
    return cursor


def _places(skip: Skip) -> str:
    if skip.begin == skip.end:
        return "before the data, the weights or context_length changed"
    return f"windows {skip.begin:,} to {skip.end - 1:,}"


def _next_windows(cursor: Cursor) -> Iterator[str]:
    if cursor.ended:
        cursor.next_epoch(extend=False)
    positions = cursor.skips.take(cursor.value, min(_NEXT, cursor.left))
    found = cursor.locate(positions)
    tokens = cursor.serving.read(found)
    names = list(cursor.serving.stores)
    store = next(iter(cursor.serving.stores.values()))
    tokenizer = None
    # Without a tokenizer, the ids are shown.
    with suppress(LightningLanceError):
        tokenizer = store.tokenizer
    places = zip(positions.tolist(), found.store.tolist(), found.start.tolist(), tokens[:, :24].tolist(), strict=True)
    for position, number, start, window in places:
        of_store = f" of {names[number]}" if len(names) > 1 else ""
        text = repr(tokenizer.decode(window))[:70] if tokenizer else " ".join(map(str, window[:12]))
        yield f"  window {position:,} at token {start:,}{of_store}: {text}"
