"""What the package raises when the user can do something about it."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class LightningLanceError(Exception):
    """Base of all errors of this package; its message is one sentence: what, got, expected, and the cure."""


class ConfigError(LightningLanceError, ValueError):
    """A value given by the user cannot be used."""


class SourceError(LightningLanceError):
    """The documents cannot be read: nothing there, no access, or no answer."""


class StoreError(LightningLanceError):
    """The token store is missing, unfinished, or not the one that was asked for."""


class StoreReplaced(StoreError):  # noqa: N818 # says what has happened
    """Another store was built at the place of the one that is read."""


class CommitConflict(StoreError):  # noqa: N818 # not always an error: a builder may go on after what the other stored
    """Another process committed to the token store first; nothing of this commit was stored."""


class BuildInterrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that ends the process, came during a build; its message says what is safe and how to go on."""


def whole_number(name: str, value: Any) -> int:
    """Give a count that a user set as a plain int.

    Raises:
        ConfigError: If it is no whole number from 1 on.
    """
    # numpy's numbers too, of which a checkpoint that is loaded with `weights_only` would know nothing.
    number = value.item() if isinstance(value, np.number) else value
    if not isinstance(number, (int, float)) or isinstance(number, bool) or number < 1 or number % 1:
        raise ConfigError(f"{name} is {value!r}: expected a whole number from 1 on.")
    return int(number)


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of some words.

    Raises:
        ConfigError: Naming them.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")
