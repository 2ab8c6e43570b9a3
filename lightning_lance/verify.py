"""Proof that a checkpoint continues where it says: its windows worked out anew, and those that come next."""

from __future__ import annotations

import math
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lightning_lance.checked import count_of, field_of, flag_of, list_of, object_of, text_of
from lightning_lance.cursor import Cursor
from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.escaping import shown
from lightning_lance.figures import counted
from lightning_lance.serving import Serving
from lightning_lance.store import TokenStore
from lightning_lance.tokenizer_choice import TokenizerFile

# Windows worked out at a time.
_AT_ONCE = 1 << 16
_NEXT = 4


def data_states(checkpoint: Any) -> Iterator[dict[str, Any]]:
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
        if isinstance(part, Mapping) and {"cursor", "digest", "stores"} <= {*part}:
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
    checkpoint = load_checkpoint(file)
    first = _state_in(checkpoint, file)
    try:
        return "\n".join(shown(line) for line in _worked_out(file, first, uris, storage_options))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, LightningLanceError):
            raise
        _refuse(file, f"{type(error).__name__}: {error}", error)


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
            f"The {counted(windows, 'window')} that this version of lightning-lance gives have the digest "
            f"{found % 2**64:016x}, the checkpoint's is {first['digest']}: a resumed run would not continue it; use "
            "the version that saved it."
        )
    seconds = time.monotonic() - began
    yield (
        f"{file}: epoch {cursor.epoch}, {cursor.position:,} of its {cursor.num_windows:,} windows of "
        f"{cursor.serving.context_length} tokens are consumed (cursor {cursor.value:,})."
    )
    yield (
        f"digest OK: {counted(windows, 'window')} worked out anew in {seconds:.1f} s, in "
        + ", ".join(f"{store.uri} version {store.version}" for store in cursor.serving.stores.values())
    )
    yield "next:"
    yield from _next_windows(cursor)


def _state_in(checkpoint: Any, file: str) -> dict[str, Any]:
    """Return the place in the data that a checkpoint holds, of plain types.

    Raises:
        ConfigError: If it holds none, or one of which a field is missing or of another type.
        StoreError: If it holds two that differ.
    """
    states = list(data_states(checkpoint))
    if not states:
        raise ConfigError(f"The checkpoint {file!r} has no place in the data: it was saved without a LanceDataModule.")
    try:
        checked = [{name: check(field_of(state, name), name) for name, check in _FIELDS.items()} for state in states]
    except ValueError as error:
        _refuse(file, str(error), error)
    for other in checked[1:]:
        for name, value in checked[0].items():
            if other[name] != value:
                raise StoreError(
                    f"The checkpoint {file!r} says two things of the place in the data: its {name} is {str(value)[:100]}, and "
                    f"{str(other[name])[:100]}."
                )
    return checked[0]


def _refuse(file: str, what: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError(
        f"The checkpoint {file!r} has a place in the data that cannot be ({what[:300]}): give one as a WindowLoader saved it."
    ) from cause


def _counts_of(value: Any, name: str) -> list[int]:
    return [count_of(count, f"an entry of {name}") for count in list_of(value, name)]


def _whole_of(value: Any, name: str) -> int:
    return count_of(value, name, least=-(2**63))


def _length_of(value: Any, name: str) -> int:
    return count_of(value, name, least=1)


def _block_of(value: Any, name: str) -> int | None:
    return None if value is None else _length_of(value, name)


def _digest_of(value: Any, name: str) -> str:
    if not re.fullmatch("[0-9a-f]{16}", text_of(value, name)):
        raise ValueError(f"{name} is {value[:30]!r}: expected 16 hexadecimal digits")
    return str(value)


def _where_of(value: Any, name: str) -> dict[str, list[str]]:
    return {
        text_of(column, f"a column of {name}"): [text_of(word, f"a value of {name}") for word in list_of(values, name)]
        for column, values in object_of(value, name).items()
    }


def _mix_of(value: Any, name: str) -> dict[str, float]:
    for key, weight in object_of(value, name).items():
        text_of(key, f"a name of {name}")
        if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"a weight of {name} is {str(weight)[:30]}: expected a number above 0")
    return dict(value)


def _stores_of(value: Any, name: str) -> list[dict[str, Any]]:
    stores = []
    for entry in list_of(value, name):
        fields = object_of(entry, f"an entry of {name}")
        store: dict[str, Any] = {key: text_of(field_of(fields, key), key) for key in ("name", "uri", "fingerprint")}
        store["tokens"] = count_of(field_of(fields, "tokens"), "tokens")
        store["forgotten"] = [text_of(rule, "a rule") for rule in list_of(field_of(fields, "forgotten"), "forgotten")]
        store["version"] = count_of(field_of(fields, "version"), "version")
        stores.append(store)
    if not stores:
        raise ValueError(f"{name} is empty: expected one store or more")
    return stores


# What each field of a place in the data must be.
_FIELDS: dict[str, Callable[[Any, str], Any]] = {
    "cursor": count_of,
    "epoch": count_of,
    "epoch_start": count_of,
    "ended": flag_of,
    "origin": count_of,
    "taken": _counts_of,
    "digest": _digest_of,
    "digest_from": count_of,
    "num_windows": count_of,
    "stores": _stores_of,
    "split": text_of,
    "context_length": _length_of,
    "order": text_of,
    "seed": _whole_of,
    "shuffle_block": _block_of,
    "where": _where_of,
    "mix": _mix_of,
}


def _cursor(state: Mapping[str, Any], uris: Mapping[str, str], storage_options: Mapping[str, str] | None) -> Cursor:
    names = [entry["name"] for entry in state["stores"]]
    if unknown := sorted({*uris} - {*names}):
        raise ConfigError(f"The checkpoint has no store {unknown[0]!r}: it has {', '.join(map(repr, names))}.")
    places = {entry["name"]: uris.get(entry["name"], entry["uri"]) for entry in state["stores"]}
    stores = {name: TokenStore.open(uri, storage_options=storage_options) for name, uri in places.items()}
    fields = ("split", "context_length", "order", "seed", "shuffle_block", "where", "mix")
    cursor = Cursor(Serving(stores, **{name: state[name] for name in fields}))
    cursor.load_state_dict(state)
    return cursor


def _next_windows(cursor: Cursor) -> Iterator[str]:
    if cursor.ended:
        cursor.next_epoch(extend=False)
    positions = np.arange(cursor.value, min(cursor.value + _NEXT, cursor.epoch_end))
    found = cursor.locate(positions)
    tokens = cursor.serving.read(found)
    store = next(iter(cursor.serving.stores.values()))
    beside = Path(store.uri.removesuffix(".lance") + ".tokenizer.json")
    tokenizer = TokenizerFile(str(beside), store.commit.eos_token).load(None, Path()) if beside.is_file() else None
    for position, start, window in zip(positions.tolist(), found.start.tolist(), tokens[:, :24].tolist(), strict=True):
        shown = repr(tokenizer.decode(window))[:70] if tokenizer else " ".join(map(str, window[:12]))
        yield f"  window {position:,} at token {start:,}: {shown}"
