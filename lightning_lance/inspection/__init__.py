"""Looking at stores, batches and runs."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.inspection.card import write_card
    from lightning_lance.inspection.publish import push_store
    from lightning_lance.inspection.report.writing import write_report, write_token_counts
    from lightning_lance.inspection.resume import verify_resume
    from lightning_lance.inspection.runs import open_run
    from lightning_lance.inspection.show import ranked, search, shares, show_step
    from lightning_lance.inspection.spikes import read_losses, read_step, steps_with_losses
    from lightning_lance.inspection.summary import describe_store, list_stores
    from lightning_lance.inspection.where import find_steps

__all__ = [
    "describe_store",
    "find_steps",
    "list_stores",
    "open_run",
    "push_store",
    "ranked",
    "read_losses",
    "read_step",
    "search",
    "shares",
    "show_step",
    "steps_with_losses",
    "verify_resume",
    "write_card",
    "write_report",
    "write_token_counts",
]

_HOME = {
    "describe_store": "inspection.summary",
    "find_steps": "inspection.where",
    "list_stores": "inspection.summary",
    "open_run": "inspection.runs",
    "push_store": "inspection.publish",
    "ranked": "inspection.show",
    "search": "inspection.show",
    "shares": "inspection.show",
    "show_step": "inspection.show",
    "read_losses": "inspection.spikes",
    "read_step": "inspection.spikes",
    "steps_with_losses": "inspection.spikes",
    "verify_resume": "inspection.resume",
    "write_card": "inspection.card",
    "write_report": "inspection.report.writing",
    "write_token_counts": "inspection.report.writing",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
