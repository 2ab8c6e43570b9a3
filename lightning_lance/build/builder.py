"""One run of a build, on any engine: the source is opened, the ledger filled, and the end checked."""

from __future__ import annotations

import math
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import xxhash

from lightning_lance.build.coordination import BuildCoordinator
from lightning_lance.build.disk_space import DiskSpaceCheck
from lightning_lance.build.kept_tokenizer import keep_tokenizer
from lightning_lance.build.ledger import Ledger
from lightning_lance.build.packing import Packer
from lightning_lance.build.plan import Budget, Plan
from lightning_lance.build.progress import BuildProgress, tell_begun
from lightning_lance.documents.languages import check_languages
from lightning_lance.errors import CommitConflict, LightningLanceError, SourceError
from lightning_lance.format.channels import bytes_of_token, channels_of
from lightning_lance.format.commit import append_commit, last_version
from lightning_lance.format.lance_io import PendingFragments, conflict, dataset_at
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.own_files import check_no_links
from lightning_lance.maintenance.compaction import FULL_BYTES
from lightning_lance.maintenance.removal import clean_up, fence_stale_builders, find_orphans
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import nearest
from lightning_lance.sources.source import Filtered, OpenedSource, ReadReport, Source
from lightning_lance.store.provenance import stored_hashes
from lightning_lance.tokenization.tokenizer import token_dtype

_log = logger(__name__)


class Pace:
    """When a build commits: see `BuildOptions`.

    Args:
        commit_tokens: Tokens after which it commits.
        commit_seconds: Seconds after which it commits, if anything has changed.
        commit: Metadata of the last commit.
    """

    def __init__(self, commit_tokens: int, commit_seconds: float, commit: CommitMetadata) -> None:
        self._tokens = commit_tokens
        self._seconds = commit_seconds
        self._last = commit
        self._since = time.monotonic()

    def due(self, commit: CommitMetadata, tokens: int) -> bool:
        """Whether to commit this metadata, with so many tokens since the last time."""
        # Even if no document was kept, the cursor has moved, and reading again would cost that work.
        late = commit != self._last and time.monotonic() - self._since > self._seconds
        return late or tokens >= self._tokens

    def committed(self, commit: CommitMetadata) -> None:
        """Count from this commit on."""
        self._last = commit
        self._since = time.monotonic()


class Build:
    """One run of a build.

    It continues from a version of the store, 0 if there is none, and its metadata. The engines decide where documents are read
    and encoded.

    Attributes:
        committed: Metadata of the last commit; None before the first.

    Raises:
        SourceError: If the source cannot be opened, or has other files than when the store was begun.
    """

    # Whether each merge is committed before the next one begins, at the end too.
    _merges_in_turn: ClassVar[bool] = True

    def __init__(
        self,
        source: Source,
        plan: Plan,
        budget: Budget,
        version: int,
        commit: CommitMetadata | None,
        durable: bool = True,
    ) -> None:
        self._source = source
        self._location = plan.location
        self._plan = plan
        self._budget = budget
        self._durable = durable
        self._opened: OpenedSource = source.open(commit.pin if commit else None)
        shards = xxhash.xxh3_64_hexdigest("\0".join(self._opened.shards).encode())
        # Where hashes of the files are in the fingerprint, the files are the same, even if they were moved.
        hashes_files = "files" in plan.recipe["source"]
        if commit is not None and commit.shards != shards and not hashes_files:
            raise SourceError(
                f"Source {source.name!r} has other files than when the store {plan.uri!r} was begun: restore them, or remove "
                "the store to build it again."
            )
        tokenizer = plan.tokenizer
        known = commit or CommitMetadata(
            plan.fingerprint,
            plan.recipe,
            self._opened.pin,
            shards,
            tokenizer.eos_token,
            tokenizer.eos_id,
            tokenizer.vocab_size,
        )
        # Of a store that is continued, the latest words count.
        self._first = replace(known, labels=plan.labels)
        self._version = version
        self.committed = commit
        self._val_fraction = float(plan.recipe["val_fraction"])
        self._dedup = source.dedup == "exact"
        dtype = token_dtype(tokenizer.vocab_size)
        self._packer = Packer(tokenizer.eos_id, dtype, source.metadata, self._dedup, channels_of(plan.recipe))
        # The tokenizer beside the store, if this build has made it.
        self._made_tokenizer: Path | None = None

    def close(self) -> None:
        """Remove what is not committed, and stop what still runs."""

    def run(self, turn: BuildCoordinator, commit_tokens: int | None, commit_seconds: float) -> None:
        """Read until the budget is met or the source ends. For the times of commits see `BuildOptions`.

        Raises:
            CommitConflict: If another process has committed, or has taken over.
            SourceError: If the source cannot be read, or has no documents.
        """
        for level, remark in self._opened.trouble.remarks:
            _log.log(level, "%s", remark)
        with closing(self):
            self._run_all(turn, commit_tokens, commit_seconds)

    def _run_all(self, turn: BuildCoordinator, commit_tokens: int | None, commit_seconds: float) -> None:
        # Before anything is written here; not in `__init__`, after which a store may be replaced.
        self._take_over()
        self._keep_tokenizer()
        plan = self._plan
        first = self._first
        num_shards = len(self._opened.shards)
        # From the store itself, so they are exactly the hashes of its committed documents.
        hashes = stored_hashes(self._location) if self._dedup else None
        ledger = Ledger(first, self._budget, self._opened.shards, self._source.wanted, hashes)
        if commit_tokens is None:
            width = bytes_of_token(token_dtype(plan.tokenizer.vocab_size), channels_of(plan.recipe))
            commit_tokens = FULL_BYTES // width
        tell_begun(self._source.name, num_shards, str(self._budget), plan.uri, first.documents)
        merged_at_once = commit_tokens if self._merges_in_turn else math.inf
        self._space = DiskSpaceCheck(plan, self._budget, self._opened, merged_at_once)
        with BuildProgress(self._source.name, self._share(first)) as progress:
            self._fill(ledger, turn, progress, Pace(commit_tokens, commit_seconds, first))
        trouble = self._trouble()
        if trouble.incidents:
            _log.warning("Source %r failed %s.", self._source.name, trouble)
        if not ledger.met:
            self._check_found(ledger)

    def _fill(self, ledger: Ledger, turn: BuildCoordinator, progress: BuildProgress, pace: Pace) -> None:
        """Read, encode, fold into the ledger, and commit until it is met or the source ends, the last commit included."""
        raise NotImplementedError

    def _look(self, ledger: Ledger, turn: BuildCoordinator, progress: BuildProgress, text_bytes: int) -> None:
        """Show the progress, `text_bytes` of text since the last look, here and to waiting processes.

        Raises:
            CommitConflict: If another process has taken over.
        """
        now = ledger.commit
        self._space.look(now, self.committed)
        share = self._share(now)
        progress.update(share, now.documents, now.tokens, text_bytes)
        turn.progress(now.documents, now.tokens, share)
        if turn.lost:
            raise CommitConflict(f"Another process has taken over the build of {self._plan.uri!r}.")

    def _trouble(self) -> ReadReport:
        """Return the problems of the source so far."""
        return self._opened.trouble

    def _share(self, commit: CommitMetadata) -> float:
        return self._budget.share(commit, len(self._opened.shards))

    def _end_source(self, ledger: Ledger) -> None:
        """Record that no shard is left."""
        self._check_not_empty(ledger)
        ledger.end_source()

    def _take_over(self) -> None:
        """Remove the files that killed builders left, before as many are written again."""
        uri = self._plan.uri
        check_no_links(uri)
        orphans = find_orphans(self._location)
        if orphans and self._version:
            self._version = fence_stale_builders(self._location, self._version, orphans, self._durable)
        elif orphans:
            # A first version without rows: a builder that was only stopped can no longer commit these files as the first one.
            nothing = PendingFragments(None, self._packer.schema, [], {})
            self._version = append_commit(self._location, nothing, self._first, self._durable)
            self.committed = self._first
            clean_up(self._location, orphans)

    def _keep_tokenizer(self) -> None:
        """Write the tokenizer beside a local store. Keep the file of an earlier version, which has another digest."""
        file = self._plan.tokenizer_file
        same_digest = self._first.recipe.get("tokenizer") == self._plan.tokenizer.digest
        if file is not None and (same_digest or not file.exists()):
            self._made_tokenizer = file if keep_tokenizer(self._plan) else None

    def undo(self) -> None:
        """Remove the tokenizer that this build has made, if it ends without a store. The caller must have the turn."""
        with suppress(OSError, LightningLanceError):
            if self._made_tokenizer is not None and dataset_at(self._location, None) is None:
                self._made_tokenizer.unlink(missing_ok=True)

    def _check_no_other_builder(self) -> None:
        """Raise CommitConflict if another builder has committed: its clean-up is then the cause of an error here."""
        version, now = last_version(self._location)
        # Metadata and not versions are compared: a merge by this builder makes a new version with the same metadata.
        if now != self.committed:
            raise conflict(self._plan.uri, self._version, version)

    def _check_first_shard(self, ledger: Ledger) -> None:
        """Warn early that a language may be misspelled, or is rare: the corpus may be a terabyte."""
        shards = len(self._opened.shards)
        missing = ledger.missing
        if ledger.commit.shard != 1 or not missing or shards == 1:
            return
        present = self._opened.present_languages()
        if not ledger.commit.documents and all(nearest(language, present) for language in missing):
            self._check_found(ledger)
        # Where folders are languages, those of other shards are known.
        missing = [language for language in missing if language not in present]
        if missing:
            named = ", ".join(filter(None, present))
            found = f"it has {named}" if named else "its documents name no language"
            _log.warning("The first of %d shards has no document of %s; %s.", shards, ", ".join(missing), found)

    def _check_found(self, ledger: Ledger) -> None:
        """Raise ConfigError if a wanted language was not found."""
        missing = ledger.missing
        if missing:
            known = {*self._opened.present_languages(), *ledger.commit.languages} - {*missing}
            check_languages(missing, sorted(known), f"Source {self._source.name!r}")

    def _check_not_empty(self, ledger: Ledger) -> None:
        if not ledger.commit.documents:
            hint = self._filter_hint()
            if not hint:
                self._check_found(ledger)
            reasons = {"blank": "blank (only white space)"}
            counts = [f"{count} {reasons.get(why, why)}" for why, count in ledger.commit.skipped.items()]
            skipped = ""
            if counts:
                skipped = f" (skipped: {', '.join(counts)})"
            raise SourceError(
                f"Source {self._source.name!r} gave no documents{skipped}: {hint}check its files and its filters, whose values "
                "are compared letter by letter."
            )

    def _filter_hint(self) -> str:
        if isinstance(self._opened, Filtered):
            hint = self._opened.filter_hint()
            if hint:
                return f"{hint}; "
        return ""
