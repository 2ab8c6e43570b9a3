"""The token pages of a local store: found in its data files, and mapped into memory where they are what Lance reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lance.file import LanceFileReader

from lightning_lance.errors import StoreError
from lightning_lance.format.lance_io import take_blocks
from lightning_lance.format.lance_names import data_file_at
from lightning_lance.messages.escaping import logger
from lightning_lance.store.segments import MappedFiles

_log = logger(__name__)


def map_tokens(uri: str, dataset: Any, block: int, dtype: np.dtype[Any]) -> tuple[MappedFiles, np.ndarray] | None:
    """Map the token pages of an open dataset; None where Lance's layout or the disk forbids it.

    Args:
        uri: The store.
        dataset: Its dataset.
        block: Tokens of a row.
        dtype: Of the tokens.

    Returns:
        The mapped files, and (pages, 2) int64: the place of each page in them, in tokens, and its rows.

    Raises:
        StoreError: If a page does not lie in its file, or two of them overlap.
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
        # The tokens are the first column of the schema, so they are the first one of every file, if it was not added later.
        if [*data_files[0].column_indices][:1] != [0]:
            return None
        buffers = [page.buffers for page in LanceFileReader(str(file)).metadata().columns[0].pages]
        if any(len(parts) != 1 or not parts[0].size or parts[0].size % row_bytes for parts in buffers):
            return None
        _check_pages(file, [(parts[0].position, parts[0].size) for parts in buffers])
        if sum(parts[0].size for parts in buffers) != fragment.physical_rows * row_bytes:
            return None
        pages += [(len(files), parts[0].position, parts[0].size // row_bytes) for parts in buffers]
        files.append(file)
    if not files:
        return None
    try:
        mapped = MappedFiles(files, dtype)
        firsts = [(mapped.place(file, position, count * block), count) for file, position, count in pages]
    except (StoreError, OSError) as error:
        _log.warning("The token store %s is read by take, which is slower, since it cannot be mapped: %s.", uri, error)
        return None
    found = np.asarray(firsts, np.int64)
    # The last block of a file is where it is only if all pages before it are as large as Lance says. Not one of each page: what
    # is looked at of a map counts as memory of this process, two megabytes each time.
    ends = np.flatnonzero(np.diff([place for place, _, _ in pages], append=len(files)))
    last = found[ends, 0] + (found[ends, 1] - 1) * block
    if not np.array_equal(mapped.gather(last, block), take_blocks(dataset, np.cumsum(found[:, 1])[ends] - 1)):
        return None
    return mapped, found


def _check_pages(file: Path, pages: Sequence[tuple[int, int]]) -> None:
    """Check that pages, (position, bytes) each, lie in their file and do not overlap. StoreError if one does not."""
    size, end = file.stat().st_size, 0
    for position, length in sorted(pages):
        if position < end or position + length > size:
            raise StoreError(
                f"The data file {str(file)!r} of {size:,} bytes says that a page of tokens lies at bytes {position:,} to "
                f"{position + length:,}, where another page or nothing is: it is damaged; bring it back, or remove the store "
                "and build it again."
            )
        end = position + length
