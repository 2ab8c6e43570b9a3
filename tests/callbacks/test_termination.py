from pathlib import Path

import lightning
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_lance.callbacks import SaveOnTermination
from tests.support.training import Recorder, make_data, make_trainer


class Raises(lightning.Callback):
    def __init__(self, exception: BaseException) -> None:
        self.exception = exception

    def on_train_batch_end(self, *_: object) -> None:
        raise self.exception


@pytest.mark.parametrize(("exception", "saved"), [(SIGTERMException(), True), (ValueError("a bug"), False)])
def test_only_sigterm_saves(tmp_path: Path, exception: BaseException, saved: bool):
    """test_resume.py checks with a real signal that the checkpoint is exact."""
    trainer = make_trainer(
        tmp_path, callbacks=[Raises(exception), SaveOnTermination(str(tmp_path / "new"))], max_steps=3
    )
    with pytest.raises(type(exception)):
        trainer.fit(Recorder(), datamodule=make_data(tmp_path))
    assert (tmp_path / "new" / "last.ckpt").exists() == saved
