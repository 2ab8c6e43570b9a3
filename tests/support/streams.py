"""Streams of a store, and those that its documents must give."""

from __future__ import annotations

import lance
import numpy as np
import pyarrow as pa

from lightning_lance import TokenStore
from lightning_lance.documents.splits import SPLITS, split_codes
from tests.support.stores import Document, kept

EOS = 256


def streams(store: TokenStore) -> dict[tuple[str, str], list[int]]:
    """The logical streams: all that a reader can see."""
    return {
        (split, stream.language): store.read(np.array([stream.start]), stream.num_tokens, split)[0].tolist()
        for split in SPLITS
        for stream in store.streams(split)
    }


def expected(made: tuple[Document, ...], val_fraction: float) -> dict[tuple[str, str], list[int]]:
    result: dict[tuple[str, str], list[int]] = {}
    for text, language, repo in made:
        if text := kept(text):
            side = SPLITS[int(split_codes(pa.array([repo]), val_fraction)[0])]
            result.setdefault((side, language), []).extend([*text.encode(), EOS])
    return dict(sorted(result.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1])))


def provenance(store: TokenStore) -> dict[tuple[str, str], list[tuple[int, str, str]]]:
    """Of each stream, its documents: where they begin, their ids and repositories."""
    found: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    lengths: dict[tuple[str, str], int] = {}
    columns = ["num_tokens", "split", "language", "documents"]
    for row in lance.dataset(store.uri, version=store.version).to_table(columns).to_pylist():
        stream = row["split"], row["language"]
        begin = lengths.get(stream, 0)
        found.setdefault(stream, []).extend(
            (begin + entry["offset"], entry["id"], entry["repo"]) for entry in row["documents"]
        )
        lengths[stream] = begin + row["num_tokens"]
    return found
