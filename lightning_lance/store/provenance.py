"""The documents of a store: those of a window, and the hashes of all for de-duplication."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.file import LanceFileReader

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import StoreError
from lightning_lance.format.commit import data_file_infos
from lightning_lance.format.lance_io import dataset_at, lance_options, reading, reading_documents, stream_columns
from lightning_lance.format.schema import begins_of
from lightning_lance.lance_names import data_file_at
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.forgetting import (
    MOST_VALUES,
    check_rule,
    documents_matching,
    near_values,
    without_language,
)

# Rows whose documents are in memory at a time.
_BATCH_ROWS = 8192
# Fields of a document that are not metadata.
_NOT_METADATA = ("offset", "hash")


def document_lists(location: StoreLocation, dataset: Any, *fields: str) -> Iterator[pa.ListArray]:
    """Yield some fields (`offset`, `hash`, ...) of the documents of all rows, in order, as lists of structs."""
    for fragment in dataset.get_fragments():
        files = fragment.data_files()
        if len(files) == 1 and not fragment.num_deletions:
            # A dataset reads the whole column, with all metadata. Its files can read some leaves of it.
            file = f"{location.uri.rstrip('/')}/data/{files[0].path}"
            reader = LanceFileReader(file, lance_options(location), [f"documents.item.{field}" for field in fields])
            batches = reader.read_all(batch_size=_BATCH_ROWS).to_batches()
        else:
            batches = fragment.to_batches(columns=["documents"], batch_size=_BATCH_ROWS)
        for batch in batches:
            yield batch.column("documents")


def stored_hashes(location: StoreLocation) -> Iterator[np.ndarray]:
    """Yield the hashes of all documents of a store, in pieces; none if there is no store."""
    dataset = dataset_at(location, None)
    if dataset is not None:
        with reading(location.uri):
            for lists in document_lists(location, dataset, "hash"):
                hashes = lists.flatten().field("hash")
                if hashes.null_count or hashes.type != pa.uint64():
                    raise ValueError("documents lack the hashes of their texts")
                yield np.asarray(hashes)


class Provenance:
    """Finds the documents of windows. Reads nothing before the first call, then keeps 16 bytes per block."""

    def __init__(self, location: StoreLocation, dataset: Any) -> None:
        self._location = location
        self._dataset = dataset
        self._process = os.getpid()

    @cached_property
    def _blocks(self) -> dict[str, _Blocks]:
        rows = stream_columns(self._dataset)
        num_tokens = np.asarray(rows.column("num_tokens"))
        lists = document_lists(self._location, self._dataset, "offset")
        counts = np.concatenate([np.empty(0, np.int32), *map(_lengths, lists)])
        if len(counts) != len(rows):
            raise ValueError(f"only {len(counts):,} of {len(rows):,} rows have lists of documents")
        # As in `read`: the streams of a split by language, each in the order of its rows.
        languages = _encoded(rows, "language")
        names = np.asarray(languages.dictionary.to_pylist(), object)
        rank = np.argsort(np.argsort(names))[np.asarray(languages.indices)]
        by_language = np.argsort(rank, kind="stable")
        blocks = {}
        for split in SPLITS:
            mine = np.asarray(pc.equal(rows.column("split"), split))
            row = by_language[mine[by_language]]
            starts = np.append(0, np.cumsum(num_tokens[row], dtype=np.int64))
            begun = np.maximum.accumulate(np.where(counts[row] > 0, np.arange(len(row)), 0)).astype(np.int32)
            blocks[split] = _Blocks(row.astype(np.int32), starts, begun)
        return blocks

    def documents(self, starts: np.ndarray, length: int, split: str) -> pa.Table:
        """Return the documents of windows, which must lie in the split; see `TokenStore.documents`."""
        if self._process != os.getpid():
            raise StoreError(
                "The documents of windows cannot be read in a forked process: read them in its parent, or in a spawned one."
            )
        blocks = self._blocks[split]
        first = np.searchsorted(blocks.starts, starts, side="right") - 1
        last = np.searchsorted(blocks.starts, starts + length, side="left") - 1
        # A window's first document begins in its first block, or in the last block before it in which any document begins.
        before = blocks.begun[np.maximum(first - 1, 0)]
        needed = [before]
        for i in range(int((last - first).max(initial=-1)) + 1):
            needed.append(first[first + i <= last] + i)
        block = np.unique(np.concatenate(needed))
        with reading_documents(self._location.uri):
            taken = self._dataset.take(blocks.row[block].tolist(), columns=["language", "documents"])
        lists = as_single_chunk(taken.column("documents"))
        offsets = begins_of(self._location.uri, lists, np.diff(blocks.starts)[block])
        of_block = np.repeat(np.arange(len(block)), np.asarray(lists.value_lengths()))
        described = lists.flatten()
        begins = blocks.starts[block[of_block]] + offsets
        low = np.searchsorted(begins, starts, side="right") - 1
        if len(low) and int(low.min()) < 0:
            raise ValueError("no document begins before a window")
        count = np.searchsorted(begins, starts + length, side="left") - low
        window = np.repeat(np.arange(len(starts)), count)
        document = np.arange(len(window)) + np.repeat(low - (np.cumsum(count) - count), count)
        # All blocks of a window were read, so the next document found follows directly.
        until = np.append(begins, np.iinfo(np.int64).max)[document + 1]
        columns: dict[str, Any] = {
            "window": window,
            "begin": np.maximum(begins[document] - starts[window], 0),
            "end": np.minimum(until - starts[window], length),
        }
        found = described.take(pa.array(document))
        for field in found.type:
            if field.name not in _NOT_METADATA:
                columns[field.name] = found.field(field.name)
        columns["language"] = as_single_chunk(taken.column("language")).take(pa.array(of_block[document]))
        return pa.table(columns)

    def begins(self, split: str) -> np.ndarray:
        """Return where the documents of a split begin; see `TokenStore.document_begins`."""
        blocks = self._blocks[split]
        begins, _ = self._extents_of({}, blocks)
        return np.sort(begins)

    def find(self, rule: Mapping[str, str], split: str) -> pa.Table:
        """Return the documents of a split that match a rule; see `TokenStore.find_documents`."""
        check_rule(self._dataset, rule)
        blocks = self._blocks[split]
        begins, ends = self._extents_of(rule, blocks)
        described = self.documents(begins, 1, split)
        for name in ("window", "begin", "end"):
            described = described.drop_columns([name])
        found = pa.table({"begin": begins, "end": ends})
        for field in described.schema:
            found = found.append_column(field, described.column(field.name))
        return found.take(pc.sort_indices(found, [("begin", "ascending")]))

    def similar(self, rule: Mapping[str, str], languages: Sequence[str]) -> dict[str, str]:
        """Return similar values of the store, both splits, for values of a rule that it lacks."""
        return near_values(rule, languages, self._values)

    def _values(self, key: str) -> set[str]:
        """Return the distinct values of a key; none if there are too many to search."""
        found: set[str] = set()
        for lists in document_lists(self._location, self._dataset, key):
            values = pc.unique(lists.flatten().field(key))
            found.update(values.drop_null().to_pylist())
            if len(found) > MOST_VALUES:
                return set()
        return found

    def _extents_of(self, rule: Mapping[str, str], blocks: _Blocks) -> tuple[np.ndarray, np.ndarray]:
        """Return the begins and ends of the documents that match a rule, among the tokens of their split: (n,) each."""
        of_language: np.ndarray | None = None
        if "language" in rule:
            of_language = np.asarray(pc.equal(stream_columns(self._dataset).column("language"), rule["language"]))
        block_of_row = np.full(self._dataset.count_rows(), -1)
        block_of_row[blocks.row] = np.arange(len(blocks.row))
        others = without_language(rule)
        found_blocks: list[np.ndarray] = []
        found_begins: list[np.ndarray] = []
        found_ends: list[np.ndarray] = []
        first = 0
        for lists in document_lists(self._location, self._dataset, "offset", *sorted(others)):
            counts = _lengths(lists)
            rows = first + np.repeat(np.arange(len(lists)), counts)
            first += len(lists)
            described = lists.flatten()
            matches = documents_matching(others, described, "")
            block = block_of_row[rows]
            matches &= block >= 0
            if of_language is not None:
                matches &= of_language[rows]
            begins = blocks.starts[block] + np.asarray(described.field("offset"))
            # The next document begins where one ends; -1 where that is in a later block.
            ends = np.append(begins[1:], -1)
            ends[np.append(rows[1:] != rows[:-1], True)] = -1
            found_blocks.append(block[matches])
            found_begins.append(begins[matches])
            found_ends.append(ends[matches])
        none = np.empty(0, np.int64)
        ends = np.concatenate([none, *found_ends])
        later = np.flatnonzero(ends < 0)
        ends[later] = self._next_begins(np.concatenate([none, *found_blocks])[later], blocks)
        return np.concatenate([none, *found_begins]), ends

    def _next_begins(self, block: np.ndarray, blocks: _Blocks) -> np.ndarray:
        """Return the begin of the first document in the blocks after some blocks, (n,); for the last ones, their end."""
        [begun] = np.nonzero(blocks.begun == np.arange(len(blocks.begun)))
        number = np.searchsorted(begun, block, side="right")
        following = np.append(begun, -1)[number]
        begins = np.full(len(block), blocks.starts[-1])
        needed = np.unique(following[following >= 0])
        if len(needed):
            with reading_documents(self._location.uri):
                taken = self._dataset.take(blocks.row[needed].tolist(), columns=["documents"])
            lists = as_single_chunk(taken.column("documents"))
            counts = np.asarray(lists.value_lengths())
            offsets = begins_of(self._location.uri, lists, np.diff(blocks.starts)[needed])
            firsts = blocks.starts[needed] + offsets[np.cumsum(counts) - counts]
            there = following >= 0
            begins[there] = firsts[np.searchsorted(needed, following[there])]
        return begins


def _encoded(rows: pa.Table, column: str) -> pa.DictionaryArray:
    """Return a column as the distinct values, and the index of each row's value among them."""
    return as_single_chunk(rows.column(column).dictionary_encode())


def _lengths(lists: pa.ListArray) -> np.ndarray:
    if lists.null_count:
        raise ValueError("a row lacks its list of documents")
    return np.asarray(lists.value_lengths())


class _Blocks(NamedTuple):
    """The blocks of a split in the order of its tokens.

    Attributes:
        row: (n,) int32 rows of the dataset.
        starts: (n + 1,) int64 offsets of their first tokens in the split.
        begun: (n,) int32 indices of the last block, up to each, in which a document begins.
    """

    row: np.ndarray
    starts: np.ndarray
    begun: np.ndarray


def count_documents(location: StoreLocation, dataset: Any, split: str) -> dict[str, int]:
    """Return the documents of each language in a split, from the offsets of that split alone.

    Raises:
        StoreError: If the store is damaged, or its commit metadata does not cover all rows.
    """
    counts: Counter[str] = Counter()
    with reading(location.uri):
        infos = data_file_infos(dataset)
        for fragment in dataset.get_fragments():
            path = fragment.data_files()[0].path
            if path not in infos or fragment.num_deletions or infos[path].num_rows != fragment.count_rows():
                raise ValueError("its commit metadata does not cover all rows")
            first = 0
            for part in infos[path].parts:
                if part.split == split:
                    counts[part.language] += _count_in(location, path, first, part.rows)
                first += part.rows
    return dict(sorted(counts.items()))


def _count_in(location: StoreLocation, path: str, first: int, rows: int) -> int:
    """Return the number of documents in some rows of a data file."""
    file = f"{location.uri.rstrip('/')}/{data_file_at(path)}"
    reader = LanceFileReader(file, lance_options(location), ["documents.item.offset"])
    count = 0
    for batch in reader.read_range(first, rows, batch_size=_BATCH_ROWS).to_batches():
        count += int(_lengths(batch.column("documents")).sum())
    return count


class DocumentCount(NamedTuple):
    """Documents and their tokens, EOS included."""

    documents: int = 0
    tokens: int = 0

    def plus(self, documents: int, tokens: int) -> DocumentCount:
        """Return the count with more of both."""
        return DocumentCount(self.documents + documents, self.tokens + tokens)


def count_by(location: StoreLocation, dataset: Any, field: str) -> dict[tuple[str, str | None], DocumentCount]:
    """Return the documents and tokens of each split and value of a field (`license`, ...). Reads that field and the offsets.

    Raises:
        StoreError: If the store is damaged.
    """
    with reading(location.uri):
        rows = stream_columns(dataset)
        num_tokens = np.asarray(rows.column("num_tokens")).astype(np.int64)
        splits = _encoded(rows, "split")
        languages = _encoded(rows, "language")
        # Each language of each split is a stream.
        width = max(len(languages.dictionary), 1)
        stream = np.asarray(splits.indices).astype(np.int64) * width + np.asarray(languages.indices)
        counter = _ValueCounter(len(splits.dictionary) * width)
        first = 0
        for lists in document_lists(location, dataset, "offset", field):
            here = slice(first, first + len(lists))
            first += len(lists)
            counter.add(location.uri, lists, field, stream[here], num_tokens[here])
        names = splits.dictionary.to_pylist()
    totals: dict[tuple[str, str | None], DocumentCount] = {}
    for (number, value), (documents, tokens) in counter.counts.items():
        split = names[number // width]
        if split in SPLITS:
            totals[split, value] = totals.get((split, value), DocumentCount()).plus(documents, tokens)
    return totals


class _ValueCounter:
    """Counts documents and tokens by stream and value, over the rows of a store in order.

    Attributes:
        counts: (stream, value) to documents and tokens.
    """

    def __init__(self, streams: int) -> None:
        self.counts: dict[tuple[int, str | None], tuple[int, int]] = {}
        # The value of the document that goes on in the next row of each stream; -1 before the first.
        self._last = np.full(streams, -1)
        self._codes: dict[str | None, int] = {}

    def add(self, uri: str, lists: pa.ListArray, field: str, stream: np.ndarray, num_tokens: np.ndarray) -> None:
        """Count the next rows: their documents, (n,) stream of each, (n,) tokens of each."""
        counts = _lengths(lists)
        begins = begins_of(uri, lists, num_tokens)
        row = np.repeat(np.arange(len(lists)), counts)
        code = self._coded(lists.flatten().field(field))
        is_last = np.append(row[1:] != row[:-1], True)[: len(row)]
        ends = np.where(is_last, num_tokens[row], np.append(begins[1:], 0)[: len(row)])
        head = num_tokens.copy()
        is_first = np.append(True, row[1:] != row[:-1])[: len(row)]
        head[row[is_first]] = begins[is_first]
        goes_on = np.full(len(lists), -1)
        goes_on[row[is_last]] = code[is_last]
        before = self._before(stream, goes_on)
        has_head = head > 0
        if (before[has_head] < 0).any():
            raise ValueError("no document begins before a token")
        number = np.concatenate([stream[row], stream[has_head]])
        codes = np.concatenate([code, before[has_head]])
        tokens = np.concatenate([ends - begins, head[has_head]])
        documents = np.concatenate([np.ones(len(row), np.int64), np.zeros(int(has_head.sum()), np.int64)])
        names = list(self._codes)
        keys, inverse = np.unique(np.stack([number, codes]), axis=1, return_inverse=True)
        summed = np.zeros((2, keys.shape[1]), np.int64)
        np.add.at(summed[0], inverse.reshape(-1), documents)
        np.add.at(summed[1], inverse.reshape(-1), tokens)
        for (of_stream, of_value), more in zip(keys.T.tolist(), summed.T.tolist(), strict=True):
            known = self.counts.get((of_stream, names[of_value]), (0, 0))
            self.counts[of_stream, names[of_value]] = (known[0] + more[0], known[1] + more[1])

    def _coded(self, values: pa.Array) -> np.ndarray:
        encoded = values.dictionary_encode(null_encoding="encode")
        mine: list[int] = []
        for value in encoded.dictionary.to_pylist():
            mine.append(self._codes.setdefault(value, len(self._codes)))
        codes: np.ndarray = np.asarray(mine, np.int64)[np.asarray(encoded.indices)]
        return codes

    def _before(self, stream: np.ndarray, goes_on: np.ndarray) -> np.ndarray:
        """Return the value that goes on at the begin of each row, (n,), and keep that at the end of each stream."""
        order = np.argsort(stream, kind="stable")
        ordered = stream[order]
        place = np.arange(len(ordered))
        begin = np.maximum.accumulate(np.where(np.append(True, ordered[1:] != ordered[:-1])[: len(order)], place, 0))
        found = np.maximum.accumulate(np.where(goes_on[order] >= 0, place, -1))
        latest = np.append(-1, found[:-1])[: len(order)]
        ours = np.where(latest >= begin, goes_on[order][latest], self._last[ordered])
        ending = np.append(ordered[1:] != ordered[:-1], True)[: len(order)]
        at_end = np.where(found >= begin, goes_on[order][found], self._last[ordered])
        self._last[ordered[ending]] = at_end[ending]
        before = np.empty(len(order), np.int64)
        before[order] = ours
        return before
