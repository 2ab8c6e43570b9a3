"""Trains the sample GPT on random windows of a token store, which is built first if it is not there.

    python examples/train_gpt.py                                    # the standard library, on a CPU, in minutes
    python examples/train_gpt.py experiment=github_code_python      # 5,000,000 Python files of GitHub, on a GPU
    python examples/train_gpt.py ckpt_path=last                     # go on where the last run stopped
    python examples/train_gpt.py --help                             # all that can be set

Any key of the configuration can be given; see conf/ and the README.
"""

import sys
from pathlib import Path

import lightning
import torch
from gpt import GPTModule
from hydra.errors import InstantiationException
from lightning.pytorch.strategies import FSDPStrategy
from omegaconf import DictConfig

from lightning_lance import LanceDataModule
from lightning_lance.command import command, last_checkpoints, make
from lightning_lance.errors import ConfigError


@command
def main(config: DictConfig) -> None:
    """Build, train, validate, and let the model write a document."""
    lightning.seed_everything(config.seed, verbose=False)
    torch.set_float32_matmul_precision("high")
    # Whatever cannot be is said here, before anything is built.
    check_checkpoint(config)
    check_batches(config)
    check_gpu(config)
    data: LanceDataModule = make(config.data)
    model: GPTModule = make_model(config)
    trainer: lightning.Trainer = make(config.trainer, enable_progress_bar=sys.stderr.isatty())
    trainer.fit(model, datamodule=data, ckpt_path=config.ckpt_path)
    if trainer.is_global_zero:
        figures = {name: round(float(value), 4) for name, value in sorted(trainer.callback_metrics.items())}
        print(f"step {trainer.global_step}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
        # A model that is sharded over several devices cannot write on one of them.
        if not isinstance(trainer.strategy, FSDPStrategy):
            print(f"--- a sample ---\n{sample(model, data)}\n----------------")


def check_checkpoint(config: DictConfig) -> None:
    """Refuse a checkpoint that is not there: a mistyped place would begin a new model."""
    place = Path(config.output_dir, "checkpoints")
    missing = config.ckpt_path is not None and not Path(config.ckpt_path).exists()
    if config.ckpt_path == "last":
        missing, where = not last_checkpoints(config), f"in {str(place)!r}"
    else:
        where = f"at {config.ckpt_path!r}"
    if missing:
        raise ConfigError(f"There is no checkpoint {where}: check ckpt_path and output_dir, or leave ckpt_path out.")


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
        model: GPTModule = make(config.model)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(f"The keys of model do not go together: {error.__cause__}") from error
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
