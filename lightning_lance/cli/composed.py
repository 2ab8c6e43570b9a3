"""What Hydra composes, shows and writes, without the secrets in it: those only the task gets.

Hydra writes the configuration of a run beside its results, prints it when asked, and repeats it in its errors. So a secret
is taken out as soon as a configuration is composed, and put back into the copy that the task gets.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf, flag_override

from lightning_lance.cli.overrides import MISSING, SECRET_MAPPINGS, is_secret_override, shown_override
from lightning_lance.errors import ConfigError
from lightning_lance.messages.redaction import (
    has_secret,
    is_harmless_option,
    is_secret_name,
    redacted,
    remember,
    remember_option,
    remember_url,
)

_ENVIRONMENT = ("hydra", "job", "env_set")
# A word of what is given for a mapping, perhaps after its key.
_WORD = re.compile(r"(?:([\w.-]+)\s*[:=]\s*)?(\"[^\"]*\"|'[^']*'|[^\s,{}\[\]]+)")

_Path = tuple[str | int, ...]


class HiddenValues:
    """The secrets of a configuration, by their place in it.

    Args:
        resolved: Whether the configuration will be shown with its interpolations resolved, which may name the environment.
    """

    def __init__(self, resolved: bool = False) -> None:
        self._values: dict[_Path, Any] = {}
        self._resolved = resolved

    def hide(self, config: DictConfig) -> None:
        """Take the secrets out of a composed configuration, and out of the overrides in it."""
        for path, value, secret in list(_leaves(_plain(config), ())):
            if path[:2] == ("hydra", "overrides") or not self._is_hidden(config, path, value, secret):
                continue
            if not _is_interpolation(value):
                self._values[path] = value
                remember_option(str(path[-1]), str(value))
            shown = MISSING
            if path[:-1] == _ENVIRONMENT and not self._resolved:
                # Hydra itself needs these, which are for the environment.
                os.environ[str(path[-1])] = str(value)
                shown = f"${{oc.env:{path[-1]}}}"
            _set(config, path, shown)
        if "hydra" in config:
            _hide_overrides(config)

    def _is_hidden(self, config: DictConfig, path: _Path, value: Any, secret: bool) -> bool:
        if value in (None, MISSING) or isinstance(value, bool):
            return False
        if _is_interpolation(value):
            if not self._resolved:
                return False
            value = OmegaConf.select(config, ".".join(map(str, path)), throw_on_resolution_failure=False)
        if isinstance(value, str) and has_secret(value):
            return True
        return secret and not is_harmless_option(str(path[-1]))

    def give_back(self, config: DictConfig) -> None:
        """Put the secrets back into the configuration that a task gets.

        Raises:
            ConfigError: If one is missing, since the configuration is one that was written without its secrets.
        """
        for path, value in self._values.items():
            if path[0] != "hydra":
                _set(config, path, value)
        for path, value, secret in _leaves(_plain(config), ()):
            if value == MISSING and (secret or isinstance(path[-1], int)):
                place = ".".join(str(key) for key in path if isinstance(key, str))
                raise ConfigError(
                    f"The key {place} has no value: secrets are not written with the configuration of a run; give it on the "
                    f"command line, as in {place}=..., or name a variable of the environment, as in {place}=${{oc.env:NAME}}."
                )


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False, throw_on_missing=False)


def _leaves(value: Any, path: _Path, secret: bool = False) -> Iterator[tuple[_Path, Any, bool]]:
    """Give all values with their places, and whether they are secret by their place."""
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        named = isinstance(key, str) and (key in SECRET_MAPPINGS or is_secret_name(key))
        yield from _leaves(value[key], (*path, key), secret or named)
    if not isinstance(value, (dict, list)):
        yield path, value, secret


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _keys(node: Any) -> Any:
    return range(len(node)) if OmegaConf.is_list(node) else node.keys()


def _set(config: DictConfig, path: _Path, value: Any) -> None:
    # Of Hydra's own part nothing may be changed otherwise, and of the rest no key be added.
    node: Any = config
    for key in path[:-1]:
        if key not in _keys(node) or OmegaConf.is_missing(node, key):
            with flag_override(node, ["readonly", "struct"], [False, False]):
                node[key] = {}
        node = node[key]
    with flag_override(node, ["readonly", "struct"], [False, False]):
        node[path[-1]] = value


def _hide_overrides(config: DictConfig) -> None:
    """Take the secrets out of what Hydra keeps of the command line."""
    overrides = _plain(config.hydra.overrides)
    for part, texts in overrides.items():
        for place, text in enumerate(texts):
            _set(config, ("hydra", "overrides", part, place), shown_override(text))
    if all(shown_override(text) == text for text in overrides["task"]):
        return
    # The name that a folder may have by them.
    style = config.hydra.job.config.override_dirname
    pairs = [shown_override(text).lstrip("+~").partition("=") for text in overrides["task"]]
    items = sorted(f"{key}{style.kv_sep}{value}" for key, _, value in pairs if key not in style.exclude_keys)
    _set(config, ("hydra", "job", "override_dirname"), style.item_sep.join(items))


def remember_arguments(arguments: Sequence[str]) -> None:
    """Remember the secrets of a command line, which an error may repeat before there is a configuration."""
    secret = False
    for argument in arguments:
        pair = re.fullmatch(r"[+~]*([\w.@/-]+)=(.*)", argument, re.DOTALL)
        # A shell splits what is not quoted: words without a key belong to the value before them.
        if pair:
            secret = is_secret_override(pair[1], pair[2])
        value = pair[2] if pair else argument
        remember_url(value)
        for word in _WORD.finditer(value) if secret else ():
            spelled = word[2].strip("'\"")
            if spelled.endswith(":") or "://" in spelled or spelled.startswith("$"):
                continue
            if word[1]:
                remember_option(word[1], spelled)
            else:
                remember(spelled)


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse options and arguments in an order that Hydra does not understand; itself, it would repeat all of them.

    Raises:
        SystemExit: With a sentence.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        for argument in arguments:
            message = message.replace(argument, shown_override(argument))
        sys.exit(f"error: {redacted(message)}: give options such as --cfg first, and after them all key=value.")

    parser.error = refuse  # type: ignore[method-assign] # the parser's own way to be told what to do
    parser.parse_args(list(arguments))


@contextmanager
def without_secrets(arguments: Sequence[str] = ()) -> Iterator[HiddenValues]:
    """Within it, what Hydra composes has no secrets; what it had is given back by what this gives.

    Args:
        arguments: Of the command line.
    """
    remember_arguments(arguments)
    hidden = HiddenValues(resolved="--resolve" in arguments)
    # Hydra has no other place that all of its ways to a configuration go through: runs, sweeps, --cfg, --info and --help.
    load: Callable[..., DictConfig] = ConfigLoaderImpl.load_configuration

    def loading(*given: Any, **named: Any) -> DictConfig:
        config = load(*given, **named)
        hidden.hide(config)
        return config

    ConfigLoaderImpl.load_configuration = loading  # type: ignore[method-assign] # see above
    try:
        yield hidden
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign] # see above
