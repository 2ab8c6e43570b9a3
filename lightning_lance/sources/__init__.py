"""Sources of documents: which files, in which order, with which access."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOME)
