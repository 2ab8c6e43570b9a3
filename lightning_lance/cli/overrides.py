"""Hide secrets in overrides, `key=value`, of the command line. Imports no Hydra, so that a message comes at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from lightning_lance.messages.redaction import has_secret, is_harmless_option, is_secret_name, redacted

#: Stands for a missing value, as in Hydra.
MISSING = "???"
#: Mappings whose values are never shown.
SECRET_MAPPINGS = ("storage_options", "env_set")

# Keys that take lists of names or paths.
_LISTS = ("languages", "data_files", "val_files", "patterns", "exclude")
_PAIR = re.compile(r"(?P<key>[+~]*[\w.@/-]+)=(?P<value>.*)", re.DOTALL)
# An entry of a mapping, and no URL.
_ENTRY = re.compile(r"[\w.+-]+:(?!//).*", re.DOTALL)


def shell_accident(arguments: Sequence[str]) -> str | None:
    """Return a sentence about an argument that the shell has cut or expanded, with the right spelling; None if there is none.

    Args:
        arguments: Arguments of the command line.
    """
    return _cut_at_space(arguments) or _expanded_braces(arguments)


def _cut_at_space(arguments: Sequence[str]) -> str | None:
    """Explain a list or mapping with spaces in it: `languages=[Python,` and `Rust]`."""
    for place, first in enumerate(arguments):
        if not _PAIR.fullmatch(first) or _depth(first) < 1:
            continue
        whole = first
        for count, part in enumerate(arguments[place + 1 :], start=2):
            if _PAIR.fullmatch(part):
                break
            whole += f" {part}"
            if _depth(whole) == 0:
                return (
                    f"{shown_override(whole)} arrived as {count} arguments, since the shell cuts at spaces: quote it, as in "
                    f"'{shown_override(whole)}'."
                )
    return None


def _depth(text: str) -> int:
    """Return how many brackets outside of quotes are open at the end of a text."""
    plain = re.sub(r"\"[^\"]*\"|'[^']*'", "", text)
    counts = Counter(plain)
    opened = counts["["] + counts["{"] + counts["("]
    closed = counts["]"] + counts["}"] + counts[")"]
    return opened - closed


def _expanded_braces(arguments: Sequence[str]) -> str | None:
    """Explain braces that the shell has expanded: `mix=a:1` and `mix=b:2`. Hydra would take the last one, without a word."""
    found = filter(None, map(_PAIR.fullmatch, arguments))
    for key, same in groupby(found, lambda match: str(match["key"])):
        values = [str(match["value"]) for match in same]
        if len({*values}) < 2:
            continue
        joined = ", ".join(values)
        if _ENTRY.fullmatch(values[0]):
            whole = f"{key}={{{re.sub(r'(?<=[^:/]):(?=[^:/ ])', ': ', joined)}}}"
        elif re.split(r"[.@/]", key)[-1] in _LISTS and not any(value.startswith("[") for value in values):
            whole = f"{key}=[{joined}]"
        else:
            continue
        return (
            f"{key} is given {len(values)} times in a row, as where the shell expands braces, and only the last would count: "
            f"quote the whole, as in '{shown_override(whole)}'."
        )
    return None


def shown_override(text: str) -> str:
    """Return an override without its value if that holds a secret, else as it is."""
    key, is_pair, value = text.partition("=")
    if not is_pair or value in ("", "null", "{}", MISSING):
        return redacted(text)
    if not is_secret_override(key, value):
        return text
    variable = re.search(r"hydra\.job\.env_set\.(\w+)$", key)
    if variable:
        return f"{key}=${{oc.env:{variable[1]}}}"
    if key.startswith("+"):
        # One + would fill a mapping; two only set the key.
        return f"++{key.lstrip('+')}={MISSING}"
    return f"{key}={MISSING}"


def is_secret_key(key: str) -> bool:
    """Return whether a key of the command line names a secret, or a mapping with secrets."""
    parts = re.split(r"[.@/]", key.lstrip("+~"))
    return not {*parts}.isdisjoint(SECRET_MAPPINGS) or is_secret_name(parts[-1])


def is_secret_override(key: str, value: str) -> bool:
    """Return whether an override holds a secret, by its key or by its value."""
    if is_secret_key(key):
        harmless = is_harmless_option(re.split(r"[.@/]", key)[-1]) or value.startswith("${")
        return not harmless or has_secret(value)
    compact = re.sub(r"\s", "", value)
    for name in SECRET_MAPPINGS:
        if f"{name}:" in compact:
            return True
    keys = re.findall(r"([\w-]+)['\"]?\s*:", value)
    return any(map(is_secret_name, keys)) or redacted(value) != value
