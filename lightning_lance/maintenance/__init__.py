"""Maintenance of a store: compaction, removal, clean-up, forgetting, integrity."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.maintenance.forgetting import forget
    from lightning_lance.maintenance.integrity import verify_store

__all__ = ["forget", "verify_store"]

_HOME = {"forget": "maintenance.forgetting", "verify_store": "maintenance.integrity"}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
