"""Build a store in one process, after its last commit; the other processes wait."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import NamedTuple

from lightning_lance.build.builder import Build
from lightning_lance.build.coordination import COMMIT_MARGIN_SECONDS, BuildCoordinator, CommitTurn, LeaseTurn
from lightning_lance.build.engine import engine_of
from lightning_lance.build.kept_tokenizer import check_tokenizer_file
from lightning_lance.build.options import BuildOptions
from lightning_lance.build.plan import Budget, Plan, check_same
from lightning_lance.errors import BuildInterrupted, CommitConflict, ConfigError, FormatError, StoreError
from lightning_lance.format.commit import last_version
from lightning_lance.format.lance_io import dataset_at, finish_removal, fragments_of, refuse_in_fork, remove_store
from lightning_lance.format.lineage import check_unchanged
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links, foreign_files
from lightning_lance.lance_names import VERSIONS
from lightning_lance.location import is_local
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_tokens, pluralize
from lightning_lance.process.build_status import status_file
from lightning_lance.process.locks import lock_file
from lightning_lance.sources.source import Source

_log = logger(__name__)

# What libraries say of a full disk where they raise errors of their own.
_FULL_DISK = re.compile("No space left on device|Disk quota exceeded")


def build(source: Source, plan: Plan, budget: Budget, options: BuildOptions) -> bool:
    """Build a store until the budget is met, or wait while another process does. Return whether this process built something.

    Raises:
        ConfigError: If other files are at the place of the store.
        SourceError: If the source cannot be read, or has no documents.
        StoreError: If another store is there, and `options.rebuild` is not set.
        BuildInterrupted: After Ctrl-C.
    """
    check_place(plan.uri)
    runner = _Runner(source, plan, budget, options)
    try:
        return runner.run()
    except KeyboardInterrupt:
        raise BuildInterrupted(_how_to_continue(plan.uri, runner.committed)) from None


class _Found(NamedTuple):
    """The version to continue from and its metadata, if there is one; or whether another store is there, to be replaced."""

    version: int
    commit: CommitMetadata | None
    replaced: bool


class _Runner:
    """This process's part in the build of a store, for one call of `run`."""

    def __init__(self, source: Source, plan: Plan, budget: Budget, options: BuildOptions) -> None:
        self._source = source
        self._plan = plan
        self._budget = budget
        self._options = options
        # Metadata of the last commit that was seen or made.
        self.committed: CommitMetadata | None = None

    def run(self) -> bool:
        """Build or wait until the store is complete. Return whether this process built."""
        built = False
        with self._turn() as turn:
            while True:
                found = self._look()
                self.committed = found.commit
                if self._is_complete(found):
                    # A clean-up that still runs may remove the version found here.
                    if turn.finishing():
                        continue
                    return built
                _ = self._plan.tokenizer  # loaded, and so checked, before anything is waited for or begun
                if turn.mine:
                    refuse_in_fork("A build")
                    built |= self._build(turn, found)
                else:
                    turn.wait(found.commit)

    def _turn(self) -> BuildCoordinator:
        lock = lock_file(self._plan.uri)
        status = status_file(self._plan.uri)
        if lock is None or status is None:
            return CommitTurn(self._plan.uri, self._options.commit_seconds + COMMIT_MARGIN_SECONDS)
        return LeaseTurn(self._plan.uri, self._plan.fingerprint, lock, status)

    def _look(self) -> _Found:
        """Return the state of the store's place. A store that a newer version of this package wrote is never replaced."""
        try:
            version, commit = last_version(self._plan.location)
        except FormatError as error:
            if error.newer or not self._options.rebuild:
                raise
            return _Found(0, None, replaced=True)
        if self._options.rebuild and commit is not None and not self._plan.made(commit):
            return _Found(0, None, replaced=True)
        return _Found(version, commit, replaced=False)

    def _is_complete(self, found: _Found) -> bool:
        """Return whether a store has all that was asked for. Check one that has not, before it grows."""
        if found.commit is None:
            return False
        check_same(found.commit, self._plan)
        if self._budget.met(found.commit):
            return True
        self._check_goes_on(found.version, found.commit)
        return False

    def _check_goes_on(self, version: int, commit: CommitMetadata) -> None:
        """Check, before hours of work, that the store is unchanged, and that all its files are in its folder."""
        uri = self._plan.uri
        check_no_links(uri)
        dataset = dataset_at(self._plan.location, version)
        if dataset is not None:  # None if another builder has removed this version
            fragments_of(dataset)  # checks that they are in its folder
            check_unchanged(dataset, self._plan.location)
        if commit.unknown:
            _log.warning(
                "The token store %s was written by a newer version of lightning-lance; its unknown fields %s are kept.",
                uri,
                ", ".join(sorted(commit.unknown)),
            )

    def _build(self, turn: BuildCoordinator, found: _Found) -> bool:
        """Build, and return whether the build is complete; False if another process has committed first."""
        try:
            build = self._begin(found)
            try:
                build.run(turn, self._options.commit_tokens, self._options.commit_seconds)
            except BaseException:
                if not turn.lost:
                    build.undo()
                raise
            finally:
                self.committed = build.committed
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

    def _begin(self, found: _Found) -> Build:
        plan = self._plan
        engine = engine_of(self._options.engine)
        build = engine.begin(
            self._source, plan, self._budget, found.version, found.commit, durable=self._options.durable
        )
        # Nothing is removed before the source is open.
        check_tokenizer_file(plan)
        if found.replaced:
            remove_store(self._plan.location)
            _log.warning("The token store %s was built with other settings, and is replaced.", plan.uri)
        else:  # a rebuild may have been killed while it removed the old store
            finish_removal(plan.uri)
        return build

    def _failed(self, turn: BuildCoordinator, error: Exception) -> Exception:
        """Publish a failure to the waiting processes, and return the error to raise."""
        cause = _cause(error, self._plan.uri)
        turn.failed(cause)
        # A ConfigError would come again: its own message has the cure.
        if self.committed is not None and not isinstance(error, ConfigError):
            _log.warning("%s", _how_to_continue(self._plan.uri, self.committed))
        return cause


def _how_to_continue(uri: str, commit: CommitMetadata | None) -> str:
    if commit is None:
        return f"Nothing is committed in {uri!r} yet: run it again to start from the beginning."
    documents = pluralize(commit.documents, "document")
    are = "is" if commit.documents == 1 else "are"
    return (
        f"{documents} ({format_tokens(commit.tokens)}) {are} committed in {uri!r}: run it again to continue from there."
    )


def _cause(error: Exception, uri: str) -> Exception:
    """Return a StoreError for a full disk, which each library reports in its own way; any other error as it is."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or _FULL_DISK.search(str(error)):
        return StoreError(f"The disk of {uri!r} is full: free some space, or move the store, then run it again.")
    return error


def check_place(uri: str) -> None:
    """Check that a store's folder does not exist, is a store, or holds only the files of a killed builder."""
    place = Path(uri)
    if not is_local(uri) or not place.exists() or (place / VERSIONS).exists():
        return
    if not place.is_dir() or foreign_files(uri):
        raise ConfigError(f"{uri!r} exists already and is not a token store: give a uri where there is nothing yet.")
