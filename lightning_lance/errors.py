"""What the package raises when the user can do something about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lance.messages.escaping import shown
from lightning_lance.messages.redaction import redacted

if TYPE_CHECKING:
    import numpy as np

# Bits of a number that is hashed as text; Python writes no number of many thousands of digits.
_LONGEST = 1024


class LightningLanceError(Exception):
    """Base of all errors of this package; its message is one sentence: what, got, expected, and the cure.

    Secrets in the message are hidden, wherever they came from. Control characters in it are shown as escapes, since much of
    what it names comes from others. Further arguments are lines below it.
    """

    def __init__(self, *told: object) -> None:
        super().__init__(*(redacted(part) if isinstance(part, str) else part for part in told))

    def __str__(self) -> str:
        return "\n".join(shown(str(line)) for line in self.args)


class ConfigError(LightningLanceError, ValueError):
    """A value given by the user cannot be used."""


class SourceError(LightningLanceError):
    """The documents cannot be read: nothing there, no access, or no answer."""


class StoreError(LightningLanceError):
    """The token store is missing, unfinished, or not the one that was asked for."""


class FormatError(StoreError):
    """The token store is of another version of this package, older or newer, and is whole as far as this one can tell."""

    def __init__(self, message: str, newer: bool) -> None:
        super().__init__(message)
        self.newer = newer

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.newer)


class StoreReplaced(StoreError):  # noqa: N818 # says what has happened
    """Another store was built at the place of the one that is read."""


class NotForcedError(StoreError):
    """A version was made, and the disk has not taken it."""


class CommitConflict(StoreError):  # noqa: N818 # not always an error: a builder may go on after what the other stored
    """Another process committed to the token store first; nothing of this commit was stored."""


class BuildInterrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that ends the process, came during a build; its message says what is safe and how to go on."""

    def __str__(self) -> str:
        return shown(super().__str__())


def described(value: Any) -> str:
    """Describe what was given in place of something else, in a few words: an object by its type, a plain value as it is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if value is None or isinstance(value, (str, bytes, bool, int, float, list, tuple, set, dict, Path)):
        # Before it is cut: half a secret is not known as one.
        told = redacted(repr(value))
        return told if len(told) <= 100 else f"{told[:100]}..."
    return f"of type {type(value).__module__.partition('.')[0]}.{type(value).__name__}"


#: Larger numbers do not fit where they are needed, in 64 bits.
LARGEST = 2**62


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number from 1 on, of Python or numpy, and not too large."""
    # In functions: an error, and a command that only prints a text, need no numpy.
    import numpy as np

    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return False
    return bool(1 <= value <= LARGEST and value % 1 == 0)


def whole_number(name: str, value: Any) -> int:
    """Return a count that a user set as a plain int.

    Raises:
        ConfigError: If it is no whole number from 1 on.
    """
    import numpy as np

    # numpy's numbers too, of which a checkpoint that is loaded with `weights_only` would know nothing.
    number = value.item() if isinstance(value, np.number) else value
    if not is_count(number):
        raise ConfigError(f"{name} is {described(value)}: expected a whole number from 1 on{_up_to(number)}.")
    return int(number)


def _up_to(number: Any) -> str:
    return f", up to {LARGEST:,}" if isinstance(number, (int, float)) and number > LARGEST else ""


def integer(name: str, value: Any) -> int:
    """Return a number that is hashed or compared, such as a seed, as a plain int.

    No float passes, not even a whole one: `0.0` and `0` are spelled differently, and a hash goes by the spelling.

    Raises:
        ConfigError: If it is no integer.
    """
    import numpy as np

    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigError(f"{name} is {described(value)}: expected a whole number, such as 0.")
    if int(value).bit_length() > _LONGEST:
        raise ConfigError(f"{name} has {int(value).bit_length():,} bits: expected {_LONGEST} at most.")
    return int(value)


def whole_numbers(name: str, values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a list of whole numbers, of Python, numpy or torch, as an array of int64.

    Raises:
        ConfigError: If it is no list, or if one of them is no whole number.
    """
    import numpy as np

    try:
        given = np.asarray(values)
        if given.dtype == object:  # of tensors, or of numbers that fit nowhere
            given = np.asarray([value.__index__() for value in given])
        numbers = given.astype(np.int64, casting="unsafe" if given.size == 0 else "same_kind", copy=False)
    except (AttributeError, OverflowError, TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != 1 or given.dtype == bool:
        raise ConfigError(f"{name} is {described(values)}: expected a list of whole numbers, such as [0, 5].")
    return numbers


def flag(name: str, value: Any) -> bool:
    """Return a switch as a plain bool. A word is refused: `"never"` would count as true.

    Raises:
        ConfigError: If it is neither true nor false.
    """
    import numpy as np

    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} is {described(value)}: expected true or false.")
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
        raise ConfigError(f"{name} is {described(value)}: expected one of {', '.join(choices)}.")
    return word(value)
