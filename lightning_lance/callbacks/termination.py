"""Save a last checkpoint when a scheduler preempts the job."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveOnTermination(Callback):
    """Saves `last.ckpt` when Lightning stops for SIGTERM, which is between two steps and on all ranks, so no work is lost.

    Where a `ModelCheckpoint` with `save_last` has the same folder, the file is that of its last checkpoint, under any name.

    It ignores other exceptions, Ctrl-C among them: they come in the middle of a step, after the batch was consumed and
    before the model learned from it.

    Args:
        dirpath: Folder of the checkpoint.
    """

    def __init__(self, dirpath: str) -> None:
        self._file = str(Path(dirpath, "last.ckpt"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a checkpoint if the exception is SIGTERM."""
        if not isinstance(exception, SIGTERMException):
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and self._writes_last(callback):
                # Its file, which is not always last.ckpt: another run may have one of this name in the folder.
                callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
                return
        trainer.save_checkpoint(self._file)

    def _writes_last(self, callback: ModelCheckpoint) -> bool:
        """Return whether a callback saves the last checkpoint of the run in this folder too."""
        if not callback.save_last or callback.dirpath is None:
            return False
        return Path(callback.dirpath).resolve() == Path(self._file).parent.resolve()
