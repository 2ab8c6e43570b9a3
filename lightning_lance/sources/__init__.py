"""Where documents come from: which files, in which order, with which access."""

from lightning_lance.documents.languages import code_extensions
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource, python_stdlib
from lightning_lance.sources.source import OpenedSource, Source

__all__ = ["DatasetSource", "FilesSource", "OpenedSource", "Source", "TextFilter", "code_extensions", "python_stdlib"]
