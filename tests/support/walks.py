"""A walk through epochs."""

from __future__ import annotations

import numpy as np

from lightning_lance.serving.cursor import Cursor


def walk(place: Cursor, windows: int) -> list[int]:
    """Consume windows, over the ends of epochs, and give their starts."""
    starts: list[int] = []
    while len(starts) < windows:
        if place.value == place.epoch_end:
            place.next_epoch(extend=False)
        count = min(windows - len(starts), place.epoch_end - place.value)
        positions = np.arange(place.value, place.value + count)
        found = place.locate(positions)
        starts += found.start.tolist()
        place.advance_to(place.value + count, int(place.digests(positions, found).sum(dtype=np.uint64)))
    return starts
