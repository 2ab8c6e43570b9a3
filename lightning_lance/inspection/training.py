"""What a fit trains on, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lightning_lance.build.corpus import Corpus, ReadyStore
from lightning_lance.errors import StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.messages.formatting import format_list, format_tokens
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.store.token_store import TokenStore


class Limit(NamedTuple):
    """Where a fit ends.

    Attributes:
        batches: Batches of each rank, from the begin of the run.
        name: The setting, such as `max_steps=1,000`.
    """

    batches: int
    name: str


def training_line(
    loader: WindowLoader,
    corpora: Mapping[str, Corpus | ReadyStore],
    opened: Mapping[str, TokenStore],
    limits: list[Limit],
) -> str:
    """Return the stores, the tokens of how many, the windows, and the epochs.

    Args:
        loader: The train loader.
        corpora: What it serves, by name.
        opened: The stores as they were opened, before a checkpoint went back to fewer tokens.
        limits: Where the fit ends; it is the first one that counts.
    """
    served = loader.num_tokens
    stores = loader.stores
    total = 0
    for_validation = 0
    for_training = 0
    not_served: list[str] = []
    places: list[str] = []
    for name, store in stores.items():
        stored = _stored_now(store)
        total += stored
        for_validation += store.num_tokens("val")
        for_training += store.num_tokens("train")
        later = stored - store.commit.stored_tokens
        if later > 0:
            not_served.append(f"{format_tokens(later)} {_reason(corpora.get(name), opened.get(name), store)}")
        places.append(f"{store.uri} version {store.version}")
    not_selected = for_training - served
    others: list[str] = []
    if for_validation:
        others.append(f"{format_tokens(for_validation)} are for validation")
    if not_selected:
        others.append(f"{format_tokens(not_selected)} not in data.where or data.mix")
    others += not_served
    tokens = format_tokens(served)
    # Less is stored than is served where documents were forgotten since the checkpoint.
    if others and total >= served:
        tokens = f"{tokens.rpartition(' ')[0]} of {format_tokens(total)}"
    why = f" ({'; '.join(others)})" if others else ""
    kind = "packed windows" if loader.is_packed else "windows"
    windows = f"{loader.num_windows:,} {kind} of {loader.context_length:,} + 1 an epoch"
    if loader.is_packed:
        used = loader.num_windows * (loader.context_length + 1) / served
        windows += f" ({used:.2%} of the tokens, without padding)"
    line = f"Training on {tokens} in {', '.join(places)}{why}: {windows}{_epochs(loader, limits)}."
    return f"{line} {loader.means}".rstrip()


def _stored_now(store: TokenStore) -> int:
    """Return the tokens of the newest version of a store."""
    try:
        newest = last_commit(store.location)
    except StoreError:
        newest = None
    if newest is None:
        return store.commit.stored_tokens
    return newest.stored_tokens


def _reason(corpus: Corpus | ReadyStore | None, opened: TokenStore | None, served: TokenStore) -> str:
    """Return why newer tokens of a store are not served."""
    if opened is not None and opened.commit.extent != served.commit.extent:
        return "came after the checkpoint"
    if isinstance(corpus, Corpus) and corpus.budget.met(served.commit):
        return f"beyond {corpus.budget}"
    return "came later"


def _epochs(loader: WindowLoader, limits: list[Limit]) -> str:
    """Return the epochs that the limits make, as the end of a sentence; empty without limits."""
    if not limits:
        return ""
    limit = min(limits)
    epochs = loader.epochs_of(limit.batches)
    named = []
    for name, value in epochs.items():
        of = f" of {name}" if name else ""
        named.append(f"{_short(value)}{of}")
    return f"; {limit.name} makes {format_list(named)} epochs"


def _short(epochs: float) -> str:
    if epochs >= 100:
        return f"{epochs:,.0f}"
    return f"{epochs:.3g}"
