"""A corpus that comes with validation documents of its own: those are read first, and the split is not drawn."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightning_lance.documents.dedup import Dedup
from lightning_lance.errors import ConfigError
from lightning_lance.sources.files import content_hash
from lightning_lance.sources.local_paths import readable
from lightning_lance.sources.source import OpenedSource, ReadReport


class WithValidation:
    """Two opened sources as one: all shards of `val`, then those of `train`; its batches have a column `split`.

    Validation first, so that it is whole in any store that has training documents, and stays as it is when the store grows; and
    so that de-duplication takes its texts out of training, not the other way round.

    Args:
        val: The validation documents.
        train: The training documents.
        remarks: What the log has to say about both, each with its level.

    Raises:
        ConfigError: If they share a shard.
    """

    def __init__(self, val: OpenedSource, train: OpenedSource, remarks: Sequence[tuple[int, str]] = ()) -> None:
        self._val, self._train, self._remarks = val, train, remarks
        if both := sorted({*val.shards} & {*train.shards}):
            raise ConfigError(f"{both[0]!r} is read for training and for validation: let one of them leave it out.")

    @property
    def shards(self) -> Sequence[str]:
        return [*self._val.shards, *self._train.shards]

    @property
    def trouble(self) -> ReadReport:
        val, train = self._val.trouble, self._train.trouble
        later = {place + len(self._val.shards): bad for place, bad in train.bad_shards.items()}
        remarks = [*val.remarks, *train.remarks, *self._remarks]
        return ReadReport(val.incidents + train.incidents, val.bad_shards | later, remarks)

    @property
    def num_bytes(self) -> int | None:
        parts = (self._val.num_bytes, self._train.num_bytes)
        return None if None in parts else sum(part or 0 for part in parts)

    @property
    def pin(self) -> dict[str, Any]:
        return {"val": self._val.pin, "train": self._train.pin}

    def present_languages(self) -> list[str]:
        return self._train.present_languages()

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        held_out = len(self._val.shards)
        opened, split, place = (
            (self._val, "val", shard) if shard < held_out else (self._train, "train", shard - held_out)
        )
        for batch in opened.read(place, row):
            yield batch.append_column("split", pa.repeat(pa.scalar(split), len(batch)))


def check_apart(source: str, val: Mapping[str, str], train: Mapping[str, str], dedup: Dedup) -> list[tuple[int, str]]:
    """Check that no local file is read for training and for validation.

    Args:
        source: Name of the source, for messages.
        val: Validation files: path to the path without links.
        train: Training files, likewise.
        dedup: `exact` takes copies of validation documents out of training, so that copies of files do no harm.

    Returns:
        A remark for the log, with its level, if files are copies of each other.

    Raises:
        ConfigError: If one file is both, under whatever names.
    """
    names = {real: name for name, real in train.items()}
    for name, real in val.items():
        if real in names:
            also = "" if names[real] == name else f" (as {readable(names[real])!r})"
            raise ConfigError(
                f"{readable(name)!r} is read for training{also} and for validation: let one of them leave it out."
            )
    copies = [] if dedup == "exact" else _copies(list(val), list(train))
    if not copies:
        return []
    copy, original = copies[0]
    return [
        (
            logging.WARNING,
            f"Source {source!r} validates on what it trains on: {readable(copy)!r} has the content of {readable(original)!r}; "
            "leave one of them out, or set source.dedup=exact, which takes it out of training.",
        )
    ]


def _copies(files: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Find the files that have the same content as some others; only those of one size are looked into."""
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
