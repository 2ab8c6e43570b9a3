"""Train by torchtitan on a token store, with checkpoints.

In a config of torchtitan: `dataloader=TokenStoreLoader.Config(dataset_path="x.lance")`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader

from lightning_lance import TokenStore, WindowLoader


class TokenStoreLoader(BaseDataLoader):
    """A `WindowLoader` as torchtitan builds and iterates a data loader."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        """`dataset_path` is the place of the store."""

        seed: int = 0

    def __init__(
        self, config: Config, *, seq_len: int, local_batch_size: int, dp_rank: int, dp_world_size: int, **rest: Any
    ) -> None:
        store = TokenStore.open(str(config.dataset_path))
        self.loader = WindowLoader(
            store,
            seq_len,
            local_batch_size,
            seed=config.seed,
            rank=dp_rank,
            world_size=dp_world_size,
            position_ids=True,
        )

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:  # epoch after epoch
            for batch in self.loader:
                yield {"input": batch["input_ids"], "positions": batch["position_ids"]}, batch["targets"]

    def state_dict(self) -> dict[str, Any]:
        return {"loader": json.dumps(self.loader.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(json.loads(state["loader"]))
