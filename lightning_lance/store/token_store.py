"""A token store, opened for reading: streams, and windows of them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import lance
import numpy as np
import pyarrow as pa
import xxhash
from numpy.lib.stride_tricks import sliding_window_view

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, StoreError, StoreReplaced, described, integer, whole_numbers
from lightning_lance.format.commit import data_file_infos, is_commit, read_commit
from lightning_lance.format.lance_io import (
    check_fragments,
    check_sizes,
    data_files,
    dataset_at,
    fragments_of,
    reading,
    stream_columns,
    take_blocks,
)
from lightning_lance.format.layout import StoreContent, StreamExtent, check_parts, layout_of, layout_of_rows
from lightning_lance.format.lineage import change_of, check_columns, cure
from lightning_lance.format.own_files import check_no_links
from lightning_lance.format.schema import block_of, check_dtype
from lightning_lance.format.tags import check_not_replaced, keep_for_run, let_go_of_others, replaced, tag_version, untag
from lightning_lance.format.versions import find_version, gone, open_with_retry
from lightning_lance.location import (
    checked_storage_options,
    given_place,
    is_local,
    store_place,
    tokenizer_files,
)
from lightning_lance.maintenance.integrity import raise_if_damaged
from lightning_lance.messages.escaping import logger, shown
from lightning_lance.store.mapped_files import map_tokens
from lightning_lance.store.provenance import Provenance
from lightning_lance.store.segments import MappedFiles, SegmentTable
from lightning_lance.type_hints import check_arguments, not_a_place, not_opened

_log = logger(__name__)


# Of a version to train on, before it counts as an error that builders remove each one before it is tagged.
KEEP_TRIES = 20

Read = TypeVar("Read")


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
        dataset: Any = None,
        storage_options: Mapping[str, str] | None = None,
        reader: Literal["auto", "mapped", "take"] = "auto",
    ) -> None:
        if not isinstance(dataset, lance.LanceDataset):
            raise not_opened(uri)
        self.uri, self._opening = uri, (storage_options, reader)
        self._given = uri
        self.version, self.commit = int(dataset.version), read_commit(dataset, uri)
        if "format" not in self.commit.recipe:
            raise StoreError(f"The token store {uri!r} does not say of which format it is: bring it back from a copy.")
        self._change = change_of(dataset, uri, storage_options)
        self._tell_of_others()
        check_columns(dataset, uri)
        self._dataset, self._process = dataset, os.getpid()
        # Of the versions that others make, equal extents need not be equal rows.
        self._is_ours = is_commit(dataset)
        # Names the tag of the run that trains on this; and whether that is there, and one that stays for its checkpoints.
        self._run = secrets.token_hex(8)
        self._kept = self._kept_for_good = False
        # The same content at a version that is there still, once the one that is open is gone.
        self._elsewhere: TokenStore | None = None
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
            verify: Whether to hold every file against its checksum first; see `verify_store`.

        Raises:
            StoreError: If there is no committed store, or it is damaged.
        """
        if not isinstance(uri, (str, Path)):
            raise not_a_place("uri", uri)
        check_arguments(TokenStore.open, {"version": version, "reader": reader, "verify": verify})
        storage_options = checked_storage_options("storage_options", storage_options)
        given, place = given_place(uri), store_place(uri)
        if verify:
            raise_if_damaged(place, storage_options)
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
                # A builder may have merged its files away meanwhile: then there is a newer version, or none of this number.
                with reading(place):
                    now = dataset_at(place, version, storage_options)
                if now is not None and data_files(now) == data_files(dataset):
                    raise

    def at_version(self, version: int) -> TokenStore:
        """Open the same store at another version.

        Raises:
            StoreReplaced: If there is another store by now.
            StoreError: If there is no such version.
        """
        return self if version == self.version else self._opened_again(version)

    def _opened_again(self, version: int | None) -> TokenStore:
        """Open the same store at another version, or as it is now; for the same run."""
        try:
            store = TokenStore.open(self.uri, version, *self._opening)
        except StoreError:
            check_not_replaced(self.uri, self.fingerprint, self._opening[0])
            raise
        if store.fingerprint != self.fingerprint:
            raise replaced(self.uri, self.fingerprint, store.fingerprint)
        store._run, store._given = self._run, self._given
        return store

    def _version_with(self, extent: StoreContent) -> int | None:
        return find_version(self.uri, extent, self._opening[0], self.fingerprint)

    def forgot(self, extent: StoreContent) -> bool:
        """Tell whether documents of an extent were forgotten since, and no version that holds them is kept."""
        changed = extent.forgotten != self.commit.extent.forgotten
        return changed and self._version_with(extent) is None

    def at(self, extent: StoreContent) -> TokenStore:
        """Open the same store as it was when it held just this, in whichever version. StoreError if it never did."""
        if extent == self.commit.extent and self._is_ours:
            return self

        def find() -> int:
            found = self._version_with(extent)
            if found is None:
                check_not_replaced(self.uri, self.fingerprint, self._opening[0])
                raise StoreError(
                    f"The checkpoint was trained on the first {extent.tokens:,} tokens of the store, and no version of "
                    f"{self.uri!r} ends there (any more): prepare it with the budget of that run."
                )
            return found

        store = open_with_retry(find, self.at_version)
        if since := sorted({*self.commit.extent.forgotten} - {*extent.forgotten}):
            told = "Version %d of %s is read, which holds documents that were forgotten since (%s)."
            _log.warning(told, store.version, self.uri, since)
        if not store._is_ours:
            # A compaction, for one, may put rows in another order.
            _log.warning(
                "The version of %s with %s tokens is gone, and others have moved its rows.", self.uri, extent.tokens
            )
        return store

    def newest(self) -> TokenStore:
        """Open the same store as it is now.

        Raises:
            StoreReplaced: If there is another store by now.
            StoreError: If there is none.
        """
        # Not at the version that is the last: a builder that merges may remove it before it is open.
        newest = self._opened_again(None)
        return self if newest.version == self.version and newest.commit == self.commit else newest

    def keep(self, name: str | None = None) -> bool:
        """Tag the version that is read, so that no clean-up of old versions removes it.

        A tag that names a version with the same streams stays as it is; one that names another is moved.

        Args:
            name: Of the tag; None for `checkpoint-...`, named by what the store holds.

        Returns:
            Whether it is kept; False if a builder has removed it already, or is about to.

        Raises:
            ConfigError: If a tag cannot have this name.
            StoreReplaced: If there is another store by now.
            StoreError: If the store cannot be written.
        """
        check_no_links(self.uri)
        return tag_version(self._dataset, self.uri, self.commit.extent, self._opening[0], name, self.fingerprint)

    def keep_for_training(self, run: str | None = None) -> bool:
        """Tag what is read for a run, once, and tell whether it is kept; a warning where no tag can be written.

        The tag is the run's own, and goes by `let_go`. Once the run has saved a checkpoint, `keep_for_checkpoints` puts
        one in its place that stays.

        Args:
            run: Tells the run from others, in hexadecimal; the same on all of its ranks. None for one that is drawn.

        Returns:
            Whether it is kept; False if a builder has removed it already, or is about to: then open the store again.

        Raises:
            StoreReplaced: If there is another store by now.
        """
        self._run = run or self._run
        try:
            if not self._kept:
                check_no_links(self.uri)
                self._kept = keep_for_run(
                    self._dataset, self.uri, self.commit.extent, self._opening[0], self._run, self.fingerprint
                )
        except StoreReplaced:
            raise
        except StoreError as error:
            self._kept = True
            self._warn_not_kept(str(error))
        return self._kept

    def keep_for_checkpoints(self) -> None:
        """Tag what is read for good, in place of the run's own tag, for its checkpoints; a warning where that fails."""
        if self._kept_for_good:
            return
        self._kept_for_good = True
        try:
            if not self.keep():
                self._warn_not_kept(f"Version {self.version} of the token store {self.uri!r} is gone.")
        except StoreError as error:
            self._warn_not_kept(str(error))
        else:
            untag(self._dataset, self.commit.extent, self._run)

    def _warn_not_kept(self, why: str) -> None:
        _log.warning(
            "%s. A clean-up of old versions may take it away from the run and its checkpoints.", why.removesuffix(".")
        )

    def let_go(self) -> None:
        """Take the tag of `keep_for_training` away again: for a run that leaves no checkpoint."""
        if self._kept:
            untag(self._dataset, self.commit.extent, self._run)
            self._kept = False

    def let_go_of_others(self, extents: Collection[StoreContent]) -> None:
        """Take the tags of this run away from all versions but those that hold some extents."""
        let_go_of_others(self._dataset, self.uri, self._opening[0], self._run, extents)

    def __reduce__(self) -> tuple[Any, ...]:
        # Handles and maps do not travel: another process opens the same content anew.
        return _reopened, (self.uri, self.version, self._opening, self._content)

    @property
    def _content(self) -> _Content:
        streams = xxhash.xxh3_64_hexdigest(repr(sorted(self._streams.items())).encode())
        return _Content(self.fingerprint, self.commit.extent, streams, self._is_ours)

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
            ConfigError: If `starts` is no list of whole numbers, or `length` is none.
        """
        table = self._table(split)
        starts, length = whole_numbers("starts", starts), integer("length", length)
        table.check(starts, length)
        if self._mapped is None:
            return self._lazily(
                lambda: self._take(table, starts, length), lambda store: store.read(starts, length, split)
            )
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
            ConfigError: As for `read`.
        """
        starts, length = whole_numbers("starts", starts), integer("length", length)
        self._table(split).check(starts, length)
        if self._change is not None and not self._change.readable:
            raise StoreError(
                f"The token store {self.uri!r} was changed by others ({self._change.what}), so its documents cannot be told "
                f"apart: {cure(self.uri, self._change)}."
            )
        return self._lazily(
            lambda: self._provenance.documents(starts, length, split),
            lambda store: store.documents(starts, length, split),
        )

    def _lazily(self, here: Callable[[], Read], elsewhere: Callable[[TokenStore], Read]) -> Read:
        """Read what is not in memory: of the version that is open, or, once that is removed, of one that holds the same.

        Args:
            here: Reads it of this store.
            elsewhere: Reads it of another one, which holds the same.

        Raises:
            StoreReplaced: If there is another store by now.
            StoreError: If the version is gone, and none holds the same; or if it is there and cannot be read.
        """
        if self._elsewhere is None:
            try:
                with reading(self.uri):
                    return here()
            except StoreError as error:
                if self._process != os.getpid() or self._is_there():
                    raise
                self._elsewhere = self._found_again(error)
        return elsewhere(self._elsewhere)

    def _is_there(self) -> bool:
        """Tell whether the version that is open is still there."""
        with reading(self.uri):
            now = dataset_at(self.uri, self.version, self._opening[0])
            return now is not None and data_files(now) == data_files(self._dataset)

    def _found_again(self, error: StoreError) -> TokenStore:
        """Open a version that holds the same as the one that is gone."""
        while self._is_ours:
            found = self._version_with(self.commit.extent)
            if found is None:
                break
            try:
                store = self._opened_again(found)
            except StoreReplaced:
                raise
            except StoreError:
                if self._version_with(self.commit.extent) == found:
                    raise
                continue
            if store._streams == self._streams and store._is_ours:
                return store
            break
        check_not_replaced(self.uri, self.fingerprint, self._opening[0])
        raise gone(self.uri, self.version) from error

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
        if self._process != os.getpid():
            # Lance's threads do not live on in a forked process, and those that it starts there sometimes crash it.
            raise StoreError(
                f"The token store {self.uri!r} is not mapped into memory, so a forked process cannot read it: start workers "
                "by 'forkserver' or 'spawn' instead."
            )
        with reading(self.uri):
            return take_blocks(self._dataset, rows)

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
        parts = layout_of(fragments_of(self._dataset), data_file_infos(self._dataset))
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


def not_kept(stores: Iterable[TokenStore]) -> StoreError:
    """Say that no version could be tagged before it was removed."""
    uris = ", ".join(repr(store.uri) for store in stores)
    return StoreError(
        f"No version of {uris} could be tagged for training, in {KEEP_TRIES} tries: each was removed by a builder that goes "
        "on; start again when it commits less often."
    )


class _Content(NamedTuple):
    """What a store that travels to another process is to hold there.

    Attributes:
        fingerprint: Hash of all that decided its tokens.
        extent: What of its source it holds.
        streams: Hash of the streams of each split; there may be hundreds.
        is_ours: Whether equal extents are equal rows.
    """

    fingerprint: str
    extent: StoreContent
    streams: str
    is_ours: bool


def _reopened(
    uri: str,
    version: int,
    opening: tuple[Mapping[str, str] | None, Literal["auto", "mapped", "take"]],
    content: _Content,
) -> TokenStore:
    """Open what another process had open: at its version, or, if that is removed, at one that holds the same.

    Raises:
        StoreReplaced: If there is another store by now.
        StoreError: If no version holds the same any more.
    """
    try:
        store = TokenStore.open(uri, version, *opening)
        if store._content == content:
            return store
    except StoreError:
        if dataset_at(uri, version, opening[0]) is not None:
            raise
    check_not_replaced(uri, content.fingerprint, opening[0])

    def find() -> int:
        found = find_version(uri, content.extent, opening[0], content.fingerprint) if content.is_ours else None
        if found is None:
            raise gone(uri, version)
        return found

    store = open_with_retry(find, lambda found: TokenStore.open(uri, found, *opening))
    if store._content != content:
        raise gone(uri, version)
    return store
