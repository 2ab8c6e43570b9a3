"""Sources of documents: which files, in which order, with which access."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_lance.documents.languages import code_extensions
    from lightning_lance.documents.text_filter import TextFilter
    from lightning_lance.sources.datasets import DatasetSource
    from lightning_lance.sources.files import FilesSource, python_stdlib
    from lightning_lance.sources.source import OpenedSource, Source

__all__ = ["DatasetSource", "FilesSource", "OpenedSource", "Source", "TextFilter", "code_extensions", "python_stdlib"]

_HOME = {
    "DatasetSource": "sources.datasets",
    "FilesSource": "sources.files",
    "OpenedSource": "sources.source",
    "Source": "sources.source",
    "TextFilter": "documents.text_filter",
    "code_extensions": "documents.languages",
    "python_stdlib": "sources.files",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported when first asked for: pyarrow takes a third of a second to import.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lightning_lance.{_HOME[name]}"), name)
