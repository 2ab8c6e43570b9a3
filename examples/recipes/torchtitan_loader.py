"""What torchtitan asks of a data loader: pairs of inputs and labels, and a state for its checkpoints."""

from collections.abc import Iterator
from typing import Any

import torch

from lightning_lance import Corpus, TokenStore, WindowLoader
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer


class TitanLoader:
    """A `WindowLoader` as torchtitan's `BaseDataLoader`: give it to the Trainer's `build_dataloader_fn`."""

    def __init__(self, store: TokenStore, seq_len: int, batch_size: int, dp_rank: int, dp_world_size: int) -> None:
        self.loader = WindowLoader(store, seq_len, batch_size, rank=dp_rank, world_size=dp_world_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:  # epoch after epoch
            for batch in self.loader:
                yield {"input": batch["input_ids"]}, batch["targets"]

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.loader.load_state_dict(state)


if __name__ == "__main__":
    store = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100).prepare()
    first, again = (TitanLoader(store, seq_len=64, batch_size=8, dp_rank=0, dp_world_size=1) for _ in range(2))
    batches = iter(first)
    for _ in range(3):
        next(batches)
    again.load_state_dict(first.state_dict())
    inputs, labels = next(iter(again))
    same = torch.equal(inputs["input"], next(batches)[0]["input"])
    print(f"inputs {tuple(inputs['input'].shape)}, labels {tuple(labels.shape)}, goes on with the same batch: {same}")
