"""Keep secrets out of everything that Hydra composes, shows and writes; only the task gets them.

Hydra writes the configuration of a run beside its results, prints it on request, and repeats it in its errors. So secrets
are removed as soon as a configuration is composed, and put back into the copy for the task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf, flag_override

from lightning_lance.cli.overrides import MISSING, SECRET_MAPPINGS, is_secret_override, shown_override
from lightning_lance.errors import ConfigError
from lightning_lance.messages.escaping import fail
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
# A word in the value of a mapping, perhaps after its key.
_WORD = re.compile(r"(?:([\w.-]+)\s*[:=]\s*)?(\"[^\"]*\"|'[^']*'|[^\s,{}\[\]]+)")

_Path = tuple[str | int, ...]


class HiddenValues:
    """The secrets of a configuration, by their place in it.

    Args:
        resolved: Whether the configuration is shown with interpolations resolved, which may read environment variables.
    """

    def __init__(self, resolved: bool = False) -> None:
        self._values: dict[_Path, Any] = {}
        self._resolved = resolved

    def hide(self, config: DictConfig) -> None:
        """Remove the secrets from a composed configuration and its overrides."""
        for path, value, secret in list(_leaves(_plain(config), ())):
            if path[:2] == ("hydra", "overrides") or not self._is_hidden(config, path, value, secret):
                continue
            if not _is_interpolation(value):
                self._values[path] = value
                remember_option(str(path[-1]), str(value))
            shown = MISSING
            if path[:-1] == _ENVIRONMENT and not self._resolved:
                # Hydra itself needs these: it puts them into the environment.
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
        """Put the secrets back into the configuration for the task.

        Raises:
            ConfigError: If one is missing, because the configuration was written without its secrets.
        """
        for path, value in self._values.items():
            if path[0] != "hydra":
                _set(config, path, value)
        for path, value, secret in _leaves(_plain(config), ()):
            if value == MISSING and (secret or isinstance(path[-1], int)):
                place = ".".join(str(key) for key in path if isinstance(key, str))
                raise ConfigError(
                    f"The key {place} has no value: secrets are not saved with the configuration of a run; give it on the "
                    f"command line, as in {place}=..., or name an environment variable, as in {place}=${{oc.env:NAME}}."
                )


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False, throw_on_missing=False)


def _leaves(value: Any, path: _Path, secret: bool = False) -> Iterator[tuple[_Path, Any, bool]]:
    """Yield all values with their paths, and whether the path makes them secret."""
    if isinstance(value, dict):
        for key, inner in value.items():
            named = isinstance(key, str) and (key in SECRET_MAPPINGS or is_secret_name(key))
            yield from _leaves(inner, (*path, key), secret or named)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, (*path, place), secret)
    else:
        yield path, value, secret


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _keys(node: Any) -> Any:
    if OmegaConf.is_list(node):
        return range(len(node))
    return node.keys()


def _set(config: DictConfig, path: _Path, value: Any) -> None:
    # Without these flags, Hydra's own part is read-only, and no key can be added to the rest.
    node: Any = config
    for key in path[:-1]:
        if key not in _keys(node) or OmegaConf.is_missing(node, key):
            with flag_override(node, ["readonly", "struct"], [False, False]):
                node[key] = {}
        node = node[key]
    with flag_override(node, ["readonly", "struct"], [False, False]):
        node[path[-1]] = value


def _hide_overrides(config: DictConfig) -> None:
    """Remove the secrets from Hydra's record of the command line."""
    overrides = _plain(config.hydra.overrides)
    for part, texts in overrides.items():
        for place, text in enumerate(texts):
            _set(config, ("hydra", "overrides", part, place), shown_override(text))
    given = overrides["task"]
    public = list(map(shown_override, given))
    if public == given:
        return
    # The overrides may also name an output folder.
    style = config.hydra.job.config.override_dirname
    items = []
    for text in public:
        key, _, value = text.lstrip("+~").partition("=")
        if key not in style.exclude_keys:
            items.append(f"{key}{style.kv_sep}{value}")
    _set(config, ("hydra", "job", "override_dirname"), style.item_sep.join(sorted(items)))


def remember_arguments(arguments: Sequence[str]) -> None:
    """Remember the secrets of a command line, which an error may repeat before there is a configuration."""
    secret = False
    for argument in arguments:
        value = argument
        pair = re.fullmatch(r"[+~]*([\w.@/-]+)=(.*)", argument, re.DOTALL)
        # A shell splits unquoted text: words without a key belong to the value before them.
        if pair:
            value = pair[2]
            secret = is_secret_override(pair[1], value)
        remember_url(value)
        if secret:
            _remember_words(value)


def _remember_words(value: str) -> None:
    for key, text in _WORD.findall(value):
        word = text.strip("'\"")
        if word.endswith(":") or "://" in word or word.startswith("$"):
            continue
        if key:
            remember_option(key, word)
        else:
            remember(word)


def options_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command with Hydra's options, such as --cfg, before each key=value, as Hydra expects them.

    Raises:
        SystemExit: With a message, for an unknown option or one without its value. Hydra's own would repeat all arguments.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        for argument in arguments:
            message = message.replace(argument, shown_override(argument))
        fail(f"{redacted(message)}: expected key=value, or an option such as --cfg job or --help.")

    parser.error = refuse  # type: ignore[method-assign] # argparse's own hook
    parsed, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        refuse(f"there is no option {unknown[0]}")
    overrides = parsed.overrides
    options = list(arguments)
    for override in overrides:
        # The last of its kind, as the value of an option may look the same.
        options.reverse()
        options.remove(override)
        options.reverse()
    return [*options, *overrides]


@contextmanager
def without_secrets(
    arguments: Sequence[str] = (), then: Callable[[DictConfig], None] | None = None
) -> Iterator[HiddenValues]:
    """Make Hydra compose configurations without secrets inside this context. The result can put them back.

    Args:
        arguments: Arguments of the command line.
        then: Called with each configuration that Hydra composes, once it is without secrets.
    """
    remember_arguments(arguments)
    hidden = HiddenValues(resolved="--resolve" in arguments)
    # The only function that runs, sweeps, --cfg, --info and --help all call.
    load: Callable[..., DictConfig] = ConfigLoaderImpl.load_configuration

    def loading(*given: Any, **named: Any) -> DictConfig:
        config = load(*given, **named)
        hidden.hide(config)
        if then is not None:
            then(config)
        return config

    ConfigLoaderImpl.load_configuration = loading  # type: ignore[method-assign] # see above
    try:
        yield hidden
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign] # see above
