"""Trains the sample GPT on random windows of a token store, which is built first if it is not there.

    lightning-lance train                                   # the standard library, on a CPU, in minutes
    lightning-lance train experiment=github_code_python     # 5,000,000 Python files of GitHub, on a GPU
    lightning-lance train ckpt_path=last                    # go on where the last run stopped
    lightning-lance train --help                            # all that can be set

The same as `python examples/train_gpt.py` in a clone. Any key of the configuration can be given; see conf/ and
docs/reference/configuration.md.
"""

import re
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lightning_lance import Corpus, LanceDataModule
from lightning_lance.callbacks import SliceMetrics
from lightning_lance.cli.hydra_app import command, last_checkpoints, make
from lightning_lance.cli.overrides import shown_override
from lightning_lance.cli.run_record import RECORD
from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.examples.gpt import GPTModule, ModelError, check_same_model
from lightning_lance.examples.on_screen import ProgressLines, StepBar, without_tips
from lightning_lance.examples.run_folder import LossCurve, MetricsFile, telling_losses
from lightning_lance.inspection.checkpoints import checkpoint_at, find_loader_states, load_checkpoint
from lightning_lance.messages.escaping import logger, say, shown_lines
from lightning_lance.messages.formatting import format_list, format_tokens, pluralize

_log = logger("train_gpt")

# Of the sample: tokens of its prompt and of what the model writes, and lines of each on the screen.
_PROMPT_TOKENS = 16
_SAMPLE_TOKENS = 200
_PROMPT_LINES = 3
_SAMPLE_LINES = 9
_WIDTH = 120


@partial(command, records=False)
def main(config: DictConfig) -> None:
    """Build, train, validate, and let the model write."""
    with without_tips():
        train(config)


def train(config: DictConfig) -> None:
    """Do what the configuration says, in this process."""
    lightning.seed_everything(config.seed, verbose=False)
    torch.set_float32_matmul_precision("high")
    # Whatever cannot be is said here, before anything is built.
    RECORD.check()
    checkpoint = find_checkpoint(config)
    check_batches(config)
    check_gpu(config)
    data: LanceDataModule = make(config, "data")
    model = make_model(config)
    watching: list[lightning.Callback] = [*make(config, "watch").values()]
    for callback in watching:
        if isinstance(callback, SliceMetrics):
            callback.check(data)
    if model.hparams.context_length < data.context_length:
        raise ConfigError(
            f"model.context_length is {model.hparams.context_length}, and windows have context_length={data.context_length} "
            f"tokens: leave model.context_length out, or make it {data.context_length} at least."
        )
    trainer = make_trainer(config)
    if checkpoint is not None and not check_checkpoint(checkpoint, model, data, trainer):
        return
    check_loggers(trainer)
    curves = [LossCurve(logger) for logger in trainer.loggers if isinstance(logger, MetricsFile)]
    trainer.callbacks[:0] = [RunBegins(), *progress(), *curves, *watching]
    trainer.callbacks.append(SaveAtEnd())
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    except ModelError as error:
        raise ConfigError(f"The model does not go with the data or the trainer: {error}") from error
    if trainer.is_global_zero:
        # A model that is sharded over several devices cannot write on one of them.
        if not isinstance(trainer.strategy, FSDPStrategy):
            say(*sample(model, data).split("\n"))
        say(*summary(trainer, data, curves))


def progress() -> list[lightning.Callback]:
    """Return a bar for a terminal, and lines for a log."""
    shown: list[lightning.Callback] = [StepBar()] if sys.stderr.isatty() else []
    if not shown or not sys.stdout.isatty():
        shown.append(ProgressLines())
    return shown


class RunBegins(lightning.Callback):
    """Writes the record of the run once it trains: one that is refused before leaves that of an earlier run.

    A run that goes on from a `last.ckpt` goes on with that file, too: Lightning would write a `last-v1.ckpt` beside it, where
    the checkpoint was saved before Lightning had a name for the last one.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the record, and name the file of the last checkpoint."""
        if trainer.is_global_zero:
            RECORD.write()
        if not trainer.ckpt_path:
            return
        begun = Path(trainer.ckpt_path).absolute()
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or not callback.save_last or callback.dirpath is None:
                continue
            is_last = re.fullmatch(rf"{callback.CHECKPOINT_NAME_LAST}(-v\d+)?", begun.stem) is not None
            if is_last and begun.parent == Path(callback.dirpath).absolute():
                callback.last_model_path = str(Path(callback.dirpath, begun.name))


class SaveAtEnd(lightning.Callback):
    """Saves the last step too, where its number is no multiple of the checkpoints' own interval.

    Lightning would save after the end, when it has already counted the epoch as a whole.
    """

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save `last.ckpt` after the last step, unless that was saved."""
        if trainer.global_step != trainer.max_steps:
            return
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or not callback.save_last:
                continue
            if callback._last_global_step_saved != trainer.global_step:
                callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))


def make_trainer(config: DictConfig) -> lightning.Trainer:
    """Make the trainer, with this script's bar in place of Lightning's."""
    changes: dict[str, Any] = {"enable_progress_bar": False}
    # Lightning's would count the parameters before there are any.
    changes["enable_model_summary"] = config.trainer.get("enable_model_summary", False)
    changes["val_check_interval"] = ten_times_a_run(config, "val_check_interval")
    changes["log_every_n_steps"] = ten_times_a_run(config, "log_every_n_steps")
    try:
        trainer: lightning.Trainer = make(config, "trainer", **changes)
    except InstantiationException as error:
        name = getattr(error.__cause__, "name", None)
        others = [other for other in config.logger if other != "csv"]
        if isinstance(error.__cause__, ImportError) and others:
            raise ConfigError(
                f"logger={others[0]} needs a package that is not installed ({name or error.__cause__}): "
                f"pip install {others[0]}, or leave the override out."
            ) from error
        raise
    return trainer


def check_loggers(trainer: lightning.Trainer) -> None:
    """Start the loggers of other packages: one that needs an account says so before anything is built."""
    for logger_ in trainer.loggers:
        if isinstance(logger_, MetricsFile):
            continue
        name = type(logger_).__name__.removesuffix("Logger").lower()
        try:
            _ = logger_.experiment
        except Exception as error:  # each has its own
            offline = ", or give logger.wandb.offline=true" if name == "wandb" else ""
            raise ConfigError(
                f"The logger {name} cannot begin ({type(error).__name__}: {str(error).rstrip('.')}): do what it says{offline}, "
                "or leave logger out."
            ) from error


def ten_times_a_run(config: DictConfig, key: str) -> Any:
    """Return an interval in steps that comes ten times in a run at least, unless the command line says otherwise."""
    interval, steps = config.trainer.get(key), config.trainer.get("max_steps")
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    if any(override.lstrip("+").startswith(f"trainer.{key}=") for override in given):
        return interval
    if not all(isinstance(number, int) and number > 0 for number in (interval, steps)):
        return interval
    return min(interval, max(1, steps // 10))


def find_checkpoint(config: DictConfig) -> Path | None:
    """Find the checkpoint to go on from. One that is not there is refused: a mistyped place would begin a new model."""
    if config.ckpt_path is None:
        return None
    place = Path(config.output_dir, "checkpoints")
    found, where = [Path(config.ckpt_path)], f"at {config.ckpt_path!r}"
    if config.ckpt_path == "last":
        found, where = last_checkpoints(config), f"in {str(place)!r}"
    elif found[0].is_dir() and found[0].suffix != ".ckpt":  # the folder of a run
        found = [Path(checkpoint_at(config.ckpt_path))]
    if not any(path.exists() for path in found):
        raise ConfigError(f"There is no checkpoint {where}: check ckpt_path and output_dir, or leave ckpt_path out.")
    newest = max(found, key=lambda path: path.stat().st_mtime)
    tell_others(newest, [path for path in found if path != newest])
    return newest


@rank_zero_only
def tell_others(chosen: Path, others: list[Path]) -> None:
    """Tell that a folder has checkpoints of several runs, and which is taken."""
    if others:
        names = format_list([path.name for path in others], 3)
        _log.warning(
            "Several runs are in %s: going on with the newest, %s, and not with %s.", chosen.parent, chosen.name, names
        )


def check_checkpoint(file: Path, model: GPTModule, data: LanceDataModule, trainer: lightning.Trainer) -> bool:
    """Tell whether a checkpoint leaves something to do. One of another model or other data is refused."""
    if file.is_dir():  # of a strategy that saves in parts
        return True
    checkpoint = load_checkpoint(str(file))
    try:
        check_same_model(checkpoint.get("hyper_parameters", {}), model.hparams)
    except ModelError as error:
        raise ConfigError(f"ckpt_path is {str(file)!r}, but {str(error).rstrip('.')}{keys_of_run(file)}.") from error
    done = checkpoint.get("global_step", 0)
    if not 0 < trainer.max_steps <= done:
        for state in islice(find_loader_states(checkpoint), 1):
            check_data(file, state, data)
        return True
    if trainer.is_global_zero:
        print(
            f"Nothing is left to do: {str(file)!r} has {pluralize(done, 'step')}, and trainer.max_steps is "
            f"{trainer.max_steps}. To train on, ask for more, as in trainer.max_steps={2 * done} "
            "(the learning rate goes by the new number)."
        )
    return False


def check_data(file: Path, state: Mapping[str, Any], data: LanceDataModule) -> None:
    """Refuse a checkpoint of other data, before anything is built but the tokenizer."""
    try:
        data.check_state_dict(state)
        if data.serving.on_data_change == "error" and knows_tokenizers_now(data):
            data.check_state_dict(state)
    except StoreError as error:
        raise StoreError(f"ckpt_path is {str(file)!r}: {str(error).rstrip('.')}{keys_of_run(file)}.") from error


def knows_tokenizers_now(data: LanceDataModule) -> bool:
    """Train the tokenizers that a build would train first. Tell whether there are any: they decide which store is meant."""
    trained = False
    for corpus in data.corpora.values():
        if isinstance(corpus, Corpus) and corpus.trains_tokenizer:
            trained = bool(corpus.fingerprint)
    return trained


def keys_of_run(file: Path) -> str:
    """Return what the run of a checkpoint was given, to be repeated, for the end of a sentence; empty if that is unknown."""
    record = file.parent.parent / ".hydra" / "overrides.yaml"
    try:
        given = OmegaConf.to_container(OmegaConf.load(record))
    except Exception:  # yaml has its own
        return ""
    if not isinstance(given, list):
        return ""
    left_out = ("ckpt_path=", "trainer.max_steps=", "output_dir=")
    kept = [str(key) for key in given if not str(key).lstrip("+").startswith(left_out)]
    if not kept:
        return "; that run was given no keys"
    keys = " ".join(quoted(shown_override(key)) for key in kept)
    return f"; that run was given {keys}, which a run that goes on repeats"


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
    """Return the beginning of a validation document, and what the model writes after it, in at most 15 lines."""
    try:
        tokenizer, store = data.tokenizer, data.store
    except LightningLanceError as error:
        # As of a store that was copied without the file beside it. The run itself has ended well.
        return f"The model writes no sample: {error}"
    split = "val" if store.num_tokens("val") >= _PROMPT_TOKENS else "train"
    length = min(_PROMPT_TOKENS, store.num_tokens(split))
    prompt = until(store.read(np.zeros(1, np.int64), length, split)[0].tolist(), tokenizer.eos_id)
    generator = torch.Generator(model.device).manual_seed(0)
    ids = torch.tensor([prompt], device=model.device)
    written = model.eval().model.generate(ids, _SAMPLE_TOKENS, temperature=0.8, top_k=50, generator=generator)
    text = tokenizer.decode(until(written[0, len(prompt) :].tolist(), tokenizer.eos_id))
    return "\n".join(
        [
            "--- a prompt: the beginning of a document ---",
            first_lines(tokenizer.decode(prompt), _PROMPT_LINES),
            "--- the model goes on ---",
            first_lines(text, _SAMPLE_LINES),
            "---",
        ]
    )


def until(ids: list[int], eos_id: int) -> list[int]:
    """Return the ids before EOS; one at least, since a model continues something."""
    if eos_id not in ids:
        return ids
    return ids[: max(1, ids.index(eos_id))]


def first_lines(text: str, most: int) -> str:
    """Return the first lines of a text, with an ellipsis where something is left out."""
    lines = []
    for line in shown_lines(text).split("\n"):
        if len(line) > _WIDTH:
            lines.append(f"{line[:_WIDTH]}...")
        else:
            lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], "..."]
    return "\n".join(lines)


def summary(trainer: lightning.Trainer, data: LanceDataModule, curves: list[LossCurve]) -> list[str]:
    """Return the last lines of a run: what it was trained on, how far it came, where that is, and how to go on."""
    stores = []
    for store in data.stores.values():
        train = format_tokens(store.num_tokens("train"))
        val = format_tokens(store.num_tokens("val"))
        stores.append(f"{near(store.uri)}, version {store.version}: {train} to train on, {val} to validate on")
    known = trainer.callback_metrics
    names = telling_losses([name for name in known if "loss" in name])
    losses = [f"{name} {float(known[name]):.4f}" for name in names]
    found: list[str] = []
    for curve in curves:
        found.append(f"metrics in {curve.metrics.file}")
        found.append(f"their curve in {curve.picture}")
    checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "")
    if checkpoint:
        found.append(f"checkpoint in {near(checkpoint)}")
    lines = [f"trained on {'; '.join(stores)}", f"step {trainer.global_step:,}: {', '.join(losses)}"]
    if found:
        lines.append(", ".join(found))
    if checkpoint:
        lines.append(f"to go on: {again(trainer.max_steps, near(checkpoint))}")
    return lines


def near(place: str) -> str:
    """Return a path as seen from the current folder, where it is below that."""
    path, here = Path(place), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else place


def again(max_steps: int, checkpoint: str) -> str:
    """Return the command that trains on from a checkpoint, for as many steps again.

    It names the file: `last` would be that of another run, once one has begun in the same folder.
    """
    changes = [f"ckpt_path={as_value(checkpoint)}"]
    if max_steps > 0:
        changes.append(f"trainer.max_steps={2 * max_steps}")
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    changed = tuple(f"{change.partition('=')[0]}=" for change in changes)
    kept = [shown_override(override) for override in given if not override.lstrip("+").startswith(changed)]
    return " ".join(map(quoted, [*program(), *kept, *changes]))


def as_value(text: str) -> str:
    """Return a text as a value of an override."""
    if re.fullmatch(r"[\w./-]+", text):
        return text
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def quoted(word: str) -> str:
    """Return a word as a shell takes it, easy to read where it has single quotes in it."""
    return f'"{word}"' if "'" in word and not {*word} & {*'"$`!\\'} else shlex.quote(word)


def program() -> list[str]:
    """Return the words that this script was started with."""
    if __name__ != "__main__":
        return ["lightning-lance", "train"]
    if __spec__ is not None:
        return ["python", "-m", __spec__.name]
    return ["python", sys.argv[0]]


if __name__ == "__main__":
    main()
