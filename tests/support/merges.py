"""Stores of many small commits, and what readers see of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from lightning_lance import TokenStore
from lightning_lance.build.packing import Packer
from lightning_lance.format.commit import data_file_infos
from lightning_lance.format.lance_io import fragments_of
from lightning_lance.format.layout import layout_of
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.format.rows import BLOCK
from lightning_lance.location import StoreLocation
from tests.support.stores import append_commit, finish, packed

EOS = 60_000


NOTE = CommitMetadata("fingerprint", {"format": 2}, {}, "", "<eos>", EOS, EOS + 1)


Made = tuple[int, str, int]  # split, language, tokens


made = st.tuples(st.integers(0, 1), st.sampled_from(["Rust", "C"]), st.integers(0, 3 * BLOCK))


commits = st.lists(st.lists(made, min_size=1, max_size=6), min_size=1, max_size=6)


def append(
    uri: str,
    part: Sequence[Made],
    first: int,
    note: CommitMetadata = NOTE,
    full: int | None = None,
) -> CommitMetadata:
    """Commit documents, each with its number as id; their tokens tell them apart too. With `full`, as a build's last ones."""
    packer = Packer(EOS, np.dtype(np.uint16), ["repo"])
    ids = [np.full(size, 1 + (first + i) % 50_000, np.uint32) for i, (_, _, size) in enumerate(part)]
    numbers = [str(first + i) for i in range(len(part))]
    columns = {"language": [language for _, language, _ in part], "id": numbers, "repo": [f"r{n[-1]}" for n in numbers]}
    offsets = np.cumsum([0, *map(len, ids)])
    full_rows = packer.add(
        np.concatenate(ids), offsets, np.array([split for split, _, _ in part], np.int8), pa.table(columns)
    )
    note = replace(note, documents=note.documents + len(part), tokens=note.tokens + packer.num_tokens)
    if full is None:
        append_commit(StoreLocation(uri), packed(packer, full_rows), note)
    else:
        finish(StoreLocation(uri), packed(packer, full_rows), note, full=full)
    return note


def contents(
    uri: str, version: int | None = None
) -> dict[tuple[str, str], tuple[list[int], list[tuple[str, str, int]]]]:
    """Read of each stream the tokens, and (id, repo, place in the stream) of the documents, from the plain rows."""
    streams: dict = {}
    for row in lance.dataset(uri, version=version).to_table().to_pylist():
        tokens, documents = streams.setdefault((row["split"], row["language"]), ([], []))
        documents += [(d["id"], d["repo"], len(tokens) + d["offset"]) for d in row["documents"]]
        tokens += row["tokens"][: row["num_tokens"]]
    return streams


def check_same_readers(uri: str) -> None:
    stores = [TokenStore.open(uri, reader=reader) for reader in ("mapped", "take")]
    assert layout_of(fragments_of(stores[0]._dataset), data_file_infos(stores[0]._dataset)) is not None
    expected = contents(uri)
    for split in ("train", "val"):
        streams = [expected[key][0] for key in sorted(expected) if key[0] == split]
        stream = [token for tokens in streams for token in tokens]
        for store in stores:
            assert store.num_tokens(split) == len(stream)
            if stream:
                assert store.read(np.zeros(1, np.int64), len(stream), split)[0].tolist() == stream
