"""How messages tell figures: counts with their noun, tokens and bytes in a unit that fits, and shares that are known."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

# What a unit is called, the largest first.
_TOKENS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"))


def pluralize(number: int, noun: str, nouns: str | None = None) -> str:
    """Count things: `1 document`, `2 documents`; `nouns` where more than one of them are no `noun + "s"`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def format_list(names: Sequence[str], most: int = 5) -> str:
    """List names: `Python, Rust`; of many the first ones, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def format_tokens(number: float) -> str:
    """Tell tokens with three digits at least: `812 tokens`, `61.3 M tokens`, `7.12 G tokens`."""
    for unit, letter in _TOKENS:
        if number >= unit:
            return f"{_short(number / unit)} {letter} tokens"
    return pluralize(round(number), "token")


def format_bytes(num_bytes: float) -> str:
    """Tell bytes: `812 bytes`, `61.3 KB`, `7.12 GB`; the units are powers of 1,000, as disks have them."""
    for unit, letters in _BYTES:
        if num_bytes >= unit:
            return f"{_short(num_bytes / unit)} {letters}"
    return pluralize(round(num_bytes), "byte")


def format_percent(share: float) -> str | None:
    """Tell a share, 0 to 1, in percent; None for 0, since that is also what is said where nothing is known yet."""
    if share <= 0:
        return None
    return "less than 1 %" if share < 0.01 else f"{100 * min(share, 1.0):.0f} %"


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def nearest(language: str, known: Sequence[str]) -> str | None:
    """Find the known language that somebody who wrote `language` probably meant."""
    by_fold = {name.casefold(): name for name in known}
    near = get_close_matches(language.casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None
