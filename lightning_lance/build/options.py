"""How a build runs. Nothing of it changes what is stored, or what is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_lance.build.engine import engine_of
from lightning_lance.errors import ConfigError, described, flag, whole_number
from lightning_lance.type_hints import is_number


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a build runs.

    Attributes:
        engine: Where it runs: `local` for this process, `ray` for a cluster or all cores of this machine, a mapping with its
            `name` and options, or an engine, such as `RayEngine(address="auto")`. A build may change its engine midway.
        rebuild: Whether a store of another corpus at the same place is replaced when the build begins. A store of this corpus
            is continued, so an interrupted rebuild goes on.
        commit_seconds: Longest time between two commits, in seconds: the work that a kill costs.
        commit_tokens: Tokens per commit; None for a fragment that is never merged.
        durable: Whether each commit of a local store is forced onto the disk before it counts as made, so that a power cut
            costs no more than a kill.
        wait_for_tokens: Build nothing: wait until a build in another process has committed this many tokens. None builds.

    Raises:
        ConfigError: If a value cannot be used.
    """

    engine: Any = "local"
    rebuild: bool = False
    commit_seconds: float = 60.0
    commit_tokens: int | None = None
    durable: bool = True
    wait_for_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine", engine_of(self.engine))
        object.__setattr__(self, "rebuild", flag("rebuild", self.rebuild))
        object.__setattr__(self, "durable", flag("durable", self.durable))
        if not is_number(self.commit_seconds) or not self.commit_seconds >= 0:
            raise ConfigError(
                f"commit_seconds is {described(self.commit_seconds)}: expected a number of seconds, such as 60."
            )
        if self.rebuild and self.wait_for_tokens is not None:
            raise ConfigError(
                "rebuild is True and wait_for_tokens is given: a run that waits builds nothing; give one of them."
            )
        for name in ("commit_tokens", "wait_for_tokens"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value))
