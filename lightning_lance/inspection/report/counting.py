"""One pass over the tokens that are read: how often each id occurs, how long documents are, and whose tokens they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_lance.errors import StoreError
from lightning_lance.inspection.report.spans import Reading, Spans
from lightning_lance.store.token_store import TokenStore

# A count for each id is in memory. No tokenizer has more.
_MOST_IDS = 1 << 24
# Tokens after a span in which the end of its last document is looked for first.
_FIRST_LOOK = 1 << 12
#: Metadata of documents that tokens are counted by.
GROUPED = ("license", "repo")


@dataclass
class DocumentCounts:
    """What was read of documents.

    Attributes:
        lengths: Documents by length in tokens, EOS included.
        groups: For `license` and `repo`, where the store has them: documents and tokens by value, None if it is missing.
    """

    lengths: Counter[int] = field(default_factory=Counter)
    groups: dict[str, dict[str | None, list[int]]] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        """Documents that begin in what was read."""
        return self.lengths.total()


@dataclass(frozen=True)
class Counts:
    """What was read.

    Attributes:
        tokens: (vocab_size,) int64 occurrences of each id.
        read: Tokens that were read.
        total: Tokens of the store.
        is_exact: Whether all tokens were read.
        documents: What was read of documents, None if the store does not tell where they are.
        problem: Why it does not.
    """

    tokens: np.ndarray
    read: int
    total: int
    is_exact: bool
    documents: DocumentCounts | None = None
    problem: str = ""


def count(reading: Reading, with_documents: bool = True) -> Counts:
    """Count what is read of a store.

    Raises:
        StoreError: If the store is damaged, or has too large a vocabulary.
    """
    store = reading.store
    if store.vocab_size > _MOST_IDS:
        raise StoreError(
            f"The token store {store.uri!r} has {store.vocab_size:,} ids, expected {_MOST_IDS:,} at most: their tokens "
            "cannot be counted in memory."
        )
    tokens = np.zeros(store.vocab_size, np.int64)
    documents: DocumentCounts | None = None
    if with_documents:
        documents = DocumentCounts()
    problem = ""
    read = 0
    for spans in reading.spans():
        tokens += _occurrences(store, spans)
        read += len(spans.starts) * spans.length
        if documents is None:
            continue
        try:
            _add_documents(store, spans, documents)
        except StoreError as error:
            # Another program has changed rows: tokens can be read, but not whose they are.
            documents = None
            problem = str(error)
    return Counts(tokens, read, reading.total, reading.is_exact, documents, problem)


def _occurrences(store: TokenStore, spans: Spans) -> np.ndarray:
    ids = store.read(spans.starts, spans.length, spans.split).reshape(-1)
    found = np.bincount(ids, minlength=store.vocab_size)
    if len(found) > store.vocab_size:
        raise StoreError(
            f"The token store {store.uri!r} has the id {len(found) - 1:,}, beyond its {store.vocab_size:,} ids: "
            "'lightning-lance verify' lists the damage."
        )
    return found


def _add_documents(store: TokenStore, spans: Spans, counts: DocumentCounts) -> None:
    for part in _parts(spans):
        # One token more, before the span: what begins behind it begins in the span.
        before = int(part.starts[0] > 0)
        found = store.documents(part.starts - before, part.length + before, part.split)
        window = np.asarray(found["window"])
        begin = np.asarray(found["begin"])
        end = np.asarray(found["end"])
        begins = (begin > 0) | (part.starts[window] == 0)
        # Only the last document of a span may go on behind it.
        ends = end.copy()
        last = np.flatnonzero(begins & (end == part.length + before))
        ends[last] += _rest(store, part.split, part.starts[window[last]] + part.length)
        counts.lengths.update(_counted((ends - begin)[begins]))
        inside = end - np.maximum(begin, before)
        for name in GROUPED:
            if name in found.column_names:
                _add_group(counts.groups.setdefault(name, {}), found[name], begins, inside)


def _parts(spans: Spans) -> Iterator[Spans]:
    """Yield the spans at the begin of the split, before which there is no token, and the others."""
    for mine in (spans.starts == 0, spans.starts > 0):
        if mine.any():
            yield spans._replace(starts=spans.starts[mine])


def _rest(store: TokenStore, split: str, ends: np.ndarray) -> np.ndarray:
    """Return how many tokens from each of some places on belong to the document of the token before it, (n,)."""
    total = store.num_tokens(split)
    rest = np.zeros(len(ends), np.int64)
    open_ones = np.flatnonzero(ends < total)
    look = _FIRST_LOOK
    while len(open_ones):
        at = ends[open_ones] + rest[open_ones]
        going_on = []
        for mine, length in ((at + look <= total, look), (at + look > total, None)):
            for some in _of_one_length(open_ones[mine], at[mine], length, total):
                found = store.documents(some.starts - 1, some.length + 1, split)
                window = np.asarray(found["window"])
                first = np.flatnonzero(np.diff(window, prepend=-1))
                more = np.asarray(found["end"])[first] - 1
                rest[some.which] += more
                is_open = (more == some.length) & (some.starts + some.length < total)
                going_on.append(some.which[is_open])
        open_ones = np.concatenate(going_on)
        look *= 2
    return rest


@dataclass(frozen=True)
class _Look:
    which: np.ndarray
    starts: np.ndarray
    length: int


def _of_one_length(which: np.ndarray, at: np.ndarray, length: int | None, total: int) -> Iterator[_Look]:
    """Yield places together where the same number of tokens follows, else, near the end of the split, one by one."""
    if length is not None:
        if len(which):
            yield _Look(which, at, length)
        return
    for one, place in zip(which, at, strict=True):
        yield _Look(np.asarray([one]), np.asarray([place]), int(total - place))


def _counted(lengths: np.ndarray) -> Mapping[int, int]:
    values, counts = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _add_group(
    group: dict[str | None, list[int]], values: pa.ChunkedArray, begins: np.ndarray, inside: np.ndarray
) -> None:
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        values = pc.cast(values, pa.string())
    rows = pa.table({"value": values, "documents": begins.astype(np.int64), "tokens": inside})
    summed = rows.group_by("value").aggregate([("documents", "sum"), ("tokens", "sum")]).to_pydict()
    for value, documents, tokens in zip(summed["value"], summed["documents_sum"], summed["tokens_sum"], strict=True):
        known = group.setdefault(value, [0, 0])
        known[0] += documents
        known[1] += tokens
