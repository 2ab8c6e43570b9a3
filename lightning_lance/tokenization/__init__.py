"""From texts to token ids."""

from lightning_lance.tokenization.configs import (
    ByteTokenizer,
    PretrainedTokenizer,
    TokenizerConfig,
    TokenizerFile,
    TrainedBPE,
)
from lightning_lance.tokenization.tokenizer import Tokenizer

__all__ = ["ByteTokenizer", "PretrainedTokenizer", "Tokenizer", "TokenizerConfig", "TokenizerFile", "TrainedBPE"]
