"""A last checkpoint when a scheduler takes the machine back."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveOnTermination(Callback):
    """Saves `last.ckpt` where Lightning stops because of SIGTERM: between two steps, on all ranks, so that nothing is lost.

    Not for other exceptions, Ctrl-C among them: they come in the middle of a step, when the batch has been taken and not yet
    learned from.

    Args:
        dirpath: Folder of the checkpoint.
    """

    def __init__(self, dirpath: str) -> None:
        self._file = str(Path(dirpath, "last.ckpt"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if it is SIGTERM."""
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self._file)
