"""Spikes of real runs: the file of a step has the losses of the documents that the loader says were in it."""

import json
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from lightning_lance import LanceDataModule, WindowLoader
from lightning_lance.callbacks import LossByDocument
from lightning_lance.errors import ConfigError
from lightning_lance.inspection.spikes import read_losses, read_step, steps_with_losses
from lightning_lance.serving.fim import FillInTheMiddle
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.paths import ROOT
from tests.support.training import SOURCE, Recorder, TokenRecorder, make_data, make_trainer
from tests.support.warm import run_ranks

WITHOUT_VALIDATION = "ignore:You defined a .validation_step. but have no:UserWarning"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def fit(
    folder: Path,
    model: lightning.LightningModule,
    data: Any,
    callback: LossByDocument,
    ckpt_path: Any = None,
    **given: Any,
) -> lightning.Trainer:
    options = {"max_steps": 14, "limit_val_batches": 0, "callbacks": [callback], **given}
    trainer = make_trainer(folder, **options)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def loader_of(data: LanceDataModule) -> WindowLoader:
    loader = data.trainer.train_dataloader
    assert isinstance(loader, WindowLoader)
    return loader


@pytest.mark.parametrize(
    ("served", "trained"),
    [
        ({}, {}),
        ({"mask_boundary_targets": True, "remainder": "short", "batch_size": 10}, {"accumulate_grad_batches": 2}),
        ({"batch_format": "huggingface", "document_ids": True}, {}),
        ({"windows": "packed", "skip_steps": [[7, 9], [25, 26]]}, {}),
        ({"batch_size_schedule": [[0, 4], [24, 8]], "context_length_schedule": [[0, 8], [25, 16], [26, 32]]}, {}),
    ],
    ids=["plain", "masked", "huggingface", "packed", "growing"],
)
def test_a_spike_is_written_with_the_steps_before_it(
    tmp_path: Path, stores: Path, served: dict[str, Any], trained: dict[str, Any]
):
    """Of the second epoch, so that steps are counted over epochs."""
    data = make_data(stores, **served)
    left_out = [step for first, last in served.get("skip_steps", ()) for step in range(first, last)]
    steps = [step for step in range(40) if step not in left_out]
    model = TokenRecorder({steps.index(26): 3.0})
    accumulated = trained.get("accumulate_grad_batches", 1)
    options = {"max_steps": 30 // accumulated, "max_epochs": -1, **trained}
    fit(tmp_path, model, data, LossByDocument(keep=4, factor=2), **options)
    last = steps[steps.index(26) - 3 :][:4]
    assert steps_with_losses(tmp_path) == [(step, 0) for step in last]
    loader = loader_of(data)
    for step in last:
        about = read_step(tmp_path, step)
        number = steps.index(step)
        epochs, within = divmod(number, len(loader))
        # The last batches of an epoch are a step, however few.
        before = epochs * -(-len(loader) // accumulated) + within // accumulated
        assert (about.spike, about.global_step) == (step == 26, before)
        losses, batch = model.losses["train"][number], model.batches["train"][number]
        masked = batch["targets"] == -100 if "targets" in batch else batch["labels"][:, 1:] == -100
        assert about.loss == pytest.approx(float(losses.sum() / (~masked).sum()))
        # By window, which may be several rows.
        losses, masked = (part.reshape(len(loader.windows(step)), -1) for part in (losses, masked))
        assert about.median is not None
        assert about.median == pytest.approx(float(model.losses["train"][0].mean()), rel=0.2)
        expected = []
        for row in loader.windows(step).documents.to_pylist():
            # The token at a place is the target before it.
            targets = slice(max(row["begin"] - 1, 0), row["end"] - 1)
            left = losses[row["window"], targets][~masked[row["window"], targets]]
            expected.append((row["window"], row["begin"], row["end"], len(left), float(left.double().sum())))
        found = read_losses(tmp_path, step)
        assert [(one.window, one.begin, one.end, one.tokens) for one in found] == [row[:4] for row in expected]
        assert [one.loss for one in found] == pytest.approx([row[4] for row in expected], rel=1e-5)


@pytest.mark.filterwarnings(WITHOUT_VALIDATION)
def test_documents_are_those_that_the_model_was_given_of_a_rearranged_window(tmp_path: Path, stores: Path):
    fim = FillInTheMiddle(1, 2, 3, seed=0, fim_rate=1.0)
    loader = WindowLoader(prepare(SOURCE, ByteTokenizer(), data_dir=stores), 32, 8, document_ids=True, fim=fim)
    model = TokenRecorder({9: 3.0})
    trainer = make_trainer(tmp_path, max_steps=14, callbacks=[LossByDocument(keep=1)])
    trainer.fit(model, loader)
    ids, losses = model.batches["train"][9]["document_ids"], model.losses["train"][9]
    found = read_losses(tmp_path, 9)
    assert {one.window for one in found} == {*range(8)}
    for window in range(8):
        for number, one in enumerate(part for part in found if part.window == window):
            # Of all but the last target, which is no input, the batch knows the document.
            last = one.end == 33
            mine = losses[window, :-1][ids[window, 1:] == number]
            assert one.loss - float(mine.sum()) == pytest.approx(float(losses[window, -1]) if last else 0.0, abs=1e-3)


def test_nan_is_a_spike_whose_first_steps_are_written(tmp_path: Path, stores: Path):
    model = TokenRecorder(dict.fromkeys(range(3, 14), math.nan))
    fit(tmp_path, model, make_data(stores), LossByDocument(keep=2))
    assert steps_with_losses(tmp_path) == [(2, 0), (3, 0), (4, 0)]
    assert math.isnan(read_step(tmp_path, 3).loss)
    assert math.isfinite(read_step(tmp_path, 2).loss)


def test_the_first_step_after_a_resume_is_compared_with_those_before(tmp_path: Path, stores: Path):
    data, callback = make_data(stores), LossByDocument(keep=2)
    fit(tmp_path, TokenRecorder(), data, callback, max_steps=8).save_checkpoint(tmp_path / "8.ckpt")
    assert steps_with_losses(tmp_path) == []
    torch.load(tmp_path / "8.ckpt", weights_only=True)
    again = make_data(stores)
    fit(tmp_path, TokenRecorder({0: 2.0}), again, LossByDocument(keep=2), tmp_path / "8.ckpt", max_steps=10)
    assert steps_with_losses(tmp_path) == [(8, 0)]
    expected = [row["end"] for row in loader_of(again).windows(8).documents.to_pylist()]
    assert [one.end for one in read_losses(tmp_path, 8)] == expected


class Shuffles(TokenRecorder):
    """Gives the model other windows than the loader's."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {name: values.flip(0) for name, values in batch.items()}


@pytest.mark.filterwarnings("ignore:You have overridden .on_before_batch_transfer.:UserWarning")
def test_batches_of_other_tokens_have_no_documents_of_the_loader(
    tmp_path: Path, stores: Path, caplog: pytest.LogCaptureFixture
):
    fit(tmp_path, Shuffles({9: 3.0}), make_data(stores), LossByDocument(keep=1))
    assert [(one.begin, one.end) for one in read_losses(tmp_path, 9)] == [(0, 33)] * 8
    assert "The batch of step 9 has other tokens than the windows of this step" in caplog.text


@pytest.mark.filterwarnings(WITHOUT_VALIDATION)
def test_data_of_others_has_documents_if_its_batches_have(tmp_path: Path):
    rows, ids = torch.arange(5)[None], torch.tensor([[0, 0, 1, 1, 2]])
    batches = [{"input_ids": rows, "targets": rows, "document_ids": ids}] * 32
    trainer = make_trainer(tmp_path, max_steps=10, callbacks=[LossByDocument(keep=1, folder=tmp_path / "run")])
    trainer.fit(TokenRecorder({7: 3.0}), torch.utils.data.DataLoader(batches, batch_size=None))
    found = read_losses(tmp_path / "run", 7)
    assert [(one.begin, one.end, one.tokens) for one in found] == [(0, 2, 1), (2, 4, 2), (4, 6, 2)]


def test_a_run_that_cannot_write_goes_on(tmp_path: Path, stores: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "losses").write_text("")
    trainer = fit(tmp_path, TokenRecorder({9: 3.0}), make_data(stores), LossByDocument())
    assert trainer.global_step == 14
    assert caplog.text.count("cannot be written, and the run goes on without") == 1


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path, stores: Path):
    for given, sentence in [
        ({"keep": 0}, "keep is 0: expected a whole number from 1 on"),
        ({"factor": 1}, "factor is 1: expected a number above 1"),
        ({"factor": "2"}, "factor is '2': expected a number"),
        ({"folder": "s3://bucket/run"}, "folder is 's3://bucket/run': expected a local folder"),
    ]:
        with pytest.raises(ConfigError, match=f"^{sentence}"):
            LossByDocument(**given)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="LossByDocument needs the losses of the tokens, and training_step has returned"
    ):
        fit(tmp_path, Recorder(), make_data(stores), LossByDocument())


DDP = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1]]
from lightning.pytorch.loggers import CSVLogger
from lightning_lance.callbacks import DataMonitor, LossByDocument, SliceMetrics
from tests.support.training import TokenRecorder, make_data, make_trainer
folder = Path(sys.argv[2])
callbacks = [LossByDocument(keep=4), SliceMetrics(), DataMonitor(peak_flops=1e12)]
trainer = make_trainer(
    folder, devices=2, strategy="ddp", max_steps=9, val_check_interval=9, log_every_n_steps=4,
    logger=CSVLogger(folder, version=""), callbacks=callbacks,
)
model = TokenRecorder({6: 3.0}, on_rank=1)
trainer.fit(model, datamodule=make_data(folder))
(folder / f"losses-{trainer.global_rank}.json").write_text(
    json.dumps({stage: [[float(one.sum()), one.numel()] for one in of] for stage, of in model.losses.items()})
)
"""


def mean(parts: list[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in parts) / sum(tokens for _, tokens in parts)


def test_a_spike_of_one_rank_is_written_by_all(tmp_path: Path):
    """And the losses of slices are those of all ranks."""
    assert run_ranks(DDP, 2, ROOT, tmp_path, timeout=200) == [0, 0]
    assert steps_with_losses(tmp_path) == [(step, rank) for step in (3, 4, 5, 6) for rank in (0, 1)]
    steps = [read_step(tmp_path, 6, rank) for rank in (0, 1)]
    assert [one.spike for one in steps] == [True, True]
    assert steps[1].loss > 2 * steps[0].loss
    losses = [json.loads((tmp_path / f"losses-{rank}.json").read_text()) for rank in (0, 1)]
    lines = (tmp_path / "lightning_logs" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    logged = [float(row["train_loss/Python"]) for row in rows if row["train_loss/Python"]]
    expected = [mean([part for one in losses for part in one["train"][first : first + 4]]) for first in (0, 4)]
    assert logged == pytest.approx(expected, rel=1e-5)
    # The sanity check has none.
    validated = [mean([part for one in losses for part in one["val"][2:]])]
    assert [float(row["val_loss/Python"]) for row in rows if row["val_loss/Python"]] == pytest.approx(
        validated, rel=1e-5
    )
    windows = [float(row["data/windows"]) for row in rows if row["data/windows"]]
    assert windows == [4 * 16, 8 * 16]
