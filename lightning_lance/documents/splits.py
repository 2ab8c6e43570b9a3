"""Which documents are for validation: decided per document, before packing, by what it is and not by where it stands.

A hash of the group key decides: the repository where there is one, else the text, without the white space around it. So
copies of a document, and files of one repository, are never on both sides; and a document keeps its side when the store
grows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lightning_lance.documents.arrow import as_single_chunk
from lightning_lance.errors import ConfigError, described

SPLITS = ("train", "val")
# Of rows without tokens, that only keep the hashes of documents that were forgotten: de-duplication still knows their texts.
FORGOTTEN = "forgotten"


def check_val_fraction(val_fraction: float) -> None:
    """Check that a value is a share.

    Raises:
        ConfigError: If it is not in [0, 1).
    """
    number = isinstance(val_fraction, (int, float)) and not isinstance(val_fraction, bool)
    if not number or not 0 <= val_fraction < 1:
        raise ConfigError(
            f"val_fraction is {described(val_fraction)}: expected a share of the documents, 0 <= val_fraction < 1."
        )


def split_codes(groups: pa.Array, val_fraction: float) -> np.ndarray:
    """Return the split of each document.

    Args:
        groups: (n,) string or large_string group keys, no nulls.
        val_fraction: Share of the groups that is for validation.

    Returns:
        (n,) int8 places in `SPLITS`.
    """
    limit = int(val_fraction * 2**64)
    keys = groups.cast(pa.large_binary()).to_pylist()
    return np.fromiter((xxhash.xxh3_64_intdigest(key) < limit for key in keys), dtype=np.int8, count=len(keys))


def splits_of(documents: pa.Table, val_fraction: float) -> np.ndarray:
    """Return the split of each document of a batch without null texts, as (n,) int8 places in `SPLITS`.

    Args:
        documents: With `text`, and `repo` or `split` where there is one.
        val_fraction: Share of the groups that is for validation; of no matter with `split`.
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
        # The same texts as for de-duplication: copies that it would find are on one side without it too.
        texts = as_single_chunk(documents.column("text").filter(pa.array(by_text)))
        codes[by_text] = split_codes(pc.utf8_trim_whitespace(texts), val_fraction)
    return codes
