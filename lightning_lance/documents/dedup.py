"""Exact de-duplication: of texts that differ only in the white space around them, the first one read is kept."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.documents.arrow import as_single_chunk, offsets_and_bytes
from lightning_lance.errors import ConfigError, described

Dedup = Literal["none", "exact"]

# A run is merged with the one before it unless that one is this many times longer: few runs to search, little to merge.
_GROWTH = 4


def check_dedup(dedup: str) -> None:
    """Raise ConfigError if `source.dedup` is neither `none` nor `exact`."""
    if not isinstance(dedup, str) or dedup not in get_args(Dedup):
        raise ConfigError(f"source.dedup is {described(dedup)}: expected {' or '.join(get_args(Dedup))}.")


def text_hashes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the (n,) uint64 hashes of texts without the white space (Unicode's) around them. Null counts as empty.

    With 64 bits and 100 million texts, the chance of any collision is 1 in 3,700.
    """
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(as_single_chunk(texts), "").cast(pa.large_string()))
    borders, data = offsets_and_bytes(trimmed)
    # Hashed in Arrow's own memory: a million `bytes` objects cost more than their hashes.
    view = data.data
    digest = xxhash.xxh3_64_intdigest
    hashes = (digest(view[low:high]) for low, high in pairwise(borders.tolist()))
    return np.fromiter(hashes, np.uint64, len(trimmed))


class SeenHashes:
    """The set of texts seen so far, by their hashes: 8 bytes a text, briefly 16 while it grows.

    It consists of sorted runs, each at least `_GROWTH` times as long as the next. A new batch is looked up in all runs and
    becomes a run itself; then short runs are merged. Each hash is therefore moved only a few times.

    Args:
        hashes: Hashes of texts known from the beginning, in pieces.
    """

    def __init__(self, hashes: Iterable[np.ndarray] = ()) -> None:
        self._runs: list[np.ndarray] = []
        for piece in hashes:
            self.add(piece)

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add texts by their (n,) uint64 hashes. Returns (n,) bool: which are new; of equal ones, only the first."""
        values, first = np.unique(hashes, return_index=True)
        fresh = np.ones(len(values), bool)
        for run in self._runs:
            fresh &= run[np.minimum(np.searchsorted(run, values), len(run) - 1)] != values
        new = np.zeros(len(hashes), bool)
        new[first[fresh]] = True
        if fresh.any():
            self._runs.append(values[fresh])
            while len(self._runs) > 1 and len(self._runs[-2]) < _GROWTH * len(self._runs[-1]):
                merged = np.concatenate([self._runs.pop(-2), self._runs.pop()])
                merged.sort(kind="stable")  # merges two sorted halves in one pass
                self._runs.append(merged)
        return new

    def discard(self, hashes: np.ndarray) -> None:
        """Forget texts by their hashes: the next ones like them are new."""
        runs: list[np.ndarray] = []
        for run in self._runs:
            left = run[np.isin(run, hashes, invert=True)]
            if len(left):
                runs.append(left)
        self._runs = runs
