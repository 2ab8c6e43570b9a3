"""Short reprs: what was given, without defaults, long values and secrets."""

from __future__ import annotations

import reprlib
from dataclasses import MISSING, Field, fields
from typing import Any

from lightning_lance.messages.redaction import redacted

# Characters of a value.
_LONGEST = 100


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 4
        self.maxother = _LONGEST

    def repr_str(self, x: str, level: int) -> str:
        """Return a string, cut once nothing secret is in it any more."""
        return _cut(redacted(repr(x)))

    def repr_instance(self, x: Any, level: int) -> str:
        """Return a value of another type, such as numpy's strings, cut once nothing secret is in it any more."""
        return _cut(redacted(repr(str(x) if isinstance(x, str) else x)))


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"


_short = _Short()


def short_repr(given: Any, **shown: Any) -> str:
    """Return a dataclass as the call that makes it, with the arguments that differ from their defaults.

    Args:
        given: The dataclass.
        shown: Values to show in place of those of its fields.
    """
    arguments = []
    for part in fields(given):
        value = shown.get(part.name, getattr(given, part.name))
        if part.repr and not _is_default(part, value):
            arguments.append(f"{part.name}={_short.repr(value)}")
    return f"{type(given).__name__}({', '.join(arguments)})"


def _is_default(part: Field[Any], value: Any) -> bool:
    default = part.default
    if part.default_factory is not MISSING:
        default = part.default_factory()
    if default is MISSING:
        return False
    # An empty list may stand for an empty tuple.
    is_empty = isinstance(default, (tuple, list, dict)) and not default and isinstance(value, (tuple, list, dict))
    return bool(value == default) or (is_empty and not value)
