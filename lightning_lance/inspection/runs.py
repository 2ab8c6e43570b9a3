"""A run opened for looking: the loader that it serves from, at the position of a checkpoint, without a model or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.inspection.checkpoints import checkpoint_at, load_checkpoint, open_stores, state_in
from lightning_lance.location import (
    StoreLocation,
    check_place,
    folder_of_stores,
    has_stores,
    is_local,
    no_store_at,
    store_place,
)
from lightning_lance.serving.description import selected_by
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.serving.skips import skipped_steps
from lightning_lance.store.token_store import TokenStore

#: Where a checkpoint has what `WindowLoader.batching` says, and how many steps the run was to have.
RUN = "lightning_lance"
#: Where a checkpoint has what `WindowLoader.begins` says, if anything.
BEGINS = "lightning_lance_begins"

# What may differ from the run, to look at it otherwise.
_SIZES = ("batch_size", "world_size", "remainder")
# What decides which windows are a batch, but for the last one of an epoch.
_OF_BATCHES = ("batch_size", "world_size", "batch_size_schedule")
# What a store, of which no run is known, may be looked at with.
_OF_STORE = (
    *("split", "context_length", "order", "seed", "shuffle_block", "where", "mix", "mix_by", "windows"),
    *_SIZES,
    *("mask_boundary_targets", "batch_format"),
)


def open_run(
    place: str,
    storage_options: Mapping[str, str] | None = None,
    *,
    uris: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
    **settings: Any,
) -> WindowLoader:
    """Open what a run serves, to look at its steps: `loader.windows(step, rank)`. Nothing is changed.

    Args:
        place: A checkpoint; the folder of a run, for its newest one; or a token store, for a run that does not exist yet.
        storage_options: Credentials and other options of object stores.
        uris: Name to new address of stores that have moved; "" is the name of a single store.
        tokenizer: The tokenizer.json of the stores, where none is beside them, as in a bucket: without it, ids are shown.
        settings: `batch_size`, `world_size` and `remainder`, to look at the run as if it had these. Of a store, also those that
            decide its windows, such as `context_length` (1,024 if none is given), `seed`, `order` or `mix`.

    Raises:
        ConfigError: If the place is none of these, or the size of the batches is known neither from the checkpoint nor from
            `settings`.
        StoreError: If the checkpoint is damaged, or its stores are gone or are others.
    """
    place = check_place("place", place, "outputs, outputs/checkpoints/last.ckpt or data/x.lance")
    loader = _opened(place, storage_options, uris, settings)
    if tokenizer is not None:
        for store in loader.stores.values():
            store.take_tokenizer(tokenizer)
    return loader


def _checkpoint_of(place: str) -> str:
    """Return the checkpoint of a run, or the newest one in its folder."""
    if not Path(place).exists():
        if place.endswith(".lance"):
            raise no_store_at(store_place(place))
        raise ConfigError(
            f"There is no run at {place!r}: expected the folder of a run, such as outputs, a checkpoint, or a token store."
        )
    try:
        return checkpoint_at(place)
    except ConfigError as error:
        if has_stores(place):
            raise folder_of_stores(place) from error
        raise


def _opened(
    place: str,
    storage_options: Mapping[str, str] | None,
    uris: Mapping[str, str] | None,
    settings: Mapping[str, Any],
) -> WindowLoader:
    if _is_store(place, storage_options):
        _check_settings(settings, _OF_STORE, "a token store")
        given = {"context_length": 1024, "batch_size": 16, **settings}
        return WindowLoader(TokenStore.open(place, storage_options=storage_options), **given)
    _check_settings(settings, _SIZES, "a run")
    file = _checkpoint_of(place)
    checkpoint = load_checkpoint(file)
    state = state_in(checkpoint, file)
    batching = {**_noted(checkpoint), **settings}
    for name in ("max_steps", "accumulate_grad_batches"):
        batching.pop(name, None)
    if "batch_size" in settings:
        # All steps as if they had this size.
        batching.pop("batch_size_schedule", None)
    if "batch_size" not in batching:
        raise ConfigError(
            f"The checkpoint {file!r} does not say how its batches were made: give batch_size, and world_size where there "
            "were several ranks."
        )
    fim = batching.pop("fim", None)
    stores = open_stores(state, uris or {}, storage_options)
    try:
        loader = WindowLoader(
            stores,
            **selected_by(state),
            **batching,
            skip_steps=skipped_steps(state),
            fim=None if fim is None else FillInTheMiddle(**fim),
        )
    except (ConfigError, TypeError) as error:
        raise StoreError(f"The checkpoint {file!r} does not fit these stores: {error}") from error
    try:
        loader.load_state_dict(state)
    except StoreError as error:
        if "on_data_change" not in str(error):
            raise
        raise StoreError(
            f"The steps of {file!r} cannot be shown: its store no longer has the data of the checkpoint, since documents were "
            "forgotten for good or it was built anew. A newer checkpoint has the data of today."
        ) from error
    if isinstance(checkpoint, Mapping):
        loader.take_begins(checkpoint.get(BEGINS, []))
    return loader


def _noted(checkpoint: Any) -> Mapping[str, Any]:
    """Return what a checkpoint notes of its run; nothing if it is of an earlier version."""
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get(RUN), Mapping):
        return {}
    noted: Mapping[str, Any] = checkpoint[RUN]
    return noted


def last_step(place: str) -> int | None:
    """Return the number of batches that a run was to have, from its newest checkpoint; None if it is not known."""
    try:
        noted = load_checkpoint(checkpoint_at(place)).get(RUN, {})
        batches: int = noted["max_steps"] * noted["accumulate_grad_batches"]
        is_known = batches > 0
    except (LightningLanceError, AttributeError, KeyError, TypeError):
        return None
    if is_known:
        return batches
    return None


def other_sizes(place: str, loader: WindowLoader) -> dict[str, Any]:
    """Return the sizes of a run's batches that a loader of it does not have; empty if it has all, or none is known."""
    try:
        noted = _noted(load_checkpoint(checkpoint_at(place)))
    except LightningLanceError:
        return {}
    others: dict[str, Any] = {}
    for name in _OF_BATCHES:
        if name in noted and noted[name] != loader.batching.get(name):
            others[name] = noted[name]
    return others


def _is_store(place: str, storage_options: Mapping[str, str] | None) -> bool:
    if is_local(place) and not Path(place).is_dir():
        return False
    return last_commit(StoreLocation(store_place(place), storage_options)) is not None


def _check_settings(settings: Mapping[str, Any], known: tuple[str, ...], of: str) -> None:
    for name in settings:
        if name not in known:
            raise ConfigError(f"There is no {name!r} to look at {of} with: expected {', '.join(known)}.")
