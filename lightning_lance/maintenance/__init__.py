"""Maintenance of a store: compaction, removal, clean-up, forgetting, integrity."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_lance.maintenance.forgetting import forget
    from lightning_lance.maintenance.integrity import verify_store

__all__ = ["forget", "verify_store"]

_HOME = {
    "forget": "maintenance.forgetting",
    "verify_store": "maintenance.integrity",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported when first asked for: Lance takes a second to import.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lightning_lance.{_HOME[name]}"), name)
