"""`Corpus`: what is stored, and where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning_lance.build.options import BuildOptions
from lightning_lance.build.plan import Budget, Plan, check_before_training, check_same, make_plan, open_prepared
from lightning_lance.build.progress import tell_stored
from lightning_lance.build.runner import build, check_place
from lightning_lance.build.waiting import wait_for
from lightning_lance.documents.screening import MAX_DOCUMENT_BYTES, LongDocuments
from lightning_lance.documents.splits import check_val_fraction
from lightning_lance.errors import ConfigError
from lightning_lance.format.commit import last_commit
from lightning_lance.location import (
    StoreLocation,
    check_not_on_hub,
    checked_storage_options,
    given_place,
    is_local,
    store_place,
)
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize
from lightning_lance.messages.html import html_table
from lightning_lance.messages.moved_names import moved_argument_of_corpus, moved_argument_of_prepare
from lightning_lance.sources.local_paths import data_folder
from lightning_lance.sources.source import Source
from lightning_lance.store.hub import downloaded, hub_place
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.configs import TokenizerConfig, TrainedBPE
from lightning_lance.tokenization.tokenizer import Tokenizer
from lightning_lance.type_hints import as_text, check_source, check_tokenizer, not_a_corpus, refusing

_log = logger(__name__)


class Corpus:
    """What is stored, and where: the documents of a source, the tokenizer, the budget, and the share for validation.

    Making one reads nothing. All that decides the stored tokens goes into the `fingerprint`; a larger budget continues the
    same store.

    Args:
        source: Where the documents come from.
        tokenizer: Which tokenizer.
        uri: Place of the store, local or in an object store; None derives it from the fingerprint, under `data_dir`.
        data_dir: Folder of the stores whose place is derived, and of trained tokenizers.
        max_documents: Budget in documents; None for no bound.
        max_tokens: Budget in tokens, EOS included; None for no bound.
        val_fraction: Share of the documents (of the repositories, where known) for validation.
        max_document_bytes: Longest text that is encoded at once, in bytes of UTF-8.
        long_documents: `split` encodes longer ones in pieces, `skip` leaves them out.
        storage_options: Credentials and the like for an object store.

    Raises:
        ConfigError: If an argument cannot be used.
    """

    @refusing(moved_argument_of_corpus)
    def __init__(
        self,
        source: Source,
        tokenizer: TokenizerConfig,
        uri: str | os.PathLike[str] | None = None,
        *,
        data_dir: str | os.PathLike[str] = "data",
        max_documents: int | None = None,
        max_tokens: int | None = None,
        val_fraction: float = 0.01,
        max_document_bytes: int = MAX_DOCUMENT_BYTES,
        long_documents: Literal["split", "skip"] = "split",
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        check_source(source)
        check_tokenizer(tokenizer)
        check_val_fraction(val_fraction)
        LongDocuments(max_document_bytes, long_documents)
        uri = as_text(uri)
        self._source = source
        self._tokenizer_config = tokenizer
        self._budget = Budget(max_documents, max_tokens)
        self._storage_options = checked_storage_options("storage_options", storage_options)
        # As it is now, whatever folder the process changes to later.
        self._given_uri: str | None = None
        if uri is not None and not (isinstance(uri, str) and not uri):
            self._given_uri = given_place(uri)
            check_not_on_hub(self._given_uri, "A build")
        self._data_dir = data_folder(as_text(data_dir))
        self._val_fraction = val_fraction
        self._max_document_bytes = max_document_bytes
        self._long_documents: Literal["split", "skip"] = long_documents

    def __repr__(self) -> str:
        place = "" if self._given_uri is None else f", uri={self._given_uri!r}"
        return f"Corpus({self.source!r}, {self.tokenizer_config!r}, {str(self.budget)!r}{place})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: what the corpus is of. Reads nothing."""
        place = self._given_uri or f"in {self.data_dir}, by its fingerprint"
        rows = [
            ["source", repr(self.source)],
            ["tokenizer", repr(self.tokenizer_config)],
            ["budget", str(self.budget)],
            ["validation", f"{self._val_fraction:.1%} of the documents"],
            ["place", place],
        ]
        return html_table("Corpus", [], rows)

    # Read only: the fingerprint is of them.

    @property
    def source(self) -> Source:
        """Where the documents come from."""
        return self._source

    @property
    def tokenizer_config(self) -> TokenizerConfig:
        """Which tokenizer."""
        return self._tokenizer_config

    @property
    def budget(self) -> Budget:
        """Documents and tokens to store."""
        return self._budget

    @property
    def data_dir(self) -> str:
        """The folder of derived stores and trained tokenizers."""
        return self._data_dir

    @property
    def storage_options(self) -> Mapping[str, str]:
        """Credentials and the like for an object store."""
        return self._storage_options

    @cached_property
    def plan(self) -> Plan:
        """The fingerprint with all that it is made of. May train the tokenizer; reads no other documents."""
        return make_plan(
            self.source,
            self.tokenizer_config,
            self._given_uri,
            data_dir=self.data_dir,
            val_fraction=self._val_fraction,
            max_document_bytes=self._max_document_bytes,
            long_documents=self._long_documents,
            storage_options=self.storage_options,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the stored tokens, and of nothing else. The budget is no part of it."""
        return self.plan.fingerprint

    @property
    def uri(self) -> str:
        """Place of the store."""
        return self.plan.uri

    @property
    def location(self) -> StoreLocation:
        """Where the store is, with the options of its object store."""
        return self.plan.location

    @property
    def is_local(self) -> bool:
        """Whether the store is on a disk of this machine. Known without the fingerprint."""
        return self._given_uri is None or is_local(self._given_uri)

    @property
    def vocab_size(self) -> int:
        """Largest id of the tokenizer plus one: what the model's embedding needs. Needs no store."""
        return self.plan.chosen.identity.vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded tokenizer. ConfigError if it cannot be had."""
        return self.plan.tokenizer

    def on_disk(self) -> StoreLocation:
        """Return where its files are."""
        return self.location

    @property
    def trains_tokenizer(self) -> bool:
        """Whether a build has to train the tokenizer first, which reads the source."""
        config = self.tokenizer_config
        if not isinstance(config, TrainedBPE):
            return False
        return config.identify(self.source, Path(self.data_dir, "tokenizers")) is None

    def tokenizer_digests(self) -> set[str]:
        """Return the hashes by which stores may name the tokenizer."""
        return {self.plan.chosen.identity.digest, str(self.plan.recipe["tokenizer"])}

    @refusing(moved_argument_of_prepare)
    def prepare(
        self,
        *,
        engine: Any = "local",
        rebuild: bool = False,
        commit_seconds: float = 60.0,
        commit_tokens: int | None = None,
        durable: bool = True,
        wait_for_tokens: int | None = None,
    ) -> TokenStore:
        """Build the store if it is not there or not complete, and open it.

        A store that meets the budget is opened, and nothing is read. An unfinished one, or one with a smaller budget, is
        continued after its last commit. One process builds; others that ask for the same store wait for it.

        Args: as for `BuildOptions`.

        Returns:
            The store, at the first version that meets the budget; with `wait_for_tokens`, at its newest.

        Raises:
            ConfigError: If source, tokenizer, budget or an option cannot be used.
            SourceError: If the source cannot be read, or has no documents.
            StoreError: If another store is at `uri`, and `rebuild` does not allow to replace it.
            BuildInterrupted: After Ctrl-C.
        """
        options = BuildOptions(
            engine=engine,
            rebuild=rebuild,
            commit_seconds=commit_seconds,
            commit_tokens=commit_tokens,
            durable=durable,
            wait_for_tokens=wait_for_tokens,
        )
        built = self._build(options)
        if built is None:
            return self.open(growing=wait_for_tokens is not None)
        return built

    def run(self, options: BuildOptions) -> bool:
        """Build, or wait; see `prepare`, which opens the store too. Return whether this process built something."""
        return self._build(options) is not None

    def _build(self, options: BuildOptions) -> TokenStore | None:
        if options.wait_for_tokens is not None:
            wait_for(self.location, options.wait_for_tokens)
            return None
        self._check_before_training(options.rebuild)
        if not build(self.source, self.plan, self.budget, options):
            return None
        store = self.open()
        if self._wants_validation:
            self._warn_without_validation(store)
        tell_stored(store)
        return store

    def _check_before_training(self, rebuild: bool) -> None:
        """Check what is at the given place, before the plan trains a tokenizer."""
        if self._given_uri is None or "plan" in vars(self):
            return
        location = StoreLocation(store_place(self._given_uri), self.storage_options)
        check_place(location.uri)
        if rebuild:
            return
        check_before_training(
            self.source,
            self.tokenizer_config,
            location,
            data_dir=self.data_dir,
            val_fraction=self._val_fraction,
            long_documents=LongDocuments(self._max_document_bytes, self._long_documents),
        )

    def open(self, *, growing: bool = False) -> TokenStore:
        """Open the store, which must be complete.

        Args:
            growing: Take the newest version of a store that may still be built.

        Returns:
            The store, at the first version that meets the budget.

        Raises:
            StoreError: If it is not there, not complete, or of another corpus.
        """
        if not growing:
            return open_prepared(self.plan, self.budget)
        store = TokenStore.open(self.uri, storage_options=self.storage_options)
        check_same(store.commit, self.plan)
        return store

    @property
    def _wants_validation(self) -> bool:
        return bool(self._val_fraction) or self.source.has_validation

    def _warn_without_validation(self, store: TokenStore) -> None:
        if store.num_tokens("val"):
            return
        why = "the source gave none"
        if not self.source.has_validation:
            documents = pluralize(store.commit.documents, "document")
            drawn = ""
            if "repo" in self.source.metadata:
                drawn = "; documents of a repository are drawn together"
            why = f"val_fraction={self._val_fraction} drew none of its {documents}{drawn}"
        cure = "another val_fraction makes another store"
        if not store.commit.exhausted:
            cure = f"a larger budget adds to it, and {cure}"
        _log.warning("The token store %s has nothing to validate on, since %s: %s.", self.uri, why, cure)


@dataclass(frozen=True)
class ReadyStore:
    """A store that was built elsewhere: it is served as it is.

    Attributes:
        location: Where it is.
    """

    location: StoreLocation

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @property
    def uri(self) -> str:
        """Its place."""
        return self.location.uri

    @property
    def is_local(self) -> bool:
        """Whether the store is on a disk of this machine."""
        return self.location.is_local

    @property
    def vocab_size(self) -> int:
        """Largest id of the tokenizer plus one. StoreError if there is no store yet."""
        return self.open().commit.vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the store. ConfigError if it is not kept beside it."""
        return self.open().tokenizer

    def tokenizer_digests(self) -> set[str]:
        """Return the hashes by which the store may name its tokenizer. StoreError if there is no store yet."""
        return {str(self.open().commit.recipe.get("tokenizer"))}

    def run(self, options: BuildOptions) -> bool:
        """Wait for tokens, if that is asked for; else there is nothing to do. Return False, since nothing is built."""
        if options.wait_for_tokens is not None:
            wait_for(self.location, options.wait_for_tokens)
        return False

    def on_disk(self) -> StoreLocation:
        """Return where its files are."""
        return self.location

    def open(self, *, growing: bool = True) -> TokenStore:
        """Open the newest version."""
        return TokenStore.open(self.uri, storage_options=self.location.storage_options)


@dataclass(frozen=True, repr=False)
class HubStore(ReadyStore):
    """A store in a dataset repository of the Hub: each node downloads it once, and opens it on its disk."""

    @cached_property
    def _copy(self) -> str:
        place = hub_place(self.uri)
        if place is None:
            raise ConfigError(f"The place {self.uri!r} is no dataset repository: expected hf://datasets/owner/name.")
        return downloaded(place, self.location.storage_options or {})

    @property
    def is_local(self) -> bool:
        """Whether the store is on a disk of this machine: it will be."""
        return True

    def run(self, options: BuildOptions) -> bool:
        """Download the store, unless it is there. Return False, since nothing is built."""
        if options.wait_for_tokens is not None:
            raise ConfigError(
                f"wait_for_tokens is for a store that is being built: {self.uri} is a copy that stays as it is."
            )
        self.on_disk()
        return False

    def on_disk(self) -> StoreLocation:
        """Return where the copy is. Downloads it if it is not there."""
        return StoreLocation(self._copy)

    def open(self, *, growing: bool = True) -> TokenStore:
        """Open the copy."""
        return TokenStore.open(self._copy)


def corpora_of(given: Any, storage_options: Mapping[str, str] | None) -> dict[str, Corpus | ReadyStore]:
    """Return what is to be served, by name.

    Args:
        given: A corpus, the place of a store, or a mapping of names to these.
        storage_options: Credentials and the like for the places of stores.

    Returns:
        A single one has the name "", whether it was given by a name or not.

    Raises:
        ConfigError: If something else was given, or the options are for none of them.
    """
    options = checked_storage_options("storage_options", storage_options)
    corpora: dict[str, Corpus | ReadyStore] = {}
    if isinstance(given, Mapping):
        if not given:
            raise ConfigError("corpus is an empty mapping: expected a name for each corpus or store.")
        for name, value in given.items():
            corpora[_name(name)] = _corpus_of(f"corpus.{name}", value, options)
    else:
        corpora[""] = _corpus_of("corpus", given, options)
    if options and not any(isinstance(corpus, ReadyStore) for corpus in corpora.values()):
        raise ConfigError(
            "storage_options of the data are for stores that are given by their place: give those of a corpus that is built "
            "to the Corpus (corpus.storage_options for a command)."
        )
    if len(corpora) > 1:
        _check_trained_once(corpora)
        return corpora
    return {"": next(iter(corpora.values()))}


def _name(name: Any) -> str:
    # The command verify-resume takes NAME=PLACE, and uri=PLACE for a single store.
    if (
        not isinstance(name, str)
        or name == "uri"
        or "=" in name
        or name != name.strip()
        or not name.isprintable()
        or not name
    ):
        raise ConfigError(
            f"corpus has the name {name!r}: expected a word for each corpus or store, such as code, without = and not uri."
        )
    return name


def _corpus_of(name: str, value: Any, storage_options: Mapping[str, str]) -> Corpus | ReadyStore:
    value = as_text(value)
    if isinstance(value, Corpus):
        return value
    if isinstance(value, str) and value.strip():
        place = given_place(value, name)
        if hub_place(value) is not None:
            return HubStore(StoreLocation(value, storage_options))
        return ReadyStore(StoreLocation(place, storage_options))
    if isinstance(value, Path | os.PathLike):
        return ReadyStore(StoreLocation(given_place(os.fspath(value), name), storage_options))
    raise not_a_corpus(name, value)


def _built(corpora: Mapping[str, Corpus | ReadyStore]) -> dict[str, Corpus]:
    """Return those that are built, by name. The others are stores that are served as they are."""
    return {name: corpus for name, corpus in corpora.items() if isinstance(corpus, Corpus)}


def _check_trained_once(corpora: Mapping[str, Corpus | ReadyStore]) -> None:
    """Refuse tokenizers that are trained on several sources, before they are trained and the stores are built."""
    sources: list[Source] = []
    trained: list[str] = []
    for name, corpus in _built(corpora).items():
        if corpus.source not in sources:
            sources.append(corpus.source)
        if isinstance(corpus.tokenizer_config, TrainedBPE):
            trained.append(name)
    if trained and len(sources) > 1:
        raise ConfigError(
            f"The tokenizer of the corpus {trained[0]!r} is trained on its own source, and a model reads one tokenizer only: "
            "prepare one corpus by itself, and give TokenizerFile of the x.tokenizer.json beside its store x.lance to all."
        )


def check_together(corpora: Mapping[str, Corpus | ReadyStore]) -> None:
    """Check that several corpora are several stores of one tokenizer, before anything is built.

    Raises:
        ConfigError: Naming two that are not.
        StoreError: If a store that was built elsewhere is not there.
    """
    if len(corpora) < 2:
        return
    names: dict[str, str] = {}
    for name, corpus in corpora.items():
        other = names.setdefault(store_place(corpus.uri), name)
        if other != name:
            raise ConfigError(
                f"The corpora {other!r} and {name!r} are one store, {corpus.uri!r}: give each a place of its own, or one "
                "store one name, with a larger weight in mix."
            )
    digests = {name: corpus.tokenizer_digests() for name, corpus in corpora.items()}
    first = next(iter(digests))
    for name, mine in digests.items():
        if mine.isdisjoint(digests[first]):
            raise ConfigError(
                f"The corpora {first!r} and {name!r} have different tokenizers, and a model reads one only: give both the same."
            )


def known_fingerprint(corpus: Corpus | ReadyStore, rebuild: bool = False) -> str | None:
    """Return the fingerprint of what will be served, if that is known before anything is built or downloaded.

    Args:
        corpus: What is served.
        rebuild: Whether a store that is there will be replaced.
    """
    if isinstance(corpus, Corpus):
        if corpus.trains_tokenizer:
            return None
        commit = None if rebuild else last_commit(corpus.location)
        # The store of an earlier version keeps its fingerprint.
        if commit is not None and corpus.plan.made(commit):
            return commit.fingerprint
        return corpus.fingerprint
    if isinstance(corpus, HubStore):
        return None
    commit = last_commit(corpus.location)
    return None if commit is None else commit.fingerprint


def wanted_languages(corpora: Mapping[str, Corpus | ReadyStore]) -> list[str]:
    """Return the languages that the only corpus to be built keeps; none if it keeps all, or if there are several."""
    built = list(_built(corpora).values())
    if len(built) != 1:
        return []
    return list(built[0].source.wanted or ())


def check_builds(corpora: Mapping[str, Corpus | ReadyStore], options: BuildOptions) -> None:
    """Refuse a rebuild where nothing is built. ConfigError says so."""
    if options.rebuild and not _built(corpora):
        raise ConfigError(
            "rebuild is True, but a store without a Corpus cannot be built: leave rebuild out, and the store is served "
            "as it is."
        )


def mix_of(given: Any, mix: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Return the weights to serve by: of a single corpus that was given by name, its name needs no weight."""
    if isinstance(given, Mapping) and isinstance(mix, Mapping) and len(given) == 1 and [*mix] == [*given]:
        return {}
    return mix
