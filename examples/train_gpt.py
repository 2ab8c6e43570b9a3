"""Trains the sample GPT on random windows of a token store, which is built first if it is not there.

    python examples/train_gpt.py                                    # the standard library, on a CPU, in minutes
    python examples/train_gpt.py experiment=github_code_python      # 5,000,000 Python files of GitHub, on a GPU
    python examples/train_gpt.py ckpt_path=last                     # go on where the last run stopped
    python examples/train_gpt.py --help                             # all that can be set

Any key of the configuration can be given; see conf/ and docs/reference/configuration.md.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from gpt import GPTModule, ModelError, check_same_model
from hydra.errors import InstantiationException
from lightning.pytorch.strategies import FSDPStrategy
from omegaconf import DictConfig

from lightning_lance import LanceDataModule
from lightning_lance.cli.hydra_app import command, last_checkpoints, make
from lightning_lance.errors import ConfigError
from lightning_lance.inspection.resume import load_checkpoint
from lightning_lance.messages.escaping import shown_lines
from lightning_lance.messages.formatting import pluralize

_log = logging.getLogger("train_gpt")

# Between two lines that tell how far the training is, where there is no terminal to show a bar on.
_TELL_SECONDS = 30.0


@command
def main(config: DictConfig) -> None:
    """Build, train, validate, and let the model write a document."""
    lightning.seed_everything(config.seed, verbose=False)
    torch.set_float32_matmul_precision("high")
    # Whatever cannot be is said here, before anything is built.
    checkpoint = find_checkpoint(config)
    check_batches(config)
    check_gpu(config)
    data: LanceDataModule = make(config, "data")
    model = make_model(config)
    if model.hparams.context_length < data.context_length:
        raise ConfigError(
            f"model.context_length is {model.hparams.context_length}, and windows have context_length={data.context_length} "
            f"tokens: leave model.context_length out, or make it {data.context_length} at least."
        )
    terminal = sys.stderr.isatty()
    trainer: lightning.Trainer = make(config, "trainer", enable_progress_bar=terminal)
    if checkpoint is not None and not check_checkpoint(checkpoint, model, trainer):
        return
    if not terminal:
        trainer.callbacks.append(ProgressLines())
    try:
        trainer.fit(model, datamodule=data, ckpt_path=config.ckpt_path)
    except ModelError as error:
        raise ConfigError(f"The model does not go with the data or the trainer: {error}") from error
    if trainer.is_global_zero:
        figures = {name: round(float(value), 4) for name, value in sorted(trainer.callback_metrics.items())}
        print(f"step {trainer.global_step}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
        # A model that is sharded over several devices cannot write on one of them.
        if not isinstance(trainer.strategy, FSDPStrategy):
            print(f"--- a sample ---\n{shown_lines(sample(model, data))}\n----------------")


class ProgressLines(lightning.Callback):
    """A line in the log after the first step, and then now and then: for training without a terminal."""

    def __init__(self) -> None:
        self._next = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Tell the step, and what was last logged of the loss and the speed."""
        if not trainer.is_global_zero or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _TELL_SECONDS
        of = f" of {trainer.max_steps:,}" if trainer.max_steps > 0 else ""
        told = [f"step {trainer.global_step:,}{of}"]
        figures = trainer.callback_metrics
        if "train_loss" in figures:
            told.append(f"loss {float(figures['train_loss']):.3f}")
        if "tokens_per_second" in figures:
            told.append(f"{float(figures['tokens_per_second']):,.0f} tokens/s")
        _log.info("%s", ", ".join(told))


def find_checkpoint(config: DictConfig) -> Path | None:
    """Find the checkpoint to go on from. One that is not there is refused: a mistyped place would begin a new model."""
    if config.ckpt_path is None:
        return None
    place = Path(config.output_dir, "checkpoints")
    found, where = [Path(config.ckpt_path)], f"at {config.ckpt_path!r}"
    if config.ckpt_path == "last":
        found, where = last_checkpoints(config), f"in {str(place)!r}"
    if not any(path.exists() for path in found):
        raise ConfigError(f"There is no checkpoint {where}: check ckpt_path and output_dir, or leave ckpt_path out.")
    return max(found, key=lambda path: path.stat().st_mtime)


def check_checkpoint(file: Path, model: GPTModule, trainer: lightning.Trainer) -> bool:
    """Tell whether a checkpoint leaves something to do. One of another model is refused."""
    if file.is_dir():  # of a strategy that saves in parts
        return True
    checkpoint = load_checkpoint(str(file))
    try:
        check_same_model(checkpoint.get("hyper_parameters", {}), model.hparams)
    except ModelError as error:
        raise ConfigError(f"ckpt_path is {str(file)!r}, but {error}") from error
    done = checkpoint.get("global_step", 0)
    if not 0 < trainer.max_steps <= done:
        return True
    if trainer.is_global_zero:
        print(
            f"Nothing is left to do: {str(file)!r} has {pluralize(done, 'step')}, and trainer.max_steps is "
            f"{trainer.max_steps}. To train on, ask for more, as in trainer.max_steps={2 * done} "
            "(the learning rate goes by the new number)."
        )
    return False


def check_batches(config: DictConfig) -> None:
    """Refuse batches that the sample GPT does not know."""
    if config.data.batch_format != "default":
        raise ConfigError(
            f"data.batch_format is {config.data.batch_format!r}, but the sample GPT takes `targets`: expected default "
            "(huggingface is for a training script of your own, with a model of transformers)."
        )


def check_gpu(config: DictConfig) -> None:
    """Refuse to train on a GPU where there is none."""
    if config.trainer.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ConfigError(
            "trainer.accelerator is 'gpu', but torch finds no GPU here: give trainer=cpu, or install a driver and a torch "
            "that belong together (nvidia-smi shows the driver)."
        )


def make_model(config: DictConfig) -> GPTModule:
    """Make the model; what its constructor refuses is of the configuration."""
    try:
        model: GPTModule = make(config, "model")
    except InstantiationException as error:
        if isinstance(error.__cause__, ModelError):
            raise ConfigError(f"The model cannot be made: {error.__cause__}") from error
        raise
    return model


def sample(model: GPTModule, data: LanceDataModule) -> str:
    """Let the model write a document: what it puts after EOS."""
    generator = torch.Generator(model.device).manual_seed(0)
    prompt = torch.tensor([[data.tokenizer.eos_id]], device=model.device)
    ids = model.eval().model.generate(prompt, 200, temperature=0.8, top_k=50, generator=generator)
    return data.tokenizer.decode(ids[0, 1:].tolist())


if __name__ == "__main__":
    main()
