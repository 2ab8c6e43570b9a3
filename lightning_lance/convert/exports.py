"""From a store to the token formats of other tools."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from lightning_lance.convert.megatron import MegatronWriter
from lightning_lance.convert.nanogpt import NanoGPTWriter
from lightning_lance.convert.parquet import ParquetWriter
from lightning_lance.documents.languages import check_languages
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, StoreError, flag, one_of
from lightning_lance.lance_names import VERSIONS
from lightning_lance.location import check_place
from lightning_lance.messages.escaping import logger
from lightning_lance.process.files import remove_parts
from lightning_lance.sources.local_paths import is_local, local_path
from lightning_lance.store.token_store import TokenStore
from lightning_lance.type_hints import as_text, check_arguments

_log = logger(__name__)

# Tokens, and documents, that are read together. A longer document is read whole.
_TOGETHER_TOKENS = 1 << 22
_TOGETHER_DOCUMENTS = 1 << 14


class _Writer(Protocol):
    """Writes the documents of a split."""

    @property
    def endings(self) -> Sequence[str]:
        """The endings of its files. The last one is put in place last."""
        ...

    def write(self, files: Sequence[BinaryIO], tokens: np.ndarray, offsets: np.ndarray, described: pa.Table) -> None:
        """Write documents, EOS included: their tokens, (n + 1,) borders, and metadata."""
        ...

    def finish(self, files: Sequence[BinaryIO]) -> None:
        """Write what follows the last document."""
        ...

    def close(self) -> None:
        """Let go of the files, after an error too."""
        ...


_WRITERS: Mapping[str, type[NanoGPTWriter | MegatronWriter | ParquetWriter]] = {
    "nanogpt": NanoGPTWriter,
    "megatron": MegatronWriter,
    "parquet": ParquetWriter,
}
#: The formats that can be exported.
EXPORTED = tuple(_WRITERS)


@dataclass(frozen=True)
class Exported:
    """A split that was written.

    Attributes:
        split: `train` or `val`.
        documents: Its documents.
        tokens: Its tokens, EOS included.
        files: Its files.
    """

    split: str
    documents: int
    tokens: int
    files: list[str]


def export_tokens(
    uri: str | os.PathLike[str],
    format: str,  # noqa: A002 - as on the command line
    place: str | os.PathLike[str],
    *,
    split: str | None = None,
    language: str | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> list[Exported]:
    """Write the documents of a store for another tool, in the order of the store: the streams of a split, one by one.

    A file gets its name only once it is whole.

    Args:
        uri: Place of the store.
        format: `nanogpt`, `megatron` or `parquet`.
        place: A folder on a disk of this machine. Its files are `train` and `val` with the endings of the format.
        split: `train` or `val`; None for both, where the store has them.
        language: A language; None for all.
        overwrite: Whether files of these names are replaced.
        storage_options: Credentials and the like for the store's object store.

    Returns:
        What was written, a split each.

    Raises:
        ConfigError: If an argument cannot be used, there are files of these names, or the format cannot hold the ids.
        StoreError: If there is no store, it is damaged, or the files cannot be written.
    """
    format = one_of("format", format, EXPORTED)  # noqa: A001 - as on the command line
    check_arguments(export_tokens, {"split": split, "language": language})
    overwrite = flag("overwrite", overwrite)
    folder = _folder_at(place)
    store = TokenStore.open(str(as_text(uri)), storage_options=storage_options)
    splits = list(filter(store.num_tokens, SPLITS))
    if split is not None:
        splits = [one_of("split", split, SPLITS)]
    if language is not None:
        streams = chain.from_iterable(map(store.streams, SPLITS))
        check_languages([language], sorted({stream.language for stream in streams}), f"The store {store.uri!r}")
    exports = []
    for name in splits:
        export = _Export(store, name, language, folder, _WRITERS[format](store.vocab_size))
        if export.num_tokens:
            exports.append(export)
    if not exports:
        what = "no tokens" if split is None and language is None else f"no tokens of split={split}, language={language}"
        raise ConfigError(f"The store {store.uri!r} has {what}: see lightning-lance info {store.uri}.")
    try:
        for export in exports:
            export.check_free(overwrite)
        _warn_left_out(store, format)
        with ExitStack() as parts:
            folder.mkdir(parents=True, exist_ok=True)
            for export in exports:
                parts.callback(export.remove_parts)
                export.write()
            for export in exports:
                export.put_in_place()
    except OSError as error:
        raise StoreError(
            f"{str(folder)!r} cannot be written ({error.strerror or error}): free disk space or grant write access, then run "
            "it again."
        ) from error
    return [export.made for export in exports]


def _warn_left_out(store: TokenStore, chosen: str) -> None:
    """Log which channels of a store the chosen format cannot hold."""
    if store.channels and chosen != "parquet":
        left_out = " and ".join(store.channels)
        _log.warning("The format %s has no place for %s, which is left out: parquet has.", chosen, left_out)


def _folder_at(place: str | os.PathLike[str]) -> Path:
    text = check_place("place", as_text(place), "out/nanogpt")
    if not is_local(text):
        raise ConfigError(f"place is {text!r}: expected a folder on a disk of this machine; copy the files from there.")
    folder = Path(local_path(text)).absolute()
    # Path raises an error for what must not be looked at; writing it says so.
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ConfigError(f"place is {text!r}, which is a file: expected a folder, which may be new.")
    for above in (folder, *folder.parents):
        if os.path.isdir(above / VERSIONS):
            raise ConfigError(
                f"place is {text!r}, in the folder of the store {str(above)!r}: give a place outside of it."
            )
    return folder


class _Export:
    """The export of a split."""

    def __init__(self, store: TokenStore, split: str, language: str | None, folder: Path, writer: _Writer) -> None:
        self._store = store
        self._split = split
        self._writer = writer
        self._streams = []
        self.num_tokens = 0
        for stream in store.streams(split):
            if stream.num_tokens and language in (None, stream.language):
                self._streams.append(stream)
                self.num_tokens += stream.num_tokens
        self._documents = 0
        self._files: list[Path] = []
        self._parts: list[Path] = []
        for ending in writer.endings:
            name = f"{split}{ending}"
            self._files.append(folder / name)
            self._parts.append(folder / f"{name}.{secrets.token_hex(8)}.part")

    @property
    def made(self) -> Exported:
        """What was written."""
        return Exported(self._split, self._documents, self.num_tokens, list(map(str, self._files)))

    def check_free(self, overwrite: bool) -> None:
        """Raise ConfigError if a file is there and is not to be replaced."""
        for file in self._files:
            if file.is_dir() or file.is_symlink():
                raise ConfigError(
                    f"{str(file)!r} is a folder or a link, expected a file or nothing: give another place."
                )
            if file.exists() and not overwrite:
                raise ConfigError(f"{str(file)!r} exists already: give another place, or overwrite=true to replace it.")

    def write(self) -> None:
        """Write all, under names that no tool reads."""
        for file in self._files:
            remove_parts(file)
        with ExitStack() as opened:
            files: list[BinaryIO] = []
            for part in self._parts:
                files.append(opened.enter_context(part.open("wb")))
            opened.callback(self._writer.close)
            for tokens, offsets, described, channels in self._runs():
                self._documents += len(offsets) - 1
                if isinstance(self._writer, ParquetWriter):
                    self._writer.write(files, tokens, offsets, described, channels)
                else:
                    self._writer.write(files, tokens, offsets, described)
            self._writer.finish(files)
            for stream in files:
                stream.flush()
                os.fsync(stream.fileno())

    def put_in_place(self) -> None:
        """Give the files their names. In between, there is no last one, without which no tool reads the others."""
        if len(self._files) > 1:
            self._files[-1].unlink(missing_ok=True)
        for part, file in zip(self._parts, self._files, strict=True):
            part.replace(file)

    def remove_parts(self) -> None:
        """Remove what was not put in place."""
        for part in self._parts:
            part.unlink(missing_ok=True)

    def _runs(self) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Table, dict[str, np.ndarray]]]:
        """Yield documents that follow each other: their tokens, (n + 1,) borders, metadata, and channels."""
        begins = self._store.document_begins(self._split)
        for stream in self._streams:
            end = stream.start + stream.num_tokens
            mine = begins[np.searchsorted(begins, stream.start) : np.searchsorted(begins, end)]
            borders = np.append(mine, end)
            low = 0
            while low < len(mine):
                high = int(np.searchsorted(borders, borders[low] + _TOGETHER_TOKENS, side="right")) - 1
                high = min(max(high, low + 1), low + _TOGETHER_DOCUMENTS)
                start = int(borders[low])
                size = int(borders[high]) - start
                tokens = self._store.read(np.asarray([start]), size, self._split)[0]
                described = pa.table({})
                channels = {}
                if isinstance(self._writer, ParquetWriter):
                    found = self._store.documents(borders[low:high], 1, self._split)
                    described = found.drop_columns(["window", "begin", "end"])
                    for name in self._store.channels:
                        channels[name] = self._store.read_channel(name, np.asarray([start]), size, self._split)[0]
                yield tokens, borders[low : high + 1] - start, described, channels
                low = high
