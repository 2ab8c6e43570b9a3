"""What the package raises when the user can do something about it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Bits of a number that is hashed as text; Python writes no number of many thousands of digits.
_LONGEST = 1024


class LightningLanceError(Exception):
    """Base of all errors of this package; its message is one sentence: what, got, expected, and the cure."""


class ConfigError(LightningLanceError, ValueError):
    """A value given by the user cannot be used."""


class SourceError(LightningLanceError):
    """The documents cannot be read: nothing there, no access, or no answer."""


class StoreError(LightningLanceError):
    """The token store is missing, unfinished, or not the one that was asked for."""


class CommitConflict(StoreError):  # noqa: N818 # not always an error: a builder may go on after what the other stored
    """Another process committed to the token store first; nothing of this commit was stored."""


class BuildInterrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that ends the process, came during a build; its message says what is safe and how to go on."""


def whole_number(name: str, value: Any) -> int:
    """Return a count that a user set as a plain int.

    Raises:
        ConfigError: If it is no whole number from 1 on.
    """
    # numpy's numbers too, of which a checkpoint that is loaded with `weights_only` would know nothing.
    number = value.item() if isinstance(value, np.number) else value
    if not isinstance(number, (int, float)) or isinstance(number, bool) or number < 1 or number % 1:
        raise ConfigError(f"{name} is {value!r}: expected a whole number from 1 on.")
    return int(number)


def integer(name: str, value: Any) -> int:
    """Return a number that is hashed or compared, such as a seed, as a plain int.

    No float passes, not even a whole one: `0.0` and `0` are spelled differently, and a hash goes by the spelling.

    Raises:
        ConfigError: If it is no integer.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigError(f"{name} is {value!r}: expected a whole number, such as 0.")
    if int(value).bit_length() > _LONGEST:
        raise ConfigError(f"{name} has {int(value).bit_length():,} bits: expected {_LONGEST} at most.")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """Return a switch as a plain bool. A word is refused: `"never"` would count as true.

    Raises:
        ConfigError: If it is neither true nor false.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} is {value!r}: expected true or false.")
    return bool(value)


def word(value: str) -> str:
    """Return a string of a subclass (numpy's, or a member of a string enumeration) as a plain str of the same letters."""
    return str.__str__(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return the word that a user chose, as a plain str.

    Raises:
        ConfigError: If it is none of the choices, naming them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} is {value!r}: expected one of {', '.join(choices)}.")
    return word(value)
