"""Channels of a set of tokens: columns with a value for each id, checked and brought into the form of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lightning_lance.errors import ConfigError
from lightning_lance.format.channels import CHANNELS, LOSS_MASK, NO_LABEL, TOKEN_LABELS

# The labels of Hugging Face: -100 where nothing is trained on, and elsewhere the id. They are a loss mask.
HF_LABELS = "hf_labels"

#: Words of `columns` that name a column with a value for each id, and the channel that it becomes.
CHANNEL_WORDS: Mapping[str, str] = {LOSS_MASK: LOSS_MASK, HF_LABELS: LOSS_MASK, TOKEN_LABELS: TOKEN_LABELS}

# Usual names of columns with a value for each id, and the words that take them.
_USUAL = {LOSS_MASK: LOSS_MASK, "labels": HF_LABELS, TOKEN_LABELS: TOKEN_LABELS}
_INT32 = np.iinfo(np.int32)


class Aligned(NamedTuple):
    """The values that a column has for the ids of n documents.

    Attributes:
        values: (total,) booleans or whole numbers.
        offsets: (n + 1,) borders of the documents in them.
    """

    values: np.ndarray
    offsets: np.ndarray

    def behind(self, count: int) -> Aligned:
        """Return the values of the documents behind the first `count`."""
        begin = self.offsets[count]
        return Aligned(self.values[begin:], self.offsets[count:] - begin)


def channel_words(words: Iterable[str]) -> dict[str, str]:
    """Return the words that name columns of channels, and the channels.

    Raises:
        ConfigError: If two of them are one channel.
    """
    found: dict[str, str] = {}
    for word in words:
        if word in CHANNEL_WORDS:
            found[word] = CHANNEL_WORDS[word]
    if LOSS_MASK in found and HF_LABELS in found:
        raise ConfigError(
            f"columns.{LOSS_MASK} and columns.{HF_LABELS} are both given, and both say what is trained on: leave out one."
        )
    return found


def not_taken(columns: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Return remarks about columns that look like channels, and are not asked for.

    Args:
        columns: Those of the set that hold a value for each id.
        taken: Those that are asked for.
    """
    others = {*columns} - {*taken}
    remarks = []
    for column, word in _USUAL.items():
        if column in others:
            remarks.append(f"The set has a column {column!r}, which is not taken: columns.{word}={column} takes it.")
    return remarks


def check_aligned(word: str, aligned: Aligned, offsets: np.ndarray, document: Callable[[int], str]) -> None:
    """Check that each document has as many values of a channel as ids. ConfigError if not; see `stored_values`."""
    counts = np.diff(offsets)
    found = np.diff(aligned.offsets)
    if not np.array_equal(counts, found):
        odd = int(np.flatnonzero(counts != found)[0])
        raise ConfigError(
            f"{document(odd)} has {int(found[odd]):,} values of {word} and {int(counts[odd]):,} ids: expected as many."
        )


def holds_channel(word: str, kind: pa.DataType) -> bool:
    """Return whether lists of this type may be the column of a word."""
    return pa.types.is_integer(kind) or (word == LOSS_MASK and pa.types.is_boolean(kind))


def stored_values(
    word: str, aligned: Aligned, ids: np.ndarray, offsets: np.ndarray, document: Callable[[int], str]
) -> np.ndarray:
    """Return the values of a channel for the ids of documents, as a store holds them.

    Args:
        word: The word of the column; see `CHANNEL_WORDS`.
        aligned: Its values.
        ids: (total,) ids.
        offsets: (n + 1,) borders of the documents.
        document: Names the document of the id at a place, for messages.

    Raises:
        ConfigError: If a document has another number of values than of ids, or a value cannot be one.
    """
    check_aligned(word, aligned, offsets, document)
    if word == HF_LABELS:
        trained = aligned.values != NO_LABEL
        wrong = trained & (aligned.values != ids)
        expected = f"{NO_LABEL} or the id, as Hugging Face's labels have it; columns.{TOKEN_LABELS} takes any numbers"
        values = trained
    elif word == LOSS_MASK:
        wrong = (aligned.values != 0) & (aligned.values != 1)
        expected = f"0 and 1, or booleans; columns.{HF_LABELS} takes the labels of Hugging Face"
        values = aligned.values
    else:
        wrong = (aligned.values < _INT32.min) | (aligned.values > _INT32.max)
        expected = "numbers of 32 bits"
        values = aligned.values
    if wrong.any():
        place = int(wrong.argmax())
        odd = int(np.searchsorted(offsets, place, side="right")) - 1
        raise ConfigError(
            f"{document(odd)} has the value {int(aligned.values[place]):,} of {word}: expected {expected}."
        )
    stored: np.ndarray = values.astype(CHANNELS[CHANNEL_WORDS[word]].stored)
    return stored


def with_eos(values: np.ndarray, offsets: np.ndarray, closed: np.ndarray, absent: int) -> np.ndarray:
    """Return the values of documents with one for EOS, which those have that are `closed`: that of the last token.

    Args:
        values: (total,) values.
        offsets: (n + 1,) borders of the documents.
        closed: (n,) bool.
        absent: The value for a document without tokens.
    """
    is_empty = np.diff(offsets) == 0
    repeats = np.ones(len(values), np.int64)
    repeats[offsets[1:][~closed & ~is_empty] - 1] = 2
    ends = np.append(0, np.cumsum(repeats))[offsets[1:]]
    missing = ends[~closed & is_empty]
    return np.insert(np.repeat(values, repeats), missing, absent)
