"""A slice of a huge corpus, tokenized once into Lance, and random windows of it for PyTorch Lightning.

The rooms of the house, in the order in which they may import: each knows itself and those above it.

    errors, messages, lance_names, lazy_names, json_checks, type_hints, location     words, and checks of what is given
    documents       the batch that flows through a build, and all that is decided about one document
    process         this process and its neighbours: locks, status files, memory, prefetch, ranks
    readers         from bytes to tables of documents
    sources         which files, in which order, with which access
    tokenization    from texts to token ids
    format          what is on disk: rows, metadata, files, versions, and one commit
    maintenance     compaction, clean-up, forgetting, integrity
    store           a version of a token store, opened for reading
    build           from a source to a token store
    engines         where the work of a build runs: in this process, or on a Ray cluster
    serving         from windows to batches; does not know `build`
    convert         from and to the token formats of other tools
    inspection      looking at stores, batches and runs
    datamodule, callbacks
    cli             the commands
"""

from typing import TYPE_CHECKING, Any

from lightning_lance.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_lance.build.corpus import Corpus
    from lightning_lance.datamodule import LanceDataModule
    from lightning_lance.serving.dataset import TokenWindows
    from lightning_lance.serving.loader import WindowLoader
    from lightning_lance.store.token_store import TokenStore

__all__ = ["Corpus", "LanceDataModule", "TokenStore", "TokenWindows", "WindowLoader"]

_HOME = {
    "Corpus": "build.corpus",
    "LanceDataModule": "datamodule",
    "TokenStore": "store.token_store",
    "TokenWindows": "serving.dataset",
    "WindowLoader": "serving.loader",
}

_get, __dir__ = lazy_names(__name__, _HOME)


def __getattr__(name: str) -> Any:
    if name == "prepare":
        raise ImportError("lightning_lance has no prepare: write Corpus(source, tokenizer, ...).prepare().")
    if name == "__version__":
        from importlib.metadata import version

        return version("lightning-lance")
    return _get(name)
