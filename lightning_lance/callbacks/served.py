"""Which windows a batch of a Trainer is made of, and which ranks there are."""

from __future__ import annotations

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from lightning_lance.errors import StoreError
from lightning_lance.serving.batches import in_rows
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.serving.steps import ServedWindows

# Tokens at the beginning of each row, enough to recognise a batch.
_COMPARED = 8


def has_other_ranks(trainer: Trainer) -> bool:
    """Return whether there are other ranks to exchange numbers with."""
    return trainer.world_size > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()


def train_loader(trainer: Trainer) -> WindowLoader | None:
    """Return the WindowLoader that a Trainer trains on, of a LanceDataModule or given by itself; None for other data."""
    loader = trainer.train_dataloader
    if isinstance(loader, WindowLoader):
        return loader
    return None


def val_loader(trainer: Trainer) -> WindowLoader | None:
    """Return the WindowLoader of all validation windows; None for other data."""
    loaders = trainer.val_dataloaders
    if isinstance(loaders, list) and loaders:
        loaders = loaders[0]
    if isinstance(loaders, WindowLoader):
        return loaders
    return None


def first_tokens(input_ids: Tensor) -> Tensor:
    """Return a copy of the first tokens of each row of a batch."""
    return input_ids[:, :_COMPARED].clone()


def windows_of(loader: WindowLoader, step: int, first: Tensor) -> ServedWindows:
    """Return the windows of a batch.

    Args:
        loader: What served it.
        step: Its number.
        first: What `first_tokens` said of it.

    Raises:
        StoreError: If the loader would serve others at this step now.
    """
    served = loader.windows(step)
    seen = first.cpu().numpy()
    if not np.array_equal(in_rows(served.tokens, served.rows)[:, : seen.shape[1]], seen):
        raise StoreError(
            f"The batch of step {step:,} has other tokens than the windows of this step: expected batches of the WindowLoader "
            "as they are, in its order."
        )
    return served


def eos_of(loader: WindowLoader) -> int:
    """Return the id that ends documents."""
    return next(iter(loader.stores.values())).commit.eos_id
