"""Changes of other programs through Lance are named in a message, and nothing is built on top of them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.errors import StoreError
from lightning_lance.format.lineage import change_of, lineage_of
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.maintenance.removal import clean_up
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents, only_append

SOURCE = ListSource(
    tuple(
        entry
        for i in range(12)
        for entry in documents(f"document {i} " * 300, language="Rust" if i % 2 else "Python", repo=f"r{i}")
    )
)
Operation = Callable[[Any], Any]


def build(uri: Path, budget: int | None = None) -> TokenStore:
    return prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0, max_documents=budget)


def stream(store: TokenStore) -> list[int]:
    return store.read(np.zeros(1, np.int64), store.num_tokens())[0].tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    return stream(build(tmp_path_factory.mktemp("whole") / "x.lance"))


def append(dataset: Any) -> None:
    lance.write_dataset(dataset.to_table(limit=2), dataset.uri, mode="append")


def delete(dataset: Any) -> None:
    dataset.delete("language = 'Rust'")


def compact(dataset: Any) -> None:
    dataset.optimize.compact_files()


def merge_insert(dataset: Any) -> None:
    merged = dataset.merge_insert("num_tokens").when_matched_update_all().when_not_matched_insert_all()
    merged.execute(dataset.to_table(limit=1))


CHANGES: dict[str, tuple[list[Operation], str]] = {
    "append": ([append], "rows were appended"),
    "delete": ([delete], "rows were deleted"),
    "delete all": ([lambda dataset: dataset.delete("true")], "rows were deleted"),
    "delete and compact": ([delete, compact], "rows were deleted, then rows were moved by a compaction"),
    "append and compact": ([append, compact], "rows were appended, then rows were moved by a compaction"),
    "update": ([lambda dataset: dataset.update({"language": "'Go'"}, where="language = 'Rust'")], "rows were updated"),
    "merge_insert": ([merge_insert], "rows were updated or merged in"),
    "drop documents": ([lambda dataset: dataset.drop_columns(["documents"])], "columns were dropped"),
    "drop tokens": ([lambda dataset: dataset.drop_columns(["tokens"])], "columns were dropped"),
    "rename": ([lambda dataset: dataset.alter_columns({"path": "split", "name": "part"})], "columns were dropped"),
    "add a column": ([lambda dataset: dataset.add_columns({"more": "num_tokens + 1"})], "columns were added"),
    "overwrite": (
        [lambda dataset: lance.write_dataset(pa.table({"a": [1]}), dataset.uri, mode="overwrite")],
        "it was overwritten",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_others_changed_is_named_and_not_built_on(tmp_path: Path, name: str, whole: list[int]):
    uri = tmp_path / "x.lance"
    first = build(uri, 6)
    begun, state = stream(first), WindowLoader(first, 16, 4).state_dict()
    operations, told = CHANGES[name]
    for operation in operations:
        operation(lance.dataset(uri))
    version = lance.dataset(uri).version
    for refused in (lambda: build(uri), lambda: forget(str(uri), {"repo": "r1"})):
        with pytest.raises(
            StoreError, match=f"changed by another program since version 1 .{told}.*restore.. brings that"
        ):
            refused()
    assert lance.dataset(uri).version == version
    problems = [str(problem) for problem in verify_store(str(uri))]
    assert problems
    assert not any("remove the store" in problem for problem in problems)
    # Its earlier content is there, also for checkpoints and smaller budgets.
    clean_up(StoreLocation(str(uri)))
    assert stream(build(uri, 6)) == stream(TokenStore.open(uri, 1)) == begun
    WindowLoader(build(uri, 6), 16, 4).load_state_dict(state)
    # The cure in the message works.
    lance.dataset(uri, version=1).restore()
    assert stream(build(uri)) == whole
    assert verify_store(str(uri)) == []


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("append", 23_442), ("delete", 11_703), ("update", 23_394), ("merge_insert", None), ("drop documents", 23_394)],
)
def test_what_is_left_is_served_with_a_warning(
    tmp_path: Path, name: str, tokens: int | None, caplog: pytest.LogCaptureFixture
):
    uri = tmp_path / "x.lance"
    first = build(uri, 6)
    for operation in CHANGES[name][0]:
        operation(lance.dataset(uri))
    rows = lance.dataset(uri).to_table(columns=["num_tokens"]).column("num_tokens").to_pylist()
    caplog.clear()
    store = TokenStore.open(uri)
    (said,) = caplog.messages
    assert said.startswith(
        f"Version {store.version} of the token store '{uri}' was changed by another program since version 1 ("
    )
    assert store.num_tokens() == sum(rows)
    with pytest.raises(StoreError, match="so the documents of its windows are unknown"):
        store.documents(np.array([0]), 9)
    assert len(first.documents(np.array([0]), 9)) == 1


@pytest.mark.parametrize("name", ["drop tokens", "rename", "overwrite"])
def test_what_is_no_store_any_more_is_refused(tmp_path: Path, name: str):
    uri = tmp_path / "x.lance"
    build(uri, 6)
    for operation in CHANGES[name][0]:
        operation(lance.dataset(uri))
    with pytest.raises(StoreError, match=r"dropped or renamed|is not a token store any more"):
        TokenStore.open(uri)


@pytest.mark.parametrize(
    "operations",
    [
        [delete, lambda dataset: lance.dataset(dataset.uri, version=1).restore()],
        [append, delete, compact, lambda dataset: lance.dataset(dataset.uri, version=1).restore()],
        [lambda dataset: dataset.create_scalar_index("language", "BTREE")],
        [lambda dataset: dataset.update_config({"a": "b"})],
        [lambda dataset: dataset.tags.create("mine", 1)],
        [lambda dataset: dataset.create_branch("mine")],
    ],
)
def test_what_changes_no_row_is_carried(
    tmp_path: Path, operations: list[Operation], whole: list[int], caplog: pytest.LogCaptureFixture
):
    uri = tmp_path / "x.lance"
    begun = stream(build(uri, 6))
    for operation in operations:
        operation(lance.dataset(uri))
    assert change_of(lance.dataset(uri), StoreLocation(str(uri))) is None
    assert stream(TokenStore.open(uri)) == begun
    assert stream(build(uri)) == whole
    assert verify_store(str(uri)) == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_compaction_is_carried(tmp_path: Path, whole: list[int], monkeypatch: pytest.MonkeyPatch):
    uri = tmp_path / "x.lance"
    with monkeypatch.context() as patch:
        patch.setattr("lightning_lance.engines.local.commit_final", only_append)
        prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0, max_documents=8, commit_tokens=1)
    compact(lance.dataset(uri))
    change = change_of(lance.dataset(uri), StoreLocation(str(uri)))
    assert change is not None
    assert (change.of_rows, change.readable) == (False, True)
    # For operations that are gone, the rows are compared.
    versions = [entry["version"] for entry in lance.dataset(uri).versions()]
    for version in versions[-2:-1]:
        (uri / f"_versions/{2**64 - 1 - version:020d}.manifest").unlink()
    assert "Unknown" in lineage_of(lance.dataset(uri)).operations
    assert stream(build(uri)) == whole


def test_a_store_that_was_restored_to_an_older_build_goes_on_from_there(tmp_path: Path, whole: list[int]):
    """The metadata of the last commit describes more rows than are left."""
    uri = tmp_path / "x.lance"
    older = build(uri, 4)
    begun = stream(older)
    build(uri, 8)
    lance.dataset(uri, version=older.version).restore()
    restored = TokenStore.open(uri)
    assert (restored.commit, stream(restored)) == (older.commit, begun)
    assert stream(build(uri)) == whole
    assert verify_store(str(uri)) == []


def test_whole_fragments_that_are_gone_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The remaining rows agree with their metadata: only the missing ones show the change."""
    uri = tmp_path / "x.lance"
    with monkeypatch.context() as patch:
        patch.setattr("lightning_lance.engines.local.commit_final", only_append)
        prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.0, max_documents=8, commit_tokens=1)
    dataset = lance.dataset(uri)
    first = dataset.get_fragments()[0].fragment_id
    gone = lance.LanceOperation.Delete(updated_fragments=[], deleted_fragment_ids=[first], predicate="true")
    lance.LanceDataset.commit(str(uri), gone, read_version=dataset.version)
    assert len(lance.dataset(uri).get_fragments()) == len(dataset.get_fragments()) - 1
    with pytest.raises(StoreError, match="rows were deleted"):
        forget(str(uri), {"repo": "r5"})
    assert any("rows were deleted" in problem.what for problem in verify_store(str(uri)))
