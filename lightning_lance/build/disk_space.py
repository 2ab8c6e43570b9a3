"""Whether there is room on disk for what a build is asked for, told before it is filled."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lightning_lance.build.plan import Budget, Plan
from lightning_lance.errors import ConfigError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.maintenance.compaction import FULL_BYTES, uncompacted_bytes
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_bytes, format_tokens
from lightning_lance.sources.source import OpenedSource
from lightning_lance.tokenization.tokenizer import token_dtype

_log = logger(__name__)

# What a store needs besides its tokens: where documents begin and what is known of them, manifests, padding.
_BESIDES = 1.1


def expected_tokens(budget: Budget, seen: CommitMetadata, num_bytes: int | None, num_shards: int) -> float | None:
    """Estimate the tokens of the whole store; None if nothing tells yet.

    Whatever ends the reading first counts: the budget in tokens; that in documents, at the mean length so far; the size of
    the source, at the tokens per byte so far; or, between two shards, all shards at the tokens of those that are done.

    Args:
        budget: What is asked for.
        seen: What is read, up to now.
        num_bytes: Bytes of text in the source, if it knows.
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


def merging_bytes(new: float, loose: float) -> float:
    """Give the room that merging needs for a while: what is merged is there twice until it is committed.

    Args:
        new: Bytes that the build adds.
        loose: Bytes of fragments before them that are merged with them.
    """
    # Never as much as two full fragments; in a build that nothing disturbs, one and the commit that fills it.
    return min(new + loose, 2 * FULL_BYTES)


class DiskSpaceCheck:
    """Looks once, as soon as it can be told, whether a build fits; reads nothing of the source for it.

    Args:
        plan: What is built.
        budget: How much of it.
        opened: The source.
    """

    def __init__(self, plan: Plan, budget: Budget, opened: OpenedSource) -> None:
        self._plan, self._budget = plan, budget
        self._num_bytes, self._num_shards = opened.num_bytes, len(opened.shards)
        self._told = self._asked_to_wait = "://" in plan.uri  # a bucket has no end

    def look(self, seen: CommitMetadata, stored: CommitMetadata | None) -> None:
        """Tell what the build needs and what is free, the first time that it can be told; until then, when it can be.

        Args:
            seen: What is read, stored or not.
            stored: The last commit, of this build or of one before, if there is one.

        Raises:
            ConfigError: If it cannot fit.
        """
        if self._told:
            return
        tokens = expected_tokens(self._budget, seen, self._num_bytes, self._num_shards)
        if tokens is None and self._asked_to_wait:
            return
        folder = next(place for place in Path(self._plan.uri).absolute().parents if place.is_dir())
        free = shutil.disk_usage(folder).free
        room = f"{format_bytes(free)} are free in {str(folder)!r}"
        if tokens is None:
            self._asked_to_wait = True
            first = f"after the first of {self._num_shards:,} shards" if not seen.shard else "at the end of a shard"
            when = "when all is read" if self._num_shards == 1 else first
            _log.info("What the store %r needs is known %s, and %s.", self._plan.uri, when, room)
            return
        self._told = True
        width = token_dtype(self._plan.tokenizer.vocab_size).itemsize
        # What is free now is what is left after the commits up to now.
        has = stored.tokens if stored is not None else 0
        least = max(tokens - has, 0) * width
        more, all_of_it = (" more than it has by now", " in all") if has else ("", "")
        needed = least * _BESIDES
        merging = merging_bytes(needed, uncompacted_bytes(self._plan.uri))
        what = (
            f"{self._plan.uri!r} needs about {format_bytes(needed)}{more} ({format_tokens(tokens)} of {width} bytes"
            f"{all_of_it}), and {room}; while it is merged, up to {format_bytes(merging)} more are needed"
        )
        cure = "lower max_tokens or max_documents, make room, or give a data_dir (or uri) on a larger disk"
        # A number that was asked for is certain, one that was worked out from a part of the source is not, and how much is
        # merged depends on the commits: a build of a minute is one, and has nothing to merge.
        if least > (free if tokens == self._budget.max_tokens else 2 * free):
            raise ConfigError(f"The store {what}: {cure}.")
        tight = needed + merging > free
        _log.log(logging.WARNING if tight else logging.INFO, "The store %s%s.", what, f": {cure}" * tight)
