"""Commits of a token store: tokens, and a note with the source cursor after them, in one Lance transaction.

Besides `store`, this is the only module that knows Lance.
"""

from __future__ import annotations

import bisect
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import lance
import numpy as np
import pyarrow as pa

from lightning_lance.documents import one_array
from lightning_lance.errors import StoreError

# It warns of every fork. Forked workers do not go through it: see `ForkedReader`.
warnings.filterwarnings("ignore", "lance is not fork-safe")

# Raised when stores of the version before can no longer be read.
FORMAT_VERSION = 1

_PROPERTY = "lightning_lance"
# What rows the commit adds: of which stream, how many tokens, how many rows, one after the other.
_LAYOUT = "lightning_lance_layout"


@dataclass(frozen=True)
class Commit:
    """What a commit says beside its tokens. All counts are of the whole store, up to and with this commit.

    Attributes:
        fingerprint: Hash of the recipe.
        recipe: All that decides the stored tokens; JSON types.
        pin: What finds the same shards again (`OpenedSource.pin`).
        shards: Hash of the names of the shards, in reading order.
        eos_token: The token that ends every document.
        eos_id: Its id.
        vocab_size: Largest id of the tokenizer plus one.
        shard: Cursor: place of the shard to read next.
        row: Cursor: first row of that shard that is not in the store.
        documents: Documents.
        tokens: Tokens, EOS included.
        text_bytes: Bytes of text.
        skipped: Documents left out, by reason (`null`, `not_utf8`, `empty`, `blank`, `long`).
        noted: Documents that are in the store, by what is remarkable (`special`, `nul`, `crlf`, `bom`, `split`).
        languages: Documents by language.
        exhausted: Whether the source has no more documents.
    """

    fingerprint: str
    recipe: dict[str, Any]
    pin: dict[str, Any]
    shards: str
    eos_token: str
    eos_id: int
    vocab_size: int
    shard: int = 0
    row: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    exhausted: bool = False


class StreamPart(NamedTuple):
    """Rows of one stream that follow each other: `tokens` tokens in `rows` blocks, full but for the last."""

    split: str
    language: str
    tokens: int
    rows: int


class StreamExtent(NamedTuple):
    """Where a stream lies among the tokens of its split: `num_tokens` tokens from `start` on."""

    language: str
    start: int
    num_tokens: int


def append_commit(uri: str, rows: pa.Table, commit: Commit, storage_options: Mapping[str, str] | None = None) -> int:
    """Add rows and their commit note in one transaction; makes the store if there is none. Returns the new version."""
    before = dataset_at(uri, None, storage_options)
    written = lance.write_dataset(
        rows,
        uri,
        mode="append" if before is not None else "create",
        transaction_properties={_PROPERTY: json.dumps(asdict(commit)), _LAYOUT: json.dumps(_layout(rows))},
        storage_options=dict(storage_options or {}) or None,
    )
    version, expected = int(written.version), 1 if before is None else int(before.version) + 1
    if version != expected:
        raise StoreError(
            f"Another process wrote to {uri!r} at the same time (version {version}, expected {expected}), so it may hold "
            "documents twice: remove it, and let one process build it."
        )
    return version


def _layout(rows: pa.Table) -> list[tuple[str, str, int, int]]:
    keys = [rows.column(name).to_numpy() for name in ("split", "language")]
    changes = np.logical_or(*(key[1:] != key[:-1] for key in keys)) if len(rows) else np.empty(0, bool)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(rows)] if len(rows) else [0]
    tokens = np.asarray(rows.column("num_tokens"))
    return [(keys[0][low], keys[1][low], int(tokens[low:high].sum()), high - low) for low, high in pairwise(borders)]


def is_commit(dataset: Any) -> bool:
    """Tell whether the version that is open was committed by this package, and not made by others out of one that was."""
    return _PROPERTY in (dataset.read_transaction(int(dataset.version)).transaction_properties or {})


def layout_of(dataset: Any) -> list[StreamPart] | None:
    """Read from the notes of all commits which rows are of which stream; None if they do not tell of every row.

    That is far less to read than the rows' own columns; but where versions were removed, or rows by others than this package
    added, deleted or moved, only the columns know.
    """
    parts: list[StreamPart] = []
    for version in range(1, int(dataset.version) + 1):
        try:
            note = (dataset.read_transaction(version).transaction_properties or {}).get(_LAYOUT)
        except (ValueError, OSError):
            return None
        if note is None:
            return None
        parts += [StreamPart(*part) for part in json.loads(note)]
    return parts if sum(part.rows for part in parts) == dataset.count_rows() else None


def last_commit(
    uri: str, version: int | None = None, storage_options: Mapping[str, str] | None = None
) -> Commit | None:
    """Read the note of the last commit up to a version; None if there is no store. StoreError if it is another thing."""
    dataset = dataset_at(uri, version, storage_options)
    return None if dataset is None else commit_of(dataset, uri)


def first_version(uri: str, holds: Callable[[Commit], bool], storage_options: Mapping[str, str] | None = None) -> int:
    """Find the first version whose commit note passes a test that all later ones pass too. StoreError if none does."""
    dataset = dataset_at(uri, None, storage_options)
    versions = [] if dataset is None else sorted(int(entry["version"]) for entry in dataset.versions())
    place = bisect.bisect_left(versions, True, key=lambda version: holds(_commit_at(uri, version, storage_options)))
    if place == len(versions):
        raise StoreError(f"No version of the token store {uri!r} is complete: run 'lightning-lance prepare' again.")
    return versions[place]


def _commit_at(uri: str, version: int, storage_options: Mapping[str, str] | None) -> Commit:
    commit = last_commit(uri, version, storage_options)
    if commit is None:
        raise StoreError(f"Version {version} of the token store {uri!r} is gone: it was removed while it was read.")
    return commit


def dataset_at(uri: str, version: int | None, storage_options: Mapping[str, str] | None) -> Any:
    """Open a Lance dataset at a version, or as it is now; None if there is none. StoreError if it cannot be opened."""
    try:
        return lance.dataset(uri, version=version, storage_options=dict(storage_options or {}) or None)
    except (ValueError, OSError) as error:
        if "not found" in str(error).lower():
            return None
        raise StoreError(f"The token store {uri!r} cannot be opened: {' '.join(str(error).split())[:300]}") from error


def take_blocks(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Read the tokens of rows, as (n, block)."""
    tokens = one_array(dataset.take(rows.tolist(), columns=["tokens"]).column("tokens"))
    return np.asarray(tokens.flatten()).reshape(len(rows), -1)


def commit_of(dataset: Any, uri: str) -> Commit:
    """Read the note of the last commit of an open dataset. StoreError if it has none."""
    # Other writes (a deletion, a compaction) make versions that carry no note: the one before them still holds.
    for version in range(int(dataset.version), 0, -1):
        try:
            note = (dataset.read_transaction(version).transaction_properties or {}).get(_PROPERTY)
        except (ValueError, OSError):
            break
        if note is not None:
            return Commit(**json.loads(note))
    raise StoreError(
        f"The Lance dataset {uri!r} is no token store: none of its versions was committed by this package."
    )
