"""Checks of what a selection is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from lightning_lance.errors import ConfigError, described, one_of, word
from lightning_lance.format.channels import CHANNELS, ordered
from lightning_lance.serving.ordering.packing import Windows
from lightning_lance.serving.ordering.schedule import check_weights
from lightning_lance.store.token_store import TokenStore

# The columns that `where` can select streams by.
_STREAM_COLUMNS = ("language",)


_EXAMPLES = {"where": "{language: [Python]}", "mix": "{Python: 0.7, Rust: 0.3}"}


def check_selection(
    where: Mapping[str, Sequence[str]], mix: Mapping[str, float]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Return `where` and `mix` as plain values; see `WindowSelection`.

    Raises:
        ConfigError: If one of them is invalid for every store.
    """
    for name, value in (("where", where), ("mix", mix)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {described(value)}: expected a mapping, such as {_EXAMPLES[name]}.")
    selected: dict[str, list[str]] = {}
    for column, values in where.items():
        chosen = _values(column, values)
        selected[word(column)] = chosen
    return selected, _named(check_weights(mix))


def _values(column: Any, values: Any) -> list[str]:
    """Return the selected values of a column, sorted and unique."""
    if column not in _STREAM_COLUMNS:
        raise ConfigError(f"where has the column {column!r}: expected {', '.join(_STREAM_COLUMNS)}.")
    if isinstance(values, str) or not isinstance(values, Collection):
        raise ConfigError(f"where.{column} is {values!r}: expected a list, such as [{values}].")
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"where.{column} has {value!r}: expected text, such as [Python].")
    return sorted(set(map(word, values)))


def _named(weights: Mapping[str, float]) -> dict[str, float]:
    named = {}
    for name, weight in weights.items():
        # A name of another type is an unknown name, reported once the stores' names are known.
        plain = word(name) if isinstance(name, str) else name
        named[plain] = weight
    return named


def check_windows(windows: Any, order: str, shuffle_block: int | None) -> None:
    """Check the kind of windows.

    Raises:
        ConfigError: If it is unknown, or does not go with the order.
    """
    if one_of("windows", windows, get_args(Windows)) == "packed" and (order != "shuffle" or shuffle_block is not None):
        raise ConfigError(
            "windows=packed has an order of its own: leave order and shuffle_block out (its blocks are shuffled anyway)."
        )


def check_channel_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of channels in the order of their columns. ConfigError if there is no such channel."""
    expected = f"a list of channels, of which there are {' and '.join(CHANNELS)}"
    if isinstance(names, str) or not isinstance(names, Collection):
        raise ConfigError(f"channels is {described(names)}: expected {expected}.")
    for name in names:
        if not isinstance(name, str) or name not in CHANNELS:
            raise ConfigError(f"channels has {described(name)}: expected {expected}.")
    return ordered(names)


def check_one_tokenizer(stores: Mapping[str, TokenStore]) -> None:
    """Check that the stores were built with one tokenizer. ConfigError if not."""
    first = next(iter(stores))
    tokenizer = stores[first].commit.recipe.get("tokenizer")
    for name, store in stores.items():
        if store.commit.recipe.get("tokenizer") != tokenizer:
            raise ConfigError(
                f"The stores {first!r} and {name!r} were built with different tokenizers, but a model has one: "
                "rebuild one of the stores."
            )
