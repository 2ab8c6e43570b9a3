"""Whole files as documents, and hashes of their content."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from lightning_lance.documents.batch import decode_utf8, document_batch
from lightning_lance.documents.dedup import Dedup, check_dedup
from lightning_lance.documents.languages import (
    CODE_EXTENSIONS,
    check_extensions,
    check_languages,
    language_list,
    language_of_path,
)
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.messages.reprs import short_repr
from lightning_lance.readers.cuts import Cut
from lightning_lance.sources.local_files import EXCLUDED, LocalFile, Rules, Search
from lightning_lance.sources.local_paths import (
    from_folder,
    hint,
    local_path,
    path_list,
    readable,
    what_is_there,
    working_folder,
)
from lightning_lance.sources.source import (
    BATCH_BYTES,
    BATCH_ROWS,
    OpenedSource,
    ReadReport,
    shard_order,
)
from lightning_lance.type_hints import as_text, check_arguments

# Pieces of a large file that are hashed.
_PIECES = 64
_PIECE_BYTES = 1 << 16


def content_identity(files: Sequence[str | Path], root: str | Path) -> str:
    """Return a hash of local files that changes if they are edited, and not if they are copied elsewhere.

    It includes for each file the name relative to `root`, the size, and the content: all of it up to 4 MiB, else 64 pieces of
    64 KiB, evenly spaced from the beginning to the end (where the footer of a Parquet file is). So only an edit inside a large
    file that keeps its size may go unnoticed.

    Raises:
        SourceError: If a file cannot be read.
    """
    return named_identity((os.path.relpath(file, root), file) for file in files)


def named_identity(files: Iterable[tuple[str, str | Path]]) -> str:
    """Return the same hash as `content_identity`, given the name and the path of each file."""
    digest = xxhash.xxh3_128()
    for name, file in files:
        digest.update(f"{readable(name)}\0".encode())
        _add_file(digest, file)
    return digest.hexdigest()


def content_hash(file: str | Path) -> bytes:
    """Return the hash of a local file as in `content_identity`, without its name.

    Raises:
        SourceError: If it cannot be read.
    """
    digest = xxhash.xxh3_128()
    _add_file(digest, file)
    return digest.digest()


def extensions_identity(extensions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the extensions of languages for a fingerprint: each once, sorted."""
    identity: dict[str, list[str]] = {}
    for language, tails in extensions.items():
        identity[language] = sorted({*tails})
    return identity


def _add_file(digest: xxhash.xxh3_128, file: str | Path) -> None:
    """Add the size and the content of a file. Raises SourceError if it cannot be read."""
    try:
        with Path(file).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(f"{size}\0".encode())
            _add_content(digest, stream, size)
    except OSError as error:
        raise SourceError(_cannot_read(file, error)) from error


def _add_content(digest: xxhash.xxh3_128, stream: BinaryIO, size: int) -> None:
    if size <= _PIECES * _PIECE_BYTES:
        digest.update(stream.read())
        return
    for piece in range(_PIECES):
        stream.seek(piece * (size - _PIECE_BYTES) // (_PIECES - 1))
        digest.update(stream.read(_PIECE_BYTES))


def _cannot_read(file: str | Path, error: OSError) -> str:
    return f"Cannot read {readable(str(file))!r}: {error.strerror}; repair it or exclude it."


@dataclass(frozen=True)
class FilesSource:
    """Local text files, one document each. The language follows from the extension.

    A file that is not UTF-8 becomes a null text, which a build skips and counts. Each real file is one document, however many
    links lead to it.

    Attributes:
        patterns: Files, folders, and globs (`**` matches any folders), relative to `root`, such as `["src", "docs/**/*.md"]`;
            one of them needs no list. A folder stands for all files in it and below. Hidden files and folders are found only by
            patterns that name them. A name that exists is taken literally, even if it has `*`, `?` or brackets in it.
        root: Folder that the patterns and the stored paths are relative to.
        exclude: Names of folders to exclude at any depth.
        languages: Languages to keep, a list or a single one; empty keeps all, including files of unknown languages.
        extensions: Language to its extensions.
        text_filter: Texts to keep.
        shard_seed: Seed of the order in which files are read; None for alphabetical order. With a document or token budget, the
            seed decides which files are read.
        dedup: `exact` skips files with the same text as an earlier one, `none` keeps them.
        name: Short name, for folders and messages.
        follow_links: Whether links out of `root` are followed. Links within it always are.
    """

    patterns: str | Sequence[str | Path]
    root: str | Path = "."
    exclude: Sequence[str] = ("__pycache__", ".git", ".venv", "node_modules", "site-packages")
    languages: str | Sequence[str] = ()
    extensions: Mapping[str, Sequence[str]] = field(default_factory=lambda: CODE_EXTENSIONS)
    text_filter: TextFilter = TextFilter()
    shard_seed: int | None = 0
    dedup: Dedup = "none"
    name: str = "files"
    follow_links: bool = False
    # The folder that `root` is relative to, whatever folder the process changes to later.
    _base: str = field(default="", init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        return short_repr(self)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_base", working_folder())
        object.__setattr__(self, "root", as_text(self.root))
        object.__setattr__(self, "languages", language_list(self.languages))
        if isinstance(self.languages, Mapping):
            raise ConfigError(
                "languages is a mapping, but the language of a file follows from its extension: list languages, and give a "
                "language other extensions by source.extensions."
            )
        object.__setattr__(self, "patterns", path_list("source.patterns", self.patterns, "src/**/*.py"))
        if not self.patterns:
            raise ConfigError("source.patterns is empty: expected a list of paths, such as ['src/**/*.py'].")
        check_arguments(FilesSource, vars(self), "source.")
        check_extensions(self.extensions)
        check_languages(self.languages, [*self.extensions], f"Source {self.name!r}")
        check_dedup(self.dedup)

    @property
    def wanted(self) -> Sequence[str]:
        return sorted({*self.languages})

    @property
    def metadata(self) -> Sequence[str]:
        return ("path",)

    @property
    def has_validation(self) -> bool:
        return False

    @property
    def labels(self) -> dict[str, str | list[str]]:
        """The words of the user that the identity lacks, for people who look at a store."""
        return {
            "patterns": list(map(str, self.patterns)),
            "root": str(self.root),
            "exclude": list(self.exclude),
        }

    @property
    def _folder(self) -> str:
        root = local_path(str(self.root))
        if root in ("", "."):
            return self._base
        return from_folder(self._base, root)

    def _files(self, counting: bool = False) -> tuple[list[tuple[str, str]], list[tuple[int, str]]]:
        """Return the files in the order in which they are read.

        Args:
            counting: Whether to count skipped files for the log.

        Returns:
            The stored name and the path of each file; and log lines, (level, text).
        """
        root = self._folder
        if not Path(root).is_dir():
            raise ConfigError(f"source.root is {str(self.root)!r}, {what_is_there(root)}: expected a folder.")
        search = Search(root, Rules({*self.exclude}, bounded=True, follow_links=self.follow_links), counting)
        found: dict[str, LocalFile] = {}
        for pattern in map(str, self.patterns):
            matches = search.find(pattern)
            if not matches:
                raise ConfigError(self._no_match(pattern, root))
            for match in matches:
                search.keep(found, match)
        # Sorted by name as spelled in the patterns.
        ordered = sorted(found.values(), key=lambda match: match.key)
        files = [(search.from_root(match), str(Path(root, match.name))) for match in ordered]
        if self.languages:
            files = self._in_languages(files)
        # What is installed into Python is no part of its library.
        expected = [EXCLUDED] if Path(root).samefile(_stdlib()) else []
        remarks = search.account.remarks(self.name, found, self.follow_links, expected)
        return [files[i] for i in shard_order(len(files), self.shard_seed)], remarks

    def _in_languages(self, files: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the files in the languages to keep."""
        languages = language_of_path(_names(files), self.extensions).to_pylist()
        check_languages(self.languages, sorted(set(languages)), f"Source {self.name!r}")
        kept: list[tuple[str, str]] = []
        for file, language in zip(files, languages, strict=True):
            if language in self.languages:
                kept.append(file)
        return kept

    def _no_match(self, pattern: str, root: str) -> str:
        """Return the message about a pattern that matches nothing, with the likely reason."""
        search = Search(root, Rules({*self.exclude}, bounded=True), counting=True)
        search.find(pattern)
        reason = search.account.reason() or hint(pattern, root) or "check source.patterns"
        return f"No file matches {pattern!r} in {str(Path(root).resolve())!r}: {reason}."

    def identity(self) -> dict[str, Any]:
        files, _ = self._files()
        return {
            "kind": "files",
            "files": named_identity(files),
            "languages": self.wanted,
            "extensions": extensions_identity(self.extensions),
            "text_filter": self.text_filter.identity(),
            "shard_seed": self.shard_seed,
            "dedup": self.dedup,
        }

    def open(self, pin: Mapping[str, Any] | None = None) -> OpenedSource:
        return _OpenedFiles(self, *self._files(counting=True))


class _OpenedFiles:
    def __init__(self, source: FilesSource, files: list[tuple[str, str]], remarks: list[tuple[int, str]]) -> None:
        self._source = source
        self._groups = [files[i : i + BATCH_ROWS] for i in range(0, len(files), BATCH_ROWS)]
        self.pin: dict[str, Any] = {}
        self.trouble = ReadReport(remarks=remarks)
        self.num_bytes: int | None = sum(_sizes(files))

    @property
    def shards(self) -> Sequence[str]:
        return [f"{readable(group[0][0])} and {len(group) - 1} more" for group in self._groups]

    def present_languages(self) -> list[str]:
        languages = language_of_path(_names(self._groups[0]), self._source.extensions)
        return sorted(set(languages.to_pylist()))

    def cuts(self, shard: int, part_bytes: int) -> list[Cut]:
        sizes = _sizes(self._groups[shard])
        rows = _changes(np.cumsum([0, *sizes[:-1]]) // part_bytes)
        return list(map(Cut, rows, rows))

    def begin_at(self, shard: int, cut: Cut) -> None:
        """Do nothing: any file is found at once."""

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        files = self._groups[shard][row:]
        if not files:
            return
        begin = 0
        for end in [*_changes(np.cumsum(_sizes(files)) // BATCH_BYTES), len(files)]:
            # A batch may be one large file, so it is not kept here while the next one is read.
            yield self._batch(files[begin:end], row + begin)
            begin = end

    def _batch(self, files: list[tuple[str, str]], first_row: int) -> pa.Table:
        texts, invalid = decode_utf8(_contents(files))
        paths = _names(files)
        columns = {"text": texts, "path": paths}
        if invalid is not None:
            columns["not_utf8"] = pa.array(invalid)
        languages = language_of_path(paths, self._source.extensions)
        return document_batch(columns, languages, first_row, self._source.wanted, self._source.text_filter)


def _changes(pieces: np.ndarray) -> list[int]:
    """Return the places at which another piece begins than the one before."""
    places: list[int] = (np.flatnonzero(np.diff(pieces)) + 1).tolist()
    return places


def _names(files: Sequence[tuple[str, str]]) -> pa.Array:
    return pa.array([readable(name) for name, _ in files], pa.string())


def _sizes(files: Sequence[tuple[str, str]]) -> list[int]:
    sizes = []
    for _, path in files:
        try:
            sizes.append(Path(path).stat().st_size)
        except OSError as error:
            raise SourceError(_cannot_read(path, error)) from error
    return sizes


def _contents(files: Sequence[tuple[str, str]]) -> pa.Array:
    """Return the contents of files as (n,) large_binary, without a copy for a single file."""
    contents = []
    for _, path in files:
        try:
            contents.append(Path(path).read_bytes())
        except OSError as error:
            raise SourceError(_cannot_read(path, error)) from error
    ends = np.cumsum([0, *map(len, contents)], dtype=np.int64)
    data = contents[0] if len(contents) == 1 else b"".join(contents)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(files), [None, pa.py_buffer(ends), pa.py_buffer(data)]
    )


def _stdlib() -> str:
    return sysconfig.get_paths()["stdlib"]


def python_stdlib(
    languages: str | Sequence[str] = (),
    text_filter: TextFilter = TextFilter(),  # noqa: B008 - frozen
    shard_seed: int | None = 0,
    dedup: Dedup = "none",
) -> FilesSource:
    """Return a source of Python's standard library: about 1,800 files and 31 MB of real code on every machine."""
    return FilesSource(
        patterns=["**/*.py"],
        root=_stdlib(),
        languages=languages,
        text_filter=text_filter,
        shard_seed=shard_seed,
        dedup=dedup,
        name="python_stdlib",
        # Some distributions keep a few of its files elsewhere.
        follow_links=True,
    )
