"""A function as a command with a configuration: its keys, and whatever goes wrong told in one sentence.

This is the only module that knows Hydra.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from lightning_lance.cli.composed import check_command_line, without_secrets
from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.cli.overrides import is_secret_key, shown_override
from lightning_lance.errors import BuildInterrupted, ConfigError, LightningLanceError
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import nearest
from lightning_lance.messages.moved_names import moved_key
from lightning_lance.messages.redaction import redacted
from lightning_lance.process.request_logs import quiet_requests
from lightning_lance.type_hints import type_mismatch

_CONF = "lightning_lance.conf"
# Of Hydra: set, it does not print errors itself.
_FULL_ERROR = "HYDRA_FULL_ERROR"
# Keys whose value is a dict that the user fills. Hydra adds keys to a dict only where a + says so.
_DICTS = re.compile(
    r"(data\.(where|mix|fim|storage_options)|corpus\.storage_options|source\.(columns|where|extensions|storage_options))=\{"
)
# Groups and nodes of the configuration whose keys errors name without their place.
_NODES = ("corpus", "data", "build")
# Keys that are no words of a sentence, so that they mean the key wherever they stand.
_NO_WORDS = ("uri", "fim")
# What OmegaConf says of a reference to what is not there.
_MISSED = re.compile(
    r"Interpolation key '(?P<key>[\w.]+)' not found|Environment variable '(?P<variable>\w+)' not found"
)


def command(task: Callable[[DictConfig], None], trains: bool = True) -> Callable[[], None]:
    """Make a command of a function: give it the composed configuration, with the overrides of the command line.

    What the user can mend is told in one sentence on standard error, with exit code 1; set HYDRA_FULL_ERROR=1 for the
    traceback. After Ctrl-C the exit code is 130, after SIGTERM 143.

    Args:
        task: The function.
        trains: Whether it saves checkpoints, from which it goes on when it was interrupted.
    """

    @functools.wraps(task)
    def run() -> None:
        sys.argv[1:] = _filled(sys.argv[1:])
        with without_secrets(sys.argv[1:]) as hidden, quiet_requests():

            @functools.wraps(task)
            def with_secrets(config: DictConfig) -> None:
                hidden.give_back(config)
                task(config)

            try:
                check_command_line(sys.argv[1:])
                if os.environ.get(_FULL_ERROR) == "1":
                    _hydra_main(with_secrets)
                else:
                    _Guarded(with_secrets, trains).run()
            except Exception:  # a bug, or HYDRA_FULL_ERROR=1
                sys.stderr.write(redacted(traceback.format_exc()))
                sys.exit(1)

    return run


class _Guarded:
    """A run of a command of which errors are told in one sentence.

    Args:
        task: The function.
        trains: Whether it saves checkpoints.
    """

    def __init__(self, task: Callable[[DictConfig], None], trains: bool) -> None:
        self._task, self._trains = task, trains
        self._signals, self._began = InterruptHandler(), time.time()
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
            self._error = self._error or _no_option(error, sys.argv[1:])
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning makes SystemExit of both signals.
            if self._signals.received is None:
                raise
            self._end_interrupted(error)
        if self._error is not None:
            fail(redacted(_one_sentence(self._error, self._config, self._given)))

    def _run_by_hydra(self) -> None:
        @functools.wraps(self._task)
        def guarded(config: DictConfig) -> None:
            self._guard(config)

        with self._signals:
            # Otherwise Hydra prints errors of the configuration itself, over several lines.
            os.environ[_FULL_ERROR] = "1"
            try:
                _hydra_main(guarded)
            finally:
                os.environ.pop(_FULL_ERROR, None)

    def _guard(self, config: DictConfig) -> None:
        """Run the task, and keep what goes wrong from Hydra, which would print a line of its own before it."""
        self._config = config
        # Unresolved: a reference to a missing key is reported with the rest of the configuration.
        given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        self._given.extend(given)
        # Only for Hydra's own part: processes that the task starts shall tell errors in one sentence too.
        os.environ.pop(_FULL_ERROR, None)
        try:
            self._task(config)
        except (LightningLanceError, HydraException, OmegaConfBaseException) as error:
            self._error = self._error or error
        except Exception:  # a bug, of which Hydra would print all that it says
            sys.stderr.write(redacted(traceback.format_exc()))
            sys.exit(1)

    def _end_interrupted(self, error: BaseException) -> NoReturn:
        # Processes that Lightning has started get the signal too; one of them tells.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            how = _how_to_go_on(error, self._config if self._trains else None, self._began)
            say(f"interrupted: {how}", file=sys.stderr)
        sys.exit(self._signals.exit_code)


def help_of(
    name: str, arguments: Sequence[str], groups: Sequence[str], keys: Sequence[str], data: Sequence[str]
) -> str:
    """Tell what a command reads of the configuration, where that is not all of it.

    Args:
        name: Of the command.
        arguments: Of the command line; what they choose is shown.
        groups: Groups of options that it reads.
        keys: Keys at the root, and groups, of which it reads all.
        data: Keys below `data`.
    """
    try:
        with initialize_config_module(_CONF, version_base="1.3"), without_secrets(arguments):
            config: Any = OmegaConf.to_container(compose("config", overrides=_filled(arguments)), resolve=False)
            loader = GlobalHydra.instance().config_loader()
            options = {
                # `_base` is what others begin with, and no option.
                group: [name for name in loader.get_group_options(group) if not name.startswith("_")]
                for group in groups
            }
    except (HydraException, OmegaConfBaseException) as error:
        fail(redacted(_one_sentence(error, None)))
    except ValueError as error:
        fail(str(_no_option(error, arguments)))
    shown = {key: config[key] for key in keys} | {"data": {key: config["data"][key] for key in data}}
    lines = [
        f"{name} reads these keys of the configuration, as key=value: source=github_code max_documents=1000",
        "\n== Groups: group=option ==\n",
        *(f"{group}: {', '.join(names)}" for group, names in options.items()),
        "\n== Keys: key=value, below a group as group.key=value ==\n",
        OmegaConf.to_yaml(OmegaConf.create(_set_by_users(shown))),
        "The keys of training may be given too. The README says what each key means.",
    ]
    return "\n".join(lines)


def _set_by_users(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _set_by_users(value) for key, value in config.items() if not key.startswith("_")}


def _filled(arguments: Sequence[str]) -> list[str]:
    return [f"+{argument}" if _DICTS.match(argument) else argument for argument in arguments]


def _hydra_main(task: Callable[[DictConfig], None]) -> None:
    hydra.main(version_base="1.3", config_path=f"pkg://{_CONF}", config_name="config")(task)()


def last_checkpoints(config: DictConfig) -> list[Path]:
    """Find the checkpoints of `output_dir` that `ckpt_path=last` means."""
    return sorted(Path(config.get("output_dir") or ".", "checkpoints").glob("last*.ckpt"))


def _how_to_go_on(error: BaseException, trained: DictConfig | None, began: float) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BuildInterrupted):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if trained is None:
        return "run it again, it goes on after what was committed."
    # One from before this run is no place to go on from, unless this one had begun there.
    if trained.get("ckpt_path") or any(file.stat().st_mtime > began for file in last_checkpoints(trained)):
        return "run it again with ckpt_path=last, it goes on from the last checkpoint."
    return "no checkpoint was saved yet: run it again, it trains from the beginning (what is built is not built again)."


def _one_sentence(error: BaseException, config: DictConfig | None, given: Sequence[str] = ()) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LightningLanceError):
            return _with_places(str(cause), config)
        if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
            return _unknown_key(cause)
        if isinstance(cause, (MissingMandatoryValue, InterpolationToMissingValueError)):
            key = re.sub(r"^(data\.)?(corpus\.)?(?=(source|tokenizer)\.)", "", str(cause.full_key or cause.key))
            return f"The key {key} has no value: give it one on the command line, as in {key}=..."
        if isinstance(cause, MissingConfigException) and cause.options and cause.missing_cfg_file:
            return _unknown_option(cause.missing_cfg_file, cause.options)
        if isinstance(cause, OverrideParseException):
            return _not_understood(cause.override)
        if found := _MISSED.search(str(cause)) if isinstance(cause, InterpolationResolutionError) else None:
            if found["variable"]:
                return f"The environment variable {found['variable']!r} is not set, which the configuration asks for: set it."
            name = found["key"]
            return (
                f"There is no key {name!r}, as ${{{name}}} says: an environment variable is written ${{oc.env:{name}}}."
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, InstantiationException) and config is not None:
        return _cannot_be_made(error, config, given)
    return " ".join(str(error).split())


def _with_places(sentence: str, config: DictConfig | None) -> str:
    """Add where on the command line the keys of a sentence are: it names arguments, most of which are below a node."""
    if config is None:
        return sentence
    places: dict[str, str] = {}
    for node in _NODES:
        keys = config.get(node)
        for key in map(str, keys if isinstance(keys, DictConfig) else ()):
            if key not in config and not key.startswith("_") and _names(sentence, key):
                places.setdefault(key, f"{node}.{key}")
    if not places:
        return sentence
    return f"{sentence.rstrip('.')}; on the command line: {', '.join(places.values())}."


def _names(sentence: str, key: str) -> bool:
    anywhere = "_" in key or key in _NO_WORDS
    pattern = rf"(?<![\w./'\"]){key}(?![\w/'\"])" if anywhere else rf"^{key}\b|\b{key}="
    return re.search(pattern, sentence) is not None


def _not_understood(override: str) -> str:
    examples = "context_length=512, 'languages=[Python,Rust]' or 'data.mix={Python: 0.7, Rust: 0.3}'"
    override = shown_override(override)
    if "=" not in override:
        return f"Got {override!r}, which is no key=value: expected such as {examples}."
    return (
        f"The value of {override!r} cannot be read: expected such as {examples}; close what it opens, and quote text that has "
        f"signs like , : = ~ ( [ {{ once more, as in 'key=\"a, b\"'."
    )


def _no_option(error: ValueError, arguments: Sequence[str]) -> ConfigError:
    """Say what Hydra raises where a group is given what is no name, such as null or a number."""
    if nothing := [argument for argument in arguments if argument in ("source=null", "tokenizer=null")]:
        return ConfigError(
            f"{nothing[0]} names no option: leave it out, or, to train on a store that is there, give data.corpus=PLACE."
        )
    told = " ".join(str(error).split()).rstrip(".")
    # Groups have no dots in their names; what the command adds itself has some, or is Hydra's.
    given = [shown_override(argument) for argument in arguments if not re.match(r"[^=]*[./]", argument)]
    return ConfigError(f"The configuration cannot be composed ({told}): check {', '.join(given) or 'its groups'}.")


def _cannot_be_made(error: InstantiationException, config: DictConfig, given: Sequence[str]) -> str:
    """Say which value a constructor has stumbled over: by what it says that it takes, else by what was given for it."""
    place = match[1] if (match := re.search(r"full_key: (\S+)", str(error))) else ""
    # Hydra writes `callbacks0` for what is set as `callbacks.0`.
    place = re.sub(r"(?<=[a-z_])(\d+)(?=\.|$)", r".\1", place)
    # What is set at the root is passed on by corpus, and that by data.
    group = re.sub(r"^(data\.)?(corpus\.)?(?=(source|tokenizer)\b)|^data\.(?=corpus\b|build\b)", "", place)
    node = OmegaConf.select(config, place) if place else None
    if isinstance(node, DictConfig):
        for told in _misfits(node, group):
            return told
    cause = error.__cause__
    told = " ".join(str(cause or error).split()).rstrip(".")
    if cause is not None and type(cause) is not ValueError:
        told = f"{type(cause).__name__}: {told}"
    mine = [shown_override(text) for text in given if re.match(rf"\+*{re.escape(group)}[.=]", text)]
    return f"{group or 'The configuration'} cannot be made ({told}): check {', '.join(mine) or 'its keys'}."


def _misfits(node: DictConfig, place: str, target: str | None = None) -> Iterator[str]:
    """Find values that a constructor cannot take by what it says: in a sentence each, with the key as it is set."""
    target = target or node.get("_target_")
    takes = get_object(target) if target else None
    written: Any = OmegaConf.to_container(node, resolve=False)
    for name, spelled in written.items():
        if spelled == "???":
            continue
        # What is the same in two places is set in one of them, and passed on by the other.
        passed_on = re.fullmatch(r"\$\{([\w.]+)\}", str(spelled))
        key = passed_on[1] if passed_on else f"{place}.{name!s}"
        value = node[name]
        if isinstance(value, DictConfig) and "_target_" in value:
            yield from _misfits(value, key)
            continue
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if takes is not None and (expected := type_mismatch(takes, str(name), plain)):
            shown = f"of type {type(plain).__name__}" if is_secret_key(key) else repr(plain)
            yield f"{key} is {shown}: expected {expected}."


def _unknown_option(file: str, options: Any) -> str:
    group, _, name = file.rpartition("/")
    # What others are made of is no option by itself.
    known = sorted(option for option in options if not option.startswith("_"))
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    return f"There is no {group} {name!r}: {hint}there are {', '.join(known)}."


def _unknown_key(error: OmegaConfBaseException) -> str:
    if moved := moved_key(str(error.full_key)):
        return moved
    parent = error.parent_node if isinstance(error.parent_node, DictConfig) else {}
    known = [str(key) for key in parent if key not in ("_target_", "_convert_", "hydra")]
    near = nearest(str(error.key), known)
    hint = f"did you mean {near!r}? " if near else ""
    place = str(error.full_key).rpartition(".")[0]
    return (
        f"There is no key {error.full_key!r}: {hint}{place or 'the configuration'} has {', '.join(sorted(known))} "
        f"(to add a key that the constructor takes, write +{error.full_key}=...)."
    )


def _check_is_stored(config: DictConfig) -> None:
    """Refuse keys of a corpus where none is built: they would be passed over in silence."""
    served: Any = OmegaConf.to_container(config.data, resolve=False)
    if "corpus" not in served or "${corpus}" in str(served["corpus"]) or "_target_" in str(served["corpus"]):
        return
    if config.get("languages"):
        raise ConfigError(
            f"languages is {list(config.languages)}, which a source is asked for, and there is none: say which languages of a "
            "store to serve by data.where={language: [...]}."
        )
    for key in ("max_documents", "max_tokens"):
        if config.get(key) is not None:
            raise ConfigError(
                f"{key} is {config[key]}, but data.corpus is a store that is there, and nothing is built: leave it out."
            )


def make(config: DictConfig, group: str, **changes: Any) -> Any:
    """Instantiate a group of the configuration.

    Args:
        config: The whole configuration.
        group: Such as `data`.
        **changes: Values that replace those of the configuration.

    Raises:
        ConfigError: If a constructor refuses a value, or says that it takes others.
        InstantiationException: If a constructor fails otherwise.
    """
    if group == "data":
        _check_is_stored(config)
    try:
        made = instantiate(config[group], **changes)
    except InstantiationException as error:
        if isinstance(error.__cause__, LightningLanceError):
            raise error.__cause__ from None
        raise
    # Some only keep what they are given, and would stumble over it after hours of building.
    for told in _misfits(config[group], group, changes.get("_target_")):
        raise ConfigError(told)
    return made
