"""Map the token pages of a local store into memory, after checking that they are what Lance reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lance.file import LanceFileReader

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import take_blocks
from lightning_lance.lance_names import data_file_at
from lightning_lance.messages.escaping import logger
from lightning_lance.store.segments import MappedFiles
from lightning_lance.store.staging import Copy

_log = logger(__name__)


def map_tokens(uri: str, dataset: Any, block: int, dtype: np.dtype[Any]) -> tuple[MappedFiles, np.ndarray] | None:
    """Map the token pages of an open dataset, of `block` tokens a row; None if Lance's layout or the disk does not allow it.

    Returns:
        The mapped files, and (pages, 2) int64: the place of each page in them, in tokens, and its rows.

    Raises:
        StoreError: If a page lies outside its file, or two pages overlap.
    """
    if "://" in uri or dataset.schema.names[0] != "tokens":
        return None
    row_bytes = block * dtype.itemsize
    files: list[Path] = []
    pages: list[tuple[int, int, int]] = []
    for fragment in dataset.get_fragments():
        data_files = fragment.data_files()
        if fragment.num_deletions or len(data_files) != 1:
            return None
        file = Path(uri, data_file_at(data_files[0].path))
        # Tokens are the first column of the schema, and so of every file, unless that column was added later.
        if [*data_files[0].column_indices][:1] != [0]:
            return None
        buffers = _plain_buffers(file, row_bytes)
        if sum(size for _, size in buffers) != fragment.physical_rows * row_bytes:
            return None
        pages += [(len(files), position, size // row_bytes) for position, size in buffers]
        files.append(file)
    if not files:
        return None
    try:
        mapped = MappedFiles(files, dtype)
        located = [(mapped.place(file, position, rows * block), rows) for file, position, rows in pages]
    except (StoreError, OSError) as error:
        _log.warning("The token store %s cannot be mapped, so it is read by take, which is slower: %s.", uri, error)
        return None
    found = np.asarray(located, np.int64)
    # Compare the last block of each file, which is in its place only if all pages before it have Lance's sizes. Not a block of
    # each page: every place of a map that is touched counts as two megabytes of this process.
    ends = np.flatnonzero(np.diff([file for file, _, _ in pages], append=len(files)))
    last = found[ends, 0] + (found[ends, 1] - 1) * block
    if not np.array_equal(mapped.gather(last, block), take_blocks(dataset, np.cumsum(found[:, 1])[ends] - 1)):
        return None
    return mapped, found


def map_copies(
    copies: Mapping[str, Copy], rows: Mapping[str, int], block: int, dtype: np.dtype[Any]
) -> tuple[MappedFiles | None, dict[str, list[tuple[int, int]]]]:
    """Map the token pages of copies of a remote store's data files.

    Args:
        copies: The copies, by the name of the data file.
        rows: The rows of each data file.
        block: Tokens of a row.
        dtype: The dtype of the tokens.

    Returns:
        The mapped files, None if there are none; and for each file the place of each page in them, in tokens, and its rows. A
        file that Lance has laid out in another way is left out.

    Raises:
        StoreError: If a page lies outside its file, or two pages overlap.
    """
    row_bytes = block * dtype.itemsize
    buffers: dict[str, list[tuple[int, int]]] = {}
    for name, copy in copies.items():
        found = _plain_buffers(copy.path, row_bytes)
        if found and sum(size for _, size in found) == rows[name] * row_bytes:
            buffers[name] = found
    if not buffers:
        return None, {}
    mapped = MappedFiles([copies[name].path for name in buffers], dtype, [copies[name].map for name in buffers])
    pages = {}
    for number, (name, found) in enumerate(buffers.items()):
        located = [(mapped.place(number, at, size // dtype.itemsize), size // row_bytes) for at, size in found]
        # As for a local store: the last block is in its place only if all pages before it have Lance's sizes.
        [last] = mapped.gather(np.asarray([located[-1][0] + (located[-1][1] - 1) * block]), block)
        if np.array_equal(last, _last_block(copies[name].path, rows[name], dtype)):
            pages[name] = located
    return mapped, pages


def _last_block(file: Path, rows: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the tokens of the last row of a data file, as Lance reads them."""
    [batch] = LanceFileReader(str(file), columns=["tokens"]).read_range(rows - 1, 1).to_batches()
    return np.asarray(batch.column(0).flatten()).astype(dtype)


def _plain_buffers(file: Path, row_bytes: int) -> list[tuple[int, int]]:
    """Return (position, bytes) of the pages of a file's first column; none if one of them is encoded."""
    buffers = []
    for page in LanceFileReader(str(file)).metadata().columns[0].pages:
        if len(page.buffers) != 1 or not page.buffers[0].size or page.buffers[0].size % row_bytes:
            return []
        buffers.append((page.buffers[0].position, page.buffers[0].size))
    _check_pages(file, buffers)
    return buffers


def _check_pages(file: Path, pages: Sequence[tuple[int, int]]) -> None:
    """Check that pages, (position, bytes) each, lie in their file and do not overlap. StoreError if one does."""
    size = file.stat().st_size
    end = 0
    for position, length in sorted(pages):
        if position < end or position + length > size:
            raise StoreError(
                f"The data file {str(file)!r} of {size:,} bytes is damaged: its page of tokens at bytes {position:,} to "
                f"{position + length:,} overlaps another or lies beyond its end; restore it, or remove the store and build it "
                "again."
            )
        end = position + length
