"""The windows of a split as a map-style dataset, for your own sampler and DataLoader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, one_of, whole_numbers
from lightning_lance.serving.batches import Batch, Collator
from lightning_lance.serving.order import WindowOrder
from lightning_lance.serving.selection import WindowSelection, warn_of_unserved_text
from lightning_lance.store.token_store import TokenStore
from lightning_lance.type_hints import check_arguments, not_a_store


class TokenWindows(torch.utils.data.Dataset[Batch]):
    """The windows of a split, in the order of storage.

    Works with any start method of worker processes: it travels as an address of a few hundred bytes, and opens the store
    when the first window is asked for.

    Args:
        store: The token store.
        context_length: Tokens that the model sees.
        split: `train` or `val`.
        **batch: What an item has besides its tokens; see `Collator`. Not `cu_seqlens`, which go over a whole batch.

    Raises:
        ConfigError: If an argument cannot be used.
    """

    def __init__(self, store: TokenStore, context_length: int, split: str = "train", **batch: Any) -> None:
        if not isinstance(store, TokenStore):
            raise not_a_store("store", store)
        check_arguments(TokenWindows, {"split": split})
        if batch.get("cu_seqlens"):
            raise ConfigError("cu_seqlens go over a batch, and TokenWindows gives single windows: use a WindowLoader.")
        split = one_of("split", split, SPLITS)
        self._windows = WindowOrder(store.streams(split), context_length, "sequential", ())
        warn_of_unserved_text(WindowSelection({"": store}, split, context_length, "sequential", 0, None, {}, {}))
        self.store, self.context_length, self.split = store, self._windows.context_length, split
        self._make = Collator(store.commit.eos_id, **batch)

    def __len__(self) -> int:
        return self._windows.num_windows

    def __getitem__(self, index: int) -> Batch:
        """Give window `index`: tensors of (context_length,) int64."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Give some windows with one read, as a DataLoader asks for them.

        Raises:
            IndexError: If an index is beyond the windows.
            ConfigError: If one is no whole number, such as a slice.
        """
        positions = whole_numbers("indices", indices)
        positions = np.where(positions < 0, positions + len(self), positions)
        if ((positions < 0) | (positions >= len(self))).any():
            raise IndexError(f"Windows {list(indices)} are asked for, but there are {len(self)}.")
        starts = self._windows.starts(0, positions)
        tokens = self.store.read(starts, self.context_length + 1, self.split)
        described = self._make.describe(self._make.rearrange(tokens, starts, np.zeros(len(starts), np.int64)))
        made = [self._make.batch(described, i, i + 1) for i in range(len(starts))]
        return [{name: value[0] for name, value in item.items()} for item in made]
