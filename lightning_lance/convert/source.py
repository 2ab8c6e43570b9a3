"""A set of tokens as a source of a build: its documents come with their ids in place of a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lightning_lance.convert.channels import channel_words, stored_values, with_eos
from lightning_lance.convert.chunk_files import INDEX
from lightning_lance.convert.documents import CutAtEos, ItemTokens, TokenDocuments, TokenShards
from lightning_lance.convert.litdata import LitDataShards
from lightning_lance.convert.mds import MDSShards
from lightning_lance.convert.megatron import ENDING as MEGATRON_ENDING
from lightning_lance.convert.megatron import MegatronShards
from lightning_lance.convert.nanogpt import ENDING as NANOGPT_ENDING
from lightning_lance.convert.nanogpt import NanoGPTStream
from lightning_lance.convert.parquet import ParquetShards, dataset_of, in_words_of_an_import
from lightning_lance.convert.places import Places
from lightning_lance.documents.dedup import Dedup
from lightning_lance.documents.splits import SPLITS, split_codes
from lightning_lance.errors import ConfigError
from lightning_lance.format.channels import CHANNELS
from lightning_lance.sources.files import named_identity
from lightning_lance.sources.local_paths import working_folder
from lightning_lance.tokenization.tokenizer import token_dtype

#: The formats that can be imported.
FORMATS = ("nanogpt", "megatron", "parquet", "mds", "litdata")


@dataclass(frozen=True)
class TokenSource:
    """The documents of a set of tokens.

    Attributes:
        format: One of `FORMATS`.
        place: Where it is.
        val: Where its validation tokens are, if they are elsewhere.
        documents: `items` if each item of the set is a document, `eos` if documents end at EOS wherever that is.
        empty: `refuse` or `skip`, for documents without tokens.
        val_fraction: Share of the documents for validation, if the set has none of its own.
        columns: Our word to the name of a column; `tokens` is the one with the ids.
        language_column: Column that holds the language.
        language: The language of all documents.
        dtype: Type of the tokens in a column of bytes.
        eos_id: The id of EOS.
        vocab_size: Largest id plus one.
    """

    format: str
    place: str
    val: str | None
    documents: str
    empty: str
    val_fraction: float
    columns: Mapping[str, str]
    language_column: str | None
    language: str
    dtype: str
    eos_id: int
    vocab_size: int
    dedup: Dedup = "none"
    # The folder that relative places are relative to, whatever folder the process changes to later.
    _base: str = field(default_factory=working_folder, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.format

    @property
    def wanted(self) -> Sequence[str]:
        return ()

    @property
    def metadata(self) -> Sequence[str]:
        return tuple(sorted(self.columns.keys() - {"tokens", "language", *self.channel_words}))

    @property
    def channel_words(self) -> dict[str, str]:
        """The words of `columns` with a value for each id, and the channels that they become."""
        return channel_words(self.columns)

    @property
    def channels(self) -> Sequence[str]:
        """The channels that its tokens have; see `CHANNELS`."""
        return [*self.channel_words.values()]

    @property
    def has_validation(self) -> bool:
        # Its batches always say the split: there are no texts for a build to draw it from.
        return True

    @property
    def labels(self) -> dict[str, str | list[str]]:
        """The words of the user that the identity lacks, for people who look at a store."""
        labels: dict[str, str | list[str]] = {"format": self.format, "path": self.place}
        if self.val is not None:
            labels["val_files"] = [self.val]
        return labels

    def identity(self) -> dict[str, Any]:
        """See `Source.identity`."""
        decides: dict[str, Any] = {
            "kind": "tokens",
            "format": self.format,
            "documents": self.documents,
            "empty": self.empty,
            "val_fraction": float(self.val_fraction),
            "columns": dict(self.columns),
            "language_column": self.language_column,
            "language": self.language,
            "dtype": self.dtype,
        }
        if self.format == "parquet":
            with in_words_of_an_import(self._places):
                rows = dataset_of(self._places, self.columns, self.language_column).identity()
            # Its words for columns are those of texts.
            rows.pop("columns")
            if "files" in rows:
                decides["files"] = rows.pop("files")
            return {**decides, "rows": rows}
        # Files are named without their folder, which may move.
        named: list[tuple[str, Path]] = []
        for split, file in self._shards({}).files:
            named.append((f"{split}/{file.name}", file))
        return {**decides, "files": named_identity(named)}

    @property
    def _places(self) -> Places:
        return Places(self._base, self.place, self.val)

    def open(self, pin: Mapping[str, Any] | None = None) -> OpenedTokens:
        """See `Source.open`."""
        return OpenedTokens(self, self._shards(pin or {}))

    def _shards(self, pin: Mapping[str, Any]) -> TokenShards:
        if self.format == "nanogpt":
            found = self._places.files(NANOGPT_ENDING, "a .bin file, or a folder with train.bin and val.bin")
            return CutAtEos(NanoGPTStream(found), self.eos_id)
        shards: TokenShards
        if self.format == "megatron":
            what = "the .idx file beside a .bin, their common path without the ending, or a folder with such files"
            shards = MegatronShards(self._places.files(MEGATRON_ENDING, what))
        elif self.format == "parquet":
            with in_words_of_an_import(self._places):
                rows = dataset_of(self._places, self.columns, self.language_column)
                shards = ParquetShards(rows, self._places, pin)
        else:
            what = f"a folder with {INDEX}, or one with such folders train and val"
            folders = self._places.folders(INDEX, what)
            is_mds = self.format == "mds"
            shards = MDSShards(folders, self.columns, self.dtype) if is_mds else LitDataShards(folders)
        return CutAtEos(ItemTokens(shards), self.eos_id) if self.documents == "eos" else shards


class OpenedTokens:
    """See `OpenedSource`. Its batches have a column `tokens`, lists of ids, in place of `text`.

    Raises:
        ConfigError: If a share for validation was asked for, and the set has validation documents of its own.
    """

    num_bytes: int | None = None

    def __init__(self, source: TokenSource, shards: TokenShards) -> None:
        self._source = source
        self._shards = shards
        self.pin = shards.pin
        self.trouble = shards.trouble
        if source.val_fraction and any(shard.split for shard in shards.shards):
            raise ConfigError(
                f"val_fraction is {source.val_fraction}, and {source.place!r} has validation tokens of its own: leave out "
                "val_fraction, or name the training tokens alone."
            )
        self._dtype = token_dtype(source.vocab_size)

    @property
    def shards(self) -> Sequence[str]:
        return [shard.name for shard in self._shards.shards]

    def present_languages(self) -> list[str]:
        return []

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        """Yield the documents of a shard from a row on.

        Raises:
            ConfigError: If a document has an id beyond the vocabulary or EOS within, or is empty.
        """
        split = self._shards.shards[shard].split
        for found in self._shards.read(shard, row):
            yield self._batch(found, split, shard, row)
            row += len(found)

    def _batch(self, found: TokenDocuments, split: str, shard: int, first_row: int) -> pa.Table:
        source = self._source
        ids, offsets, channels = self._checked(found, shard, first_row)
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))
        languages = found.columns.get("language")
        if languages is None:
            languages = pa.repeat(pa.scalar(source.language), len(found))
        columns = {word: found.columns[word] for word in source.metadata}
        if split:
            splits = pa.repeat(pa.scalar(split), len(found))
        else:
            splits = pa.array(SPLITS).take(pa.array(self._split_codes(ids, offsets, columns)))
        rows = np.arange(first_row, first_row + len(found), dtype=np.int64)
        filled = languages.fill_null("")
        values = {}
        # One more value for each document, that of EOS.
        borders = pa.array(offsets + np.arange(len(offsets)))
        for name, channel in channels.items():
            values[name] = pa.LargeListArray.from_arrays(borders, pa.array(channel))
        return pa.table({"row": rows, "tokens": lists, **values, "language": filled, **columns, "split": splits})

    def _split_codes(self, ids: np.ndarray, offsets: np.ndarray, columns: Mapping[str, pa.Array]) -> np.ndarray:
        """Draw the splits by repository, or where there is none, by the tokens."""
        share = self._source.val_fraction
        if not share:
            return np.zeros(len(offsets) - 1, np.int8)
        data = ids.astype("<u4")
        borders = pa.py_buffer(offsets * data.itemsize)
        keys = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(offsets) - 1, [None, borders, pa.py_buffer(data)]
        )
        codes = split_codes(keys, share)
        if "repo" in columns:
            repos = columns["repo"].fill_null("")
            known = np.asarray(repos.to_pylist(), object) != ""
            codes[known] = split_codes(repos, share)[known]
        return codes

    def _checked(
        self, found: TokenDocuments, shard: int, first_row: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Return the ids of documents without EOS, their borders, and what the channels have for them and EOS."""
        source = self._source
        ids = found.ids

        def named(number: int) -> str:
            return f"Document {first_row + number:,} of {self._shards.shards[shard].name!r}"

        def document(place: int) -> str:
            return named(int(np.searchsorted(found.offsets, place, side="right")) - 1)

        beyond = (ids < 0) | (ids >= source.vocab_size)
        if beyond.any():
            place = int(beyond.argmax())
            raise ConfigError(
                f"{document(place)} has the token id {int(ids[place]):,}, but the tokenizer has {source.vocab_size:,} ids, "
                "from 0 on: give the tokenizer that made the tokens."
            )
        lengths = np.diff(found.offsets)
        is_eos = ids == source.eos_id
        ends = found.offsets[1:][lengths > 0] - 1
        ends = ends[is_eos[ends]]
        if np.count_nonzero(is_eos) != len(ends):
            within = is_eos.copy()
            within[ends] = False
            place = int(within.argmax())
            raise ConfigError(
                f"{document(place)} has EOS, {source.eos_id:,}, within its tokens, expected it only at the end: documents=eos "
                "cuts documents at each EOS, and eos_token=TOKEN names another token for their ends, as chats need whose turns "
                "end with this one."
            )
        closed = np.zeros(len(found), np.int64)
        closed[np.searchsorted(found.offsets, ends, side="right") - 1] = 1
        lengths = lengths - closed
        if source.empty == "refuse" and not lengths.all():
            raise ConfigError(
                f"{named(int(lengths.argmin()))} is empty, expected at least one token besides EOS: "
                "empty=skip leaves such documents out, and counts them."
            )
        channels = {}
        for word, name in source.channel_words.items():
            values = stored_values(word, found.channels[word], ids, found.offsets, named)
            channels[name] = with_eos(values, found.offsets, closed == 1, CHANNELS[name].absent)
        return ids[~is_eos].astype(self._dtype, copy=False), np.append(0, np.cumsum(lengths)), channels
