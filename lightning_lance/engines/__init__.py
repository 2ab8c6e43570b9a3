"""Where the units of a build run: in this process, or on a Ray cluster."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.engines.local import LocalEngine
    from lightning_lance.engines.ray import RayEngine

__all__ = ["LocalEngine", "RayEngine"]

_HOME = {"LocalEngine": "engines.local", "RayEngine": "engines.ray"}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
