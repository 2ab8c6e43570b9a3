"""Tokenization: from texts to token ids."""

from typing import TYPE_CHECKING

from lightning_lance.lazy_names import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOME)
