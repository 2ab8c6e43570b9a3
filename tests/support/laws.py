"""How hard a law is tried."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import settings

Test = TypeVar("Test", bound=Callable[..., None])

# `EXAMPLES=20 make test` tries twenty times as many as usual.
FACTOR = int(os.environ.get("EXAMPLES", "1"))


def examples(number: int) -> Callable[[Test], Test]:
    """Try a law with this many examples, times `EXAMPLES`."""
    return settings(max_examples=number * FACTOR)
