"""The texts of a store of bytes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lightning_lance import TokenStore


def stored(store: TokenStore) -> list[bytes]:
    tokens = np.concatenate([store.read(np.zeros(1, np.int64), store.num_tokens())[0], [0]])
    ends = np.flatnonzero(tokens == 256)
    return [bytes(tokens[low + 1 : high].astype(np.uint8)) for low, high in pairwise([-1, *ends.tolist()])]
