"""The windows of a split as a map-style dataset, for your own sampler and DataLoader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, one_of, whole_numbers
from lightning_lance.serving.batches import Batch, Collator
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.serving.options import BatchFormat
from lightning_lance.serving.ordering.order import WindowOrder
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.serving.unserved import warn_of_unserved_text
from lightning_lance.store.token_store import TokenStore
from lightning_lance.type_hints import check_arguments, not_a_store, refusing


class TokenWindows(torch.utils.data.Dataset[Batch]):
    """The windows of a split, in the order of storage.

    Works with any start method of worker processes: it pickles to the address of the store, a few hundred bytes, and opens
    the store at the first window.

    Args:
        store: The token store.
        context_length: Tokens that the model sees.
        split: `train` or `val`.
        batch_format: `default` or `huggingface`; this and what follows, see `Collator`.
        document_ids: Add the number of each token's document.
        position_ids: Add the position of each token in its document.
        cu_seqlens: Refused: it describes a whole batch.
        mask_boundary_targets: Do not train on the first token of another document.
        fim: Rearranges documents for fill-in-the-middle.

    Raises:
        ConfigError: If an argument cannot be used.
    """

    @refusing()
    def __init__(
        self,
        store: TokenStore,
        context_length: int,
        split: str = "train",
        *,
        batch_format: BatchFormat = "default",
        document_ids: bool = False,
        position_ids: bool = False,
        cu_seqlens: bool = False,
        mask_boundary_targets: bool = False,
        fim: FillInTheMiddle | None = None,
    ) -> None:
        if not isinstance(store, TokenStore):
            raise not_a_store("store", store)
        check_arguments(TokenWindows, {"split": split})
        if cu_seqlens:
            raise ConfigError(
                "cu_seqlens describes a whole batch, but TokenWindows has single windows: use a WindowLoader."
            )
        split = one_of("split", split, SPLITS)
        self._windows = WindowOrder(store.streams(split), context_length, "sequential", ())
        warn_of_unserved_text(WindowSelection({"": store}, split, context_length, "sequential", 0, None, {}, {}))
        self.store = store
        self.context_length = self._windows.context_length
        self.split = split
        self._make = Collator(
            store.commit.eos_id,
            batch_format=batch_format,
            document_ids=document_ids,
            position_ids=position_ids,
            mask_boundary_targets=mask_boundary_targets,
            fim=fim,
        )

    def __len__(self) -> int:
        return self._windows.num_windows

    def __getitem__(self, index: int) -> Batch:
        """Return window `index`: tensors of (context_length,) int64."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """Return several windows with one read; a DataLoader calls this.

        Raises:
            IndexError: If an index is out of range.
            ConfigError: If an index is not a whole number, such as a slice.
        """
        positions = whole_numbers("indices", indices)
        positions = np.where(positions < 0, positions + len(self), positions)
        if ((positions < 0) | (positions >= len(self))).any():
            raise IndexError(f"Windows {list(indices)} are out of range: there are {len(self)}.")
        starts = self._windows.starts(0, positions)
        tokens = self.store.read(starts, self.context_length + 1, self.split)
        channels = {}
        for name in self.store.channels:
            channels[name] = self.store.read_channel(name, starts, self.context_length + 1, self.split)
        epochs = np.zeros(len(starts), np.int64)
        described = self._make.describe(self._make.rearrange(tokens, starts, epochs, channels))
        # One batch per window, so that an item that is kept holds no other in memory.
        items = []
        for i in range(len(starts)):
            batch = self._make.batch(described, i, i + 1)
            items.append({name: value[0] for name, value in batch.items()})
        return items
