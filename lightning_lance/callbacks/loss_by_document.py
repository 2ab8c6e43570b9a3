"""`LossByDocument`: which documents a spike of the loss came from."""

from __future__ import annotations

import math
import os
import statistics
from collections import deque
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_lance.callbacks.served import eos_of, first_tokens, has_other_ranks, train_loader, windows_of
from lightning_lance.callbacks.token_losses import TokenLosses, numbers_of_documents, sums_by_document, token_losses_of
from lightning_lance.errors import ConfigError, LightningLanceError, described, whole_number
from lightning_lance.inspection.spikes import FOLDER, DocumentLoss, StepLosses, write_step
from lightning_lance.location import is_local, local_folder
from lightning_lance.messages.escaping import logger
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.type_hints import check_arguments

_log = logger(__name__)

# Steps whose median a loss is compared with, and the fewest of them.
_RECENT = 20
_FEWEST = 5


@dataclass
class _Kept:
    """A batch whose losses may be written.

    Attributes:
        step: Number of the batch.
        global_step: Optimizer steps before it.
        losses: Of its tokens, on the device.
        first: Its first tokens.
        loader: What served it.
        document_ids: As the batch has them, or None.
    """

    step: int
    global_step: int
    losses: TokenLosses
    first: Tensor | None
    loader: WindowLoader | None
    document_ids: Tensor | None
    is_written: bool = False


class _Arriving:
    """Numbers on their way from a device, which never waits for them."""

    def __init__(self, batches: list[_Kept], values: Tensor) -> None:
        self.batches = batches
        self._there: Any = None  # an event of CUDA
        if values.is_cuda:
            # Into pinned memory, which torch takes for a copy that does not block.
            self._values = values.to("cpu", non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types for it
            self._there.record()
        else:
            self._values = values.cpu()

    def have_come(self) -> bool:
        return self._there is None or bool(self._there.query())

    def wait(self) -> list[list[float]]:
        """Return the losses of all ranks at each of the batches."""
        if self._there is not None:
            self._there.synchronize()
        columns: list[list[float]] = self._values.T.tolist()
        return columns


class LossByDocument(Callback):
    """Writes the losses of the documents of the last steps when the loss has a spike.

    A spike is a loss that is NaN or infinite, or above `factor` times the median of the last 20 steps. Losses are kept on the
    device, and nothing waits for them, so a spike is noticed a few steps later. The files, one for each step and rank, are
    below the folder of the run, in `losses`; `lightning_lance.inspection.read_losses` reads them. A spike of one rank is
    written by all.

    `training_step` returns `{"loss": loss, "token_losses": losses}`, the latter in the shape of the targets.

    Args:
        keep: Steps that are written: the one of the spike, and those before it. They take 5 bytes of the device for each
            token.
        factor: What makes a spike; above 1.
        folder: Folder of the run; None takes the Trainer's `default_root_dir`.

    Raises:
        ConfigError: If an argument cannot be used; in training, if the step returns no losses of tokens.
    """

    #: For models that make the losses of tokens only where they are read.
    needs_token_losses = True

    def __init__(self, keep: int = 16, factor: float = 1.5, folder: str | os.PathLike[str] | None = None) -> None:
        check_arguments(LossByDocument, {"factor": factor})
        self.keep = whole_number("keep", keep)
        if not 1 < factor < math.inf:
            raise ConfigError(f"factor is {described(factor)}: expected a number above 1, such as 1.5.")
        self.factor = float(factor)
        self.folder = None if folder is None else local_folder(folder, "folder")
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._forget()

    def _forget(self) -> None:
        self._loader: WindowLoader | None = None
        self._step = -1
        self._global_step = 0
        self._kept: deque[_Kept] = deque()
        self._judged = 0  # of those kept
        self._new: list[_Kept] = []
        self._arriving: deque[_Arriving] = deque()
        self._broken = 0  # steps in a row whose loss is not finite
        self._in_spike = False  # whether the last step that was judged was one
        self._told_why = False
        self._told_writing = False

    def state_dict(self) -> dict[str, Any]:
        """Return the losses of the last steps, with which a resumed run compares its first ones."""
        return {"recent": [*self._recent]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the losses of a checkpoint."""
        self._recent = deque(state_dict["recent"], maxlen=_RECENT)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin without the steps of an earlier fit."""
        if not is_local(self._folder(trainer)):
            raise ConfigError(
                f"The Trainer's default_root_dir is {self._folder(trainer)!r}: expected a local folder for the losses of "
                "documents; give LossByDocument one as folder."
            )
        self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note which batch this is."""
        self._loader = train_loader(trainer)
        self._step = self._step + 1 if self._loader is None else self._loader.last_step
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the losses of the batch, and write what is kept if those that have come from the device have a spike."""
        # A step may leave out a batch.
        if not outputs and pl_module.automatic_optimization:
            return
        losses = token_losses_of(outputs, batch, "training_step", self)
        first = None if self._loader is None else first_tokens(batch["input_ids"])
        kept = _Kept(self._step, self._global_step, losses, first, self._loader, batch.get("document_ids"))
        self._kept.append(kept)
        self._new.append(kept)
        # Ranks tell each other of several steps at once.
        every = max(1, self.keep // 2) if has_other_ranks(trainer) else 1
        if len(self._new) >= every:
            self._send(trainer, together=True)
        while self._arriving and self._arriving[0].have_come():
            self._judge(trainer, self._arriving.popleft())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the epoch's batches were served from: the next epoch may have other windows (`data.extend`)."""
        if self._loader is None or self._loader.extend == "never":
            return
        served = copy(self._loader)
        for kept in self._kept:
            if kept.loader is self._loader:
                kept.loader = served

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the last steps too."""
        self._finish(trainer, together=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Judge the last steps of this rank: others may be gone."""
        # The device may be unusable, and the exception is what counts.
        with suppress(RuntimeError):
            self._finish(trainer, together=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the losses."""
        self._forget()

    def _finish(self, trainer: Trainer, together: bool) -> None:
        if self._new:
            self._send(trainer, together)
        while self._arriving:
            self._judge(trainer, self._arriving.popleft())

    def _send(self, trainer: Trainer, together: bool) -> None:
        """Send the mean losses of the new batches to the host; those of all ranks, if they do so together."""
        mine = torch.stack([kept.losses.mean for kept in self._new])
        everyone = [mine]
        if together and has_other_ranks(trainer):
            everyone = [torch.empty_like(mine) for _ in range(trainer.world_size)]
            torch.distributed.all_gather(everyone, mine)
        self._arriving.append(_Arriving(self._new, torch.stack(everyone)))
        self._new = []

    def _judge(self, trainer: Trainer, arrived: _Arriving) -> None:
        for kept, losses in zip(arrived.batches, arrived.wait(), strict=True):
            self._judged += 1
            median = statistics.median(self._recent) if len(self._recent) >= _FEWEST else None
            finite = [loss for loss in losses if math.isfinite(loss)]
            self._broken = self._broken + 1 if len(finite) < len(losses) else 0
            if finite:
                self._recent.append(statistics.fmean(finite))
            high = median is not None and any(loss > self.factor * median for loss in finite)
            # Once the loss is NaN it mostly stays so: the first steps are what tells.
            if high or 0 < self._broken <= self.keep:
                # A run that diverges has a spike at every step: one warning, until the loss is normal again.
                if not self._in_spike:
                    self._tell(trainer, kept, losses, median)
                self._write(trainer, kept, median)
            self._in_spike = high or self._broken > 0
            while self._judged > self.keep:
                self._kept.popleft()
                self._judged -= 1

    def _tell(self, trainer: Trainer, spike: _Kept, losses: list[float], median: float | None) -> None:
        if not trainer.is_global_zero or self._broken > 1:
            return
        usual = "" if median is None else f", and the median of the steps before it {median:.4g}"
        _log.warning(
            "The loss of step %d is %.4g%s: the losses of its documents, and of the steps before it, are in %s.",
            spike.step,
            _worst(losses),
            usual,
            os.path.join(self._folder(trainer), FOLDER),  # noqa: PTH118 - for a message
        )

    def _folder(self, trainer: Trainer) -> str:
        if self.folder is None:
            return trainer.default_root_dir
        return self.folder

    def _write(self, trainer: Trainer, spike: _Kept, median: float | None) -> None:
        """Write a step and those kept before it, unless they are written."""
        until_spike: list[_Kept] = []
        for kept in self._kept:
            until_spike.append(kept)
            if kept is spike:
                break
        for kept in until_spike[-self.keep :]:
            if kept.is_written:
                continue
            kept.is_written = True
            documents = self._documents(kept)
            rank = trainer.global_rank if self._loader is None else self._loader.rank
            mean = float(kept.losses.mean)
            losses = StepLosses(kept.step, rank, kept.global_step, mean, median, kept is spike, documents)
            try:
                write_step(self._folder(trainer), losses)
            except OSError as error:
                if not self._told_writing:
                    self._told_writing = True
                    _log.warning("The losses of documents cannot be written, and the run goes on without: %s", error)

    def _documents(self, kept: _Kept) -> list[DocumentLoss]:
        windows, length = kept.losses.losses.shape
        try:
            if kept.loader is not None and kept.first is not None:
                served = windows_of(kept.loader, kept.step, kept.first)
                losses = kept.losses.of_windows(served.rows, kept.loader.context_length // served.rows)
                return sums_by_document(numbers_of_documents(served.tokens, eos_of(kept.loader)), losses)
        except LightningLanceError as error:
            if not self._told_why:
                self._told_why = True
                _log.warning("The documents of step %d are not known from the store: %s", kept.step, error)
        if kept.document_ids is not None:
            ids = kept.document_ids.cpu().numpy()
            # The last target is no input, so its document is not in the batch.
            return sums_by_document(np.concatenate([ids, ids[:, -1:]], axis=1), kept.losses)
        return sums_by_document(np.zeros((windows, length + 1), np.int64), kept.losses)


def _worst(losses: list[float]) -> float:
    """Return the first loss that is not finite, else the largest one."""
    for loss in losses:
        if not math.isfinite(loss):
            return loss
    return max(losses)
