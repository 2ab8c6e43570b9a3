"""What watches a run, and saves it: callbacks for a Trainer."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.callbacks.data_monitor import DataMonitor
    from lightning_lance.callbacks.loss_by_document import LossByDocument
    from lightning_lance.callbacks.slice_metrics import SliceMetrics
    from lightning_lance.callbacks.termination import SaveOnTermination

__all__ = ["DataMonitor", "LossByDocument", "SaveOnTermination", "SliceMetrics"]

_HOME = {
    "DataMonitor": "callbacks.data_monitor",
    "LossByDocument": "callbacks.loss_by_document",
    "SaveOnTermination": "callbacks.termination",
    "SliceMetrics": "callbacks.slice_metrics",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
