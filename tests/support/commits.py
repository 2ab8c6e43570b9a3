"""A commit to begin with, and rows for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lightning_lance.build.packing import Packer
from lightning_lance.build.row_writer import RowWriter
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import StoreLocation
from tests.support.stores import packed

EOS = 60_000


NOTE = CommitMetadata("fingerprint", {"format": 2}, {}, "", "<eos>", EOS, EOS + 1)


def rows_of(number: int, count: int = 1) -> pa.Table:
    """One document of `count` tokens, all of them `number`."""
    packer = Packer(EOS, np.dtype(np.uint16), [])
    documents = pa.table({"language": ["C"], "id": [str(number)]})
    full = packer.add(np.full(count, number, np.uint32), np.array([0, count]), np.zeros(1, np.int8), documents)
    return packed(packer, full)


def writer_of(uri: str, version: int = 0) -> RowWriter:
    return RowWriter(StoreLocation(uri), version, NOTE.fingerprint, rows_of(1).schema)
