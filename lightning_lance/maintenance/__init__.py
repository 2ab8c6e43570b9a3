"""What keeps a store small and whole: compaction, clean-up, forgetting, integrity."""

from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import check_store

__all__ = ["check_store", "forget"]
