"""A model that notes what it is trained on, and what trains it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning
import torch

from lightning_lance import LanceDataModule
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import data_of
from tests.support.stores import ListSource, documents

SOURCE = ListSource(documents(*["".join(random.Random(i).choices("abcdefghij \n", k=200)) for i in range(40)]))


# Of few steps.
SMALL = ListSource(SOURCE.documents[:18])


class Recorder(lightning.LightningModule):
    """A model that learns little and writes down which windows it was given."""

    def __init__(self, counts_steps: bool = False) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(257, 257)
        self.counts_steps = counts_steps
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def step(self, stage: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen[stage].append(batch["input_ids"].tolist())
        return torch.nn.functional.cross_entropy(
            self.embedding(batch["input_ids"]).flatten(0, 1), batch["targets"].flatten()
        )

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.step("train", batch)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.step("val", batch)

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.step("test", batch)

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        return batch["input_ids"].tolist()

    def configure_optimizers(self) -> Any:
        if self.counts_steps:
            # What a scheduler does; it makes Lightning build the train loader before the loops are restored.
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.01)


def make_data(folder: Path, **changes: Any) -> LanceDataModule:
    arguments = {"context_length": 32, "batch_size": 8, "val_fraction": 0.2, **changes}
    source = arguments.pop("source", SOURCE)
    return data_of(source, ByteTokenizer(), data_dir=str(folder), **arguments)


def make_trainer(folder: Path, **changes: Any) -> lightning.Trainer:
    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        **changes,
    }
    return lightning.Trainer(**arguments)


class TokenRecorder(Recorder):
    """A model that returns the losses of tokens, never learns, and writes down those losses.

    Args:
        spikes: Number of a batch of a fit to the factor of its losses, on the rank `on_rank`.
        on_rank: That rank.
    """

    def __init__(self, spikes: dict[int, float] | None = None, on_rank: int = 0) -> None:
        super().__init__()
        torch.nn.init.normal_(self.embedding.weight, generator=torch.Generator().manual_seed(0))
        self.spikes = spikes or {}
        self.on_rank = on_rank
        self.losses: dict[str, list[torch.Tensor]] = {"train": [], "val": []}
        self.batches: dict[str, list[dict[str, torch.Tensor]]] = {"train": [], "val": []}

    def token_losses(self, stage: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = self.embedding(batch["input_ids"])
        if "labels" in batch:  # as a model of transformers, which shifts them
            logits, targets = logits[:, :-1], batch["labels"][:, 1:]
        else:
            targets = batch["targets"]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view(targets.shape)
        if stage == "train" and self.global_rank == self.on_rank:
            losses = losses * self.spikes.get(len(self.losses["train"]), 1.0)
        self.losses[stage].append(losses.detach())
        self.batches[stage].append(batch)
        return {"loss": losses.sum() / (targets != -100).sum(), "token_losses": losses}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        return self.token_losses("train", batch)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        return {"token_losses": self.token_losses("val", batch)["token_losses"]}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)
