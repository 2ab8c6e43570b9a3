"""Errors that the user can act on, and checks of single values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lance.messages.escaping import shown
from lightning_lance.messages.formatting import suggestion
from lightning_lance.messages.redaction import redacted

if TYPE_CHECKING:
    import numpy as np

# Bits of a number that is hashed as text. Python refuses to write numbers of many thousands of digits.
_LONGEST = 1024


class LightningLanceError(Exception):
    """Base of all errors of this package. Its message is one sentence: what, got, expected, and the cure.

    Secrets in the message are hidden. Control characters are escaped, since file names and data of others may contain them.
    Further arguments are lines below the message.

    Attributes:
        place: The key of the configuration whose constructor raised the error; empty if unknown.
    """

    place: str = ""

    def __init__(self, *lines: object) -> None:
        super().__init__(*map(_without_secrets, lines))

    def __str__(self) -> str:
        return "\n".join(map(shown, map(str, self.args)))


def _without_secrets(line: object) -> object:
    if isinstance(line, str):
        return redacted(line)
    return line


class ConfigError(LightningLanceError, ValueError):
    """A value given by the user cannot be used."""


class SourceError(LightningLanceError):
    """The documents cannot be read: they are missing, or there is no access or no answer."""


class StoreError(LightningLanceError):
    """The token store is missing, unfinished, or not the expected one."""


class FormatError(StoreError):
    """The token store has the format of another version of this package, older or newer. It is not damaged."""

    def __init__(self, message: str, newer: bool) -> None:
        super().__init__(message)
        self.newer = newer

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.newer)


class StoreReplaced(StoreError):  # noqa: N818 # names the event
    """Another store was built in place of the one being read."""


class NotForcedError(StoreError):
    """A version was made, but could not be forced onto the disk."""


class CommitConflict(StoreError):  # noqa: N818 # not always an error: a builder may continue after the other commit
    """Another process committed to the token store first; nothing of this commit was stored."""


class BuildInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came during a build. The message says what is committed, and how to continue."""

    def __str__(self) -> str:
        return shown(super().__str__())


def described(value: Any) -> str:
    """Return a short description of an unexpected value: a plain value as it is, any other by its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if value is None or isinstance(value, (str, bytes, bool, int, float, list, tuple, set, dict, Path)):
        # Redacted before it is cut: half a secret is not recognized.
        text = redacted(repr(value))
        if len(text) <= 100:
            return text
        return f"{text[:100]}..."
    return f"of type {type(value).__module__.partition('.')[0]}.{type(value).__name__}"


#: Larger numbers might not fit into 64 bits.
LARGEST = 2**62


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 1 to `LARGEST`, of Python or numpy."""
    # Imported in functions: an error, or a command that only prints a text, needs no numpy.
    import numpy as np

    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return False
    return bool(1 <= value <= LARGEST and value % 1 == 0)


def whole_number(name: str, value: Any) -> int:
    """Return a count as a plain int.

    Raises:
        ConfigError: If it is not a whole number from 1 on.
    """
    import numpy as np

    # A checkpoint that is loaded with `weights_only` cannot contain numbers of numpy.
    number = value.item() if isinstance(value, np.number) else value
    if is_count(number):
        return int(number)
    bound = ""
    if isinstance(number, (int, float)) and number > LARGEST:
        bound = f", up to {LARGEST:,}"
    raise ConfigError(f"{name} is {described(value)}: expected a whole number from 1 on{bound}.")


def integer(name: str, value: Any) -> int:
    """Return a number that is hashed or compared, such as a seed, as a plain int.

    Floats are refused, even whole ones: the text is hashed, and `0.0` is not `0`.

    Raises:
        ConfigError: If it is not an integer, or has too many digits.
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
        ConfigError: If it is not a list, or one of them is not a whole number.
    """
    import numpy as np

    try:
        given = np.asarray(values)
        if given.dtype == object:  # tensors, or numbers that are too large
            given = np.asarray([value.__index__() for value in given])
        numbers = given.astype(np.int64, casting="unsafe" if given.size == 0 else "same_kind", copy=False)
    except (AttributeError, OverflowError, TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != 1 or given.dtype == bool:
        raise ConfigError(f"{name} is {described(values)}: expected a list of whole numbers, such as [0, 5].")
    return numbers


def flag(name: str, value: Any) -> bool:
    """Return a switch as a plain bool. Text is refused, since `"never"` would count as true.

    Raises:
        ConfigError: If it is neither true nor false.
    """
    import numpy as np

    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} is {described(value)}: expected true or false.")
    return bool(value)


def word(value: str) -> str:
    """Return a string of a subclass, such as numpy's or a member of an enumeration, as a plain str."""
    return str.__str__(value)


def names_of_causes(error: BaseException) -> set[str]:
    """Return the names of the classes of an error and of its causes."""
    return {type(cause).__name__ for cause in causes(error)}


def answered_status(error: BaseException) -> int | None:
    """Return the HTTP status that a server answered, if that is behind an error of requests or httpx."""
    for cause in causes(error):
        status: int | None = getattr(getattr(cause, "response", None), "status_code", None)
        if status:
            return status
    return None


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, the error first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of the choices as a plain str.

    Raises:
        ConfigError: If it is not one of the choices, naming them.
    """
    if not isinstance(value, str) or value not in choices:
        meant = suggestion(value, choices)
        raise ConfigError(f"{name} is {described(value)}: expected one of {', '.join(choices)}{meant}.")
    return word(value)
