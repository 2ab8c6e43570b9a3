"""A corpus that comes with validation documents of its own: those are read first, and the split is not drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lightning_lance.errors import ConfigError
from lightning_lance.sources import OpenedSource, Trouble


class WithValidation:
    """Two opened sources as one: all shards of `val`, then those of `train`; its batches have a column `split`.

    Validation first, so that it is whole in any store that has training documents, and stays as it is when the store grows; and
    so that de-duplication takes its texts out of training, not the other way round.

    Args:
        val: The validation documents.
        train: The training documents.

    Raises:
        ConfigError: If they share a shard.
    """

    def __init__(self, val: OpenedSource, train: OpenedSource) -> None:
        self._val, self._train = val, train
        if both := sorted({*val.shards} & {*train.shards}):
            raise ConfigError(f"{both[0]!r} is read for training and for validation: let one of them leave it out.")

    @property
    def shards(self) -> Sequence[str]:
        return [*self._val.shards, *self._train.shards]

    @property
    def trouble(self) -> Trouble:
        val, train = self._val.trouble, self._train.trouble
        later = {place + len(self._val.shards): bad for place, bad in train.bad_shards.items()}
        return Trouble(val.incidents + train.incidents, val.bad_shards | later)

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
