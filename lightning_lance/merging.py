"""Tidiness of a store: small fragments are merged into large ones, and what no version needs any more is removed.

A build commits every minute, for days. Each commit ends every stream with a block that is not full, and adds a fragment and a
version. So neighbouring fragments are written anew, each stream as one run of full blocks, when enough of one size have come
together: every token is written a few times in all, however long the build. The streams stay what they were.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata

from lightning_lance.commit import commit_of, notes_of, replace_fragments
from lightning_lance.errors import CommitConflict
from lightning_lance.fragments import data_session, dataset_at, fragments_of, write_rows
from lightning_lance.layout import FileNote

_log = logging.getLogger(__name__)

# Fragments of so many bytes are left as they are.
FULL_BYTES = 1 << 30
# So many fragments of about one size become one. Sizes differ by this factor from level to level, so a token is written
# anew three times at most on the way from a commit of 2 MB to a full fragment.
_FAN = 8
# Rows read at once: 4 MB of uint16 tokens, and the documents in them. They are written four times as many at once, since Lance
# makes a page of each batch of some size.
_ROWS = 1024
_ROWS_WRITTEN = 4 * _ROWS

#: Tells of documents, an array of structs, which to leave out: an array of as many booleans.
Drop = Callable[[pa.StructArray], np.ndarray]


@dataclass
class Dropped:
    """What a repacking has left out. Tokens count EOS."""

    documents: int = 0
    tokens: int = 0
    languages: dict[str, int] = field(default_factory=dict)


def tidy(
    uri: str,
    version: int,
    storage_options: Mapping[str, str] | None = None,
    *,
    final: bool = False,
    full: int = FULL_BYTES,
) -> int:
    """Merge what has become due, and then remove what is no longer needed. Only the one builder of a store may call it.

    Args:
        uri: The store.
        version: The version that the builder has made last.
        storage_options: Credentials and such for object stores.
        final: Whether the build is over: all that is not full is merged, and older versions go in any case.
        full: Bytes from which on a fragment is left as it is.

    Returns:
        The version that holds now: `version`, or the one after it.

    Raises:
        CommitConflict: If another process has committed.
        StoreError: If the store cannot be written.
    """
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None or int(dataset.version) != version:
        raise CommitConflict(
            f"Another process wrote to the token store {uri!r} at the same time: run again, it goes on after what is there."
        )
    fragments, files = fragments_of(dataset), notes_of(dataset)
    sizes = [_size(fragment, files) for fragment in fragments]
    groups = merge_groups(sizes, full, final)
    groups = [group for group in groups if len(group) > 1]
    for group in reversed(groups):
        made, notes, _ = repack(uri, dataset, fragments[group.start : group.stop], files, storage_options)
        fragments[group.start : group.stop] = made
        files |= notes
    if groups:
        version = replace_fragments(
            uri, dataset, dataset.schema, fragments, files, commit_of(dataset, uri), storage_options
        )
        _log.info("%s: merged into %d fragments.", uri, len(fragments))
    if groups or final:
        remove_unneeded(uri, storage_options)
    return version


def merge_groups(sizes: Sequence[int], full: int, final: bool) -> list[range]:
    """Choose which neighbours to merge.

    Args:
        sizes: Bytes of the fragments, in their order.
        full: Bytes from which on a fragment is left as it is.
        final: Whether nothing comes after.

    Returns:
        Groups of places, each of which becomes one fragment.
    """
    begin = next((i + 1 for i in reversed(range(len(sizes))) if sizes[i] >= full), 0)
    if final:
        return _full_groups(sizes, begin, full)
    levels = [max(0, math.ceil(math.log(full / max(size, 1), _FAN))) for size in sizes]
    # From the left: the larger the merge, the fewer there will be.
    for first in range(begin, len(sizes)):
        run = levels[first:]
        due = sum(sizes[first:]) >= full or sum(level == run[0] for level in run) >= _FAN
        if len(run) > 1 and min(run) == run[0] and due:
            return _full_groups(sizes, first, full)
    return []


def _full_groups(sizes: Sequence[int], begin: int, full: int) -> list[range]:
    """Cut the fragments from `begin` on into groups of `full` bytes or little more, the last of what is left."""
    groups: list[range] = []
    first = begin
    for i in range(begin, len(sizes)):
        if sum(sizes[first : i + 1]) >= full or i == len(sizes) - 1:
            groups.append(range(first, i + 1))
            first = i + 1
    return groups


def _size(fragment: FragmentMetadata, files: Mapping[str, FileNote]) -> int:
    """Give the bytes of a fragment; of those that others have written or changed, more than are ever merged."""
    known = len(fragment.files) == 1 and fragment.deletion_file is None and fragment.files[0].path in files
    return files[fragment.files[0].path].size if known else 1 << 62


def repack(
    uri: str,
    dataset: Any,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, FileNote],
    storage_options: Mapping[str, str] | None = None,
    drop: Drop | None = None,
) -> tuple[list[FragmentMetadata], dict[str, FileNote], Dropped]:
    """Write the rows of neighbouring fragments anew: each stream as one run of blocks, all full but the last.

    Memory follows neither the fragments nor their documents. Nothing is committed: see `replace_fragments`.

    Args:
        uri: The store.
        dataset: The version in which the fragments are.
        fragments: Neighbours, in their order.
        files: Notes of their files, by path.
        storage_options: Credentials and such for object stores.
        drop: Which documents to leave out, with all their tokens and their EOS; None keeps all.

    Returns:
        The new fragment, or none if nothing is left; the note of its file; and what was left out.

    Raises:
        StoreError: If it cannot be written.
    """
    dropped = Dropped()
    schema = dataset.schema
    batches = _streams(dataset, fragments, files, drop, dropped)
    written, notes = write_rows(uri, dataset, schema, batches, storage_options)
    return written, notes, dropped


def _streams(
    dataset: Any,
    fragments: Sequence[FragmentMetadata],
    files: Mapping[str, FileNote],
    drop: Drop | None,
    dropped: Dropped,
) -> Iterator[pa.RecordBatch]:
    runs: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for fragment in fragments:
        parts = files[fragment.files[0].path].parts
        for part, end in zip(parts, accumulate(part.rows for part in parts), strict=True):
            runs.setdefault(part[:2], []).append((fragment.id, end - part.rows, part.rows))
    for (split, language), places in sorted(runs.items()):
        packing = _Repacking(dataset.schema, split, language, drop, dropped)
        for fragment_id, offset, rows in places:
            scanner = dataset.get_fragment(fragment_id).scanner(
                columns=["tokens", "num_tokens", "documents"],
                offset=offset,
                limit=rows,
                batch_size=_ROWS,
                # Otherwise up to 2 GB are read ahead.
                batch_readahead=2,
                io_buffer_size=64 << 20,
            )
            for batch in scanner.to_batches():
                yield from packing.add(batch)
        yield from packing.rest()


class _Repacking:
    """Rows of one stream in, rows of full blocks out.

    Args:
        schema: Of the rows.
        split: Of the stream.
        language: Of the stream.
        drop: Which documents to leave out.
        dropped: Where those are counted.
    """

    def __init__(self, schema: pa.Schema, split: str, language: str, drop: Drop | None, dropped: Dropped) -> None:
        self._schema, self._split, self._language = schema, split, language
        self._drop, self._dropped = drop, dropped
        self._block = int(schema.field("tokens").type.list_size)
        self._struct = schema.field("documents").type.value_type
        dtype = schema.field("tokens").type.value_type.to_pandas_dtype()
        # What fills no block yet, and the documents that begin in it.
        self._tokens = np.empty(0, dtype)
        self._starts = np.empty(0, np.int64)
        self._documents = pa.array([], self._struct)
        self._dropping = False

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Take rows, and give those that are full."""
        counts = np.asarray(batch.column("num_tokens")).astype(np.int64)
        blocks = np.asarray(batch.column("tokens").flatten()).reshape(len(batch), self._block)
        full = bool((counts == self._block).all())
        tokens = blocks.reshape(-1) if full else blocks[np.arange(self._block) < counts[:, None]]
        lists = batch.column("documents")
        documents = lists.flatten()
        starts = np.repeat(np.cumsum(counts) - counts, np.asarray(lists.value_lengths().fill_null(0)))
        starts = starts + np.asarray(documents.field("offset"))
        if self._drop is not None:
            tokens, starts, documents = self._without_dropped(self._drop, tokens, starts, documents)
        self._starts = np.concatenate([self._starts, starts + len(self._tokens)])
        self._documents = pa.concat_arrays([self._documents, documents])
        self._tokens = np.concatenate([self._tokens, tokens])
        if len(self._tokens) >= _ROWS_WRITTEN * self._block:
            yield from self._rows(len(self._tokens) // self._block)

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Give the last row, which need not be full."""
        yield from self._rows(-(-len(self._tokens) // self._block))

    def _without_dropped(
        self, drop: Drop, tokens: np.ndarray, starts: np.ndarray, documents: pa.StructArray
    ) -> tuple[np.ndarray, np.ndarray, pa.StructArray]:
        gone = np.asarray(drop(documents), bool)
        # What is before the first start belongs to the document that was begun before.
        flags = np.append(self._dropping, gone)
        lengths = np.diff(np.concatenate([[0], starts, [len(tokens)]]))
        keep = np.repeat(~flags, lengths)
        kept_before = np.concatenate([[0], np.cumsum(np.where(flags, 0, lengths))])
        self._dropping = bool(flags[-1])
        self._dropped.documents += int(gone.sum())
        self._dropped.tokens += int(len(tokens) - keep.sum())
        if gone.any():
            languages = self._dropped.languages
            languages[self._language] = languages.get(self._language, 0) + int(gone.sum())
        return tokens[keep], kept_before[1:-1][~gone], documents.filter(pa.array(~gone))

    def _rows(self, rows: int) -> Iterator[pa.RecordBatch]:
        if not rows:
            return
        size = min(rows * self._block, len(self._tokens))
        tokens = np.zeros(rows * self._block, self._tokens.dtype)
        tokens[:size] = self._tokens[:size]
        counts = np.full(rows, self._block, np.int32)
        counts[-1] -= rows * self._block - size
        mine = int(np.searchsorted(self._starts, size))
        documents = self._documents.slice(0, mine)
        fields = [
            pa.array((self._starts[:mine] % self._block).astype(np.int32)),
            *(documents.field(i) for i in range(1, self._struct.num_fields)),
        ]
        borders = np.searchsorted(self._starts[:mine], np.arange(rows + 1) * self._block).astype(np.int32)
        yield pa.record_batch(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(tokens), self._block),
                pa.array(counts),
                pa.repeat(pa.scalar(self._split), rows),
                pa.repeat(pa.scalar(self._language), rows),
                pa.ListArray.from_arrays(
                    pa.array(borders), pa.StructArray.from_arrays(fields, fields=list(self._struct))
                ),
            ],
            schema=self._schema,
        )
        self._tokens = self._tokens[size:]
        self._starts = self._starts[mine:] - size
        self._documents = self._documents.slice(mine)


def remove_unneeded(uri: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Remove all versions but the newest and those with a tag, and the files of none, such as a killed builder leaves.

    Readers that map an older version's files keep them as long as they are open. Only the one builder may call it: what
    another is about to commit is of no version yet.
    """
    dataset = dataset_at(uri, None, storage_options)
    if dataset is None:
        session = data_session(uri, storage_options)
        for path in session.list():
            session.delete_file(path)
        return
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)
