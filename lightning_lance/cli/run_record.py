"""The record of a run, `.hydra/` in its folder: written when the run begins, so that a refused one leaves the earlier one."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from lightning_lance import sources, tokenization
from lightning_lance.errors import ConfigError
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.process.files import write_atomic


def _public_names(room: ModuleType) -> list[str]:
    return [f"{room.__name__}.{name}" for name in room.__all__]


# What a configuration may make: the public names of what is stored and served.
_KNOWN = frozenset(
    [
        "lightning_lance.Corpus",
        "lightning_lance.LanceDataModule",
        *_public_names(sources),
        *_public_names(tokenization),
    ]
)


# Options of Hydra's with which it makes the folder of one run; with others, it shows something, or runs several times.
_OF_ONE_RUN = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--run", "-r"}


def _options(arguments: Sequence[str]) -> set[str]:
    """Return the names of options, as in `--cfg=job`, among arguments."""
    options: set[str] = set()
    for argument in arguments:
        if argument.startswith("-"):
            options.add(argument.partition("=")[0])
    return options


class RunRecord:
    """What Hydra would write into the folder of a run before anything is checked."""

    def __init__(self) -> None:
        self._subdir: str | None = None
        self._config: DictConfig | None = None
        self._made: list[Path] = []

    def hold_back(self, composed: DictConfig) -> None:
        """Keep Hydra from writing, as soon as a configuration is composed, and make the folder of the run."""
        if "hydra" not in composed:
            return
        is_one_run = _options(sys.argv[1:]) <= _OF_ONE_RUN and composed.hydra.get("mode") != RunMode.MULTIRUN
        if is_one_run:
            self._make_folder(composed)
        self._subdir = composed.hydra.output_subdir
        with flag_override(composed, ["readonly", "struct"], [False, False]):
            composed.hydra.output_subdir = None

    def keep(self, config: DictConfig) -> None:
        """Take the configuration of the task, from before its secrets are put into it."""
        self._config = deepcopy(config)

    def check(self) -> None:
        """Check that the record can be written, as far as that is known before. ConfigError says so."""
        folder = self._folder()
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise _unwritable(folder, "it is a file")
        if folder.parent.is_dir() and not os.access(folder.parent, os.W_OK):
            raise _unwritable(folder, "no write access")

    def write(self) -> None:
        """Write the record. Does nothing where it is not wanted (`hydra.output_subdir=null`), or Hydra does not run.

        Raises:
            ConfigError: If it cannot be written.
        """
        folder = self._folder()
        if folder is None or self._config is None:
            return
        hydra: Any = deepcopy(HydraConfig.get())
        with flag_override(hydra, ["readonly", "struct"], [False, False]):
            hydra.output_subdir = self._subdir
        parts = {
            "config": self._config,
            "hydra": OmegaConf.create({"hydra": hydra}),
            "overrides": hydra.overrides.task,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, part in parts.items():
                write_atomic(folder / f"{name}.yaml", OmegaConf.to_yaml(part))
        except OSError as error:
            raise _unwritable(folder, str(error.strerror)) from error

    def _make_folder(self, composed: DictConfig) -> None:
        """Make the folder of the run, as Hydra is about to do, and remember which folders were not there before."""
        place = OmegaConf.select(composed, "hydra.run.dir", throw_on_resolution_failure=False)
        if place is None:
            return
        folder = Path(str(place)).absolute()
        # Where it cannot be made, Hydra says so.
        with suppress(OSError):
            for each in (*reversed(folder.parents), folder):
                if not os.path.lexists(each):
                    each.mkdir()
                    self._made.append(each)

    def remove_folders(self) -> None:
        """Remove the folders that this run has made, if they are still empty."""
        while self._made:
            with suppress(OSError):
                self._made.pop().rmdir()

    def _folder(self) -> Path | None:
        """Return the folder of the record; None where there is none."""
        if self._subdir is None or not HydraConfig.initialized():
            return None
        return Path(HydraConfig.get().runtime.output_dir, self._subdir)


def _unwritable(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        f"The record of the run cannot be written to {str(folder)!r} ({why}): give another output_dir, or grant write access."
    )


def read_record(file: Path) -> DictConfig:
    """Return the configuration of a run from its record, checked: what it serves can be made without running code of others.

    Whoever can write the file chooses what is made of it. So only classes of this package are taken, by their public names,
    and no code of a model's repository.

    Args:
        file: `config.yaml` of the record.

    Raises:
        ConfigError: If it is no configuration of a run, or would run other code.
    """
    try:
        text = file.read_text(encoding="utf-8")
        # Hydra writes none of these, and some of them can stand for more than any memory holds.
        for name in re.findall(r"(?<!\S)&([\w-]+)", text):
            if f"*{name}" in text:
                raise ValueError("it has anchors and aliases")
        config = OmegaConf.load(io.StringIO(text))
        if not isinstance(config, DictConfig) or not isinstance(config.get("data"), DictConfig):
            raise ValueError("it has no data")
        served = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=False)
    except Exception as error:  # yaml has its own
        why = in_one_line(error)
        raise ConfigError(
            f"{str(file)!r} is not the configuration of a run ({why}): give a checkpoint, or a token store."
        ) from error
    for key, value in _pairs_in(served):
        if key == "_target_" and str(value) not in _KNOWN:
            _refuse(file, f"makes {str(value)[:80]!r}, which is not of lightning-lance")
        if key == "trust_remote_code" and value not in (False, None):
            _refuse(file, "asks for code of a model's repository (trust_remote_code)")
        # Without their names, nobody sees what arguments are for.
        if key == "_args_":
            _refuse(file, "gives arguments without their names (_args_)")
    return config


def _refuse(file: Path, what: str) -> NoReturn:
    raise ConfigError(
        f"{str(file)!r} {what}: looking at a run does not run other code; give its token store, as in show data/x.lance, or a "
        "checkpoint once it has one."
    )


def _pairs_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all keys with their values, at any depth."""
    inner: list[Any] = []
    if isinstance(value, dict):
        yield from value.items()
        inner = [*value.values()]
    elif isinstance(value, list):
        inner = value
    for part in inner:
        yield from _pairs_in(part)


#: Of the run in this process.
RECORD = RunRecord()
