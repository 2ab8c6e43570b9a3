"""Characters and bytes per token, on a sample that is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_lance.documents.splits import SPLITS
from lightning_lance.format.layout import StreamExtent
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.tokenizer import Tokenizer

# Tokens that are decoded at once, and in all.
_PIECE = 1024
_DECODED = 256 * _PIECE


class Compression(NamedTuple):
    """What tokens of a language hold.

    Attributes:
        language: The language.
        tokens: Tokens of the language in the store.
        decoded: Tokens that were decoded, without EOS.
        characters: Characters that they hold.
        bytes: Bytes of UTF-8 that they hold.
    """

    language: str
    tokens: int
    decoded: int
    characters: int
    bytes: int


def compression_of(store: TokenStore, tokenizer: Tokenizer, seed: int) -> list[Compression]:
    """Decode a sample of each language, those with the most tokens first."""
    draw = np.random.default_rng(seed)
    streams: dict[str, list[tuple[str, StreamExtent]]] = {}
    for split in SPLITS:
        for stream in store.streams(split):
            if stream.num_tokens:
                streams.setdefault(stream.language, []).append((split, stream))
    pieces = max(_DECODED // _PIECE // max(len(streams), 1), 1)
    found = []
    for language, parts in streams.items():
        decoded = characters = size = 0
        for split, stream, start in _places(parts, pieces, draw):
            ids = store.read(np.asarray([start]), min(_PIECE, stream.num_tokens), split)[0]
            ids = ids[ids != tokenizer.eos_id]
            text = tokenizer.decode(ids.tolist())
            decoded += len(ids)
            characters += len(text)
            size += len(text.encode("utf-8", "surrogatepass"))
        found.append(Compression(language, sum(_sizes(parts)), decoded, characters, size))
    return sorted(found, key=lambda one: -one.tokens)


def _sizes(parts: Sequence[tuple[str, StreamExtent]]) -> list[int]:
    """Return the tokens of each stream of a language."""
    return [stream.num_tokens for _, stream in parts]


def _places(
    parts: Sequence[tuple[str, StreamExtent]], count: int, draw: np.random.Generator
) -> list[tuple[str, StreamExtent, int]]:
    """Return places of pieces in the streams of a language: all if they are few, else one of each of equal parts."""
    places = []
    for split, stream in parts:
        last = max(stream.num_tokens - _PIECE, 0)
        for start in range(0, stream.num_tokens, _PIECE):
            places.append((split, stream, stream.start + min(start, last)))
            if len(places) > count:
                return _drawn(parts, count, draw)
    return places


def _drawn(
    parts: Sequence[tuple[str, StreamExtent]], count: int, draw: np.random.Generator
) -> list[tuple[str, StreamExtent, int]]:
    sizes = np.asarray(_sizes(parts))
    ends = np.cumsum(sizes)
    borders = np.linspace(0, ends[-1], count + 1)
    places = draw.uniform(borders[:-1], borders[1:]).astype(np.int64)
    of = np.searchsorted(ends, places, side="right")
    within = places - (ends - sizes)[of]
    found = []
    for part, place in zip(of.tolist(), within.tolist(), strict=True):
        split, stream = parts[part]
        found.append((split, stream, stream.start + min(place, max(stream.num_tokens - _PIECE, 0))))
    return found
