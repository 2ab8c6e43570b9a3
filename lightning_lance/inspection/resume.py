"""Prove that a checkpoint resumes correctly: recompute the digest of its windows, and show the next ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.inspection.checkpoints import checkpoint_at, load_checkpoint, open_stores, state_in
from lightning_lance.location import check_place
from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import pluralize
from lightning_lance.serving.cursor import Cursor
from lightning_lance.serving.description import selected_by
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.skips import Skip, skipped_steps
from lightning_lance.type_hints import check_arguments

# Windows located at a time.
_AT_ONCE = 1 << 16
# Windows shown.
_NEXT = 4


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
    first = state_in(checkpoint, file)
    try:
        return "\n".join(map(shown, _report(file, first, uris, storage_options)))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, LightningLanceError):
            raise
        raise _impossible(file, f"{type(error).__name__}: {error}") from error


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


def _impossible(file: str, reason: str) -> ConfigError:
    return ConfigError(
        f"The checkpoint {file!r} has an impossible position in the data ({reason[:300]}): use an unmodified checkpoint."
    )


def _open_cursor(
    state: Mapping[str, Any], uris: Mapping[str, str], storage_options: Mapping[str, str] | None
) -> Cursor:
    stores = open_stores(state, uris, storage_options)
    try:
        cursor = Cursor(WindowSelection(stores, **selected_by(state)), skip_steps=skipped_steps(state))
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
    tokens = cursor.read(found)
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
