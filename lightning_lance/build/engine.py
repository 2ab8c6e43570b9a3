"""Where the work of a build runs: in this process, or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from lightning_lance.build.builder import Build
from lightning_lance.build.plan import Budget, Plan
from lightning_lance.errors import ConfigError, described
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.sources.source import Source

# By name, since the engines stand on the build.
_ENGINES = {"local": "lightning_lance.engines.local:LocalEngine", "ray": "lightning_lance.engines.ray:RayEngine"}


class Engine(Protocol):
    """Runs a build."""

    def begin(
        self, source: Source, plan: Plan, budget: Budget, version: int, commit: CommitMetadata | None, durable: bool
    ) -> Build:
        """Open the source, and return a build that continues from this version; see `Build`."""
        ...


def engine_of(value: Any) -> Engine:
    """Return the engine for `local`, `ray`, a mapping with its `name` and its options, or an engine as it is.

    Raises:
        ConfigError: If there is no such engine, or an option cannot be used.
    """
    if isinstance(value, Mapping):
        options = dict(value)
        name = options.pop("name", None)
    elif isinstance(value, str):
        options = {}
        name = value
    elif callable(getattr(value, "begin", None)) and not isinstance(value, type):
        engine: Engine = value
        return engine
    else:
        name = value
    if not isinstance(name, str) or name not in _ENGINES:
        raise ConfigError(f"engine is {described(name)}: expected {' or '.join(_ENGINES)}.")
    module, _, kind = _ENGINES[name].partition(":")
    try:
        made: Engine = getattr(import_module(module), kind)(**{str(key): option for key, option in options.items()})
    except TypeError as error:
        unknown = str(error).rpartition("argument ")[2]
        raise ConfigError(f"engine {name!r} has no option {unknown}: see the documentation of {kind}.") from error
    return made
