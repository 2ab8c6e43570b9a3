"""A corpus with its own validation documents, which are read first; no split is drawn."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightning_lance.documents.dedup import Dedup
from lightning_lance.errors import ConfigError
from lightning_lance.readers.cuts import Cut
from lightning_lance.sources.files import content_hash
from lightning_lance.sources.local_paths import readable
from lightning_lance.sources.source import Divisible, Filtered, OpenedSource, ReadReport


class WithValidation:
    """Two opened sources as one: all shards of `val`, then those of `train`. Its batches have a column `split`.

    Validation comes first, so that it is complete in every store with training documents, and does not change as the store
    grows; and so that de-duplication removes copies from training, not from validation.

    Args:
        val: The validation documents.
        train: The training documents.
        remarks: Log lines about both: (level, text).

    Raises:
        ConfigError: If they share a shard.
    """

    def __init__(self, val: OpenedSource, train: OpenedSource, remarks: Sequence[tuple[int, str]] = ()) -> None:
        self._val = val
        self._train = train
        self._remarks = remarks
        for shard in sorted({*val.shards} & {*train.shards}):
            raise ConfigError(f"{shard!r} is read for training and for validation: remove it from one of them.")

    @property
    def shards(self) -> Sequence[str]:
        return [*self._val.shards, *self._train.shards]

    @property
    def trouble(self) -> ReadReport:
        val = self._val.trouble
        train = self._train.trouble
        bad_shards = dict(val.bad_shards)
        for place, bad in train.bad_shards.items():
            bad_shards[len(self._val.shards) + place] = bad
        remarks = [*val.remarks, *train.remarks, *self._remarks]
        return ReadReport(val.incidents + train.incidents, bad_shards, remarks)

    @property
    def num_bytes(self) -> int | None:
        if self._val.num_bytes is None or self._train.num_bytes is None:
            return None
        return self._val.num_bytes + self._train.num_bytes

    @property
    def pin(self) -> dict[str, Any]:
        return {"val": self._val.pin, "train": self._train.pin}

    def present_languages(self) -> list[str]:
        return self._train.present_languages()

    def filter_hint(self) -> str:
        if isinstance(self._train, Filtered):
            return self._train.filter_hint()
        return ""

    def cuts(self, shard: int, part_bytes: int) -> list[Cut]:
        opened, place = self._part(shard)
        if isinstance(opened, Divisible):
            return opened.cuts(place, part_bytes)
        return []

    def begin_at(self, shard: int, cut: Cut) -> None:
        opened, place = self._part(shard)
        if isinstance(opened, Divisible):
            opened.begin_at(place, cut)

    def _part(self, shard: int) -> tuple[OpenedSource, int]:
        """Return the source that has a shard, and its index there."""
        held_out = len(self._val.shards)
        if shard < held_out:
            return self._val, shard
        return self._train, shard - held_out

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        opened, place = self._part(shard)
        split = "val" if opened is self._val else "train"
        for batch in opened.read(place, row):
            yield batch.append_column("split", pa.repeat(pa.scalar(split), len(batch)))


def check_apart(source: str, val: Mapping[str, str], train: Mapping[str, str], dedup: Dedup) -> list[tuple[int, str]]:
    """Check that no local file is read for both training and validation.

    Args:
        source: Name of the source, for messages.
        val: Validation files: path to the path without links.
        train: Training files, likewise.
        dedup: With `exact`, copies of files are harmless, since copies of validation documents are removed from training.

    Returns:
        A log line, (level, text), if files are copies of each other.

    Raises:
        ConfigError: If a file is read for both, under any names.
    """
    names = {real: name for name, real in train.items()}
    for name, real in val.items():
        if real in names:
            also = "" if names[real] == name else f" (as {readable(names[real])!r})"
            raise ConfigError(
                f"{readable(name)!r} is read for training{also} and for validation: remove it from one of them."
            )
    copies = [] if dedup == "exact" else _copies(list(val), list(train))
    if not copies:
        return []
    copy, original = copies[0]
    warning = (
        f"Source {source!r} validates on training documents: {readable(copy)!r} has the same content as "
        f"{readable(original)!r}; remove one of them, or set source.dedup=exact to remove it from training."
    )
    return [(logging.WARNING, warning)]


def _copies(files: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of files with the same content. Only files of the same size are read."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for other in others:
        sizes[Path(other).stat().st_size].append(other)
    hashes: dict[str, bytes] = {}
    found = []
    for file in files:
        for other in sizes.get(Path(file).stat().st_size, []):
            for each in (file, other):
                if each not in hashes:
                    hashes[each] = content_hash(each)
            if hashes[file] == hashes[other]:
                found.append((file, other))
    return found
