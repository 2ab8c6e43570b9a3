"""Pre-train by LitGPT on a token store, resume included.

litgpt pretrain pythia-14m --data litgpt_data.TokenStoreData --data.store x.lance
"""

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from litgpt.data import DataModule
from torch import Tensor, cat
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_lance import TokenStore, WindowLoader


class Batches(IterableDataset[Tensor]):
    """The batches of a `WindowLoader` as LitGPT takes them: inputs and targets in one tensor."""

    def __init__(self, loader: WindowLoader) -> None:
        self.loader, self.state_dict, self.load_state_dict = loader, loader.state_dict, loader.load_state_dict

    def __iter__(self) -> Iterator[Tensor]:
        return (cat([batch["input_ids"], batch["targets"][:, -1:]], dim=1) for batch in self.loader)


class TokenStoreData(DataModule):
    """Windows of a token store, for `--data`."""

    def __init__(self, store: str, seed: int = 0) -> None:
        super().__init__()
        self.store, self.seed = store, seed

    def connect(
        self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **rest: Any
    ) -> None:
        self.sizes = {"context_length": max_seq_length, "batch_size": batch_size, "seed": self.seed}
        if dist.is_initialized():
            self.sizes |= {"rank": dist.get_rank(), "world_size": dist.get_world_size()}

    def train_dataloader(self) -> StatefulDataLoader:
        return StatefulDataLoader(Batches(WindowLoader(TokenStore.open(self.store), **self.sizes)), batch_size=None)

    def val_dataloader(self) -> StatefulDataLoader:
        loader = WindowLoader(TokenStore.open(self.store), split="val", resumable=False, **self.sizes)
        return StatefulDataLoader(Batches(loader), batch_size=None)
