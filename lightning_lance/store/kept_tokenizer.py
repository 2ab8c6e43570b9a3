"""The tokenizer that a local store keeps beside it, loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.tokenization.configs import TokenizerFile
from lightning_lance.tokenization.tokenizer import Tokenizer


def kept_tokenizer(uri: str, files: Sequence[Path], commit: CommitMetadata) -> Tokenizer:
    """Load the tokenizer beside a store.

    Args:
        uri: Place of the store.
        files: Where the tokenizer may be, the likeliest first.
        commit: Metadata of the store.

    Raises:
        ConfigError: If there is none.
        StoreError: If it is not the one that made the store.
    """
    digest = commit.recipe.get("tokenizer")
    found = [file for file in files if file.is_file()]
    for file in found:
        tokenizer = TokenizerFile(str(file), commit.eos_token).load(None, Path())
        if digest == tokenizer.digest or digest in tokenizer.other_digests:
            return tokenizer
    if found:
        raise StoreError(f"The tokenizer {str(found[0])!r} is not the one that made {uri!r}: restore that one.")
    where = str(next(iter(files), uri))
    raise ConfigError(f"There is no tokenizer.json at {where!r}: restore the one that made {uri!r}.")
