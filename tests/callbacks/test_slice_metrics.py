"""The losses of slices, as real loggers get them, are those of the tokens of these slices."""

import csv
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.callbacks import LossByDocument, SliceMetrics
from lightning_lance.errors import ConfigError
from lightning_lance.inspection import read_losses, steps_with_losses
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents
from tests.support.training import Recorder, TokenRecorder, make_data, make_trainer

SOURCE = ListSource(
    (
        *documents(*(f"def {i:03d}() " * 12 for i in range(20)), language="Python", repo="own/a"),
        *documents(*(f"class {i:03d}: " * 12 for i in range(20)), language="Python"),
        *documents(*(f"fn {i:03d}() " * 9 for i in range(20)), language="Rust"),
        *documents(*(f"func {i:02d} " * 9 for i in range(9)), language="Go"),
    )
)


SERVED = ("val_by", "where", "mask_boundary_targets", "context_length_schedule")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def fit(folder: Path, stores: Path, callbacks: Any, model: Any = None, ckpt_path: Any = None, **given: Any) -> Any:
    model = TokenRecorder() if model is None else model
    served = {name: given.pop(name) for name in SERVED if name in given}
    options = {"max_steps": 12, "log_every_n_steps": 4, "val_check_interval": 6, "limit_val_batches": 3, **given}
    options.setdefault("logger", CSVLogger(folder, version=""))
    trainer = make_trainer(folder, num_sanity_val_steps=0, callbacks=callbacks, **options)
    data = make_data(stores, source=SOURCE, **served)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, data


def logged(folder: Path) -> dict[str, list[float]]:
    """The values of each metric, in the order of the rows."""
    found: dict[str, list[float]] = {}
    with (folder / "lightning_logs" / "metrics.csv").open() as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if value:
                    found.setdefault(name, []).append(float(value))
    return found


def slices(model: TokenRecorder, loader: Any, stage: str, batches: range, field: str) -> dict[str, float]:
    """Mean losses token by token, of the documents that the loader says were in the batches."""
    sums = losses_of_slices(model, loader, stage, batches, field)
    return {name: sum(of) / len(of) for name, of in sums.items() if of}


def losses_of_slices(
    model: TokenRecorder, loader: Any, stage: str, batches: range, field: str
) -> dict[str, list[float]]:
    sums: dict[str, list[float]] = {}
    for number, batch in enumerate(batches):
        step = batch if stage == "train" else number
        parts = (model.losses[stage][batch], model.batches[stage][batch]["targets"])
        # By window, which may be several rows.
        losses, targets = (part.reshape(len(loader.windows(step)), -1) for part in parts)
        for row in loader.windows(step).documents.to_pylist():
            places = range(max(row["begin"] - 1, 0), row["end"] - 1)
            sums.setdefault(row[field], []).extend(
                losses[row["window"], at].item() for at in places if targets[row["window"], at] != -100
            )
    return sums


def test_languages_in_training_and_validation(tmp_path: Path, stores: Path):
    growing = {"context_length_schedule": [[0, 8], [5, 16], [11, 32]]}
    given = {"mask_boundary_targets": True, "accumulate_grad_batches": 2, "max_steps": 8, **growing}
    model, data = fit(tmp_path, stores, [SliceMetrics()], **given)
    found = logged(tmp_path)
    train, val = data.trainer.train_dataloader, data.trainer.val_dataloaders
    of_train = [slices(model, train, "train", range(first, first + 8), "language") for first in (0, 8)]
    rounds = range(0, len(model.losses["val"]), min(3, len(val)))
    of_val = [slices(model, val, "val", range(first, first + rounds.step), "language") for first in rounds]
    assert {name for name in found if "/" in name} == {
        f"{s}_loss/{n}" for s in ("train", "val") for n in ("Python", "Rust", "Go")
    }
    for name in ("Python", "Rust", "Go"):
        expected = [part[name] for part in of_train if name in part]
        assert found[f"train_loss/{name}"] == pytest.approx(expected, rel=1e-4)
        assert found[f"val_loss/{name}"] == pytest.approx([part[name] for part in of_val if name in part], rel=1e-4)


def test_repositories_of_every_tenth_batch_the_rest_as_other_and_the_same_ones_after_a_resume(
    tmp_path: Path, stores: Path
):
    callback = SliceMetrics("repo", top=2)
    given = {"max_epochs": -1, "limit_val_batches": 0, "log_every_n_steps": 10}
    model, data = fit(tmp_path, stores, [callback], max_steps=10, **given)
    found = logged(tmp_path)
    # No language is of this repository alone.
    expected = slices(model, data.trainer.train_dataloader, "train", range(1), "repo")
    assert found["train_loss/repo/own/a"] == pytest.approx([expected["own/a"]], rel=1e-4)
    names = [name for name in found if name.startswith("train_loss/")]
    assert len(names) == 3
    assert "train_loss/repo/other" in names
    data.trainer.save_checkpoint(tmp_path / "10.ckpt")
    fit(tmp_path / "b", stores, [SliceMetrics("repo", top=2)], ckpt_path=tmp_path / "10.ckpt", max_steps=20, **given)
    again = logged(tmp_path / "b")
    assert {name for name in again if name.startswith("train_loss/")} <= {*names}
    assert "train_loss/repo/own/a" in again


class Grows(lightning.Callback):
    """Lets the store grow while a run trains on it."""

    def __init__(self, grow: Any) -> None:
        self.grow = grow

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            self.grow()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_batches_from_before_a_store_has_grown_keep_their_slices_and_documents(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def stored(most: int | None) -> TokenStore:
        return prepare(SOURCE, ByteTokenizer(), tmp_path / "x.lance", max_documents=most, val_fraction=0.0)

    loader = WindowLoader(stored(20), 32, 8, extend="next_epoch", context_length_schedule=[[0, 16], [8, 32]])
    before, first = copy(loader), len(loader)
    # A spike in the second epoch, whose first steps are written with the last ones of the epoch before.
    model = TokenRecorder({first + 1: 3.0})
    callbacks = [Grows(lambda: stored(None)), SliceMetrics(), LossByDocument(keep=4, factor=2)]
    half = (first + 3) // 2
    options = {"max_steps": 2 * half, "log_every_n_steps": half, "logger": CSVLogger(tmp_path, version="")}
    make_trainer(tmp_path, max_epochs=-1, callbacks=callbacks, **options).fit(model, loader)
    assert loader.num_tokens > before.num_tokens
    # Windows, and not those of as many epochs of the grown store.
    assert loader.num_consumed == before.num_windows + (2 * half - first) * 8
    sums = losses_of_slices(model, before, "train", range(half, first), "language")
    for name, losses in losses_of_slices(model, loader, "train", range(first, 2 * half), "language").items():
        sums.setdefault(name, []).extend(losses)
    found = logged(tmp_path)
    for name, losses in sums.items():
        assert found[f"train_loss/{name}"][-1] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert len(sums) == 3
    steps = range(first - 2, first + 2)
    assert steps_with_losses(tmp_path) == [(step, 0) for step in steps]
    for step in steps:
        served = (before if step < first else loader).windows(step)
        assert [one.end for one in read_losses(tmp_path, step)] == served.documents.column("end").to_pylist()
    assert "not known" not in caplog.text


class WithValidation(TokenRecorder):
    """Logs validation losses as the sample GPT does."""

    trainer: Any

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        losses = self.token_losses("val", batch)
        name = self.trainer.datamodule.val_names[dataloader_idx]
        self.log(f"val_loss/{name}" if name else "val_loss", losses["loss"].detach(), add_dataloader_idx=False)
        return losses


def test_validation_losses_of_the_model_are_not_logged_twice(tmp_path: Path, stores: Path):
    """They would have the same names, and other values: each language has a loader of its own for them."""
    fit(tmp_path / "a", stores, [], WithValidation(), val_by="language")
    fit(tmp_path / "b", stores, [SliceMetrics(), SliceMetrics("corpus")], WithValidation(), val_by="language")
    alone, both = logged(tmp_path / "a"), logged(tmp_path / "b")
    named = [name for name in alone if name.startswith("val_loss")]
    assert {name: both[name] for name in named} == {name: alone[name] for name in named}
    # A single corpus has no name.
    assert {*both} - {*alone} == {"train_loss/Python", "train_loss/Rust", "train_loss/Go"} | {
        "train_loss/unknown", "val_loss/unknown"
    }  # fmt: skip


@pytest.fixture(params=["tensorboard", "wandb"])
def logger_of_others(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Logger]:
    pytest.importorskip(request.param)
    if request.param == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        yield TensorBoardLogger(tmp_path, name="", version="")
        return
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    yield logger
    logger.experiment.finish()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_loggers_of_others(tmp_path: Path, stores: Path, logger_of_others: Logger):
    names = {f"{stage}_loss/{name}" for stage in ("train", "val") for name in ("Python", "Rust", "Go")}
    fit(tmp_path, stores, [SliceMetrics()], logger=logger_of_others)
    if type(logger_of_others).__name__ == "WandbLogger":
        summary: Any = logger_of_others.experiment.summary  # type: ignore[attr-defined]
        assert names <= {*summary.keys()}
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert names <= {*events.Tags()["scalars"]}
    assert [event.step for event in events.Scalars("train_loss/Python")] == [3, 7, 11]


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no:UserWarning")
def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path, stores: Path):
    with pytest.raises(ConfigError, match=r"^by is 'languages': expected one of .*did you mean 'language'"):
        SliceMetrics("languages")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^top is 0: expected a whole number from 1 on"):
        SliceMetrics(top=0)
    with pytest.raises(
        ConfigError, match=r"by is 'license', and the documents of .* no such field: expected one of .*repo"
    ):
        fit(tmp_path, stores, [SliceMetrics("license")])
    with pytest.raises(
        ConfigError, match="SliceMetrics needs the losses of the tokens, and training_step has returned"
    ):
        fit(tmp_path, stores, [SliceMetrics()], Recorder())
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0, callbacks=[SliceMetrics()])
    with pytest.raises(ConfigError, match="SliceMetrics knows the documents of windows that a LanceDataModule"):
        trainer.fit(Recorder(), torch.utils.data.DataLoader([{"input_ids": torch.zeros(1, 2)}], batch_size=None))
