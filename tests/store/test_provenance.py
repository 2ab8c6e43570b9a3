import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore
from lightning_lance.documents.splits import SPLITS, split_codes
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.location import StoreLocation
from lightning_lance.store.provenance import document_lists, stored_hashes
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import Document, ListSource

LONG = 5000  # over three blocks

documents = st.lists(
    st.tuples(
        st.one_of(st.text("ab", min_size=1, max_size=9), st.integers(1, LONG).map(lambda size: "x" * size)),
        st.sampled_from(["Python", "Rust"]),
        st.sampled_from(["r1", "r2", "r3"]),
    ),
    min_size=1,
    max_size=25,
)


def spans(made: list[Document], split: str) -> list[tuple[int, int, str, str, str]]:
    """Return the documents of a split by brute force: begin, end, id, repository, language."""
    found, at = [], 0
    for wanted in sorted({language for _, language, _ in made}):
        for i, (text, language, repo) in enumerate(made):
            if language == wanted and SPLITS[int(split_codes(pa.array([repo]), 0.5)[0])] == split:
                found.append((at, at + len(str(text)) + 1, f"{i // 4}:{i % 4}", repo, language))
                at = found[-1][1]
    return found


@examples(10)
@given(documents, st.integers(1, 6000), st.lists(st.integers(1, 25), max_size=2), st.booleans(), st.data())
def test_the_documents_of_windows_are_those_of_a_walk_through_all(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[Document],
    commit_tokens: int,
    budgets: list[int],
    dedup: bool,
    data: st.DataObject,
):
    folder = tmp_path_factory.mktemp("data")
    if dedup:
        made = [(f"{i}{text}", language, repo) for i, (text, language, repo) in enumerate(made)]
    source = ListSource(tuple(made), dedup="exact" if dedup else "none")
    for budget in [*sorted(budgets), None]:
        options = {"max_documents": budget, "commit_tokens": commit_tokens}
        store = prepare(source, ByteTokenizer(), data_dir=folder, val_fraction=0.5, **options)
        for split in SPLITS:
            known, total = spans(made[:budget], split), store.num_tokens(split)
            if not total:
                continue
            length = data.draw(st.integers(1, min(total, 3000)))
            edges = st.sampled_from(
                sorted({max(begin - 1, 0) for begin, *_ in known} | {end - 1 for _, end, *_ in known})
            )
            start = (st.integers(0, total - length) | edges).map(lambda start, most=total - length: min(start, most))
            starts = data.draw(st.lists(start, max_size=6))
            expected = [
                (i, max(begin - start, 0), min(end - start, length), *rest)
                for i, start in enumerate(starts)
                for begin, end, *rest in known
                if begin < start + length and end > start
            ]
            for opened in (store, TokenStore.open(store.uri, reader="take")):
                table = opened.documents(np.asarray(starts), length, split)
                assert table.column_names == ["window", "begin", "end", "id", "repo", "language"]
                assert [tuple(row.values()) for row in table.to_pylist()] == expected
            for rule, field in ({"repo": "r1"}, 3), ({"language": "Rust"}, 4), ({"id": "0:1"}, 2):
                [value] = rule.values()
                matching = store.find_documents(rule, split)
                assert matching.column_names == ["begin", "end", "id", "repo", "language"]
                assert [tuple(row.values()) for row in matching.to_pylist()] == [
                    span for span in known if span[field] == value
                ]


def test_a_document_that_began_many_blocks_and_commits_before(tmp_path: Path):
    made = (("a" * 10, "Python", "r0"), ("b" * 20_000, "Python", "r1"), ("c" * 30_000, "Python", "r2"))
    store = prepare(
        ListSource(made, per_batch=1), ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0, commit_tokens=1
    )
    assert store.documents(np.array([19_900, 40_000]), 200).to_pylist() == [
        {"window": 0, "begin": 0, "end": 112, "id": "0:1", "repo": "r1", "language": "Python"},
        {"window": 0, "begin": 112, "end": 200, "id": "0:2", "repo": "r2", "language": "Python"},
        {"window": 1, "begin": 0, "end": 200, "id": "0:2", "repo": "r2", "language": "Python"},
    ]
    assert store.documents(np.array([], int), 5).num_rows == 0
    with pytest.raises(StoreError, match="expected windows within the"):
        store.documents(np.array([50_000]), 200)
    with pytest.raises(ConfigError, match="no split 'test'"):
        store.documents(np.array([0]), 5, "test")


@pytest.mark.parametrize("starts", [5, 1.5, [1.5], ["a"], "ab", None, [True], [[1]], [10**30]])
def test_what_is_no_list_of_starts_is_refused_in_a_sentence(byte_store: Callable[..., TokenStore], starts: Any):
    store = byte_store("some text")
    for asked in (store.documents, store.read):
        with pytest.raises(ConfigError, match=r"^starts is .*: expected a list of whole numbers"):
            asked(starts, 4)
        with pytest.raises(ConfigError, match=r"^length is '4': expected a whole number"):
            asked([0], "4")
        assert len(asked([], 4)) == 0
        assert len(asked([0, 1], 4)) == 2


def test_rows_that_others_deleted_or_moved_are_no_trouble(tmp_path: Path):
    made = tuple((f"{i} " + "x" * 3000, "Python", f"r{i}") for i in range(9))
    store = prepare(
        ListSource(made, dedup="exact"), ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0, commit_tokens=1
    )
    before = [hashes.tolist() for hashes in stored_hashes(StoreLocation(store.uri))]
    lance.dataset(store.uri).optimize.compact_files()
    compacted = TokenStore.open(store.uri)
    windows = np.arange(0, store.num_tokens() - 500, 777)
    assert compacted.documents(windows, 500).equals(store.documents(windows, 500))
    lance.dataset(store.uri).delete("num_tokens < 1000")
    dataset = lance.dataset(store.uri)
    lists = [
        entry for part in document_lists(StoreLocation(store.uri), dataset, "offset") for entry in part.to_pylist()
    ]
    whole = dataset.to_table(columns=["documents"]).column("documents").to_pylist()
    assert [[doc["offset"] for doc in docs] for docs in lists] == [[doc["offset"] for doc in docs] for docs in whole]
    assert sum(len(part) for part in stored_hashes(StoreLocation(store.uri))) <= sum(map(len, before))


def test_a_forked_process_is_told_to_ask_elsewhere(tmp_path: Path, byte_store):
    store = byte_store("some text " * 50)
    store._provenance._process = os.getpid() + 1  # as in a fork
    with pytest.raises(StoreError, match="cannot be read in a forked process"):
        store.documents(np.array([0]), 5)
