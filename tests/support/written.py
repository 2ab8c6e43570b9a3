"""Stores written row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from lightning_lance.build.packing import Packer
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import StoreLocation
from tests.support.stores import append_commit, packed

EOS = 60_000


NOTE = CommitMetadata("fingerprint", {"format": 2}, {}, "", "<eos>", EOS, EOS + 1)


def write(uri: str, commits: list[list[tuple[int, str, list[int]]]], dtype: type = np.uint16) -> None:
    """Commit documents (split, language, ids), one commit after the other."""
    note = NOTE
    for part in commits:
        packer = Packer(EOS, np.dtype(dtype), [])
        ids = np.array([i for _, _, ids in part for i in ids], np.uint32)
        offsets = np.cumsum([0, *(len(ids) for _, _, ids in part)])
        names = [language for _, language, _ in part]
        described = pa.table({"language": pa.array(names, pa.string()), "id": pa.array(names, pa.string())})
        full = packer.add(ids, offsets, np.array([split for split, _, _ in part], np.int8), described)
        note = replace(note, documents=note.documents + len(part), tokens=note.tokens + packer.num_tokens)
        append_commit(StoreLocation(uri), packed(packer, full), note)
