"""Channels: columns beside the tokens, with one value for each of them.

A store has those that its recipe names. `loss_mask` says whether a token is trained on; `token_labels` is a number of the user
for each token. They are stored as the tokens are, block by block, so that they can be mapped into memory too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

TOKENS = "tokens"
LOSS_MASK = "loss_mask"
TOKEN_LABELS = "token_labels"
#: The label of a token that has none. Torch's cross entropy leaves it out.
NO_LABEL = -100


class Channel(NamedTuple):
    """A kind of values beside the tokens.

    Attributes:
        stored: Their type in a store: whole bytes, so that they lie as plainly as tokens.
        served: Their type in a batch.
        absent: The value of a token of which nothing is known, as of a store without the channel.
        means: What that value means, for messages.
    """

    stored: np.dtype[Any]
    served: np.dtype[Any]
    absent: int
    means: str


#: All channels by name, in the order of their columns.
CHANNELS: Mapping[str, Channel] = {
    LOSS_MASK: Channel(np.dtype(np.uint8), np.dtype(np.bool_), 1, "all its tokens are trained on"),
    TOKEN_LABELS: Channel(
        np.dtype(np.int32), np.dtype(np.int64), NO_LABEL, f"the label of all its tokens is {NO_LABEL}"
    ),
}


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that are channels, in the order of their columns."""
    found = {*names}
    return tuple(name for name in CHANNELS if name in found)


def channels_of(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the channels of a store, given its recipe."""
    return ordered(recipe.get("channels", ()))
