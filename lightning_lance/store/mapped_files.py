"""Map the pages of tokens of a local store, or of a channel, into memory, after checking that they are what Lance reads."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lance.file import LanceFileReader
from lance.fragment import DataFile, FragmentMetadata

from lightning_lance.errors import StoreError
from lightning_lance.format.channels import TOKENS
from lightning_lance.format.lance_footer import ColumnPages, column_pages
from lightning_lance.format.lance_io import take_blocks
from lightning_lance.lance_names import data_file_at, name_of
from lightning_lance.messages.escaping import logger
from lightning_lance.store.segments import MappedFiles
from lightning_lance.store.staging import Copy

_log = logger(__name__)

# Of a store of more files, those that are encoded alike are compared by one of them.
_ALL_COMPARED = 256


class _Tokens(NamedTuple):
    """The tokens of a data file.

    Attributes:
        pages: (position, bytes) of each page.
        encoding: How the pages are encoded. None if only Lance knows.
    """

    pages: list[tuple[int, int]]
    encoding: Hashable | None

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return sum(size for _, size in self.pages)


class _Pages(NamedTuple):
    """The pages of tokens of a store, in the order of their rows.

    Attributes:
        files: The data files.
        column: Its place among the columns of each file.
        described: A number for what Lance is told of each file besides its rows: files that are equal in it, Lance reads in one
            way. None if only Lance knows.
        file: (pages,) index of the file of each page.
        position: (pages,) its place in that file, in bytes.
        rows: (pages,) its rows.
    """

    files: list[str]
    column: list[int]
    described: list[int | None]
    file: np.ndarray
    position: np.ndarray
    rows: np.ndarray


def map_tokens(
    uri: str,
    dataset: Any,
    fragments: Sequence[FragmentMetadata],
    block: int,
    dtype: np.dtype[Any],
    column: str = TOKENS,
) -> tuple[MappedFiles, np.ndarray] | None:
    """Map the pages of tokens of a store into memory; None if Lance's layout or the system does not allow it.

    Args:
        uri: Its place.
        dataset: Its open dataset.
        fragments: The fragments of that.
        block: Tokens of a row.
        dtype: The dtype of the tokens.
        column: The tokens, or a channel of them.

    Returns:
        The mapped files, and (pages, 2) int64: the place of each page in them, in tokens, and its rows.

    Raises:
        StoreError: If a page lies outside its file, or two pages overlap.
    """
    if "://" in uri or dataset.schema.names[0] != TOKENS:
        return None
    row_bytes = block * dtype.itemsize
    found = _pages_of(uri, dataset, fragments, row_bytes, column)
    if found is None:
        return None
    try:
        mapped = MappedFiles(found.files, dtype)
        places = mapped.places(found.file, found.position, found.rows * block)
    except (StoreError, OSError) as error:
        _log.warning("The token store %s cannot be mapped, so it is read by take, which is slower: %s.", uri, error)
        return None
    if not _is_read_by_lance(dataset, found, mapped, places, block, row_bytes, column):
        return None
    return mapped, np.stack([places, found.rows], axis=1)


def place_in(file: DataFile, dataset: Any, column: str) -> int | None:
    """Return the place of a column of a dataset among those of a data file; None if it is in another, as one added later."""
    # Tokens are the first column of the schema, and so of every file, unless that column was added later.
    if [*file.column_indices][:1] != [0]:
        return None
    if column == TOKENS:
        return 0
    field = dataset.lance_schema.field(column).id()
    place = dict(zip(file.fields, file.column_indices, strict=True)).get(field, -1)
    return place if place >= 0 else None


def _pages_of(
    uri: str, dataset: Any, fragments: Sequence[FragmentMetadata], row_bytes: int, name: str
) -> _Pages | None:
    """Return the pages of tokens of fragments; None if their layout is another."""
    files: list[str] = []
    columns_of_files: list[int] = []
    described: list[int | None] = []
    descriptions: dict[Hashable, int] = {}
    pages = array("q")
    for fragment in fragments:
        if len(fragment.files) != 1 or fragment.deletion_file is not None:
            return None
        [file] = fragment.files
        column = place_in(file, dataset, name)
        if column is None:
            return None
        path = f"{uri}/{data_file_at(name_of(file))}"
        tokens = _tokens_of(path, row_bytes, column)
        if tokens.num_bytes != fragment.physical_rows * row_bytes:
            return None
        for position, size in tokens.pages:
            pages.extend((len(files), position, size // row_bytes))
        if not tokens.pages:
            continue
        files.append(path)
        columns_of_files.append(column)
        if tokens.encoding is None:
            described.append(None)
            continue
        version = (file.file_major_version, file.file_minor_version)
        columns = (*file.fields, "at", *file.column_indices, "column", column)
        described.append(descriptions.setdefault((tokens.encoding, version, columns), len(descriptions)))
    if not files:
        return None
    return _Pages(files, columns_of_files, described, *np.frombuffer(pages, np.int64).reshape(-1, 3).T)


def _is_read_by_lance(
    dataset: Any, pages: _Pages, mapped: MappedFiles, places: np.ndarray, block: int, row_bytes: int, column: str
) -> bool:
    """Return whether Lance reads these pages, at these places, as they are mapped."""
    ends = np.flatnonzero(np.diff(pages.file, append=len(pages.files)))
    begins = np.append(0, ends[:-1] + 1)
    compared = _to_compare(pages.described)
    for number in compared:
        its = slice(begins[number], ends[number] + 1)
        ours = [*zip(pages.position[its].tolist(), (pages.rows[its] * row_bytes).tolist(), strict=True)]
        if pages.described[number] is None:
            continue
        if _pages_by_lance(pages.files[number], row_bytes, pages.column[number]) != ours:
            return False
    # The last block of a file is in its place only if all pages before it have Lance's sizes. Not a block of each page: every
    # place of a map that is touched counts as two megabytes of this process.
    last = ends[compared]
    blocks = mapped.gather(places[last] + (pages.rows[last] - 1) * block, block)
    return np.array_equal(blocks, take_blocks(dataset, np.cumsum(pages.rows)[last] - 1, column))


def _to_compare(described: Sequence[int | None]) -> list[int]:
    """Return the files to compare with what Lance reads: all of some hundred; of more, one of each description."""
    if len(described) <= _ALL_COMPARED:
        return [*range(len(described))]
    compared = []
    seen: set[int] = set()
    for number, description in enumerate(described):
        if description is None:
            compared.append(number)
        elif description not in seen:
            compared.append(number)
            seen.add(description)
    return compared


def map_copies(
    copies: Mapping[str, Copy],
    rows: Mapping[str, int],
    block: int,
    dtype: np.dtype[Any],
    column: str = TOKENS,
    places: Mapping[str, int | None] | None = None,
) -> tuple[MappedFiles | None, dict[str, list[tuple[int, int]]]]:
    """Map the pages of tokens of copies of a remote store's data files.

    Args:
        copies: The copies, by the name of the data file.
        rows: The rows of each data file.
        block: Tokens of a row.
        dtype: The dtype of the tokens.
        column: The tokens, or a channel of them.
        places: Its place among the columns of each data file; the first one where that is not said.

    Returns:
        The mapped files, None if there are none; and for each file the place of each page in them, in tokens, and its rows. A
        file that Lance has laid out in another way is left out.

    Raises:
        StoreError: If a page lies outside its file, or two pages overlap.
    """
    row_bytes = block * dtype.itemsize
    buffers: dict[str, list[tuple[int, int]]] = {}
    files: list[Path] = []
    handles: list[mmap.mmap] = []
    for name, copy in copies.items():
        place = (places or {}).get(name, 0)
        if place is None:
            continue
        tokens = _tokens_of(str(copy.path), row_bytes, place)
        if tokens.pages and tokens.num_bytes == rows[name] * row_bytes:
            buffers[name] = tokens.pages
            files.append(copy.path)
            handles.append(copy.map)
    if not buffers:
        return None, {}
    mapped = MappedFiles(files, dtype, handles)
    pages: dict[str, list[tuple[int, int]]] = {}
    for number, (name, found) in enumerate(buffers.items()):
        located: list[tuple[int, int]] = []
        for position, size in found:
            located.append((mapped.place(number, position, size // dtype.itemsize), size // row_bytes))
        # As for a local store: the last block is in its place only if all pages before it have Lance's sizes.
        last_page, last_rows = located[-1]
        [last] = mapped.gather(np.asarray([last_page + (last_rows - 1) * block]), block)
        if np.array_equal(last, _last_block(files[number], rows[name], dtype, column)):
            pages[name] = located
    return mapped, pages


def _last_block(file: Path, rows: int, dtype: np.dtype[Any], column: str) -> np.ndarray:
    """Return the tokens of the last row of a data file, as Lance reads them."""
    [batch] = LanceFileReader(str(file), columns=[column]).read_range(rows - 1, 1).to_batches()
    return np.asarray(batch.column(0).flatten()).astype(dtype)


def _tokens_of(file: str, row_bytes: int, column: int = 0) -> _Tokens:
    """Return where the tokens of a data file are, or a channel of them; no pages if one of them is encoded."""
    found = column_pages(file, column)
    if found is not None:
        plain = _plain_pages(found, row_bytes)
        if plain is not None:
            _check_pages(file, found.file_size, plain)
            return _Tokens(plain, found.encoding)
    pages = _pages_by_lance(file, row_bytes, column)
    _check_pages(file, Path(file).stat().st_size, pages)
    return _Tokens(pages, None)


def _plain_pages(found: ColumnPages, row_bytes: int) -> list[tuple[int, int]] | None:
    """Return (position, bytes) of the pages of a column; None if one of them is empty or encoded."""
    plain: list[tuple[int, int]] = []
    for position, size, rows in found.pages:
        if size <= 0 or size != rows * row_bytes:
            return None
        plain.append((position, size))
    return plain


def _pages_by_lance(file: str, row_bytes: int, column: int) -> list[tuple[int, int]]:
    """Return (position, bytes) of the pages of a file's column as Lance tells; none if one of them is encoded."""
    found = []
    for page in LanceFileReader(file).metadata().columns[column].pages:
        if len(page.buffers) != 1 or not page.buffers[0].size or page.buffers[0].size % row_bytes:
            return []
        found.append((page.buffers[0].position, page.buffers[0].size))
    return found


def _check_pages(file: str, size: int, pages: Sequence[tuple[int, int]]) -> None:
    """Check that pages, (position, bytes) each, lie in their file of `size` bytes and do not overlap. Else StoreError."""
    end = 0
    for position, length in sorted(pages):
        if position < end or position + length > size:
            raise StoreError(
                f"The data file {file!r} of {size:,} bytes is damaged: its page of tokens at bytes {position:,} to "
                f"{position + length:,} overlaps another or lies beyond its end; restore it, or remove the store and build it "
                "again."
            )
        end = position + length
