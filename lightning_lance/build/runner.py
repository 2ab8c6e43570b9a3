"""Preparing a token store: one process builds it, continued where it stopped, and whoever asks finds it complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_lance.build.builder import Build
from lightning_lance.build.coordination import COMMIT_MARGIN_SECONDS, BuildCoordinator, CommitTurn, LeaseTurn
from lightning_lance.build.plan import Budget, Plan, check_same, check_tokenizer_file, make_plan, open_prepared
from lightning_lance.documents.screening import MAX_DOCUMENT_BYTES
from lightning_lance.errors import (
    BuildInterrupted,
    CommitConflict,
    ConfigError,
    FormatError,
    StoreError,
    described,
    whole_number,
)
from lightning_lance.format.commit import last_version
from lightning_lance.format.lance_io import dataset_at, fragments_of, refuse_in_fork, remove_aside, remove_store
from lightning_lance.format.lance_names import VERSIONS
from lightning_lance.format.lineage import check_unchanged
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links, foreign_files
from lightning_lance.location import check_place, checked_storage_options, is_local
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_tokens, pluralize
from lightning_lance.sources.source import Source
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.configs import TokenizerConfig
from lightning_lance.type_hints import check_arguments, check_source, check_tokenizer

_log = logger(__name__)

COMMIT_SECONDS = 60.0


def prepare(
    source: Source,
    tokenizer: TokenizerConfig,
    uri: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | Path = "data",
    max_documents: int | None = None,
    max_tokens: int | None = None,
    val_fraction: float = 0.01,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    long_documents: Literal["split", "skip"] = "split",
    rebuild: bool = False,
    storage_options: Mapping[str, str] | None = None,
    commit_tokens: int | None = None,
    commit_seconds: float = COMMIT_SECONDS,
    durable: bool = True,
) -> TokenStore:
    """Make sure that a token store is there and complete, and open it.

    A store that already meets the budget is opened and nothing is read; an unfinished one, or one made with a smaller
    budget, is continued from its last commit. One process builds; others that ask for the same store wait for it.

    Args:
        source: Where the documents come from.
        tokenizer: Which tokenizer.
        uri: Place of the store, local or in an object store; None derives it from the fingerprint, under `data_dir`.
        data_dir: Folder of derived stores and trained tokenizers.
        max_documents: Budget in documents.
        max_tokens: Budget in tokens, EOS included.
        val_fraction: Share of the documents (of the repositories, where known) that is for validation.
        max_document_bytes: Longest text that is encoded at once, in bytes of UTF-8.
        long_documents: What becomes of longer ones: `split` encodes them in pieces, `skip` leaves them out.
        rebuild: Whether a store that another recipe made at `uri` is replaced, when this build begins. One of this recipe is
            not, so an interrupted rebuild goes on.
        storage_options: Credentials and such for an object store.
        commit_tokens: Tokens per commit; None for a fragment that is never merged.
        commit_seconds: Longest time between two commits, while documents come in.
        durable: Whether each commit of a local store is forced onto the disk before it counts as made, so that a power cut
            costs no more than a kill does. Changes nothing of what is stored.

    Returns:
        The store, at the first version that meets the budget.

    Raises:
        ConfigError: If source, tokenizer or budget cannot be used.
        SourceError: If the source cannot be read, or has no documents.
        StoreError: If `uri` holds another store, and `rebuild` does not allow to replace it.
    """
    budget = Budget(max_documents, max_tokens)
    number = isinstance(commit_seconds, (int, float, np.number)) and not isinstance(commit_seconds, bool)
    if not number or not commit_seconds >= 0:
        raise ConfigError(f"commit_seconds is {described(commit_seconds)}: expected a number of seconds, such as 60.")
    if commit_tokens is not None:
        commit_tokens = whole_number("commit_tokens", commit_tokens)
    check_arguments(prepare, {"rebuild": rebuild, "durable": durable})
    check_build(source, tokenizer)
    storage_options = checked_storage_options("storage_options", storage_options)
    plan = make_plan(
        source,
        tokenizer,
        uri,
        data_dir=data_dir,
        val_fraction=val_fraction,
        max_document_bytes=max_document_bytes,
        long_documents=long_documents,
    )
    _check_place(plan)
    built = _complete(source, plan, budget, storage_options, commit_tokens, commit_seconds, rebuild, durable)
    store = open_prepared(plan, budget, storage_options)
    if built and (val_fraction or source.has_validation) and not store.num_tokens("val"):
        documents = pluralize(store.commit.documents, "document")
        why = (
            "the source gave none"
            if source.has_validation
            else f"of {documents} none fell to val_fraction={val_fraction}"
        )
        _log.warning(
            "The token store %s has nothing to validate on, since %s: %sanother val_fraction makes another store.",
            plan.uri,
            why,
            "" if store.commit.exhausted else "a larger budget adds to it, and ",
        )
    return store


def _complete(
    source: Source,
    plan: Plan,
    budget: Budget,
    storage_options: Mapping[str, str] | None,
    commit_tokens: int | None,
    commit_seconds: float,
    rebuild: bool,
    durable: bool,
) -> bool:
    """Build until the budget is met, or wait while another process does; tell whether this one built."""
    commit, turn, built = None, _turn(plan, commit_seconds), False
    try:
        with turn:
            while True:
                version, commit, replaced = _found(plan, rebuild, storage_options)
                if _is_met(plan, budget, commit):
                    # What tidies up may remove the version that was found complete.
                    if turn.finishing():
                        continue
                    return built
                if commit is not None:
                    _check_goes_on(plan, version, commit, storage_options)
                _ = plan.tokenizer  # loaded, and so checked, before anything is waited for or begun
                if not turn.mine:
                    turn.wait(commit)
                    # Whoever had it may have committed.
                    continue
                refuse_in_fork("A build")
                run = _Run(source, plan, budget, storage_options, commit_tokens, commit_seconds, durable, commit)
                try:
                    built |= run.build(turn, version, replaced)
                finally:
                    commit = run.committed
    except KeyboardInterrupt:
        raise BuildInterrupted(_how_to_go_on(plan.uri, commit)) from None


def _is_met(plan: Plan, budget: Budget, commit: CommitMetadata | None) -> bool:
    """Return whether nothing is left to build. StoreError if the store that is there is of another recipe."""
    if commit is None:
        return False
    check_same(commit, plan)
    return budget.met(commit)


class _Run:
    """One try of this process to build. Not safe to use again.

    Args:
        source: Where the documents come from.
        plan: What is built.
        budget: How much of it.
        storage_options: Credentials and such for an object store.
        commit_tokens: As for `prepare`.
        commit_seconds: As for `prepare`.
        durable: As for `prepare`.
        commit: The note of the version to go on from; None for none.

    Attributes:
        committed: The note of the last commit, of this run or before it; None for none.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        budget: Budget,
        storage_options: Mapping[str, str] | None,
        commit_tokens: int | None,
        commit_seconds: float,
        durable: bool,
        commit: CommitMetadata | None,
    ) -> None:
        self._source, self._plan, self._budget = source, plan, budget
        self._storage_options = storage_options
        self._commit_tokens, self._commit_seconds = commit_tokens, commit_seconds
        self._durable = durable
        self._commit = commit
        self._build: Build | None = None

    @property
    def committed(self) -> CommitMetadata | None:
        return self._commit if self._build is None else self._build.committed

    def build(self, turn: BuildCoordinator, version: int, replaced: bool) -> bool:
        """Build, and return whether it came to its end; False if another process has committed meanwhile.

        Args:
            turn: Hears how it goes.
            version: The version to go on from, 0 for none.
            replaced: Whether another store is there, which goes first.
        """
        try:
            self._go_on(turn, version, replaced)
        except CommitConflict as error:
            _log.debug("%s", error)
            turn.conflict()
            return False
        except Exception as error:
            cause = self._failed(turn, error)
            if cause is error:
                raise
            raise cause from error
        return True

    def _go_on(self, turn: BuildCoordinator, version: int, replaced: bool) -> None:
        plan = self._plan
        self._build = Build(
            self._source, plan, self._budget, version, self._commit, self._storage_options, self._durable
        )
        # The source could be opened.
        check_tokenizer_file(plan)
        if replaced:
            remove_store(plan.uri, self._storage_options)
            _log.warning("The token store %s, which another recipe made, is replaced.", plan.uri)
        else:  # a rebuild may have been killed while it removed the old store
            remove_aside(plan.uri)
        self._build.run(turn, self._commit_tokens, self._commit_seconds)

    def _failed(self, turn: BuildCoordinator, error: Exception) -> Exception:
        """Tell those who wait of a failure, and return what to raise."""
        cause = _cause(error, self._plan.uri)
        turn.failed(cause)
        # Not where the same would end in the same way, or begins anew: the error itself says what to do.
        if self.committed is not None and not isinstance(error, ConfigError):
            _log.warning("%s", _how_to_go_on(self._plan.uri, self.committed))
        return cause


def _found(
    plan: Plan, rebuild: bool, storage_options: Mapping[str, str] | None
) -> tuple[int, CommitMetadata | None, bool]:
    """Look at what is at the place of the store.

    Returns:
        The version to go on from, 0 for none; its note; and whether another store is there that is to be replaced. One that a
        newer version of this package wrote never is, since this one cannot tell what is in it.

    Raises:
        StoreError: If it is no token store, or one of another format that is not to be replaced.
    """
    try:
        version, commit = last_version(plan.uri, storage_options)
    except FormatError as error:
        if error.newer or not rebuild:
            raise
        return 0, None, True
    if rebuild and commit is not None and not plan.made(commit):
        return 0, None, True
    return version, commit, False


def _check_goes_on(plan: Plan, version: int, commit: CommitMetadata, storage_options: Mapping[str, str] | None) -> None:
    """Refuse, before hours of work, to go on from a store that others have changed, or that is not all in its folder.

    Raises:
        StoreError: Naming what they have done.
    """
    check_no_links(plan.uri)
    dataset = dataset_at(plan.uri, version, storage_options)
    if dataset is not None:  # else another builder has gone on
        fragments_of(dataset)  # all of them in its folder
        check_unchanged(dataset, plan.uri, storage_options)
    if commit.unknown:
        _log.warning(
            "The token store %s was written by a newer version of lightning-lance, which noted %s: that is kept as it is.",
            plan.uri,
            ", ".join(sorted(commit.unknown)),
        )


def _turn(plan: Plan, commit_seconds: float) -> BuildCoordinator:
    lock, status = plan.lock_file, plan.status_file
    if lock is None or status is None:
        return CommitTurn(plan.uri, commit_seconds + COMMIT_MARGIN_SECONDS)
    return LeaseTurn(plan.uri, plan.fingerprint, lock, status)


def _how_to_go_on(uri: str, commit: CommitMetadata | None) -> str:
    if commit is None:
        return f"Nothing is committed in {uri!r} yet: run it again, it begins anew."
    documents, are = pluralize(commit.documents, "document"), "is" if commit.documents == 1 else "are"
    return (
        f"{documents} ({format_tokens(commit.tokens)}) {are} committed in {uri!r}: run it again, it goes on from there."
    )


def _cause(error: Exception, uri: str) -> Exception:
    """Say a full disk in one sentence: it comes as an error of whichever library wrote."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
        return StoreError(f"The disk of {uri!r} is full: make room there, or move the store, and run it again.")
    return error


def check_build(source: Any, tokenizer: Any) -> None:
    """Check that these can be a source and a tokenizer.

    Raises:
        ConfigError: Saying what they are instead, and what to write.
    """
    check_source(source)
    check_tokenizer(tokenizer)


def check_origin(
    source: Source | None, tokenizer: TokenizerConfig | None, uri: str | os.PathLike[str] | Mapping[str, str] | None
) -> None:
    """Refuse to serve what is neither built nor at a known place.

    Raises:
        ConfigError: If source, tokenizer and uri do not go together.
    """
    if (source is None) != (tokenizer is None):
        raise ConfigError("source and tokenizer belong together: give both, or neither and the uri of a store.")
    if source is not None:
        check_build(source, tokenizer)
    if isinstance(uri, Mapping):
        for name, place in uri.items():
            check_place(f"uri.{name}", place)
    elif uri is not None:
        check_place("uri", uri)
    if source is None and not uri:
        raise ConfigError("Without a source, the uri of a token store is needed: got neither.")
    if source is not None and isinstance(uri, Mapping):
        raise ConfigError(
            f"uri is a mapping, of {pluralize(len(uri), 'store')}, but one is built: give one place, or None for source "
            "and tokenizer (data.source=null data.tokenizer=null for a command)."
        )


def check_serves(building: Mapping[str, Any]) -> None:
    """Refuse what only a build can do, where there is no source and nothing is built: it would be passed over in silence.

    Args:
        building: Arguments of a build; None for those that were not given.

    Raises:
        ConfigError: Naming the first that was given.
    """
    for name, value in building.items():
        if value is not None:
            raise ConfigError(
                f"{name} is {described(value)}, but without a source nothing is built: leave it out, and the store is served "
                "as it is, or give the source and the tokenizer."
            )


def _check_place(plan: Plan) -> None:
    """Refuse to build among files that are no store: only what a builder left that was killed may be there."""
    place = Path(plan.uri)
    if not is_local(plan.uri) or not place.exists() or (place / VERSIONS).exists():
        return
    if not place.is_dir() or foreign_files(plan.uri):
        raise ConfigError(f"{plan.uri!r} is there already and is no token store: give a uri where nothing is yet.")
