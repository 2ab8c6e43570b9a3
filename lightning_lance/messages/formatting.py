"""Counts, sizes, shares and names in messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

# Units, the largest first.
_TOKENS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"))


def pluralize(number: int, noun: str, nouns: str | None = None) -> str:
    """Return a count with its noun: `1 document`, `2 documents`; `nouns` is the plural if it is not `noun + "s"`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {nouns or noun + 's'}"


def agreed(number: int, singular: str, plural: str) -> str:
    """Return the form of a word that agrees with a count: `is` with one, `are` with others."""
    if number == 1:
        return singular
    return plural


def as_pairs(entries: Mapping[str, object]) -> list[str]:
    """Return entries as they are given: `key=value`."""
    return [f"{key}={value}" for key, value in entries.items()]


def format_list(names: Sequence[str], most: int = 5) -> str:
    """Return names as a list: `Python, Rust`; of many, the first ones and the number of others."""
    shown = ", ".join(names[:most])
    if len(names) > most:
        shown += f" and {len(names) - most:,} more"
    return shown


def format_documents(documents: int, tokens: int) -> str:
    """Return documents with their tokens: `2 documents (1,204 tokens)`."""
    return f"{pluralize(documents, 'document')} ({pluralize(tokens, 'token')})"


def format_number(number: float) -> str:
    """Return a large number with at least three digits: `812`, `61.3 M`, `7.12 G`."""
    for unit, letter in _TOKENS:
        if number >= unit:
            return f"{_short(number / unit)} {letter}"
    return f"{round(number):,}"


def format_tokens(number: float) -> str:
    """Return a number of tokens with at least three digits: `812 tokens`, `61.3 M tokens`, `7.12 G tokens`."""
    return f"{format_number(number)} {agreed(round(number), 'token', 'tokens')}"


def format_bytes(num_bytes: float) -> str:
    """Return a number of bytes in powers of 1,000: `812 bytes`, `61.3 KB`, `7.12 GB`."""
    for unit, letters in _BYTES:
        if num_bytes >= unit:
            return f"{_short(num_bytes / unit)} {letters}"
    return pluralize(round(num_bytes), "byte")


def format_percent(share: float) -> str | None:
    """Return a share, 0 to 1, in percent; None for 0, which also stands for an unknown share."""
    if share <= 0:
        return None
    if share < 0.01:
        return "less than 1 %"
    return f"{100 * min(share, 1.0):.0f} %"


def _short(number: float) -> str:
    if number < 10:
        return f"{number:.2f}"
    if number < 100:
        return f"{number:.1f}"
    return f"{number:,.0f}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is most similar to a misspelled one, None if no name is similar."""
    by_fold = {candidate.casefold(): candidate for candidate in known}
    near = get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    if near:
        return by_fold[near[0]]
    return None


def did_you_mean(near: str | None, quoted: bool = True) -> str:
    """Return a hint such as `did you mean 'Rust'? `, for the middle of a sentence; empty if nothing is near."""
    if not near:
        return ""
    if quoted:
        near = repr(near)
    return f"did you mean {near}? "


def suggestion(name: object, known: Sequence[str]) -> str:
    """Return a hint such as ` (did you mean 'Rust'?)`, empty if no known name is similar."""
    near = nearest(name, known) if isinstance(name, str) else None
    if near:
        return f" (did you mean {near!r}?)"
    return ""
