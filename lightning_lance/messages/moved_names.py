"""Arguments and keys of earlier versions, and what they are called by now."""

from __future__ import annotations

_CORPUS = ("uri", "data_dir", "max_documents", "max_tokens", "val_fraction", "max_document_bytes", "long_documents")
_BUILD = {
    "rebuild": "rebuild",
    "commit_seconds": "commit_seconds",
    "durable": "durable",
    "min_tokens": "wait_for_tokens",
}
_SERVED = (
    "context_length", "batch_size", "order", "seed", "shuffle_block", "where", "mix", "remainder", "extend", "on_data_change",
    "batch_format", "document_ids", "position_ids", "cu_seqlens", "mask_boundary_targets", "fim", "build", "verify",
)  # fmt: skip
# Of the keys of a configuration, those that are at its root.
_AT_ROOT = ("data_dir", "max_documents", "max_tokens")


def moved_argument(name: str) -> str | None:
    """Return where an argument that `LanceDataModule` had is by now; None for any other name."""
    if name in ("source", "tokenizer"):
        return (
            f"LanceDataModule has no {name}: give it a corpus, LanceDataModule(Corpus(source, tokenizer), context_length, "
            "batch_size), or the place of a store."
        )
    if name == "uri":
        return (
            "LanceDataModule has no uri: give it the place of a store as the corpus, LanceDataModule(uri, context_length, "
            "batch_size); the place of one that is built belongs to the Corpus."
        )
    if name in _CORPUS:
        return (
            f"LanceDataModule has no {name}: it belongs to the corpus, LanceDataModule(Corpus(source, tokenizer, "
            f"{name}=...), context_length, batch_size)."
        )
    if name in _BUILD:
        return f"LanceDataModule has no {name}: it is about the build, build={{'{_BUILD[name]}': ...}}."
    return None


def moved_argument_of_corpus(name: str) -> str | None:
    """Return where an argument that a `Corpus` does not have belongs; None for any other name."""
    if name in _BUILD:
        asked = f"{_BUILD[name]}=..."
        return (
            f"Corpus has no {name}: it is about the build, corpus.prepare({asked}), or BuildOptions({asked}) as the build of a "
            "LanceDataModule."
        )
    if name in _SERVED:
        return f"Corpus has no {name}: it is about what is served, LanceDataModule(corpus, ..., {name}=...)."
    return None


def moved_argument_of_prepare(name: str) -> str | None:
    """Return where an argument that `Corpus.prepare` does not have belongs; None for any other name."""
    if name in _BUILD:
        return f"prepare has no {name}: it is {_BUILD[name]}."
    if name in _CORPUS:
        return f"prepare has no {name}: it belongs to the corpus, Corpus(source, tokenizer, {name}=...)."
    return None


def moved_key(key: str) -> str | None:
    """Return where a key of the configuration is by now; None for any other."""
    group, _, name = key.partition(".")
    if group != "data":
        return None
    if name.startswith("build."):
        return f"There is no key {key!r}: it is {name}."
    if name.startswith("corpus."):
        inner = name.removeprefix("corpus.")
        return (
            f"There is no key {key!r}: a key of the corpus is {inner if inner in _AT_ROOT else name}, and several stores that "
            f"are there are served by name, as 'data.corpus={{{inner.partition('.')[0]}: PLACE, ...}}'."
        )
    if name in ("source", "tokenizer"):
        chosen = f"{name} is chosen as {name}=..., and a store that is there is served by data.corpus=PLACE"
        return f"There is no key {key!r}: {chosen}."
    if name == "uri":
        return (
            "There is no key 'data.uri': the place of a store that is built is corpus.uri, and a store that is there is served "
            "by data.corpus=PLACE."
        )
    if name in _AT_ROOT:
        return f"There is no key {key!r}: it is {name}."
    if name in _CORPUS:
        return f"There is no key {key!r}: it is corpus.{name}."
    if name in _BUILD:
        return f"There is no key {key!r}: it is build.{_BUILD[name]}."
    return None


def moved_option(name: str) -> str | None:
    """Return the name of an option of a build that had another one; None for any other."""
    return _BUILD.get(name)
