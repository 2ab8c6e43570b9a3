"""Filters on the text of a document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.errors import ConfigError
from lightning_lance.messages.reprs import short_repr
from lightning_lance.type_hints import check_arguments


@dataclass(frozen=True)
class TextFilter:
    """Which texts to keep.

    Attributes:
        min_bytes: Shortest text, in bytes of UTF-8.
        max_bytes: Longest text, in bytes of UTF-8, or None for any. Keeps minified code and data files out.
        exclude: Regular expression (RE2 syntax); a text that it matches anywhere is left out.
    """

    min_bytes: int = 0
    max_bytes: int | None = None
    exclude: str | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    def __post_init__(self) -> None:
        check_arguments(TextFilter, vars(self), "source.text_filter.")
        if self.max_bytes is not None and self.max_bytes < self.min_bytes:
            raise ConfigError(
                f"text_filter.max_bytes is {self.max_bytes}, below text_filter.min_bytes {self.min_bytes}: no text passes."
            )
        if self.exclude is not None:
            try:
                pc.match_substring_regex(pa.array([""]), self.exclude)
            except pa.ArrowInvalid as error:
                raise ConfigError(f"text_filter.exclude {self.exclude!r} is not an RE2 expression: {error}.") from error

    def identity(self) -> dict[str, Any]:
        """Return the settings for the fingerprint. `min_bytes` is at least 1, since an empty text is never stored."""
        return {
            **asdict(self),
            "min_bytes": max(int(self.min_bytes), 1),
            "max_bytes": self.max_bytes and int(self.max_bytes),
        }

    def keep(self, texts: pa.Array) -> np.ndarray:
        """Return which texts pass, as (n,) bool. Null texts pass, since they are counted later."""
        sizes = pc.binary_length(texts)
        kept = pc.greater_equal(sizes, self.min_bytes)
        if self.max_bytes is not None:
            kept = pc.and_(kept, pc.less_equal(sizes, self.max_bytes))
        if self.exclude is not None:
            kept = pc.and_(kept, pc.invert(pc.match_substring_regex(texts, self.exclude)))
        return np.asarray(pc.fill_null(kept, True))
