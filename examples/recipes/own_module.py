"""Train a model of one's own: any LightningModule that takes `input_ids` and `targets`."""

import lightning
import torch
from torch import nn

from lightning_lance import Corpus, LanceDataModule
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer


class Model(lightning.LightningModule):
    """The smallest language model: an embedding, and a layer that predicts the next token."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 32)
        self.head = nn.Linear(32, vocab_size)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        logits = self.head(self.embedding(batch["input_ids"]))
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Log the loss of a batch."""
        self.log("val_loss", self.training_step(batch, batch_idx), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


if __name__ == "__main__":
    corpus = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100, val_fraction=0.1)
    data = LanceDataModule(corpus, context_length=64, batch_size=8)
    model = Model(data.vocab_size)  # known before anything is downloaded or built
    lightning.Trainer(max_steps=20, limit_val_batches=5, accelerator="cpu", logger=False).fit(model, data)
