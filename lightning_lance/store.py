"""A token store, opened for reading: streams, and windows of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from lightning_lance.arguments import check_arguments
from lightning_lance.commit import commit_of, is_commit, notes_of
from lightning_lance.errors import ConfigError, StoreError, described
from lightning_lance.escaping import logger, shown
from lightning_lance.forked import ForkedReader
from lightning_lance.fragments import (
    check_fragments,
    check_sizes,
    dataset_at,
    fragments_of,
    reading,
    stream_columns,
    take_blocks,
)
from lightning_lance.integrity import require_whole
from lightning_lance.layout import Extent, StreamExtent, check_parts, layout_of, layout_of_rows
from lightning_lance.mapping import map_tokens
from lightning_lance.others import change_of, check_columns, cure
from lightning_lance.own_files import check_no_links
from lightning_lance.places import (
    checked_storage_options,
    given_place,
    is_local,
    store_place,
    tokenizer_files,
)
from lightning_lance.provenance import Provenance
from lightning_lance.schema import block_of, check_dtype
from lightning_lance.segments import MappedFiles, SegmentTable
from lightning_lance.splits import SPLITS
from lightning_lance.tags import is_trained_on, keep, let_go
from lightning_lance.versions import look_again, version_with

_log = logger(__name__)


class TokenStore:
    """A token store, opened for reading at one version. Safe to use from several threads.

    Make it with `TokenStore.open`.

    Attributes:
        uri: Where it is, as an absolute path without links, or as a URL.
        version: The Lance version that is read.
        commit: The note of the last commit.
        dtype: uint16 or uint32, of the tokens.
        reader: `mapped` (local files in memory) or `take` (blocks by Lance).
    """

    def __init__(
        self,
        uri: str,
        dataset: Any,
        storage_options: Mapping[str, str] | None,
        reader: Literal["auto", "mapped", "take"],
    ) -> None:
        self.uri, self._opening = uri, (storage_options, reader)
        self._given = uri
        self.version, self.commit = int(dataset.version), commit_of(dataset, uri)
        if "format" not in self.commit.recipe:
            raise StoreError(f"The token store {uri!r} does not say of which format it is: bring it back from a copy.")
        self._change = change_of(dataset, uri, storage_options)
        self._tell_of_others()
        check_columns(dataset, uri)
        self._dataset, self._process = dataset, os.getpid()
        self._forked: tuple[int, ForkedReader] | None = None
        self._kept = self._tagged = False
        self._provenance = Provenance(uri, dataset, storage_options)
        self.dtype: np.dtype[Any]
        self._block, self.dtype = block_of(uri, dataset.schema)
        check_dtype(uri, self.dtype, self.commit.recipe, self.commit.vocab_size)
        fragments = fragments_of(dataset)
        check_fragments(uri, fragments)
        if is_local(uri):
            check_sizes(uri, fragments)
        mapped = None if reader == "take" else map_tokens(uri, dataset, self._block, self.dtype)
        if mapped is None and reader == "mapped":
            raise StoreError(f"The token store {uri!r} cannot be mapped into memory here: use reader='auto'.")
        self._mapped: MappedFiles | None
        self._mapped, pages = mapped or (None, None)
        self.reader = "take" if self._mapped is None else "mapped"
        self._segments: dict[str, SegmentTable] = {}
        self._streams: dict[str, list[StreamExtent]] = {}
        self._index(pages)

    @classmethod
    def open(
        cls,
        uri: str | Path,
        version: int | None = None,
        storage_options: Mapping[str, str] | None = None,
        reader: Literal["auto", "mapped", "take"] = "auto",
        verify: bool = False,
    ) -> TokenStore:
        """Open a store.

        Args:
            uri: Local folder, or object store URL.
            version: Version to read; None reads the last one. What is committed later is not seen.
            storage_options: Credentials and such for object stores, as Lance takes them.
            reader: `auto` maps local files and falls back to `take`; the others leave no choice.
            verify: Whether to hold every file against its checksum first; see `check_store`.

        Raises:
            StoreError: If there is no committed store, or it is damaged.
        """
        check_arguments(TokenStore.open, {"version": version, "reader": reader, "verify": verify})
        storage_options = checked_storage_options("storage_options", storage_options)
        given, place = given_place(uri), store_place(uri)
        if verify:
            require_whole(place, storage_options)
        while True:
            with reading(place):
                dataset = dataset_at(place, version, storage_options)
            if dataset is None:
                what = f"version {version} of a token store" if version is not None else "token store"
                raise StoreError(f"There is no committed {what} at {place!r}: run 'lightning-lance prepare' first.")
            try:
                with reading(place):
                    store = cls(place, dataset, storage_options, reader)
                store._given = given
                return store
            except StoreError:
                # A builder may have merged its files away meanwhile: then there is a newer version.
                newest = dataset_at(place, None, storage_options) if version is None else None
                if newest is None or newest.version == dataset.version:
                    raise

    def at_version(self, version: int) -> TokenStore:
        """Open the same store at another version."""
        return self if version == self.version else self._open_again(version)

    def _open_again(self, version: int | None) -> TokenStore:
        store = TokenStore.open(self.uri, version, *self._opening)
        store._given = self._given
        return store

    def forgot(self, extent: Extent) -> bool:
        """Tell whether documents of an extent were forgotten since, and no version that holds them is kept."""
        changed = extent.forgotten != self.commit.extent.forgotten
        return changed and version_with(self.uri, extent, self._opening[0]) is None

    def at(self, extent: Extent) -> TokenStore:
        """Open the same store as it was when it held just this, in whichever version. StoreError if it never did."""
        if extent == self.commit.extent and is_commit(self._dataset):
            return self

        def find() -> int:
            if (found := version_with(self.uri, extent, self._opening[0])) is None:
                raise StoreError(
                    f"The checkpoint was trained on the first {extent.tokens:,} tokens of the store, and no version of "
                    f"{self.uri!r} ends there (any more): prepare it with the budget of that run."
                )
            return found

        store = look_again(find, self.at_version)
        if since := sorted({*self.commit.extent.forgotten} - {*extent.forgotten}):
            told = "Version %d of %s is read, which holds documents that were forgotten since (%s)."
            _log.warning(told, store.version, self.uri, since)
        if not is_commit(store._dataset):
            # A compaction, for one, may put rows in another order.
            _log.warning(
                "The version of %s with %s tokens is gone, and others have moved its rows.", self.uri, extent.tokens
            )
        return store

    def newest(self) -> TokenStore:
        """Open the same store as it is now."""
        last = dataset_at(self.uri, None, self._opening[0])
        # Not at that version: a builder that merges may remove it before it is open.
        return self if last is None or last.version == self.version else self._open_again(None)

    def keep(self, name: str | None = None) -> bool:
        """Tag the version that is read, so that no clean-up of old versions removes it.

        A tag that names a version with the same streams stays as it is; one that names another is moved.

        Args:
            name: Of the tag; None for `checkpoint-...`, named by what the store holds.

        Returns:
            Whether it is kept; False if a builder has removed it already.

        Raises:
            StoreError: If the store cannot be written.
        """
        check_no_links(self.uri)
        return keep(self._dataset, self.uri, self.commit.extent, self._opening[0], name)

    def keep_for_training(self, share: bool = True) -> bool:
        """Tag what is read, once, and tell whether it is there; a warning where that fails. `share`: see `is_trained_on`."""
        try:
            if not self._kept:
                check_no_links(self.uri)
                self._tagged = not is_trained_on(self._dataset, self.commit.extent, share)
                self._kept = self.keep()
        except StoreError as error:
            self._kept = True
            _log.warning("%s A clean-up of old versions may take it away from the run and its checkpoints.", error)
        return self._kept

    def let_go(self) -> None:
        """Take the tag of `keep_for_training` away again, if it was not there before: for a run that leaves no checkpoint."""
        if self._tagged:
            let_go(self._dataset, self.commit.extent)
            self._kept = self._tagged = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Handles and maps do not travel: another process opens the same version anew.
        return TokenStore.open, (self.uri, self.version, *self._opening)

    def __repr__(self) -> str:
        what = ", ".join(f"{split}/{stream.language or '-'}" for split in SPLITS for stream in self._streams[split])
        tokens = f"{self.commit.stored_tokens:,}"
        return f"TokenStore({self.uri!r}, version={self.version}, tokens={tokens}, streams=[{shown(what)}])"

    @property
    def tokenizer_files(self) -> list[Path]:
        """Where the tokenizer of a local store may be kept, the likeliest first."""
        return tokenizer_files(self._given)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decided the stored tokens."""
        return self.commit.fingerprint

    def num_tokens(self, split: str = "train") -> int:
        """Count the tokens of a split, EOS included."""
        return self._table(split).num_tokens

    def streams(self, split: str = "train") -> list[StreamExtent]:
        """List the streams of a split, by language, as they follow each other in `read`."""
        self._table(split)
        return self._streams[split]

    def read(self, starts: np.ndarray, length: int, split: str = "train") -> np.ndarray:
        """Read windows.

        Args:
            starts: (n,) integers: offsets of the first tokens among the tokens of the split.
            length: Tokens per window.
            split: `train` or `val`.

        Returns:
            (n, length) tokens, of `dtype`.

        Raises:
            StoreError: If a window does not lie whole in the split.
        """
        table = self._table(split)
        starts = np.asarray(starts, dtype=np.int64)
        table.check(starts, length)
        if self._mapped is None:
            return self._take(table, starts, length)
        places, whole = table.whole(starts, length)
        if whole.all():
            return self._mapped.gather(places, length)
        windows = np.empty((len(starts), length), self.dtype)
        windows[whole] = self._mapped.gather(places[whole], length)
        cut = np.flatnonzero(~whole)
        runs = table.runs(starts[cut], length)
        self._mapped.fill(windows, runs._replace(row=cut[runs.row]))
        return windows

    def documents(self, starts: np.ndarray, length: int, split: str = "train") -> pa.Table:
        """Tell which documents windows (as in `read`) hold.

        Returns:
            A row for each document of each window, in their order: `window` (place in `starts`), `begin` and `end` (which of
            the window's tokens are the document's, EOS included), `id` (`shard:row` in the source), the words of
            `source.columns`, and `language`.

        Raises:
            StoreError: If a window does not lie whole in the split, in a forked process, or where others have changed rows.
        """
        self._table(split).check(starts := np.asarray(starts, dtype=np.int64), length)
        if self._change is not None and not self._change.readable:
            raise StoreError(
                f"The token store {self.uri!r} was changed by others ({self._change.what}), so its documents cannot be told "
                f"apart: {cure(self.uri, self._change)}."
            )
        with reading(self.uri):
            return self._provenance.documents(starts, length, split)

    def _take(self, table: SegmentTable, starts: np.ndarray, length: int) -> np.ndarray:
        windows = np.empty((len(starts), length), self.dtype)
        runs = table.runs(starts, length)
        first, last = runs.place // self._block, (runs.place + runs.length - 1) // self._block
        spans = [first + i for i in range(int((last - first).max(initial=-1)) + 1)]
        rows = np.unique(np.concatenate([span[span <= last] for span in spans])) if spans else np.empty(0, np.int64)
        blocks = self._blocks(rows).reshape(-1)
        # The blocks of a run are neighbours in the store, so they are neighbours here.
        at = np.searchsorted(rows, first) * self._block + runs.place % self._block
        whole = runs.length == length
        if whole.any():
            windows[runs.row[whole]] = sliding_window_view(blocks, length)[at[whole]]
        cut = [part[~whole] for part in (runs.row, runs.column, at, runs.length)]
        for row, column, place, count in zip(*cut, strict=True):
            windows[row, column : column + count] = blocks[place : place + count]
        return windows

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.empty((0, self._block), self.dtype)
        if self._process == os.getpid():
            with reading(self.uri):
                return take_blocks(self._dataset, rows)
        if self._forked is None or self._forked[0] != os.getpid():
            self._forked = os.getpid(), ForkedReader(self.uri, self.version, self._opening[0])
        return self._forked[1].take(rows)

    def _tell_of_others(self) -> None:
        """Warn where others have changed the rows: what is there is served, as far as it goes."""
        change = self._change
        if change is None or change.readable:
            return
        what = (
            f"Version {self.version} of the token store {self.uri!r} was changed by others since version {change.committed} "
            f"({change.what})"
        )
        if change.overwritten:
            raise StoreError(f"{what}, so it is another dataset by now: {cure(self.uri, change)}.")
        _log.warning("%s, and is served as it is now; %s.", what, cure(self.uri, change))

    def _table(self, split: str) -> SegmentTable:
        if not isinstance(split, str) or split not in self._segments:
            raise ConfigError(f"There is no split {described(split)}: a token store has {' and '.join(SPLITS)}.")
        return self._segments[split]

    def _index(self, pages: np.ndarray | None) -> None:
        """Make the segment tables. `pages`: (n, 2), as `map_tokens` gives them; None counts places in rows of `take`."""
        parts = layout_of(fragments_of(self._dataset), notes_of(self._dataset))
        is_told = parts is not None and is_commit(self._dataset)
        if parts is None:
            parts = layout_of_rows(stream_columns(self._dataset), self._block)
        check_parts(parts, self._block, self.uri)
        streams = sorted({(part.split, part.language) for part in parts})
        numbers = {stream: i for i, stream in enumerate(streams)}
        of_stream = np.asarray([numbers[part.split, part.language] for part in parts], np.int64)
        tokens = np.asarray([part.tokens for part in parts], np.int64)
        rows = np.cumsum([0, *(part.rows for part in parts)])
        # Not the sum of the array, which might go round.
        held = sum(part.tokens for part in parts)
        if self._change is None and held > self.commit.stored_tokens:
            raise StoreError(
                f"The token store {self.uri!r} holds {held:,} tokens and says {self.commit.stored_tokens:,}: two processes "
                "built it at once; remove it, and let one build it."
            )
        # Rows that others have deleted since are no longer there; of a commit, all are.
        if is_told and held != self.commit.stored_tokens:
            raise StoreError(
                f"The token store {self.uri!r} holds {held:,} tokens and says {self.commit.stored_tokens:,}: get it anew from "
                "where it came, or build it again elsewhere."
            )
        pages = np.asarray([[0, rows[-1]]]) if pages is None else pages
        if int(pages[:, 1].sum()) != rows[-1]:
            raise StoreError(
                f"The data files of the token store {self.uri!r} have {int(pages[:, 1].sum()):,} rows, and its metadata tells "
                f"of {int(rows[-1]):,}: get it anew from where it came, or build it again elsewhere."
            )
        # Parts are cut where pages end.
        first_rows = np.append(0, np.cumsum(pages[:, 1]))
        begins = np.union1d(rows[:-1], first_rows[:-1]) if parts else np.empty(0, np.int64)
        part = np.searchsorted(rows, begins, side="right") - 1
        page = np.searchsorted(first_rows, begins, side="right") - 1
        within = (begins - rows[part]) * self._block
        ends = np.append(begins[1:], rows[-1])
        counts = np.minimum((ends - begins) * self._block, tokens[part] - within)
        places = pages[page, 0] + (begins - first_rows[page]) * self._block
        for split in SPLITS:
            mine = np.flatnonzero(np.isin(of_stream[part], [numbers[key] for key in streams if key[0] == split]))
            mine = mine[np.argsort(of_stream[part[mine]], kind="stable")]
            self._segments[split] = SegmentTable.from_parts(counts[mine], places[mine])
            self._streams[split], start = [], 0
            for key in streams:
                if key[0] == split:
                    count = int(tokens[of_stream == numbers[key]].sum())
                    self._streams[split].append(StreamExtent(key[1], start, count))
                    start += count
