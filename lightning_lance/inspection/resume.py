"""Proof that a checkpoint continues where it says: its windows worked out anew, and those that come next."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lightning_lance.build.kept_tokenizer import tokenizer_beside
from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.location import check_place
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import pluralize
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.states import FIELDS, checked_state
from lightning_lance.store.token_store import TokenStore
from lightning_lance.type_hints import check_arguments

# Windows worked out at a time.
_AT_ONCE = 1 << 16
_NEXT = 4


def find_loader_states(checkpoint: Any) -> Iterator[dict[str, Any]]:
    """Find the places in the data that a checkpoint of Lightning holds: that of the datamodule, and that of the loop.

    However deep it is nested, and also where it contains itself.
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
        # Also one that lacks some of its fields, or has others besides: that is for its check to say.
        if isinstance(part, Mapping) and _is_place(part):
            yield dict(part)
            continue
        inner = part.values() if isinstance(part, Mapping) else part
        ahead.append(iter([value for value in inner if value is not None]))


def load_checkpoint(file: str) -> Any:
    """Read a checkpoint, of which no tensor comes into memory before it is used.

    Raises:
        ConfigError: If there is none, or it is no checkpoint of plain data and tensors.
    """
    import torch

    if not Path(file).is_file():
        raise ConfigError(f"There is no checkpoint {file!r}.")
    try:
        # Checkpoints of old cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # pickle, zip and torch have their own
        if objects := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise ConfigError(
                f"The checkpoint {file!r} holds objects of {objects[1]}, expected plain data and tensors only, as "
                "weights_only=True loads them: save it without them."
            ) from error
        raise ConfigError(
            f"{file!r} is no checkpoint that loads with weights_only=True: give a file that Lightning or torch.save wrote, "
            "such as outputs/checkpoints/last.ckpt."
        ) from error


def verify_resume(file: str, uris: Mapping[str, str], storage_options: Mapping[str, str] | None = None) -> str:
    """Work out anew all windows of the checkpoint's epoch, hold their digest against the saved one, and show what is next.

    Args:
        file: A checkpoint of Lightning, or one of your own with the `state_dict` of a `WindowLoader` anywhere in it.
        uris: Name to place of stores that have moved; "" is the name of a single one.
        storage_options: Credentials and such for object stores.

    Returns:
        Some lines that say so.

    Raises:
        ConfigError: If `file` is no checkpoint, or has no place in the data.
        StoreError: If the checkpoint contradicts itself, its stores, or this order.
    """
    check_arguments(verify_resume, {"uris": uris})
    file = check_place("file", file, "outputs/checkpoints/last.ckpt")
    checkpoint = load_checkpoint(file)
    first = _state_in(checkpoint, file)
    try:
        return "\n".join(shown(line) for line in _worked_out(file, first, uris, storage_options))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, LightningLanceError):
            raise
        _refuse(file, f"{type(error).__name__}: {error}", error)


def _is_place(part: Mapping[Any, Any]) -> bool:
    return {"cursor", "digest", "stores"} <= {*part} or len(FIELDS & {*part}) > len(FIELDS) // 2


def _worked_out(
    file: str, first: dict[str, Any], uris: Mapping[str, str], storage_options: Mapping[str, str] | None
) -> Iterator[str]:
    cursor = _cursor(first, uris, storage_options)
    began, state = time.monotonic(), cursor.state_dict()
    if not cursor.epoch_start <= state["digest_from"] <= cursor.value <= cursor.epoch_end:
        _refuse(
            file,
            f"windows {state['digest_from']:,} to {cursor.value:,} of an epoch from {cursor.epoch_start:,} to "
            f"{cursor.epoch_end:,}",
        )
    found = 0
    for low in range(state["digest_from"], cursor.value, _AT_ONCE):
        positions = np.arange(low, min(low + _AT_ONCE, cursor.value))
        found += int(cursor.digests(positions, cursor.locate(positions)).sum(dtype=np.uint64))
    windows = cursor.value - state["digest_from"]
    if f"{found % 2**64:016x}" != first["digest"]:
        raise StoreError(
            f"The {pluralize(windows, 'window')} that this version of lightning-lance gives have the digest "
            f"{found % 2**64:016x}, the checkpoint's is {first['digest']}: a resumed run would not continue it; use "
            "the version that saved it."
        )
    seconds = time.monotonic() - began
    yield (
        f"{file}: epoch {cursor.epoch}, {cursor.position:,} of its {cursor.num_windows:,} windows of "
        f"{cursor.serving.context_length} tokens are consumed (cursor {cursor.value:,})."
    )
    yield (
        f"digest OK: {pluralize(windows, 'window')} worked out anew in {seconds:.1f} s, in "
        + ", ".join(f"{store.uri} version {store.version}" for store in cursor.serving.stores.values())
    )
    yield "next:"
    yield from _next_windows(cursor)


def _state_in(checkpoint: Any, file: str) -> dict[str, Any]:
    """Return the place in the data that a checkpoint holds, of plain types.

    Raises:
        ConfigError: If it holds none.
        StoreError: If it holds two that differ, or one that cannot be.
    """
    states = [checked_state(state) for state in find_loader_states(checkpoint)]
    if not states:
        raise ConfigError(f"The checkpoint {file!r} has no place in the data: it was saved without a LanceDataModule.")
    first = states[0]
    for other in states[1:]:
        for name, value in first.items():
            if other[name] != value:
                raise StoreError(
                    f"The checkpoint {file!r} says two things of the place in the data: its {name} is {str(value)[:100]}, and "
                    f"{str(other[name])[:100]}."
                )
    return first


def _refuse(file: str, what: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError(
        f"The checkpoint {file!r} has a place in the data that cannot be ({what[:300]}): give one as a WindowLoader saved it."
    ) from cause


def _cursor(state: Mapping[str, Any], uris: Mapping[str, str], storage_options: Mapping[str, str] | None) -> Cursor:
    names = [entry["name"] for entry in state["stores"]]
    if unknown := sorted({*uris} - {*names}):
        has = "one without a name, whose place is given by uri=PLACE" if names == [""] else ", ".join(map(repr, names))
        raise ConfigError(f"The checkpoint has no store {unknown[0]!r}: it has {has}.")
    for entry in state["stores"]:
        name, uri = entry["name"], entry["uri"]
        if name not in uris and last_commit(uri, storage_options=storage_options) is None:
            raise StoreError(
                f"There is no token store at {uri!r} any more, which the checkpoint was trained on: where it has moved to, "
                f"{name or 'uri'}=PLACE says."
            )
    places = {entry["name"]: uris.get(entry["name"], entry["uri"]) for entry in state["stores"]}
    stores = {name: TokenStore.open(uri, storage_options=storage_options) for name, uri in places.items()}
    fields = ("split", "context_length", "order", "seed", "shuffle_block", "where", "mix")
    try:
        cursor = Cursor(WindowSelection(stores, **{name: state[name] for name in fields}))
    except ConfigError as error:
        raise StoreError(f"The checkpoint cannot be of these stores: {error}") from error
    cursor.load_state_dict(state)
    return cursor


def _next_windows(cursor: Cursor) -> Iterator[str]:
    if cursor.ended:
        cursor.next_epoch(extend=False)
    positions = np.arange(cursor.value, min(cursor.value + _NEXT, cursor.epoch_end))
    found = cursor.locate(positions)
    tokens = cursor.serving.read(found)
    store = next(iter(cursor.serving.stores.values()))
    tokenizer = None
    with suppress(LightningLanceError):  # without it, the ids are shown
        tokenizer = tokenizer_beside(store)
    for position, start, window in zip(positions.tolist(), found.start.tolist(), tokens[:, :24].tolist(), strict=True):
        shown = repr(tokenizer.decode(window))[:70] if tokenizer else " ".join(map(str, window[:12]))
        yield f"  window {position:,} at token {start:,}: {shown}"
