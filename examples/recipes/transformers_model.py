"""Train a model of transformers in a LightningModule."""

import lightning
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_lance import Corpus, LanceDataModule
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer


class Model(lightning.LightningModule):
    """Any causal language model of transformers: it takes the batch as it is, and shifts the labels itself."""

    def __init__(self, vocab_size: int, context_length: int, eos_id: int) -> None:
        super().__init__()
        ids = {"vocab_size": vocab_size, "bos_token_id": eos_id, "eos_token_id": eos_id}
        self.model = GPT2LMHeadModel(GPT2Config(n_positions=context_length, n_embd=32, n_layer=2, n_head=2, **ids))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        loss: torch.Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    corpus = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100)
    data = LanceDataModule(corpus, context_length=64, batch_size=8, batch_format="huggingface")
    model = Model(data.vocab_size, data.context_length, data.tokenizer.eos_id)
    lightning.Trainer(max_steps=20, limit_val_batches=0, accelerator="cpu", logger=False).fit(model, data)
