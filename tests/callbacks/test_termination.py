from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_lance.callbacks import SaveOnTermination
from tests.support.training import Recorder, make_data, make_trainer


class Raises(lightning.Callback):
    def __init__(self, exception: BaseException) -> None:
        self.exception = exception

    def on_train_batch_end(self, *_: object) -> None:
        raise self.exception


class Stops(lightning.Callback):
    """Raises SIGTERM after some steps.

    Args:
        steps: Their number.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == self._steps:
            raise SIGTERMException


@pytest.mark.parametrize(("exception", "saved"), [(SIGTERMException(), True), (ValueError("a bug"), False)])
def test_only_sigterm_saves(tmp_path: Path, exception: BaseException, saved: bool):
    """test_resume.py checks with a real signal that the checkpoint is exact."""
    trainer = make_trainer(
        tmp_path, callbacks=[Raises(exception), SaveOnTermination(str(tmp_path / "new"))], max_steps=3
    )
    with pytest.raises(type(exception)):
        trainer.fit(Recorder(), datamodule=make_data(tmp_path))
    assert (tmp_path / "new" / "last.ckpt").exists() == saved


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_run_that_goes_on_has_one_last_checkpoint(tmp_path: Path):
    """SIGTERM before the first checkpoint, and again in the run that goes on; another run's file stays."""
    folder = tmp_path / "checkpoints"

    def interrupted(steps: int, checkpoint: str | None) -> None:
        saves = ModelCheckpoint(folder, every_n_train_steps=2, save_last=True, save_top_k=0)
        stops = Stops(steps)
        trainer = make_trainer(
            tmp_path, max_steps=9, callbacks=[stops, saves, SaveOnTermination(str(folder))], enable_checkpointing=True
        )
        with pytest.raises(SIGTERMException):
            trainer.fit(Recorder(), datamodule=make_data(tmp_path), ckpt_path=checkpoint)

    interrupted(1, None)
    interrupted(3, str(folder / "last.ckpt"))
    (saved,) = folder.iterdir()
    assert saved.name == "last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 3
    interrupted(1, None)
    assert sorted(file.name for file in folder.iterdir()) == ["last-v1.ckpt", "last.ckpt"]
    assert torch.load(saved, weights_only=True)["global_step"] == 3
