"""`TokenStore`: a version of a token store, opened for reading its streams and windows."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata

from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import (
    ConfigError,
    StoreError,
    StoreReplaced,
    described,
    integer,
    whole_number,
    whole_numbers,
)
from lightning_lance.format.channels import CHANNELS, TOKENS, channels_of
from lightning_lance.format.commit import data_file_infos, read_commit
from lightning_lance.format.lance_io import (
    check_fragments,
    check_sizes,
    data_files,
    dataset_at,
    fragments_of,
    reading,
    stream_columns,
)
from lightning_lance.format.layout import (
    DataFileInfo,
    StoreContent,
    StreamExtent,
    check_parts,
    layout_of,
    layout_of_rows,
)
from lightning_lance.format.lineage import change_of, check_columns, cure, lineage_of
from lightning_lance.format.schema import block_of, check_channels, check_dtype
from lightning_lance.format.tags import check_not_replaced, replaced
from lightning_lance.format.versions import find_version, gone, open_with_retry
from lightning_lance.lance_names import name_of
from lightning_lance.location import (
    StoreLocation,
    checked_storage_options,
    given_place,
    is_local,
    local_folder,
    no_store_at,
    store_place,
    tokenizer_files,
)
from lightning_lance.maintenance.integrity import raise_if_damaged
from lightning_lance.messages.escaping import logger, shown
from lightning_lance.messages.formatting import format_list
from lightning_lance.messages.html import html_table
from lightning_lance.store.hub import downloaded, hub_place
from lightning_lance.store.kept_tokenizer import kept_tokenizer
from lightning_lance.store.provenance import Provenance
from lightning_lance.store.same_content import Content, hash_of, open_same
from lightning_lance.store.segments import SegmentTable
from lightning_lance.store.staging import Copy, Staging
from lightning_lance.store.stream_layout import StreamLayout
from lightning_lance.store.token_reader import TokenReader, map_columns
from lightning_lance.store.version_tags import VersionTags
from lightning_lance.tokenization.tokenizer import Tokenizer
from lightning_lance.type_hints import check_arguments, not_a_place, not_opened

_log = logger(__name__)


# Attempts to tag a version for training while builders remove versions.
KEEP_TRIES = 20
Read = TypeVar("Read")
Reader = Literal["auto", "mapped", "take"]


class TokenStore:
    """A token store, opened for reading at one version. Safe to use from several threads.

    Use `TokenStore.open` to make one.

    Attributes:
        uri: Its place, as an absolute path without links, or as a URL.
        version: The Lance version that is read.
        commit: The metadata of the last commit.
        dtype: The dtype of the tokens, uint16 or uint32.
        channels: Names of the columns beside the tokens, such as `loss_mask`; mostly none.
    """

    def __init__(
        self, uri: str, dataset: Any = None, storage_options: Mapping[str, str] | None = None, reader: Reader = "auto"
    ) -> None:
        if not isinstance(dataset, lance.LanceDataset):
            raise not_opened(uri)
        self.uri = uri
        self._location = StoreLocation(uri, storage_options)
        self._opening = (self._location.storage_options, reader)
        # The uri as the user wrote it.
        self._given = uri
        self.version = int(dataset.version)
        # Read once: it describes all files.
        lineage = lineage_of(dataset)
        self.commit = read_commit(dataset, uri, lineage)
        if "format" not in self.commit.recipe:
            raise StoreError(f"The token store {uri!r} does not record its format: restore it from a copy.")
        self._change = change_of(dataset, self._location, lineage)
        self._report_change()
        check_columns(dataset, uri)
        self._dataset = dataset
        self._process = os.getpid()
        # In versions of other programs, equal content need not be equal rows.
        self._is_ours = lineage.committed == self.version
        self._tags = VersionTags(self._location, dataset, self.commit.extent, self.commit.fingerprint)
        # The same content at another version, once the open version was removed.
        self._elsewhere: TokenStore | None = None
        self._provenance = Provenance(self._location, dataset)
        self.dtype: np.dtype[Any]
        self._block, self.dtype = block_of(uri, dataset.schema)
        check_dtype(uri, self.dtype, self.commit.recipe, self.commit.vocab_size)
        self.channels = channels_of(self.commit.recipe)
        check_channels(uri, dataset.schema, self.channels, self._block)
        fragments = fragments_of(dataset)
        check_fragments(uri, fragments)
        if is_local(uri):
            check_sizes(uri, fragments)
        dtypes = {TOKENS: self.dtype}
        for channel in self.channels:
            dtypes[channel] = CHANNELS[channel].stored
        mapped = {}
        if reader != "take":
            mapped = map_columns(uri, dataset, fragments, self._block, dtypes)
        if reader == "mapped" and TOKENS not in mapped:
            raise StoreError(f"The token store {uri!r} cannot be mapped into memory here: use reader='auto'.")
        layout = self._read_layout(fragments, data_file_infos(dataset, lineage))
        self._streams = layout.extents()
        self._reader = TokenReader(uri, dataset, layout, dtypes, mapped)
        # The copies of a remote store, and what `stage` was given.
        self._staging: Staging | None = None
        self._staged: tuple[str, int | None] | None = None

    @classmethod
    def open(
        cls,
        uri: str | Path,
        version: int | None = None,
        storage_options: Mapping[str, str] | None = None,
        reader: Reader = "auto",
        verify: bool = False,
    ) -> TokenStore:
        """Open a store.

        Args:
            uri: Local folder, object store URL, or dataset repository of the Hub, `hf://datasets/owner/name[@revision]`.
            version: Version to read; None reads the newest. Later commits are not seen.
            storage_options: Credentials and other options of object stores, in Lance's form.
            reader: `auto` maps local files and falls back to `take`; the other two have no fallback.
            verify: Whether to check every file against its checksum first; see `verify_store`.

        Raises:
            StoreError: If there is no committed store, or it is damaged.
        """
        if not isinstance(uri, (str, Path)):
            raise not_a_place("uri", uri)
        check_arguments(TokenStore.open, {"version": version, "reader": reader, "verify": verify})
        storage_options = checked_storage_options("storage_options", storage_options)
        given = given_place(uri)
        on_hub = hub_place(str(uri))
        if on_hub is not None:
            given = downloaded(on_hub, storage_options)
            storage_options = checked_storage_options("storage_options", None)
        place = store_place(given)
        location = StoreLocation(place, storage_options)
        if verify:
            raise_if_damaged(location)
        while True:
            with reading(place):
                dataset = dataset_at(location, version)
            if dataset is None:
                what = "token store"
                if version is not None:
                    what = f"version {version} of a token store"
                raise no_store_at(place, what)
            try:
                with reading(place):
                    store = cls(place, dataset, storage_options, reader)
                store._given = given
                return store
            except StoreError:
                # A builder may have merged the files of this version meanwhile, and removed it.
                with reading(place):
                    now = dataset_at(location, version)
                if now is not None and data_files(now) == data_files(dataset):
                    raise

    def at_version(self, version: int) -> TokenStore:
        """Open the same store at another version.

        Raises:
            StoreReplaced: If the store was replaced by another.
            StoreError: If there is no such version.
        """
        if version == self.version:
            return self
        return self._opened_again(version)

    def _opened_again(self, version: int | None) -> TokenStore:
        """Open the same store for the same run at another version; None is the newest."""
        try:
            store = TokenStore.open(self.uri, version, *self._opening)
        except StoreError:
            check_not_replaced(self._location, self.fingerprint)
            raise
        if store.fingerprint != self.fingerprint:
            raise replaced(self.uri)
        store._tags.run = self._tags.run
        store._given = self._given
        if self._staged is not None:
            store.stage(*self._staged)
        return store

    def _version_with(self, extent: StoreContent) -> int | None:
        return find_version(self._location, extent, self.fingerprint)

    def forgot(self, extent: StoreContent) -> bool:
        """Return whether documents of a content were forgotten since, and no version with them is left."""
        changed = extent.forgotten != self.commit.extent.forgotten
        return changed and self._version_with(extent) is None

    def at(self, extent: StoreContent) -> TokenStore:
        """Open the same store at a version with some content. StoreError if there is none."""
        if extent == self.commit.extent and self._is_ours:
            return self

        def find() -> int:
            found = self._version_with(extent)
            if found is None:
                check_not_replaced(self._location, self.fingerprint)
                raise StoreError(
                    f"The checkpoint was trained on the first {extent.tokens:,} tokens of the store, but no version of "
                    f"{self.uri!r} ends there: prepare it with the budget of that run."
                )
            return found

        store = open_with_retry(find, self.at_version)
        since = sorted({*self.commit.extent.forgotten} - {*extent.forgotten})
        if since:
            _log.warning(
                "Version %d of %s contains documents that were forgotten since (%s).", store.version, self.uri, since
            )
        if not store._is_ours:
            # A compaction, for example, may change the order of rows.
            _log.warning(
                "The version of %s with %s tokens was removed, and another program has moved its rows.",
                self.uri,
                extent.tokens,
            )
        return store

    def newest(self) -> TokenStore:
        """Open the same store at its newest version.

        Raises:
            StoreReplaced: If the store was replaced by another.
            StoreError: If it was removed.
        """
        # Not by its number: a builder may remove that version before it is open.
        newest = self._opened_again(None)
        if newest.version == self.version and newest.commit == self.commit:
            return self
        return newest

    def keep(self, name: str | None = None) -> bool:
        """Tag the open version, so that no clean-up removes it.

        A tag of this name on a version with the same streams is left there. On any other version, it is moved.

        Args:
            name: The name of the tag; None for `checkpoint-...`, named by the content.

        Returns:
            Whether the version is kept; False if a builder has removed it already, or is about to.

        Raises:
            ConfigError: If the name is invalid.
            StoreReplaced: If the store was replaced by another.
            StoreError: If the store cannot be written.
        """
        return self._tags.keep(name)

    def keep_for_training(self, run: str | None = None) -> bool:
        """Tag the open version for a training run. Log a warning if the tag cannot be written.

        `let_go` removes the tag. Once the run has saved a checkpoint, `keep_for_checkpoints` replaces it by a permanent one.

        Args:
            run: Identifies the run, in hexadecimal; the same on all its ranks. None for a random id.

        Returns:
            Whether the version is kept; False if a builder has removed it already, or is about to: then open the store again.

        Raises:
            StoreReplaced: If the store was replaced by another.
        """
        self._tags.run = run or self._tags.run
        return self._tags.keep_for_training()

    def keep_for_checkpoints(self) -> None:
        """Replace the tag of the run by a permanent one for its checkpoints. Log a warning if that fails."""
        self._tags.keep_for_checkpoints()

    def let_go(self) -> None:
        """Remove the tag of `keep_for_training`, for a run without checkpoints."""
        self._tags.let_go()

    def let_go_of_others(self, extents: Collection[StoreContent]) -> None:
        """Remove the tags of this run from all versions except those of some contents."""
        self._tags.let_go_of_others(extents)

    def __reduce__(self) -> tuple[Any, ...]:
        # Handles and maps cannot be pickled: another process opens the same content again.
        return _reopened, (self.uri, self.version, self._opening, self._content, self._staged)

    @property
    def _content(self) -> Content:
        """What another version must have in common with this one to be read in its place."""
        return Content(self.fingerprint, self.commit.extent, hash_of(self._streams), self._is_ours)

    def __repr__(self) -> str:
        named: list[str] = []
        for split in SPLITS:
            for stream in self._streams[split]:
                named.append(f"{split}/{stream.language or '-'}")
        streams = format_list(named, 8)
        tokens = f"{self.commit.stored_tokens:,}"
        return f"TokenStore({self.uri!r}, version={self.version}, tokens={tokens}, streams=[{shown(streams)}])"

    def _repr_html_(self) -> str:
        """Return a table for notebooks: the tokens of each language and split."""
        tokens: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            for stream in self.streams(split):
                tokens.setdefault(stream.language, {})[split] = stream.num_tokens
        rows: list[list[str]] = []
        for language, of_split in sorted(tokens.items()):
            row = [language or "(none)"]
            for split in SPLITS:
                row.append(f"{of_split.get(split, 0):,}")
            rows.append(row)
        totals = f"{self.commit.stored_documents:,} documents, {self.commit.stored_tokens:,} tokens"
        titles = ["language", *(f"{split} tokens" for split in SPLITS)]
        return html_table(f"{self.uri}, version {self.version}: {totals}", titles, rows)

    @property
    def location(self) -> StoreLocation:
        """Where it is, with the options of its object store."""
        return self._location

    @property
    def tokenizer_files(self) -> list[Path]:
        """The places where the tokenizer of a local store may be, the likeliest first."""
        return tokenizer_files(self._given)

    @property
    def vocab_size(self) -> int:
        """Largest id of the tokenizer plus one: what the model's embedding needs."""
        return self.commit.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the store, from the file beside it.

        Raises:
            ConfigError: If there is none, as for a store in a bucket: take `Corpus.tokenizer`.
            StoreError: If the file is of another tokenizer.
        """
        return kept_tokenizer(self.uri, self.tokenizer_files, self.commit)

    def take_tokenizer(self, file: str | os.PathLike[str]) -> None:
        """Take a file for the tokenizer of this store, where none is beside it, as for a store in a bucket.

        Args:
            file: Its tokenizer.json.

        Raises:
            ConfigError: If there is no such file.
            StoreError: If it is of another tokenizer.
        """
        vars(self)["tokenizer"] = kept_tokenizer(self.uri, [Path(given_place(file, "tokenizer"))], self.commit)

    def decode(self, ids: Any) -> Any:
        """Return the text of token ids, with EOS spelled out.

        Args:
            ids: Token ids in one dimension, as a list, an array or a tensor; or in more, such as those of a batch.

        Returns:
            A text; for more dimensions than one, a list of texts, or of such lists.

        Raises:
            ConfigError: If an id is not one of the tokenizer, such as the -100 of masked targets, or there is no tokenizer.
        """
        given = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
            given = list(given)
            if given and np.ndim(given[0]):
                return [self.decode(row) for row in given]
        tokens = whole_numbers("ids", given)
        size = self.commit.vocab_size
        wrong = tokens[(tokens < 0) | (tokens >= size)]
        if len(wrong):
            raise ConfigError(
                f"ids has {wrong[0]}: expected ids of tokens, from 0 to {size - 1:,}; leave the others out."
            )
        return self.tokenizer.decode(tokens.tolist())

    @property
    def fingerprint(self) -> str:
        """The hash of the settings that determine the stored tokens."""
        return self.commit.fingerprint

    def num_tokens(self, split: str = "train") -> int:
        """Return the number of tokens of a split, EOS included."""
        return self._table(split).num_tokens

    def streams(self, split: str = "train") -> list[StreamExtent]:
        """Return the streams of a split, by language, in the order of `read`."""
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
            StoreError: If a window exceeds the split.
            ConfigError: If `starts` is not a list of whole numbers, or `length` is not a whole number.
        """
        return self.read_later(starts, length, split)()

    def read_later(self, starts: np.ndarray, length: int, split: str = "train") -> Callable[[], np.ndarray]:
        """Return a function that reads windows as `read` does.

        Its arguments are checked, and places in files found, before. What is left to do hardly needs Python's lock, so it
        does not disturb the other threads.
        """
        read = self._read_later(TOKENS, starts, length, split)

        def read_then_stage() -> np.ndarray:
            windows = read()
            # After the first batch, which has the network alone.
            if self._staging is not None:
                self._staging.start()
            return windows

        return read_then_stage

    def read_channel(self, channel: str, starts: np.ndarray, length: int, split: str = "train") -> np.ndarray:
        """Read what a channel has for the tokens of windows.

        Args:
            channel: `loss_mask`, whether a token is trained on, or `token_labels`.
            starts: As in `read`; this and what follows.
            length: Tokens per window.
            split: `train` or `val`.

        Returns:
            (n, length) values: bool for `loss_mask`, int32 for `token_labels`.

        Raises:
            ConfigError: If the store has no such channel; else as `read`.
            StoreError: As `read`.
        """
        return self.read_channel_later(channel, starts, length, split)()

    def read_channel_later(
        self, channel: str, starts: np.ndarray, length: int, split: str = "train"
    ) -> Callable[[], np.ndarray]:
        """Return a function that reads what a channel has, as `read_channel` does; see `read_later`."""
        if channel not in self.channels:
            known = " and ".join(self.channels) or "none"
            raise ConfigError(f"The token store {self.uri!r} has no channel {described(channel)}: it has {known}.")
        read = self._read_later(channel, starts, length, split)
        if CHANNELS[channel].served != np.bool_:
            return read
        return lambda: read().astype(np.bool_)

    def _read_later(self, column: str, starts: np.ndarray, length: int, split: str) -> Callable[[], np.ndarray]:
        """Return a function that reads what a column has for the tokens of windows, (n, length), as it is stored."""
        table = self._table(split)
        starts = whole_numbers("starts", starts)
        length = integer("length", length)
        table.check(starts, length)

        def take(here: Callable[[], np.ndarray], at: np.ndarray) -> np.ndarray:
            return self._lazily(here, lambda store: store._read_later(column, at, length, split)())

        return self._reader.read_later(column, starts, length, split, take)

    def documents(self, starts: np.ndarray, length: int, split: str = "train") -> pa.Table:
        """Return the documents of windows (as in `read`).

        Returns:
            A row for each document of each window, in order: `window` (index in `starts`), `begin` and `end` (the range of
            the document's tokens in the window, EOS included), `id` (`shard:row` in the source), the keys of
            `source.columns`, and `language`.

        Raises:
            StoreError: If a window exceeds the split, in a forked process, or if another program has changed rows.
            ConfigError: As for `read`.
        """
        starts = whole_numbers("starts", starts)
        length = integer("length", length)
        self._table(split).check(starts, length)
        self._check_documents()
        return self._lazily(
            lambda: self._provenance.documents(starts, length, split),
            lambda store: store.documents(starts, length, split),
        )

    def find_documents(self, rule: Mapping[str, str], split: str = "train") -> pa.Table:
        """Return the documents of a split for which each `key=value` of a rule holds, in the order of their tokens.

        Args:
            rule: Such as `{"repo": "owner/name"}`. Keys are `id`, `language` and the keys of `source.columns`.
            split: `train` or `val`.

        Returns:
            A row for each document: `begin` and `end` (the range of its tokens, EOS included, among those of the split),
            `id`, the keys of `source.columns`, and `language`.

        Raises:
            StoreError: In a forked process, or if another program has changed rows.
            ConfigError: If the rule is empty or has another key, or the split is unknown.
        """
        self._table(split)
        self._check_documents()
        return self._lazily(lambda: self._provenance.find(rule, split), lambda store: store.find_documents(rule, split))

    def similar_values(self, rule: Mapping[str, str]) -> dict[str, str]:
        """Return values of the store, of either split, that are similar to those of a rule that it lacks.

        Args:
            rule: As of `find_documents`.

        Raises:
            StoreError: If another program has changed rows.
        """
        self._check_documents()
        languages = [*self.commit.stored_languages]
        return self._lazily(lambda: self._provenance.similar(rule, languages), lambda store: store.similar_values(rule))

    def document_begins(self, split: str = "train") -> np.ndarray:
        """Return where the documents of a split begin, among its tokens: (documents,) int64, ascending.

        Raises:
            StoreError: In a forked process, or if another program has changed rows.
            ConfigError: If the split is unknown.
        """
        self._table(split)
        self._check_documents()
        return self._lazily(lambda: self._provenance.begins(split), lambda store: store.document_begins(split))

    def _check_documents(self) -> None:
        if self._change is not None and not self._change.readable:
            raise StoreError(
                f"The token store {self.uri!r} was changed by another program ({self._change.what}), so the documents of its "
                f"windows are unknown: {cure(self.uri, self._change)}."
            )

    def _lazily(self, here: Callable[[], Read], elsewhere: Callable[[TokenStore], Read]) -> Read:
        """Read `here`, from the open version or, once that was removed, `elsewhere`, from another one of the same content."""
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
        """Return whether the open version still exists."""
        with reading(self.uri):
            now = dataset_at(self._location, self.version)
            return now is not None and data_files(now) == data_files(self._dataset)

    def _found_again(self, error: StoreError) -> TokenStore:
        """Open another version of the same content."""
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
        check_not_replaced(self._location, self.fingerprint)
        raise gone(self.uri, self.version) from error

    def _report_change(self) -> None:
        """Log a warning if another program has changed rows, which are served nevertheless. StoreError if none are left."""
        change = self._change
        if change is None or change.readable:
            return
        what = (
            f"Version {self.version} of the token store {self.uri!r} was changed by another program since version "
            f"{change.committed} ({change.what})"
        )
        if change.overwritten:
            raise StoreError(f"{what}, and is not a token store any more: {cure(self.uri, change)}.")
        _log.warning("%s, and is served with these changes; %s.", what, cure(self.uri, change))

    def _table(self, split: str) -> SegmentTable:
        tables = self._reader.tables
        if not isinstance(split, str) or split not in tables:
            raise ConfigError(f"There is no split {described(split)}: a token store has {' and '.join(SPLITS)}.")
        return tables[split]

    def _read_layout(self, fragments: Sequence[FragmentMetadata], files: Mapping[str, DataFileInfo]) -> StreamLayout:
        """Return the streams of the rows of fragments, given the descriptions of files. StoreError if they are damaged."""
        parts = layout_of(fragments, files)
        is_complete = parts is not None and self._is_ours
        if parts is None:
            parts = layout_of_rows(stream_columns(self._dataset), self._block)
        check_parts(parts, self._block, self.uri)
        # Not the sum of an array, which may overflow.
        found = sum(part.tokens for part in parts)
        expected = self.commit.stored_tokens
        if self._change is None and found > expected:
            raise StoreError(
                f"The token store {self.uri!r} has {found:,} tokens, but its metadata says {expected:,}: two processes built "
                "it at once; remove it, and build it in one process."
            )
        # Other programs may have deleted rows, but a commit has all of them.
        if is_complete and found != expected:
            raise StoreError(
                f"The token store {self.uri!r} has {found:,} tokens, but its metadata says {expected:,}: use another copy of "
                "it, or build it again elsewhere."
            )
        return StreamLayout.of(parts, self._block)

    @property
    def reader(self) -> str:
        """How tokens are read: `mapped` (local files in memory) or `take` (blocks through Lance, some of them at least)."""
        if self._reader.is_mapped:
            return "mapped"
        return "take"

    def stage(self, folder: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        """Copy the data files of a store in a bucket to a local disk, and read from the copies that are there.

        The copying begins with the first `read`, in a thread. What is read is the same with and without. Other versions that
        are opened from this one are copied too. Does nothing for a store on a local disk.

        Args:
            folder: A folder on a disk of this machine. All processes that are given it share the copies.
            max_bytes: Most bytes of copies in the folder; None for no bound.

        Raises:
            ConfigError: If an argument cannot be used, or the folder cannot be written.
        """
        folder = local_folder(folder, "stage")
        if max_bytes is not None:
            max_bytes = whole_number("stage_bytes", max_bytes)
        if is_local(self.uri) or self._staged == (folder, max_bytes):
            return
        infos = data_file_infos(self._dataset)
        fragments = fragments_of(self._dataset)
        if layout_of(fragments, infos) is None or self._dataset.schema.names[0] != "tokens":
            _log.warning(
                "Version %d of the token store %s was written by another program, so it is not copied.",
                self.version,
                self.uri,
            )
            return
        wanted: dict[str, DataFileInfo] = {}
        for fragment in fragments:
            file = fragment.files[0]
            # Tokens are the first column of each file, unless that column was added later.
            if [*file.fields][:1] == [0]:
                name = name_of(file)
                wanted[name] = infos[name]
        # The thread that copies does not keep the maps of a store that nobody reads any more.
        reader = weakref.ref(self._reader)

        def arrived(copies: dict[str, Copy]) -> None:
            there = reader()
            if there is not None:
                there.read_from(copies)

        if self._staging is not None:
            self._staging.stop()
        self._staging = Staging(self._location, wanted, folder, max_bytes, arrived)
        self._staged = (folder, max_bytes)
        weakref.finalize(self, self._staging.stop)


def stores_at(stores: Mapping[str, TokenStore], extents: Iterable[StoreContent]) -> dict[str, TokenStore]:
    """Return stores at versions with some contents, one each in their order. StoreError if there is none."""
    found = {}
    for (name, store), extent in zip(stores.items(), extents, strict=True):
        found[name] = store.at(extent)
    return found


def extents_of(stores: Iterable[TokenStore]) -> list[StoreContent]:
    """Return what each store holds, in their order; `stores_at` opens it again."""
    return [store.commit.extent for store in stores]


def uris_of(stores: Iterable[TokenStore]) -> str:
    """Return the places of stores, for a message."""
    return ", ".join(repr(store.uri) for store in stores)


def not_kept(stores: Iterable[TokenStore]) -> StoreError:
    """Return the error of a version that could not be tagged before it was removed."""
    return StoreError(
        f"No version of {uris_of(stores)} could be tagged for training in {KEEP_TRIES} attempts, since a running builder "
        "removed each: run it again when it commits less often."
    )


def _reopened(
    uri: str,
    version: int,
    opening: tuple[Mapping[str, str] | None, Reader],
    content: Content,
    staged: tuple[str, int | None] | None = None,
) -> TokenStore:
    """Open a pickled store, at its version or, if that was removed, at another one of the same content."""

    def opened(found: int) -> TokenStore:
        return TokenStore.open(uri, found, *opening)

    store = open_same(StoreLocation(uri, opening[0]), version, content, opened, lambda each: each._content)
    if staged is not None:
        store.stage(*staged)
    return store
