"""Train and validation split: decided per document, before packing, by its content and not by its position.

A hash of the group key decides. The key is the repository, or, without one, the text without the white space around it.
So copies of a document, and files of one repository, are always in the same split, and a document keeps its split as the
store grows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.errors import ConfigError, described

SPLITS = ("train", "val")
# Split of rows without tokens that hold the hashes of forgotten documents, for de-duplication.
FORGOTTEN = "forgotten"


def check_val_fraction(val_fraction: float) -> None:
    """Raise ConfigError if `val_fraction` is not a number in [0, 1)."""
    number = isinstance(val_fraction, (int, float)) and not isinstance(val_fraction, bool)
    if not number or not 0 <= val_fraction < 1:
        raise ConfigError(
            f"val_fraction is {described(val_fraction)}: expected a share of the documents, 0 <= val_fraction < 1."
        )


def split_codes(groups: pa.Array, val_fraction: float) -> np.ndarray:
    """Return the splits of documents by their (n,) group keys, strings without nulls, as (n,) int8 indices into `SPLITS`."""
    limit = np.uint64(int(val_fraction * 2**64))
    keys = groups.cast(pa.large_binary()).to_pylist()
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, keys), np.uint64, len(keys))
    return (hashes < limit).astype(np.int8)


def splits_of(documents: pa.Table, val_fraction: float) -> np.ndarray:
    """Return the split of each document of a batch without null texts, as (n,) int8 indices into `SPLITS`.

    Args:
        documents: A table with `text`, and optionally `repo` or `split`.
        val_fraction: Share of the groups in the validation split; unused with `split`.
    """
    if "split" in documents.column_names:
        return np.asarray(pc.index_in(documents.column("split"), pa.array(SPLITS))).astype(np.int8)
    codes = np.zeros(len(documents), np.int8)
    if val_fraction == 0:
        return codes
    by_text = np.ones(len(documents), bool)
    if "repo" in documents.column_names:
        repos = documents.column("repo")
        by_text = ~np.asarray(pc.fill_null(pc.not_equal(repos, ""), False))
        codes[~by_text] = split_codes(as_single_chunk(repos.filter(pa.array(~by_text))), val_fraction)
    if by_text.any():
        # Trimmed as for de-duplication, so that copies are in the same split.
        texts = as_single_chunk(documents.column("text").filter(pa.array(by_text)))
        codes[by_text] = split_codes(pc.utf8_trim_whitespace(texts), val_fraction)
    return codes
