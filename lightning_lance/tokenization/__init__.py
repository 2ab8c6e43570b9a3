"""Tokenization: from texts to token ids."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_lance.tokenization.configs import (
        ByteTokenizer,
        PretrainedTokenizer,
        TokenizerConfig,
        TokenizerFile,
        TrainedBPE,
    )
    from lightning_lance.tokenization.tokenizer import Tokenizer

__all__ = ["ByteTokenizer", "PretrainedTokenizer", "Tokenizer", "TokenizerConfig", "TokenizerFile", "TrainedBPE"]

_HOME = {
    "ByteTokenizer": "tokenization.configs",
    "PretrainedTokenizer": "tokenization.configs",
    "Tokenizer": "tokenization.tokenizer",
    "TokenizerConfig": "tokenization.configs",
    "TokenizerFile": "tokenization.configs",
    "TrainedBPE": "tokenization.configs",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported when first asked for: pyarrow takes a third of a second to import.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lightning_lance.{_HOME[name]}"), name)
