"""From texts to token ids."""

from lightning_lance.tokenization.configs import (
    ByteChoice,
    PretrainedTokenizer,
    TokenizerChoice,
    TokenizerFile,
    TrainedBPE,
)
from lightning_lance.tokenization.tokenizer import Tokenizer

__all__ = ["ByteChoice", "PretrainedTokenizer", "Tokenizer", "TokenizerChoice", "TokenizerFile", "TrainedBPE"]
