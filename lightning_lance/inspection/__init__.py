"""Looking at stores, batches and runs."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.inspection.resume import verify_resume
    from lightning_lance.inspection.spikes import read_losses, read_step, steps_with_losses
    from lightning_lance.inspection.summary import describe_store, list_stores

__all__ = ["describe_store", "list_stores", "read_losses", "read_step", "steps_with_losses", "verify_resume"]

_HOME = {
    "describe_store": "inspection.summary",
    "list_stores": "inspection.summary",
    "read_losses": "inspection.spikes",
    "read_step": "inspection.spikes",
    "steps_with_losses": "inspection.spikes",
    "verify_resume": "inspection.resume",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
