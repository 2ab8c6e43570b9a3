"""A check, before the disk is full, that a build fits on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning_lance.build.plan import Budget, Plan
from lightning_lance.errors import ConfigError
from lightning_lance.format.channels import bytes_of_token, channels_of
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.maintenance.compaction import GrowthMerges, merges_of_growth
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_bytes, format_tokens
from lightning_lance.sources.source import OpenedSource
from lightning_lance.tokenization.tokenizer import token_dtype

_log = logger(__name__)

# Space is worth a line from this size on, or from this share of what is free.
_WORTH_A_LINE = 1e9
_SHARE_WORTH_A_LINE = 0.5

# A store's size by that of its tokens: it also holds the documents' offsets and metadata, manifests, and padding.
_OVERHEAD = 1.1


def expected_tokens(budget: Budget, seen: CommitMetadata, num_bytes: int | None, num_shards: int) -> float | None:
    """Estimate the tokens of the whole store; None if there is no estimate yet.

    The lowest of these bounds counts: the budget in tokens; the budget in documents, at the mean length so far; the size of
    the source, at the tokens per byte so far, or between two shards, the number of shards, at the tokens per shard so far.

    Args:
        budget: How much to store.
        seen: What has been read so far.
        num_bytes: Bytes of text in the source, if known.
        num_shards: Shards of the source.
    """
    bounds: list[float] = []
    if budget.max_tokens is not None:
        bounds.append(budget.max_tokens)
    if budget.max_documents is not None and seen.documents:
        bounds.append(budget.max_documents * seen.tokens / seen.documents)
    if num_bytes is not None and seen.text_bytes:
        bounds.append(num_bytes * seen.tokens / seen.text_bytes)
    elif seen.shard and not seen.row:
        bounds.append(seen.tokens * num_shards / seen.shard)
    return min(bounds, default=None)


def merging_bytes(new: float, merges: GrowthMerges, commit: float) -> float:
    """Return the bytes that merging needs for a while: what is merged exists twice until that is committed.

    Args:
        new: Bytes that the build adds.
        merges: What it merges.
        commit: Most bytes of a commit, all of which are merged where its streams take turns; infinite if all commits may be
            merged at once.
    """
    # A tag keeps the version before this build, so what is merged of that stays.
    return merges.loose + min(new, max(merges.largest, commit))


class DiskSpaceCheck:
    """Checks once, as soon as there is an estimate, that a build fits. Reads nothing of the source for it.

    Args:
        plan: What is built, and where.
        budget: How much of it.
        opened: The source.
        commit_tokens: Most tokens of a commit; infinite if all commits may be merged at once.
    """

    def __init__(self, plan: Plan, budget: Budget, opened: OpenedSource, commit_tokens: float) -> None:
        self._plan = plan
        self._budget = budget
        self._num_bytes = opened.num_bytes
        self._num_shards = len(opened.shards)
        self._commit_tokens = commit_tokens
        self._done = "://" in plan.uri  # a bucket has no end
        self._announced = False

    def look(self, seen: CommitMetadata, stored: CommitMetadata | None) -> None:
        """Log once what a large build needs and how much disk space is free.

        What was `seen` was read, but only what is `stored` was committed, by this build or an earlier one.

        Raises:
            ConfigError: If the store cannot fit.
        """
        if self._done:
            return
        tokens = expected_tokens(self._budget, seen, self._num_bytes, self._num_shards)
        if tokens is None and self._announced:
            return
        uri = self._plan.uri
        folder = next(filter(Path.is_dir, Path(uri).absolute().parents))
        free = shutil.disk_usage(folder).free
        space = f"{format_bytes(free)} are free in {str(folder)!r}"
        if tokens is None:
            self._announced = True
            _log.debug("The size of the store %r can be estimated %s; %s.", uri, self._when_known(seen), space)
            return
        self._done = True
        width = bytes_of_token(token_dtype(self._plan.tokenizer.vocab_size), channels_of(self._plan.recipe))
        # Committed tokens already take their space.
        committed = stored.tokens if stored is not None else 0
        least = max(tokens - committed, 0) * width
        needed = least * _OVERHEAD
        merges = merges_of_growth(self._plan.location, needed)
        merging = merging_bytes(needed, merges, self._commit_tokens * width * _OVERHEAD)
        size = f"{format_tokens(tokens)} of {width} bytes"
        amount = f"{format_bytes(needed)} ({size})"
        if committed:
            amount = f"{format_bytes(needed)} more than it has now ({size} in total)"
        what = f"{uri!r} needs about {amount}, and up to {format_bytes(merging)} more while it is merged; {space}"
        cure = "lower max_tokens or max_documents, free disk space, or give a data_dir (or uri) on a larger disk"
        # A budget in tokens is exact; an estimate from a part of the source may be far off. Space for merging is not required:
        # a build of a minute makes one commit, and merges nothing.
        limit = free if tokens == self._budget.max_tokens else 2 * free
        if least > limit:
            raise ConfigError(f"The store {what}: {cure}.")
        if needed + merging > free:
            _log.warning("The store %s: %s.", what, cure)
        elif needed + merging > min(_WORTH_A_LINE, _SHARE_WORTH_A_LINE * free):
            _log.info("The store %s.", what)
        else:
            _log.debug("The store %s.", what)

    def _when_known(self, seen: CommitMetadata) -> str:
        if self._num_shards == 1:
            return "when the whole source is read"
        if seen.shard:
            return "at the end of a shard"
        return f"after the first of {self._num_shards:,} shards"
