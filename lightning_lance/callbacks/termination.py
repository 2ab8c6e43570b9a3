"""Save a last checkpoint when a scheduler preempts the job."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveOnTermination(Callback):
    """Saves `last.ckpt` when Lightning stops for SIGTERM, which is between two steps and on all ranks, so no work is lost.

    It ignores other exceptions, Ctrl-C among them: they come in the middle of a step, after the batch was consumed and
    before the model learned from it.

    Args:
        dirpath: Folder of the checkpoint.
    """

    def __init__(self, dirpath: str) -> None:
        self._file = str(Path(dirpath, "last.ckpt"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a checkpoint if the exception is SIGTERM."""
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self._file)
