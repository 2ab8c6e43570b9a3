"""All that is done with a store in its life, so that stores in different places can be compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.inspection.summary import describe_store, list_stores
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents

SOURCE = ListSource(documents(*[f"text {i} " * 60 for i in range(40)]))


def whole(store: TokenStore) -> list[list[int]]:
    """All tokens of both splits."""
    return [store.read(np.array([0]), store.num_tokens(split), split)[0].tolist() for split in ("train", "val")]


def life(uri: str, folder: Path, options: dict[str, str] | None, commit_tokens: int | None = None) -> Iterator[Any]:
    """Do everything that is done with a store, and yield what each of it gave."""
    arguments: dict[str, Any] = {
        "storage_options": options,
        "val_fraction": 0.2,
        "data_dir": folder,
        "commit_tokens": commit_tokens,
    }
    small = prepare(SOURCE, ByteTokenizer(), uri, max_documents=15, **arguments)
    yield small.commit, whole(small)
    assert small.keep("mine")
    first = WindowLoader(small, 50, 4)
    served = [next(batches)["input_ids"].tolist() for batches in [iter(first)] for _ in range(5)]
    state = {**first.state_dict(), "stores": None}
    grown = prepare(SOURCE, ByteTokenizer(), uri, **arguments)
    yield grown.commit, whole(grown), served, state
    # The state of the smaller store goes on in the version that its tag keeps.
    resumed = WindowLoader(TokenStore.open(uri, small.version, options), 50, 4)
    resumed.load_state_dict(first.state_dict())
    yield [batch["input_ids"].tolist() for batch in resumed]
    done = forget(uri, {"repo": "repo7"}, options)
    yield done.documents, done.tokens
    left = TokenStore.open(uri, storage_options=options)
    yield whole(left), verify_store(uri, options), clean(uri, options).left
    described = describe_store(uri, options)
    yield [{*version.kept_by} for version in described.versions], described.forgotten, described.languages
    [line] = list_stores(uri.rpartition("/")[0], options)
    yield line.name, line.state, line.documents, line.tokens
