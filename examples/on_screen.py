"""What a person sees of a training run: one bar, or a line now and then where there is no terminal, and no developers' tips."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning
from lightning.fabric.utilities.warnings import PossibleUserWarning
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_log = logging.getLogger("train_gpt")

# Between two looks at the figures: each waits for the GPU.
_BAR_SECONDS = 0.5
# Between two lines, where there is no terminal to show a bar on.
_LINE_SECONDS = 30.0

# Loggers whose tips, tables and reports are for those who write a training script.
_TALKATIVE = ("lightning", "lightning.pytorch", "lightning.fabric", "matplotlib")
# What Lightning warns of and this script wants, or says in words of its own.
_WANTED = (
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Total length of .* across ranks is zero.*",
)


@contextmanager
def without_tips() -> Iterator[None]:
    """Keep tips, deprecations and tables of Lightning and torch off the screen within the block. Their other warnings stay."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, PossibleUserWarning):
            warnings.simplefilter("ignore", category)
        for message in _WANTED:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def last_figures(trainer: lightning.Trainer) -> dict[str, float]:
    """Return what was last logged of the losses and the speed."""
    known = trainer.callback_metrics
    return {name: float(known[name]) for name in ("train_loss", "val_loss", "tokens_per_second") if name in known}


def in_words(figures: Mapping[str, float]) -> list[str]:
    """Return these figures as the parts of a line."""
    spelled = {"train_loss": "loss {:.3f}", "val_loss": "val_loss {:.3f}", "tokens_per_second": "{:,.0f} tokens/s"}
    return [spelled[name].format(value) for name, value in figures.items()]


class StepBar(lightning.Callback):
    """One bar over the steps of a run, on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._lines: Any = None
        self._next = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar, from the step of the checkpoint on."""
        if trainer.is_global_zero:
            steps = int(trainer.estimated_stepping_batches)
            done = trainer.global_step
            self._bar = tqdm(total=steps, initial=done, desc="training", unit=" steps", dynamic_ncols=True)
            # Log lines are written above the bar.
            self._lines = logging_redirect_tqdm()
            self._lines.__enter__()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Show the step, and now and then the figures."""
        if self._bar is None:
            return
        if time.monotonic() > self._next:
            self._next = time.monotonic() + _BAR_SECONDS
            self._bar.set_postfix_str(", ".join(in_words(last_figures(trainer))), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the bar with its last figures."""
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(in_words(last_figures(trainer))), refresh=False)
            self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leave the bar as it is, so that the error stands on a line of its own."""
        if self._bar is not None:
            self._close()

    def _close(self) -> None:
        self._bar.close()
        self._bar = None
        self._lines.__exit__(None, None, None)


class ProgressLines(lightning.Callback):
    """A line in the log after the first step, and then now and then: for training without a terminal."""

    def __init__(self) -> None:
        self._next = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Tell the step, and what was last logged of the losses and the speed."""
        if not trainer.is_global_zero or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_SECONDS
        of = f" of {trainer.max_steps:,}" if trainer.max_steps > 0 else ""
        figures = last_figures(trainer)
        line = ", ".join([f"step {trainer.global_step:,}{of}", *in_words(figures)])
        # For a log that machines read.
        told = {"event": "trained", "step": trainer.global_step, **figures}
        _log.info("%s", line, extra={"figures": told})
