"""From the token formats of other tools to a store: a build that reads ids in place of texts.

All else is the build's own: the ledger, the packing, the row writer, the commits, the lock, and what waiting processes see.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from lightning_lance.build.builder import Build
from lightning_lance.build.coordination import BuildCoordinator
from lightning_lance.build.corpus import Corpus
from lightning_lance.build.ledger import Ledger
from lightning_lance.build.options import BuildOptions
from lightning_lance.build.pipeline import EncodedBatch
from lightning_lance.build.plan import Budget, Plan
from lightning_lance.build.progress import BuildProgress, tell_stored
from lightning_lance.convert.channels import CHANNEL_WORDS, channel_words
from lightning_lance.convert.mds import DTYPES
from lightning_lance.convert.source import FORMATS, TokenSource
from lightning_lance.documents.batch import validate_columns
from lightning_lance.documents.splits import check_val_fraction
from lightning_lance.engines.local import LocalBuild
from lightning_lance.errors import ConfigError, described, one_of
from lightning_lance.format.channels import CHANNELS
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import check_place
from lightning_lance.process.prefetch import read_ahead
from lightning_lance.sources.local_paths import data_folder
from lightning_lance.sources.source import OpenedSource, Source
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.chosen import ChosenTokenizer
from lightning_lance.tokenization.configs import TokenizerConfig, TrainedBPE
from lightning_lance.tokenization.gigatoken import Encoded
from lightning_lance.tokenization.tokenizer import token_dtype
from lightning_lance.type_hints import as_text, check_arguments, check_tokenizer

# Batches read ahead.
_READ_AHEAD = 2
# What the documents of each format are, unless that is given.
_DOCUMENTS = {"nanogpt": "eos"}
# Formats whose items have further columns.
_WITH_COLUMNS = ("parquet", "mds")


def import_tokens(
    format: str,  # noqa: A002 - as on the command line
    place: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    tokenizer: TokenizerConfig,
    *,
    val: str | os.PathLike[str] | None = None,
    documents: str | None = None,
    empty: str = "refuse",
    val_fraction: float = 0.0,
    columns: Mapping[str, str] | None = None,
    language_column: str | None = None,
    language: str = "",
    dtype: str | None = None,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    data_dir: str | os.PathLike[str] = "data",
    storage_options: Mapping[str, str] | None = None,
    rebuild: bool = False,
    commit_seconds: float = 60.0,
    commit_tokens: int | None = None,
    durable: bool = True,
) -> TokenStore:
    """Make a store of tokens that another tool has written.

    Run again, it finds the store, or continues it after its last commit.

    Args:
        format: `nanogpt`, `megatron`, `parquet`, `mds` or `litdata`.
        place: The files, or their folder. For `parquet` also a glob, a URL, or the name of a dataset on the Hub.
        uri: Place of the store.
        tokenizer: The tokenizer that made the tokens. It is kept beside the store.
        val: The validation tokens, if they are elsewhere; for a dataset of the Hub, its split.
        documents: `items` if each item is a document, `eos` if documents end at EOS wherever that is. None takes `eos` for
            nanogpt, and `items` for all others.
        empty: `refuse` or `skip`, for documents without tokens.
        val_fraction: Share of the documents for validation, if the tokens have none of their own.
        columns: Our word to the name of a column, for `parquet` and `mds`: `tokens` is the one with the ids, any other word is
            stored with each document. `loss_mask`, `hf_labels` and `token_labels` name columns with a value for each id; see
            `CHANNEL_WORDS`.
        language_column: Column that holds the language, for `parquet` and `mds`.
        language: The language of all documents.
        dtype: Type of the tokens in a column of bytes, for `mds`; None takes int64.
        max_documents: Budget in documents; None for no bound.
        max_tokens: Budget in tokens, EOS included; None for no bound.
        data_dir: Folder of tokenizers that are fetched.
        storage_options: Credentials and the like for the store's object store.
        rebuild: See `BuildOptions`.
        commit_seconds: See `BuildOptions`.
        commit_tokens: See `BuildOptions`.
        durable: See `BuildOptions`.

    Returns:
        The store.

    Raises:
        ConfigError: If an argument cannot be used, or a document has an id beyond the vocabulary or EOS within, or is empty.
        SourceError: If the tokens cannot be read.
        StoreError: If another store is at `uri`, and `rebuild` does not allow to replace it.
        BuildInterrupted: After Ctrl-C.
    """
    format = one_of("format", format, FORMATS)  # noqa: A001 - as on the command line
    check_tokenizer(tokenizer)
    if isinstance(tokenizer, TrainedBPE):
        raise ConfigError(
            "tokenizer is a TrainedBPE, which is trained on texts: give the tokenizer that made the tokens, as in "
            "TokenizerFile('tokenizer.json')."
        )
    given = {"language": language, "language_column": language_column, "val_fraction": val_fraction}
    check_arguments(import_tokens, given)
    check_val_fraction(val_fraction)
    _check_for_format(format, columns=columns, language_column=language_column, dtype=dtype)
    words = _checked_columns(columns)
    channel_words(words)
    if language and language_column:
        raise ConfigError(
            "language and language_column are both given: give the language of all documents, or its column."
        )
    usual = _DOCUMENTS.get(format, "items")
    kind = one_of("documents", usual if documents is None else documents, ("items", "eos"))
    if kind != "eos" and usual == "eos":
        raise ConfigError(
            f"documents is {kind!r}: the format {format} has no items, so its documents end at EOS; leave it out."
        )
    of_items = {*words} - {"tokens", *CHANNEL_WORDS}
    if kind == "eos" and (language_column or of_items):
        raise ConfigError(
            "documents is 'eos', and columns of items are given, which documents across items do not have: leave out either."
        )
    if language_column and format == "mds":
        words = {**words, "language": language_column}
    source = TokenSource(
        format,
        check_place("place", as_text(place), "out/train.bin"),
        None if val is None else check_place("val", as_text(val), "out/val.bin"),
        kind,
        one_of("empty", empty, ("refuse", "skip")),
        float(val_fraction),
        words,
        language_column,
        language,
        one_of("dtype", "int64" if dtype is None else dtype, DTYPES),
        eos_id=-1,
        vocab_size=0,
    )
    identity = ChosenTokenizer.of(tokenizer, source, Path(data_folder(as_text(data_dir)), "tokenizers")).identity
    source = replace(source, eos_id=identity.eos_id, vocab_size=identity.vocab_size)
    corpus = Corpus(
        source,
        tokenizer,
        uri,
        data_dir=data_dir,
        max_documents=max_documents,
        max_tokens=max_tokens,
        val_fraction=0.0,
        storage_options=storage_options,
    )
    options = BuildOptions(
        engine=_TokenEngine(),
        rebuild=rebuild,
        commit_seconds=commit_seconds,
        commit_tokens=commit_tokens,
        durable=durable,
    )
    was_built = corpus.run(options)
    store = corpus.open()
    if not was_built:
        tell_stored(store)
    return store


def _check_for_format(format: str, **options: Any) -> None:  # noqa: A002
    """Refuse options that a format has no use for."""
    for name, value in options.items():
        formats = ("mds",) if name == "dtype" else _WITH_COLUMNS
        if value is not None and format not in formats:
            raise ConfigError(
                f"{name} is given, which the format {format} has no use for: it is for {' and '.join(formats)}."
            )


def _checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return our words to the names of columns."""
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise ConfigError(
            f"columns is {described(columns)}: expected a mapping of our words to columns, such as {{tokens: input_ids}}."
        )
    words = dict(columns)
    # The rules of `source.columns`, where the column of tokens is that of the text.
    tokens = words.pop("tokens", "input_ids")
    validate_columns({"text": tokens, **words}, "'import'")
    if "text" in words:
        raise ConfigError("columns has the word text: the column of the token ids is called tokens.")
    return dict(columns)


class _TokenEngine:
    """Builds in this process, of documents that are tokens already."""

    name: ClassVar[str] = "local"

    def begin(
        self, source: Source, plan: Plan, budget: Budget, version: int, commit: CommitMetadata | None, durable: bool
    ) -> Build:
        """See `Engine.begin`."""
        return _TokenBuild(source, plan, budget, version, commit, durable)


class _TokenBuild(LocalBuild):
    """A build without a step that encodes."""

    # Tokens up to the last look.
    _shown = 0

    def _encoded(self, ledger: Ledger) -> Generator[tuple[int, EncodedBatch | None], None, None]:
        self._shown = ledger.commit.tokens
        unit = ledger.next_unit()
        return read_ahead(_batches(self._opened, unit.shard, unit.row), _READ_AHEAD)

    def _look(self, ledger: Ledger, turn: BuildCoordinator, progress: BuildProgress, text_bytes: int) -> None:
        # There are no texts, so the rate that is shown is that of the tokens.
        tokens = ledger.commit.tokens
        width = token_dtype(self._plan.tokenizer.vocab_size).itemsize
        super()._look(ledger, turn, progress, (tokens - self._shown) * width)
        self._shown = tokens


def _batches(opened: OpenedSource, shard: int, row: int) -> Iterator[tuple[int, EncodedBatch | None]]:
    for place in range(shard, len(opened.shards)):
        for batch in opened.read(place, row if place == shard else 0):
            yield place, _encoded(batch)
        yield place, None


def _encoded(batch: pa.Table) -> EncodedBatch:
    """Return the documents of a token source as those of a tokenizer."""
    lists = batch.column("tokens").chunk(0)
    ids = np.asarray(lists.flatten())
    lengths = np.diff(np.asarray(lists.offsets))
    empty = lengths == 0
    wanted = np.flatnonzero(~empty)
    channels = {}
    for name in CHANNELS:
        if name in batch.column_names:
            channels[name] = batch.column(name).chunk(0).filter(pa.array(~empty)).flatten().to_numpy()
    documents = batch.drop_columns(["tokens", *channels])
    if empty.any():
        documents = documents.take(pa.array(wanted))
    offsets = np.append(0, np.cumsum(lengths[wanted]))
    # There are no texts.
    sizes = np.zeros(len(batch), np.int64)
    return EncodedBatch(batch, sizes, wanted, documents, Encoded(ids, offsets), {"empty": empty}, {}, channels)
