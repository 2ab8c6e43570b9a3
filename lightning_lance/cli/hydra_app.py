"""Turn a function into a command with a Hydra configuration, whose errors are one sentence.

Only this module and `composed` import Hydra.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
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

from lightning_lance.cli.composed import options_first, without_secrets
from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.cli.overrides import is_secret_key, shell_accident, shown_override
from lightning_lance.cli.streams import safe_output
from lightning_lance.errors import BuildInterrupted, ConfigError, LightningLanceError, one_of
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import nearest
from lightning_lance.messages.moved_names import moved_key
from lightning_lance.messages.redaction import redacted
from lightning_lance.process.request_logs import quiet_requests
from lightning_lance.type_hints import type_mismatch

_CONF = "lightning_lance.conf"
# How a command says what it does.
_PROGRESS = ("lines", "json")
# If it is set, Hydra does not print errors itself.
_FULL_ERROR = "HYDRA_FULL_ERROR"
# Keys whose value is a dict that the user fills. Hydra adds keys to a dict only after a +.
_DICTS = re.compile(
    r"(data\.(where|mix|fim|storage_options)|corpus\.storage_options|source\.(columns|where|extensions|storage_options))=\{"
)
# Keys whose value is a list, or a mapping in its place.
_MAPPED = re.compile(r"(source\.)?languages=\{")
# Overrides that only a build reads.
_OF_A_BUILD = re.compile(r"\+*((corpus|source|tokenizer)[.=]|build\.(?!wait_for_tokens)\w+=)")
# Nodes of the configuration whose keys are named without the node in errors.
_NODES = ("corpus", "data", "build")
# Keys that are not English words, so that they mean the key anywhere in a sentence.
_NO_WORDS = ("uri", "fim")
# OmegaConf's error for a reference to a missing key.
_MISSED = re.compile(
    r"Interpolation key '(?P<key>[\w.]+)' not found|Environment variable '(?P<variable>\w+)' not found"
)


def command(task: Callable[[DictConfig], None], trains: bool = True) -> Callable[[], None]:
    """Return a command that calls a function with the composed configuration and the overrides of the command line.

    Errors that the user can correct are one sentence on standard error, with exit code 1; set HYDRA_FULL_ERROR=1 for the
    traceback. After Ctrl-C the exit code is 130, after SIGTERM 143.

    Args:
        task: The function.
        trains: Whether it saves checkpoints, from which an interrupted run can continue.
    """

    @functools.wraps(task)
    def run() -> None:
        given = sys.argv[1:]
        sys.argv[1:] = _filled(given)
        with safe_output(), without_secrets(sys.argv[1:]) as hidden, quiet_requests():

            @functools.wraps(task)
            def with_secrets(config: DictConfig) -> None:
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
            self._error = self._error or _no_option(error, sys.argv[1:])
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning turns both signals into SystemExit.
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
            _check_added(config, given)
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
    options: dict[str, str] = {}
    _check_whole(arguments)
    try:
        with initialize_config_module(_CONF, version_base="1.3"), without_secrets(arguments):
            config: Any = OmegaConf.to_container(compose("config", overrides=_filled(arguments)), resolve=False)
            loader = GlobalHydra.instance().config_loader()
            for group in groups:
                options[group] = ", ".join(_public(loader.get_group_options(group)))
    except (HydraException, OmegaConfBaseException) as error:
        fail(redacted(_one_sentence(error, None)))
    except ValueError as error:
        fail(str(_no_option(error, arguments)))
    shown = {key: config[key] for key in keys} | {"data": {key: config["data"][key] for key in data}}
    lines = [
        f"{name} reads these keys of the configuration, as key=value: source=github_code max_documents=1000",
        "\n== Groups: group=option ==\n",
        *(f"{group}: {names}" for group, names in options.items()),
        "\n== Keys: key=value, below a group as group.key=value ==\n",
        OmegaConf.to_yaml(OmegaConf.create(_set_by_users(shown))),
        "Keys of training are accepted too. The documentation says what each key means.",
    ]
    return "\n".join(lines)


def _check_whole(arguments: Sequence[str]) -> None:
    """End with a sentence if the shell has cut or expanded an argument."""
    accident = shell_accident(arguments)
    if accident is not None:
        fail(redacted(accident))


def _public(names: Iterable[str]) -> list[str]:
    """Return the names of options. Others, such as `_base`, are parts of several options."""
    return [name for name in names if not name.startswith("_")]


def _set_by_users(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _set_by_users(config[key]) for key in _public(config)}


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
    hydra.main(version_base="1.3", config_path=f"pkg://{_CONF}", config_name="config")(task)()


def last_checkpoints(config: DictConfig) -> list[Path]:
    """Return the checkpoints of `output_dir` for `ckpt_path=last`."""
    return sorted(Path(config.get("output_dir") or ".", "checkpoints").glob("last*.ckpt"))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and the errors that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _how_to_continue(error: BaseException, trained: DictConfig | None, began: float) -> str:
    for cause in _causes(error):
        if isinstance(cause, BuildInterrupted):
            return str(cause)
    if trained is None:
        return "run it again to continue after the last commit."
    # A checkpoint from before this run counts only if this run began there.
    if trained.get("ckpt_path") or any(file.stat().st_mtime > began for file in last_checkpoints(trained)):
        return "run it again with ckpt_path=last to continue from the last checkpoint."
    return (
        "no checkpoint was saved yet: run it again to train from the beginning (finished stores are not built again)."
    )


def _one_sentence(error: BaseException, config: DictConfig | None, given: Sequence[str] = ()) -> str:
    for cause in _causes(error):
        if isinstance(cause, LightningLanceError):
            return _with_places(cause, config)
        sentence = _explained(cause)
        if sentence:
            return sentence
    if isinstance(error, InstantiationException) and config is not None:
        return _cannot_be_made(error, config, given)
    return " ".join(str(error).split())


def _explained(error: BaseException) -> str | None:
    """Return an error of Hydra or OmegaConf in one sentence; None for others."""
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return _unknown_key(error)
    if isinstance(error, (MissingMandatoryValue, InterpolationToMissingValueError)):
        key = re.sub(r"^(data\.)?(corpus\.)?(?=(source|tokenizer)\.)", "", str(error.full_key or error.key))
        return f"The key {key} has no value: give it one on the command line, as in {key}=..."
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return _unknown_option(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        return _not_understood(error.override)
    if isinstance(error, InterpolationResolutionError):
        return _missing_reference(str(error))
    return None


def _missing_reference(text: str) -> str | None:
    found = _MISSED.search(text)
    if found is None:
        return None
    variable, key = found.group("variable", "key")
    if variable:
        return f"The environment variable {variable!r} is not set, but the configuration refers to it: set it."
    return f"There is no key {key!r} for ${{{key}}}: write an environment variable as ${{oc.env:{key}}}."


def _with_places(error: LightningLanceError, config: DictConfig | None) -> str:
    """Return an error with its keys' places on the command line: it names arguments, which are mostly below a node."""
    sentence = str(error)
    if config is None:
        return sentence
    if error.place.endswith(".source"):
        # Each of several corpora has a source of its own.
        sentence = re.sub(r"\bsource\.(?=\w)", f"{_set_at(error.place, config)}.", sentence)
    places: dict[str, str] = {}
    for node in _NODES:
        keys = config.get(node)
        if not isinstance(keys, DictConfig):
            continue
        for key in _public(map(str, keys)):
            if key not in config and _names(sentence, key):
                places.setdefault(key, f"{_place_of(node, error.place, config)}.{key}")
    if not places:
        return sentence
    return f"{sentence.rstrip('.')}; on the command line: {', '.join(places.values())}."


def _place_of(node: str, failed: str, config: DictConfig) -> str:
    """Return where users set the keys of a node. Of several corpora, each has a node of its own.

    Args:
        node: One of `_NODES`.
        failed: The place whose constructor has failed; empty if unknown.
        config: The whole configuration.
    """
    if node != "corpus":
        return node
    served = config.data.get("corpus")
    if not isinstance(served, DictConfig) or "_target_" in served:
        return node
    if not failed.startswith("data.corpus."):
        return f"{_set_at('data.corpus', config)}.NAME"
    name = failed.split(".")[2]
    return _set_at(f"data.corpus.{name}", config)


def _set_at(place: str, config: DictConfig) -> str:
    """Return the key by which users set a place of the configuration: one that refers to another is set there."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return _followed(place, plain)[0]


def _followed(place: str, plain: Any) -> tuple[str, Any]:
    """Return the key that a place refers to, and what is there; None if nothing is."""
    key, node = "", plain
    for part in place.split("."):
        key = f"{key}.{part}" if key else part
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.get(part) if isinstance(node, dict) else None
        reference = re.fullmatch(r"\$\{([\w.]+)\}", str(node))
        if reference:
            key, node = _followed(reference[1], plain)
    return key, node


def _names(sentence: str, key: str) -> bool:
    anywhere = "_" in key or key in _NO_WORDS
    pattern = rf"(?<![\w./'\"]){key}(?![\w/'\"])" if anywhere else rf"^{key}\b|\b{key}="
    return re.search(pattern, sentence) is not None


def _not_understood(override: str) -> str:
    examples = "context_length=512, 'languages=[Python,Rust]' or 'data.mix={Python: 0.7, Rust: 0.3}'"
    override = shown_override(override)
    if "=" not in override:
        return f"Got {override!r}, which is not key=value: expected text such as {examples}."
    return (
        f"The value of {override!r} cannot be parsed: expected text such as {examples}; close all brackets and quotes, and "
        f"quote text with characters such as , : = ~ ( [ {{ twice, as in 'key=\"a, b\"'."
    )


def _no_option(error: ValueError, arguments: Sequence[str]) -> ConfigError:
    """Return the error for Hydra's ValueError if a group is set to something other than a name, such as null or a number."""
    for argument in arguments:
        if argument in ("source=null", "tokenizer=null"):
            return ConfigError(
                f"{argument} is not the name of an option: leave it out, or, to train on an existing store, give "
                "data.corpus=PLACE."
            )
    reason = " ".join(str(error).split()).rstrip(".")
    # Only a group has neither dots nor slashes in its name.
    given = [shown_override(argument) for argument in arguments if not re.match(r"[^=]*[./]", argument)]
    return ConfigError(f"The configuration is not valid ({reason}): check {', '.join(given) or 'its groups'}.")


def _failed_at(error: InstantiationException) -> str:
    """Return the place in the configuration whose constructor has failed; empty if unknown."""
    match = re.search(r"full_key: (\S+)", str(error))
    # Hydra writes `callbacks0` for the key `callbacks.0`.
    return re.sub(r"(?<=[a-z_])(\d+)(?=\.|$)", r".\1", match[1]) if match else ""


def _cannot_be_made(error: InstantiationException, config: DictConfig, given: Sequence[str]) -> str:
    """Return which value a constructor fails on: the one that its annotations exclude, else the ones from the user."""
    place = _failed_at(error)
    group = _set_at(place, config) if place else ""
    node = OmegaConf.select(config, place) if place else None
    if isinstance(node, DictConfig):
        for sentence in _misfits(node, group):
            return sentence
    cause = error.__cause__
    reason = " ".join(str(cause or error).split()).rstrip(".")
    if cause is not None and type(cause) is not ValueError:
        reason = f"{type(cause).__name__}: {reason}"
    mine = [shown_override(text) for text in given if re.match(rf"\+*{re.escape(group)}[.=]", text)]
    return f"{group or 'The configuration'} cannot be made ({reason}): check {', '.join(mine) or 'its keys'}."


def _misfits(node: DictConfig, place: str, target: str | None = None) -> Iterator[str]:
    """Yield a sentence for each value that a constructor's annotations exclude, with the key that the user sets."""
    target = target or node.get("_target_")
    takes = get_object(target) if target else None
    written: Any = OmegaConf.to_container(node, resolve=False)
    for name, text in written.items():
        if text == "???":
            continue
        # A value that refers to another key is set there.
        reference = re.fullmatch(r"\$\{([\w.]+)\}", str(text))
        key = reference[1] if reference else f"{place}.{name!s}"
        value = node[name]
        if isinstance(value, DictConfig) and "_target_" in value:
            yield from _misfits(value, key)
            continue
        if takes is None:
            continue
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        expected = type_mismatch(takes, str(name), plain)
        if expected:
            shown = f"of type {type(plain).__name__}" if is_secret_key(key) else repr(plain)
            yield f"{key} is {shown}: expected {expected}."


def _unknown_option(file: str, options: Any) -> str:
    group, _, name = file.rpartition("/")
    known = sorted(_public(options))
    return f"There is no {group} {name!r}: {_did_you_mean(name, known)}expected one of {', '.join(known)}."


def _unknown_key(error: OmegaConfBaseException) -> str:
    moved = moved_key(str(error.full_key))
    if moved:
        return moved
    parent = error.parent_node if isinstance(error.parent_node, DictConfig) else {}
    known = sorted(str(key) for key in parent if key not in ("_target_", "_convert_", "hydra"))
    place = str(error.full_key).rpartition(".")[0]
    if not place:
        return _unknown_root_key(str(error.key), parent)
    other = f"; another {place} may be chosen, as in {place}=files" if place == "source" else ""
    return (
        f"There is no key {error.full_key!r}: {_did_you_mean(str(error.key), known)}{place} has "
        f"{', '.join(known)}{other} (to add a key that the constructor takes, write +{error.full_key}=...)."
    )


def _check_added(config: DictConfig, given: Sequence[str]) -> None:
    """Refuse values that the command line adds to the root of the configuration: nothing would read them."""
    file = OmegaConf.load(str(files(_CONF) / "config.yaml"))
    added = {text.partition("=")[0].lstrip("+") for text in given if text.startswith("+")} - {*map(str, file)}
    known = {str(name): node for name, node in config.items() if name not in added}
    for name in sorted(added.intersection(map(str, config))):
        if not isinstance(config[name], DictConfig):
            raise ConfigError(_unknown_root_key(name, known))


def _unknown_root_key(key: str, config: Mapping[Any, Any]) -> str:
    """Return a sentence for a key that the root of the configuration has not. One of a node is named with its node."""
    nodes = [str(name) for name, node in config.items() if isinstance(node, DictConfig) and key in node]
    known = sorted(str(name) for name in config if name != "hydra")
    meant = f"did you mean {' or '.join(f'{node}.{key}' for node in nodes)}? " if nodes else _did_you_mean(key, known)
    return f"There is no key {key!r}: {meant}the configuration has {', '.join(known)}."


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return f"did you mean {near!r}? " if near else ""


def _check_is_stored(config: DictConfig) -> None:
    """Refuse keys of a corpus or its build where none is built: they would be ignored without a word."""
    served = config.data.get("corpus")
    parts = [served, *(served.values() if isinstance(served, DictConfig) else ())]
    if served is None or any(isinstance(part, DictConfig) and "_target_" in part for part in parts):
        return
    languages = config.get("languages")
    if languages:
        plain = OmegaConf.to_container(languages) if OmegaConf.is_config(languages) else languages
        raise ConfigError(
            f"languages is {plain}, but there is no source to select them from: select languages of a store by "
            "data.where={language: [...]}."
        )
    for key in ("max_documents", "max_tokens"):
        if config.get(key) is not None:
            raise ConfigError(
                f"{key} is {config[key]}, but data.corpus is an existing store, and nothing is built: leave {key} out."
            )
    given: list[str] = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for override in given:
        if _OF_A_BUILD.match(override):
            raise ConfigError(
                f"{shown_override(override)} is given, but data.corpus is an existing store, and nothing is built: leave it out"
                f"{' (a store in a bucket takes data.storage_options)' if 'storage_options' in override else ''}."
            )


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
        _check_is_stored(config)
    try:
        # A copy, since references are replaced by what they refer to, and errors name the keys that users set.
        made = instantiate(deepcopy(config)[group], **changes)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, LightningLanceError):
            cause.place = _failed_at(error)
            raise cause from None
        raise
    # Some constructors check nothing, and would fail after hours of building.
    for sentence in _misfits(config[group], group, changes.get("_target_")):
        raise ConfigError(sentence)
    return made
