"""Places that a user gives: of a store, of a folder, and the options of the file system that they are in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lance.errors import ConfigError, described
from lightning_lance.redaction import has_secret, public_url, remember_options, remember_url

# Of a file's or a folder's name, on nearly all file systems; and of a whole path on Linux.
_LONGEST_NAME, _LONGEST_PATH = 255, 4096


def check_place(name: str, place: Any, such: str = "data/mine.lance") -> str:
    """Give a place as a string.

    Args:
        name: Of the argument.
        place: What was given for it.
        such: An example.

    Raises:
        ConfigError: If it is no string or path, cannot be a path, or holds a secret.
    """
    if not isinstance(place, (str, Path)):
        raise ConfigError(f"{name} is {described(place)}: expected a place, such as {such}.")
    text = os.fspath(place)
    if not text.strip():
        raise ConfigError(f"{name} is empty: expected a place, such as {such}.")
    if "\0" in text:
        raise ConfigError(f"{name} is {text!r}: a path has no NUL characters; expected such as {such}.")
    if has_secret(text):
        remember_url(text)
        raise ConfigError(
            f"{name} is {public_url(text)!r} with a password, a key or a signature in it, which would be kept in checkpoints "
            "and logs: give those by environment variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by "
            "storage_options."
        )
    if "://" not in text:
        encoded = os.fsencode(text)
        if len(encoded) >= _LONGEST_PATH or any(
            len(part) > _LONGEST_NAME for part in encoded.split(os.fsencode(os.sep))
        ):
            raise ConfigError(
                f"{name} is {len(encoded):,} bytes long ({text[:60]!r}...): a path has up to {_LONGEST_PATH - 1:,} bytes, and "
                f"each name in it up to {_LONGEST_NAME}; give a shorter one."
            )
    return text


def checked_storage_options(name: str, options: Any) -> dict[str, str]:
    """Give the options of a file system as Lance takes them, all of them strings; their values are never shown.

    Raises:
        ConfigError: If they are no mapping of names to strings, numbers or true and false.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{name} is of type {type(options).__name__}: expected a mapping, such as {{aws_region: us-east-1}}."
        )
    checked = {}
    for key, value in options.items():
        if not isinstance(key, str):
            raise ConfigError(f"{name} has a key of type {type(key).__name__}: expected the names of options.")
        if isinstance(value, bool):
            checked[key] = str(value).lower()
        elif isinstance(value, (str, int, float, Path)):
            checked[key] = str(value)
        elif value is not None:
            raise ConfigError(
                f"{name}.{key} is of type {type(value).__name__}: expected text, a number, or true or false."
            )
    remember_options(checked)
    return checked
