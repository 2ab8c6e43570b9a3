"""The example script as a user runs it: in a process, with overrides."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from lightning_lance.errors import ConfigError
from tests.support.paths import ROOT
from tests.support.warm import TRAINING, server

SCRIPT = ROOT / "examples/train_gpt.py"
SMALL = [
    "experiment=smoke",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.learning_rate=0.02",
    "data.batch_size=4",
]


def train(folder: Path, *overrides: str) -> str:
    done = server(TRAINING).run(SCRIPT, *SMALL, *overrides, folder=folder, warnings=["ignore"], timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def losses(folder: Path) -> list[tuple[int, float]]:
    """Steps and training losses of all runs in the folder, in the order of the runs."""
    rows: list[tuple[int, float]] = []
    for file in sorted(folder.glob("outputs/lightning_logs/version_*/metrics.csv")):
        with file.open() as stream:
            rows += [
                (int(row["step"]), float(row["train_loss"])) for row in csv.DictReader(stream) if row.get("train_loss")
            ]
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("train")
    printed = train(folder, "trainer.log_every_n_steps=1", "trainer.callbacks.0.every_n_train_steps=12")
    shutil.copy(folder / "outputs/checkpoints/last.ckpt", folder / "step12.ckpt")
    return folder, printed


def test_a_store_is_built_and_a_model_trained_and_a_sample_written(trained: tuple[Path, str]):
    folder, printed = trained
    assert "Training a tokenizer with 1024 ids" in printed
    assert ".lance: 200 documents, " in printed
    assert "val_loss" in printed
    assert "--- a sample ---" in printed
    # Where there is no terminal, a line after the first step, and then now and then; no bar.
    lines = [line for line in printed.splitlines() if "[train_gpt][INFO] - step 1 of 20, loss " in line]
    assert len(lines) == 1
    assert "it/s" not in printed
    steps = losses(folder)
    assert [step for step, _ in steps] == list(range(20))
    assert 6.5 < steps[0][1] < 7.5  # ln(1024) is 6.9
    assert steps[-1][1] < steps[0][1] - 0.5
    torch.load(folder / "outputs/checkpoints/last.ckpt", weights_only=True)


def test_a_second_run_builds_nothing_and_goes_on_from_the_checkpoint(trained: tuple[Path, str]):
    """Its losses are those of the run that went through: the same batches, in the same order."""
    folder, _ = trained
    whole = losses(folder)
    printed = train(
        folder, "ckpt_path=last", "trainer.log_every_n_steps=1", "trainer.callbacks.0.every_n_train_steps=12"
    )
    assert "Training a tokenizer" not in printed
    assert "committed" not in printed
    resumed = losses(folder)[len(whole) :]
    assert [step for step, _ in resumed] == list(range(12, 20))
    assert [loss for _, loss in resumed] == pytest.approx([loss for _, loss in whole[12:]], abs=2e-3)


def run_in(folder: Path, *overrides: str) -> None:
    """Run it in this process, for what it says before it trains."""
    import train_gpt

    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=[*SMALL, f"output_dir={folder}/none", f"data_dir={folder}/no", *overrides])
    train_gpt.main.__wrapped__(config)


def test_a_run_that_is_done_says_so_and_how_to_train_on(trained: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    folder, _ = trained
    run_in(folder, f"ckpt_path={folder}/step12.ckpt", "trainer.max_steps=12")
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"Nothing is left to do: '{folder}/step12.ckpt' has 12 steps, and trainer.max_steps is 12. "
    )
    assert "To train on, ask for more, as in trainer.max_steps=24 (" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "differs"),
    [("model.n_layer=3", "n_layer: 1 -> 3"), ("model.vocab_size=2048", "vocab_size: 1024 -> 2048")],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_built(
    trained: tuple[Path, str], override: str, differs: str
):
    folder, _ = trained
    with pytest.raises(ConfigError) as refused:
        run_in(folder, f"ckpt_path={folder}/step12.ckpt", override)
    assert (
        f"step12.ckpt', but the checkpoint is of another model ({differs}): choose the model and the tokenizer"
        in str(refused.value)
    )
    assert not (folder / "no").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "x.ckpt").write_text("text")
    with pytest.raises(ConfigError, match="is not a checkpoint that loads with weights_only=True"):
        run_in(tmp_path, f"ckpt_path={tmp_path}/x.ckpt")


def test_lines_of_progress_are_seldom(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    import train_gpt

    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        max_steps=3000,
        global_step=1200,
        callback_metrics={"tokens_per_second": torch.tensor(12345.6)},
    )
    now = [100.0]
    monkeypatch.setattr(train_gpt.time, "monotonic", lambda: now[0])
    lines = train_gpt.ProgressLines()
    with caplog.at_level("INFO"):
        for seconds in (0, 10, 29, 30, 59, 61):
            now[0] = 100.0 + seconds
            lines.on_train_batch_end(trainer)
    assert caplog.messages == ["step 1,200 of 3,000, 12,346 tokens/s"] * 3
    lines = train_gpt.ProgressLines()
    trainer.is_global_zero = False
    lines.on_train_batch_end(trainer)
    assert len(caplog.messages) == 3


def test_two_processes_by_way_of_hydra(tmp_path: Path):
    """Lightning starts the second process itself, with Hydra's overrides: one output folder, one store."""
    printed = train(tmp_path, "trainer.devices=2", "+trainer.strategy=ddp", "trainer.max_steps=4")
    assert printed.count(".lance: 200 documents, ") == 1
    assert printed.count("--- a sample ---") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "outputs"]


def test_what_cannot_be_is_told_in_one_sentence(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "max_documents=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.endswith("error: max_documents is 0: expected a positive whole number, or null for no bound.\n")
    assert json.dumps(done.stderr).count("Traceback") == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.batch_format=huggingface"], "data.batch_format is 'huggingface', but the sample GPT takes `targets`"),
        (
            ["model.n_head=3"],
            "The model cannot be made: n_embd=128 with n_head=3 makes heads of unequal size, expected",
        ),
        (["trainer=gpu"], "trainer.accelerator is 'gpu', but torch finds no GPU here: give trainer=cpu, or install"),
        (
            ["model.learning_rate=x"],
            "The model cannot be made: got learning_rate='x', expected a number above 0, such as",
        ),
        (["model.n_layer=0"], "The model cannot be made: got n_layer=0, expected a whole number from 1 on."),
        (["model.n_embd=0"], "The model cannot be made: got n_embd=0, expected a whole number from 1 on."),
        (
            ["model.context_length=16"],
            "model.context_length is 16, and windows have context_length=256 tokens: leave model.context_length out, or",
        ),
        (["ckpt_path=last"], "There is no checkpoint in '"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(
    overrides: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import train_gpt

    if "trainer=gpu" in overrides and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("there is one here")
    monkeypatch.chdir(tmp_path)
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=overrides)
    with pytest.raises(ConfigError) as refused:
        train_gpt.main.__wrapped__(config)
    assert str(refused.value).startswith(sentence)
    assert list(tmp_path.iterdir()) == []
