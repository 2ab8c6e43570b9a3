"""What commands print: aligned tables for people, and JSON for programs."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from typing import Any

from lightning_lance.messages.escaping import say, shown
from lightning_lance.messages.redaction import redacted

_GAP = "  "
#: Stands for a value that is not known.
UNKNOWN = "-"


def table(titles: Sequence[str], rows: Sequence[Sequence[str | None]], right: Sequence[str] = ()) -> list[str]:
    """Return the lines of a table, with control characters escaped and secrets hidden.

    Args:
        titles: The titles of the columns.
        rows: The cells of each row; None for what is not known.
        right: Titles of the columns that are aligned on the right: numbers.
    """
    cells = [list(map(_cell, row)) for row in (titles, *rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for title, cell, width in zip(titles, row, widths, strict=True):
            space = " " * (width - _width(cell))
            padded.append(f"{space}{cell}" if title in right else f"{cell}{space}")
        lines.append(_GAP.join(padded).rstrip())
    return lines


def _cell(text: str | None) -> str:
    if text is None:
        return UNKNOWN
    return shown(redacted(text))


def say_json(value: Any) -> None:
    """Print a value as JSON, in one line of ASCII, without secrets."""
    say(json.dumps(plain(value)))


def plain(value: Any) -> Any:
    """Return a value in types of JSON: dataclasses as objects, times in UTC, texts without secrets."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {redacted(str(key)): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    if isinstance(value, str):
        return redacted(value)
    return value


def time_shown(when: datetime | None) -> str | None:
    """Return a time of this machine's zone to the minute."""
    if when is None:
        return None
    return when.astimezone().strftime("%Y-%m-%d %H:%M")


def in_words(value: Any) -> str:
    """Return a setting as a person writes it: `[a, b]`, `{text: content}`."""
    if isinstance(value, Mapping):
        entries = [f"{key}: {in_words(part)}" for key, part in value.items()]
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_words, value))}]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    width = len(text)
    for character in text:
        if unicodedata.east_asian_width(character) in "WF":
            width += 1
        if unicodedata.combining(character):
            width -= 1
    return width
