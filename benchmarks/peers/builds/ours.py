"""This package."""

from pathlib import Path

import numpy as np

from lightning_lance import Corpus, TokenStore
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import TokenizerFile

NAME = "lightning-lance prepare"


def build(files, folder, tokenizer_file, eos_token):
    source = DatasetSource("json", {"text": "text"}, data_files=files, shard_seed=None, name="bench")
    choice = TokenizerFile(tokenizer_file, eos_token)
    Corpus(source, choice, str(folder / "store.lance"), data_dir=folder, val_fraction=0.0).prepare()


def tokens(folder):
    store = TokenStore.open(str(Path(folder) / "store.lance"))
    return store.read(np.zeros(1, np.int64), store.num_tokens())[0]
