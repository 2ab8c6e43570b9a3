from pathlib import Path

import pytest

from lightning_lance.errors import StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.versions import find_version, first_version
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.store.token_store import TokenStore
from tests.support.written import write


def test_the_first_version_that_holds(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    assert last_commit(StoreLocation(uri)) is None
    write(uri, [[(0, "C", [1])]] * 5)
    assert [first_version(StoreLocation(uri), lambda commit, n=n: commit.documents >= n) for n in range(6)] == [
        1,
        1,
        2,
        3,
        4,
        5,
    ]
    with pytest.raises(StoreError, match="No version of the token store"):
        first_version(StoreLocation(uri), lambda commit: commit.documents > 5)


def test_equal_numbers_of_tokens_are_not_equal_extents(tmp_path: Path):
    """Two documents of three tokens; one is forgotten and another is added: three, six, three, and then six again."""
    uri = str(tmp_path / "x.lance")
    write(uri, [[(0, "C", [1, 2])], [(0, "Rust", [3, 4])]])
    TokenStore.open(uri).keep("before")
    TokenStore.open(uri, version=1).keep("first")
    forget(uri, {"language": "C"})
    held = {
        extent: find_version(StoreLocation(uri), extent)
        for extent in (StoreContent(3), StoreContent(6), StoreContent(6, ("language=C",)))
    }
    assert list(held.values()) == [1, 2, 3]
    assert TokenStore.open(uri).commit.stored_tokens == 3
    assert find_version(StoreLocation(uri), StoreContent(3, ("language=C",))) is None
    assert len({extent.name for extent in held}) == 3
