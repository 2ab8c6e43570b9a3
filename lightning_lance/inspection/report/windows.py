"""How many documents a window holds, and some windows in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_lance.documents.splits import SPLITS
from lightning_lance.format.layout import StreamExtent
from lightning_lance.serving.ordering.order import windows_of
from lightning_lance.store.token_store import TokenStore

# Windows in which documents are counted, at most, and their tokens in memory at a time.
_WINDOWS = 4096
_AT_ONCE = 1 << 17
# Tokens shown, in all windows together.
_SHOWN = 9600
#: From so many documents in a window on, they are one number.
MANY = 9


class DocumentsPerWindow(NamedTuple):
    """How many documents windows hold.

    Attributes:
        counts: Windows by number of documents; the last entry for `MANY` and more.
        windows: Windows that were looked at.
        total: Windows of the split, each stream cut from its first token on.
        split: The split.
    """

    counts: Mapping[int, int]
    windows: int
    total: int
    split: str

    @property
    def largest(self) -> int:
        """The largest number of documents that a window holds, at most `MANY`; 0 without windows."""
        largest = 0
        for number, times in self.counts.items():
            if times:
                largest = max(largest, number)
        return largest


def documents_per_window(
    store: TokenStore, context_length: int, most_tokens: int | None, seed: int
) -> DocumentsPerWindow:
    """Count the documents among the tokens that a model sees of each window.

    Raises:
        StoreError: If the store does not tell where documents are.
    """
    split = shown_split(store)
    windows = [0]
    firsts: list[int] = []
    for stream in store.streams(split):
        windows.append(windows_of(stream.num_tokens, context_length, "sequential"))
        firsts.append(stream.start)
    ends = np.cumsum(windows)
    total = int(ends[-1])
    most = _WINDOWS
    if most_tokens is not None:
        most = min(_WINDOWS, max(most_tokens // context_length, 1))
    positions = np.arange(total)
    if total > most:
        borders = np.arange(most + 1) * total // most
        positions = np.random.default_rng(seed).integers(borders[:-1], borders[1:])
    of = np.searchsorted(ends, positions, side="right") - 1
    starts = np.asarray(firsts, np.int64)[of] + (positions - ends[of]) * context_length
    counts = dict.fromkeys(range(1, MANY + 1), 0)
    together = max(_AT_ONCE // context_length, 1)
    for first in range(0, len(starts), together):
        some = starts[first : first + together]
        found = np.bincount(np.asarray(store.documents(some, context_length, split)["window"]))
        for number, times in enumerate(np.bincount(np.minimum(found, MANY)).tolist()):
            if times:
                counts[number] += times
    return DocumentsPerWindow(counts, len(starts), total, split)


@dataclass(frozen=True)
class ShownDocument:
    """A document in a window.

    Attributes:
        begins: Whether it begins in the window.
        ends: Whether it ends in what is shown of the window.
        facts: Its id, language and metadata, those that are there.
        tokens: Its tokens in the window, as far as they are shown: (n,).
        position: The position of the first of them in the window.
    """

    begins: bool
    ends: bool
    facts: Mapping[str, str]
    tokens: np.ndarray
    position: int


@dataclass(frozen=True)
class ShownWindow:
    """A window in full, or its first tokens.

    Attributes:
        language: The language of its stream.
        split: Its split.
        start: The offset of its first token in the split.
        length: The tokens of it that a model sees.
        documents: Its documents, as far as they are shown.
    """

    language: str
    split: str
    start: int
    length: int
    documents: Sequence[ShownDocument]

    @property
    def shown(self) -> int:
        """Tokens that are shown."""
        return sum(len(document.tokens) for document in self.documents)


def shown_split(store: TokenStore) -> str:
    """Return the split that windows are taken of: `train`, unless it is empty."""
    for split in SPLITS:
        if store.num_tokens(split):
            return split
    return SPLITS[0]


def some_windows(store: TokenStore, context_length: int, count: int, seed: int) -> list[ShownWindow]:
    """Return windows spread over the languages, at random places in each."""
    split = shown_split(store)
    draw = np.random.default_rng(seed)
    streams = sorted(store.streams(split), key=lambda stream: -stream.num_tokens)[:count]
    starts = _spread([stream for stream in streams if stream.num_tokens], context_length, count, draw)
    most = max(_SHOWN // max(count, 1), 1)
    found = []
    for stream, start in starts:
        length = min(context_length, stream.start + stream.num_tokens - start)
        found.append(_window(store, split, stream.language, start, length, min(length, most)))
    return found


def _spread(
    streams: Sequence[StreamExtent], context_length: int, count: int, draw: np.random.Generator
) -> list[tuple[StreamExtent, int]]:
    """Return about equally many windows of each stream, sorted by stream and place; of a short stream all it has."""
    chosen: list[tuple[StreamExtent, int]] = []
    # From the shortest stream on: what it lacks, the others have more.
    for place, stream in reversed([*enumerate(streams)]):
        share = -(-(count - len(chosen)) // (place + 1))
        windows = max(windows_of(stream.num_tokens, context_length, "sequential"), 1)
        taken = draw.choice(windows, min(share, windows), replace=False, shuffle=False)
        for number in taken.tolist():
            chosen.append((stream, stream.start + number * context_length))
    return sorted(chosen, key=lambda one: (one[0].language, one[1]))


def _window(store: TokenStore, split: str, language: str, start: int, length: int, shown: int) -> ShownWindow:
    at = np.asarray([start])
    ids = store.read(at, shown, split)[0]
    # One token more on both sides tells whether a document begins and ends in the window.
    before = int(start > 0)
    behind = int(start + shown < store.num_tokens(split))
    rows = store.documents(at - before, shown + before + behind, split).to_pylist()
    documents = []
    for row in rows:
        begin = row.pop("begin")
        end = row.pop("end") - before
        del row["window"]
        facts = {name: str(value) for name, value in row.items() if value not in (None, "")}
        first = max(begin - before, 0)
        last = min(end, shown)
        if first < last:
            begins = begin > 0 or not before
            documents.append(ShownDocument(begins, end <= shown, facts, ids[first:last], first))
    return ShownWindow(language, split, start, length, documents)
