"""Turn a function into a command with a Hydra configuration, whose errors are one sentence.

Only this module, `composed`, `config_errors` and `run_record` import Hydra.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    InstantiationException,
)
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    OmegaConfBaseException,
)

from lightning_lance.cli.composed import options_first, without_secrets
from lightning_lance.cli.config_errors import (
    CONF,
    check_added,
    check_is_stored,
    failed_at,
    misfits,
    no_option,
    one_sentence,
    public_names,
)
from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.cli.overrides import shell_accident
from lightning_lance.cli.run_record import RECORD, read_record
from lightning_lance.cli.streams import safe_output
from lightning_lance.errors import BuildInterrupted, ConfigError, LightningLanceError, causes, one_of
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.redaction import redacted
from lightning_lance.process.request_logs import quiet_requests

if TYPE_CHECKING:
    from lightning_lance.serving.loader import WindowLoader

# How a command says what it does.
_PROGRESS = ("lines", "json")
# If it is set, Hydra does not print errors itself.
_FULL_ERROR = "HYDRA_FULL_ERROR"
# Keys whose value is a dict that the user fills. Hydra adds keys to a dict only after a +.
_DICTS = re.compile(
    r"(data\.(where|mix|max_epochs|fim|storage_options)|corpus\.storage_options"
    r"|source\.(columns|where|extensions|storage_options))=\{"
)
# Keys whose value is a list, or a mapping in its place.
_MAPPED = re.compile(r"(source\.)?languages=\{")


def command(task: Callable[[DictConfig], None], trains: bool = True, records: bool = True) -> Callable[[], None]:
    """Return a command that calls a function with the composed configuration and the overrides of the command line.

    Errors that the user can correct are one sentence on standard error, with exit code 1; set HYDRA_FULL_ERROR=1 for the
    traceback. After Ctrl-C the exit code is 130, after SIGTERM 143.

    Args:
        task: The function.
        trains: Whether it saves checkpoints, from which an interrupted run can continue.
        records: Whether Hydra writes its record of the run, `.hydra`, before the function is called. Without, the function
            calls `RECORD.write` once nothing can be refused any more: the record of an earlier run stays until then.
    """

    @functools.wraps(task)
    def run() -> None:
        given = sys.argv[1:]
        sys.argv[1:] = _filled(given)
        composed = None if records else RECORD.hold_back
        with safe_output(), without_secrets(sys.argv[1:], composed) as hidden, quiet_requests():

            @functools.wraps(task)
            def with_secrets(config: DictConfig) -> None:
                RECORD.keep(config)
                hidden.give_back(config)
                if one_of("progress", config.progress, _PROGRESS) == "json":
                    from lightning_lance.cli.job_log import write_json_lines

                    write_json_lines()
                task(config)

            try:
                _check_whole(given)
                sys.argv[1:] = options_first(sys.argv[1:])
                if os.environ.get(_FULL_ERROR) == "1":
                    _hydra_main(with_secrets)
                else:
                    _Guarded(with_secrets, trains).run()
            except Exception:  # a bug, or HYDRA_FULL_ERROR=1
                sys.stderr.write(redacted(traceback.format_exc()))
                sys.exit(1)

    return run


class _Guarded:
    """A run of a command whose errors are one sentence.

    Args:
        task: The function.
        trains: Whether it saves checkpoints.
    """

    def __init__(self, task: Callable[[DictConfig], None], trains: bool) -> None:
        self._task = task
        self._trains = trains
        self._signals = InterruptHandler()
        self._began = time.time()
        self._config: DictConfig | None = None
        self._given: list[str] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run_by_hydra()
        except (HydraException, OmegaConfBaseException) as error:
            self._error = self._error or error
        except ValueError as error:
            if self._config is not None:
                raise
            self._error = self._error or no_option(error, sys.argv[1:])
        except OSError as error:
            if self._config is not None or error.filename is None:
                raise
            self._error = ConfigError(
                f"{str(error.filename)!r}, for the files of the run, cannot be written ({error.strerror}): give another folder "
                "as output_dir."
            )
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning turns both signals into SystemExit.
            if self._signals.received is None:
                raise
            self._end_interrupted(error)
        if self._error is not None:
            RECORD.remove_folders()
            fail(redacted(one_sentence(self._error, self._config, self._given)))

    def _run_by_hydra(self) -> None:
        @functools.wraps(self._task)
        def guarded(config: DictConfig) -> None:
            self._guard(config)

        with self._signals:
            # Otherwise Hydra prints errors of the configuration over several lines.
            os.environ[_FULL_ERROR] = "1"
            try:
                _hydra_main(guarded)
            finally:
                os.environ.pop(_FULL_ERROR, None)

    def _guard(self, config: DictConfig) -> None:
        """Run the task, and keep its error from Hydra, which would print a line of its own before it."""
        self._config = config
        # Unresolved: a reference to a missing key is reported with the rest of the configuration.
        given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        self._given.extend(given)
        # Unset before the task: processes that it starts also report errors in one sentence.
        os.environ.pop(_FULL_ERROR, None)
        try:
            check_added(config, given)
            self._task(config)
        except (LightningLanceError, HydraException, OmegaConfBaseException) as error:
            self._error = self._error or error
        except Exception:  # a bug: Hydra would print it with its secrets
            sys.stderr.write(redacted(traceback.format_exc()))
            sys.exit(1)

    def _end_interrupted(self, error: BaseException) -> NoReturn:
        # Processes that Lightning has started get the signal too; one of them prints the message.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            how = _how_to_continue(error, self._config if self._trains else None, self._began)
            say(f"interrupted: {how}", file=sys.stderr)
        sys.exit(self._signals.exit_code)


def help_of(
    name: str, arguments: Sequence[str], groups: Sequence[str], keys: Sequence[str], data: Sequence[str]
) -> str:
    """Return the help text of a command that reads a part of the configuration.

    Args:
        name: Name of the command.
        arguments: Arguments of the command line, whose choices are shown.
        groups: Groups of options that it reads.
        keys: Keys and groups at the root that it reads whole.
        data: Keys below `data`.
    """
    options: list[str] = []
    _check_whole(arguments)
    try:
        with initialize_config_module(CONF, version_base="1.3"), without_secrets(arguments):
            config: Any = OmegaConf.to_container(compose("config", overrides=_filled(arguments)), resolve=False)
            loader = GlobalHydra.instance().config_loader()
            for group in groups:
                options.append(f"{group}: {', '.join(public_names(loader.get_group_options(group)))}")
    except (HydraException, OmegaConfBaseException) as error:
        fail(redacted(one_sentence(error, None)))
    except ValueError as error:
        fail(str(no_option(error, arguments)))
    shown = {key: config[key] for key in keys}
    shown["data"] = {key: config["data"][key] for key in data}
    lines = [
        f"{name} reads these keys of the configuration, as key=value: source=github_code max_documents=1000",
        "Files of your own: source=files source.root=my/folder 'source.patterns=**/*.md'",
        "\n== Groups: group=option ==\n",
        *options,
        "\n== Keys: key=value, below a group as group.key=value ==\n",
        *_in_lines(_set_by_users(shown)),
        "\nKeys of training are accepted too. The documentation says what each key means.",
    ]
    return "\n".join(lines)


def _in_lines(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys with their values as they are given on the command line, a line or two for each group."""
    for group, keys in config.items():
        words = []
        for key, value in _flat(group, keys):
            text = value if isinstance(value, str) else json.dumps(value)
            # What is another key is given by that one.
            if not text.startswith("${"):
                words.append(f"{key}={text}")
        yield from textwrap.wrap(" ".join(words), 120, break_long_words=False, break_on_hyphens=False)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values below a key, each with its whole name."""
    if not isinstance(value, dict) or not value:
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(f"{name}.{key}", inner)


def _check_whole(arguments: Sequence[str]) -> None:
    """End with a sentence if the shell has cut or expanded an argument."""
    accident = shell_accident(arguments)
    if accident is not None:
        fail(redacted(accident))


def _set_by_users(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _set_by_users(config[key]) for key in public_names(config)}


def _filled(arguments: Sequence[str]) -> list[str]:
    filled = []
    for argument in arguments:
        if _MAPPED.match(argument):
            # Hydra merges no mapping into a list.
            filled += [f"~{argument.partition('=')[0]}", f"+{argument}"]
        else:
            filled.append(f"+{argument}" if _DICTS.match(argument) else argument)
    return filled


def _hydra_main(task: Callable[[DictConfig], None]) -> None:
    hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(task)()


def last_checkpoints(config: DictConfig) -> list[Path]:
    """Return the checkpoints of `output_dir` for `ckpt_path=last`."""
    return sorted(Path(config.get("output_dir") or ".", "checkpoints").glob("last*.ckpt"))


def _has_saved(config: DictConfig, began: float) -> bool:
    return any(file.stat().st_mtime > began for file in last_checkpoints(config))


def _how_to_continue(error: BaseException, trained: DictConfig | None, began: float) -> str:
    for cause in causes(error):
        if isinstance(cause, BuildInterrupted):
            return str(cause)
    if trained is None:
        return "run it again to continue after the last commit."
    # A checkpoint from before this run counts only if this run began there.
    if trained.get("ckpt_path") or _has_saved(trained, began):
        return "run it again with ckpt_path=last to continue from the last checkpoint."
    return (
        "no checkpoint was saved yet: run it again to train from the beginning (finished stores are not built again)."
    )


def loader_of(file: Path, settings: Mapping[str, Any]) -> WindowLoader:
    """Return what a run would serve, from its composed configuration, without a Trainer. Nothing is built or changed.

    Args:
        file: The configuration.
        settings: Arguments of the loader that replace those of the configuration.
    """
    config = read_record(file)
    try:
        data = make(config, "data")
    except InstantiationException as error:
        raise ConfigError(one_sentence(error, config)) from error
    if trains_tokenizer(data):
        raise ConfigError(f"The run of {str(file)!r} has no tokenizer yet, and no token store: it builds them first.")
    stores = {name: corpus.open() for name, corpus in data.corpora.items()}
    fim = None
    if data.fim is not None:
        fim = data.fim.with_ids(data.tokenizer, data.serving.seed)
    training = {**data.serving.training, **vars(data.batch), "world_size": ranks_of(config), "fim": fim}
    for name in ("batch_size", "context_length"):
        # All steps as if they had this size.
        if name in settings:
            training[f"{name}_schedule"] = ()
    return loader_with(data, stores, **{**training, **settings})


def trains_tokenizer(data: Any) -> bool:
    """Return whether only a build would know the tokenizer of a datamodule."""
    return any(getattr(corpus, "trains_tokenizer", False) for corpus in data.corpora.values())


def loader_with(data: Any, stores: Mapping[str, Any], **options: Any) -> WindowLoader:
    """Return a loader of what a datamodule selects.

    Args:
        data: The datamodule.
        stores: Its stores, by name.
        options: Further arguments of the loader.
    """
    from lightning_lance.serving.loader import WindowLoader

    selected = {"context_length": data.context_length, "batch_size": data.batch_size}
    given = {**selected, "seed": data.serving.seed, "where": data.serving.where, **options}
    return WindowLoader(dict(stores), **given)


def ranks_of(config: DictConfig) -> int:
    """Return the processes of a run, as far as its configuration has their number; otherwise 1."""
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if not isinstance(devices, int) or not isinstance(nodes, int) or min(devices, nodes) < 1:
        return 1
    return devices * nodes


def make(config: DictConfig, group: str, **changes: Any) -> Any:
    """Instantiate a group of the configuration.

    Args:
        config: The whole configuration.
        group: Such as `data`.
        **changes: Values that replace those of the configuration.

    Raises:
        ConfigError: If a constructor refuses a value, or its annotations exclude it.
        InstantiationException: If a constructor fails otherwise.
    """
    if group == "data":
        check_is_stored(config)
    try:
        # A copy, since references are replaced by what they refer to, and errors name the keys that users set.
        made = instantiate(deepcopy(config)[group], **changes)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, LightningLanceError):
            cause.place = failed_at(error)
            raise cause from None
        raise
    # Some constructors check nothing, and would fail after hours of building.
    for sentence in misfits(config[group], group, changes.get("_target_")):
        raise ConfigError(sentence)
    return made
