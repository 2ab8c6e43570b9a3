"""Stores in one call, for tests that are about something else."""

import os
from typing import Any

from lightning_lance.build.corpus import Corpus
from lightning_lance.sources.source import Source
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.configs import TokenizerConfig

_BUILD = ("rebuild", "commit_seconds", "commit_tokens", "durable", "wait_for_tokens")


def prepare(
    source: Source, tokenizer: TokenizerConfig, uri: str | os.PathLike[str] | None = None, **options: Any
) -> TokenStore:
    """Build the store of a corpus, with options of both."""
    build = {name: options.pop(name) for name in _BUILD if name in options}
    return Corpus(source, tokenizer, uri, **options).prepare(**build)


_CORPUS = ("uri", "data_dir", "max_documents", "max_tokens", "val_fraction", "max_document_bytes", "long_documents")


def data_of(source: Any, tokenizer: Any, context_length: Any, batch_size: Any, **options: Any) -> Any:
    """Make a LanceDataModule of a corpus, with options of the corpus, of its build and of what is served."""
    from lightning_lance import LanceDataModule

    corpus = {name: options.pop(name) for name in (*_CORPUS, "storage_options") if name in options}
    build = {name: options.pop(name) for name in _BUILD if name in options}
    return LanceDataModule(
        Corpus(source, tokenizer, **corpus),
        context_length,
        batch_size,
        **options,
        **({"build": build} if build else {}),
    )
