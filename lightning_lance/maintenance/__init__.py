"""What keeps a store small and whole: compaction, clean-up, forgetting, integrity."""

from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store

__all__ = ["forget", "verify_store"]
