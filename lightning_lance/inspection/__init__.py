"""Looking at stores, batches and runs."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.inspection.report.writing import write_report, write_token_counts
    from lightning_lance.inspection.resume import verify_resume
    from lightning_lance.inspection.summary import describe_store, list_stores

__all__ = ["describe_store", "list_stores", "verify_resume", "write_report", "write_token_counts"]

_HOME = {
    "describe_store": "inspection.summary",
    "list_stores": "inspection.summary",
    "verify_resume": "inspection.resume",
    "write_report": "inspection.report.writing",
    "write_token_counts": "inspection.report.writing",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
