"""Stores and checkpoints of earlier versions stay good: they open, serve, resume, grow and verify as they always did."""

import hashlib
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from lightning_lance import LanceDataModule, TokenStore, WindowLoader
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import TokenizerFile
from tests.support.corpora import prepare
from tests.support.paths import ROOT

MADE = ROOT / "tests/fixtures" / "store_0_1"

# What version 0.1.0 read and served.
STREAMS = {
    "train/Python": (2950, "2eed70195bde2587"),
    "train/Rust": (4163, "efa009328179e9bd"),
    "val/Python": (1228, "97ba55f8a9f63691"),
    "val/Rust": (2031, "6ca6569a5a9220df"),
}
SHUFFLED = [
    "fb4030f4f7b39e07", "50829a59793c7719", "413e1857fa9958ca", "c01aff47fb85768a", "1b2828c41384e169",
    "36f7d9e3093b9cd2", "902316e5640a21ec", "725866c307589a41", "8e8eea7e8b56f559", "189c1982f57e24d1",
    "b7336471802e8fd7", "0e47a95ed0f69a4b", "52f76869f079b8eb", "d15f9d89b3219fb4",
]  # fmt: skip
MIXED = ["888a7ec0e93a31ae", "453e02a83996c4b1", "1f6f1279f1b369c3"]


def digest(tokens: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens).astype("<i8").tobytes()).hexdigest()[:16]


def streams(store: TokenStore) -> dict[str, tuple[int, str]]:
    found = {}
    for split in ("train", "val"):
        for stream in store.streams(split):
            tokens = store.read(np.asarray([stream.start]), stream.num_tokens, split)
            found[f"{split}/{stream.language}"] = (stream.num_tokens, digest(tokens))
    return found


def served(loader: WindowLoader, batches: int) -> list[str]:
    return [digest(batch["input_ids"]) for batch in islice(loader, batches)]


def source(folder: Path) -> DatasetSource:
    return DatasetSource(
        "parquet",
        data_files=[str(folder / "corpus-*.parquet")],
        columns={"text": "content", "repo": "repo_name", "path": "path", "license": "license"},
        language_column="lang",
        dedup="exact",
        name="code",
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A copy of what was made, elsewhere."""
    shutil.copytree(MADE, tmp_path / "made")
    return tmp_path / "made"


def grown(folder: Path) -> TokenStore:
    return prepare(
        source(folder), TokenizerFile(str(folder / "bpe.json")), str(folder / "code.lance"), val_fraction=0.25
    )


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(400, 4)
        self.out = torch.nn.Linear(4, 400)
        self.seen: list[str] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(digest(batch["input_ids"]))
        logits = self.out(self.embedding(batch["input_ids"]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def resumed(folder: Path, steps: int) -> list[str]:
    model, data = Model(), LanceDataModule(str(folder / "code.lance"), 32, 8, seed=7)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data, ckpt_path=str(folder / "step-9.ckpt"), weights_only=True)
    return model.seen


pytestmark = [
    # The model has no validation step.
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`"),
    # The oldest Lightning that we allow is older than the one that saved the checkpoint.
    pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning"),
]


def test_it_opens_and_serves(made: Path):
    store = TokenStore.open(made / "code.lance")
    assert streams(store) == STREAMS
    assert store.commit.skipped == {"duplicate": 12}
    assert served(WindowLoader(store, 32, 8, seed=7), len(SHUFFLED)) == SHUFFLED
    mixed = WindowLoader(store, 32, 4, seed=1, order="random", mix={"Python": 2, "Rust": 1})
    assert served(mixed, len(MIXED)) == MIXED
    found = store.documents(np.asarray([0, 1000]), 33).to_pylist()
    assert [(row["id"], row["repo"], row["path"], row["license"], row["language"]) for row in found] == [
        ("0:2", "owner/repo2", "src/2.x", None, "Python"),
        ("1:6", "owner/repo9", "src/54.x", "mit", "Python"),
    ]
    assert verify_store(str(made / "code.lance")) == []


def test_its_checkpoint_resumes(made: Path):
    assert resumed(made, len(SHUFFLED)) == SHUFFLED[9:]


@pytest.mark.parametrize("forgets_more", [False, True])
def test_it_grows_to_what_a_new_build_makes(made: Path, tmp_path: Path, forgets_more: bool):
    (tmp_path / "anew").mkdir()
    rule = {"repo": "owner/repo4"}
    if forgets_more:
        forget(str(made / "code.lance"), rule)
    store = grown(made)
    anew = prepare(
        source(MADE), TokenizerFile(str(MADE / "bpe.json")), str(tmp_path / "anew/x.lance"), val_fraction=0.25
    )
    for removed in [{"repo": "owner/repo3"}, *([rule] if forgets_more else [])]:
        forget(anew.uri, removed)
    assert streams(store) == streams(TokenStore.open(anew.uri))
    assert store.fingerprint == anew.fingerprint
    assert verify_store(store.uri) == []
    # The version of the checkpoint stays as it was.
    assert resumed(made, len(SHUFFLED)) == SHUFFLED[9:]


def test_what_is_written_is_spelled_as_ever(made: Path):
    """Keys on disk and in checkpoints are format: another spelling would end every store."""
    store = TokenStore.open(made / "code.lance")
    assert store.commit.recipe["eos"] == "after every document"
    assert store.commit.recipe["split"] == "xxh3_64 of repo, else of the text without the white space around it"
    assert list(store.commit.recipe) == [
        "format", "source", "tokenizer", "eos_token", "eos", "dtype", "split", "val_fraction", "max_document_bytes",
        "long_documents",
    ]  # fmt: skip
    assert store.fingerprint == "9244263f148460c77a262b3db6ef72d5"
    state = WindowLoader(store, 32, 8, seed=7).state_dict()
    saved = torch.load(made / "step-9.ckpt", weights_only=True)["LanceDataModule"]
    assert state.keys() == saved.keys()
    assert state["stores"][0].keys() == saved["stores"][0].keys()
    assert [path.name for path in (made / "code.lance/_refs/tags").iterdir()] == ["checkpoint-11286-96171f6c.json"]
