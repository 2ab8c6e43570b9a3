"""The token pages of a local store: found in its data files, and mapped into memory where they are what Lance reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from lance.file import LanceFileReader

from lightning_lance.errors import StoreError
from lightning_lance.fragments import take_blocks
from lightning_lance.segments import MappedFiles

_log = logging.getLogger(__name__)


def map_tokens(uri: str, dataset: Any, block: int, dtype: np.dtype[Any]) -> tuple[MappedFiles, np.ndarray] | None:
    """Map the token pages of an open dataset; None where Lance's layout or the disk forbids it.

    Args:
        uri: The store.
        dataset: Its dataset.
        block: Tokens of a row.
        dtype: Of the tokens.

    Returns:
        The mapped files, and (pages, 2) int64: the place of each page in them, in tokens, and its rows.
    """
    if "://" in uri:
        return None
    row_bytes = block * dtype.itemsize
    files: list[Path] = []
    pages: list[tuple[int, int, int]] = []
    for fragment in dataset.get_fragments():
        data_files = fragment.data_files()
        if fragment.num_deletions or len(data_files) != 1:
            return None
        file = Path(uri, "data", data_files[0].path)
        # The tokens are the first column of the schema, so they are the first one of every file.
        buffers = [page.buffers for page in LanceFileReader(str(file)).metadata().columns[0].pages]
        if any(len(parts) != 1 or parts[0].size % row_bytes for parts in buffers):
            return None
        if sum(parts[0].size for parts in buffers) != fragment.physical_rows * row_bytes:
            return None
        pages += [(len(files), parts[0].position, parts[0].size // row_bytes) for parts in buffers]
        files.append(file)
    if not files:
        return None
    try:
        mapped = MappedFiles(files, dtype)
        firsts = [(mapped.place(file, position), count) for file, position, count in pages]
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
