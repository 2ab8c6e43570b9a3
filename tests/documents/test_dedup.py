import random
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.dedup import SeenHashes, check_dedup, text_hashes
from lightning_lance.documents.splits import SPLITS, split_codes
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.format.commit import last_commit
from lightning_lance.location import StoreLocation
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import Document, ListSource
from tests.support.streams import EOS, streams


def test_literal_hashes():
    """Hashes are on disk: with another hash, stored documents would count as new."""
    texts = pa.array(["", "a", " a\n", "def f():\n    pass", "é\u3000", None])
    assert text_hashes(texts).tolist() == [
        0x2D06800538D394C2,
        0xE6C632B61E964E1F,
        0xE6C632B61E964E1F,
        text_hashes(pa.array(["\tdef f():\n    pass\r\n"]))[0],
        text_hashes(pa.array(["é"]))[0],
        0x2D06800538D394C2,
    ]


@given(st.lists(st.text(st.sampled_from(" \n\t\x1c\x85\u2003\u200bab"), max_size=4), max_size=20), st.integers(0, 3))
def test_texts_are_equal_that_python_strips_to_the_same(texts: list[str], skip: int):
    stripped = [text.strip() for text in texts]
    for hashes in (
        text_hashes(pa.array(texts, pa.string())),
        text_hashes(pa.chunked_array([texts], pa.large_string())),
    ):
        assert [[a == b for b in hashes] for a in hashes] == [[a == b for b in stripped] for a in stripped]
    assert text_hashes(pa.array(texts, pa.large_string()).slice(skip)).tolist() == hashes.tolist()[skip:]


@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=40), max_size=12))
def test_the_set_is_a_set(batches: list[list[int]]):
    known, oracle = SeenHashes(), set[int]()
    for batch in batches:
        expected = []
        for value in batch:
            expected.append(value not in oracle)
            oracle.add(value)
        assert known.add(np.asarray(batch, np.uint64)).tolist() == expected
        assert len(known) == len(oracle)


def test_the_runs_stay_few_and_take_eight_bytes_a_text():
    chance, known = np.random.default_rng(0), SeenHashes()
    for _ in range(2000):
        known.add(chance.integers(0, 2**64, 100, np.uint64))
    assert len(known) == 200_000
    assert sum(run.nbytes for run in known._runs) == 8 * 200_000
    assert len(known._runs) < 8


text = st.sampled_from(["a", "a ", "\na", "b", "bb", "bb\n", "c" * 9, " ", "", None, "d", "e", "f\x85"])
corpus = st.lists(
    st.tuples(text, st.sampled_from(["Python", "Rust"]), st.sampled_from(["r1", "r2", "r3", ""])),
    min_size=1,
    max_size=25,
).filter(lambda made: any(text and text.strip() for text, _, _ in made))


def kept(made: list[Document]) -> list[Document]:
    """Return the documents that de-duplication keeps, by definition: a set of stripped texts."""
    seen, result = set[str](), []
    for entry in made:
        if entry[0] and entry[0].strip() and entry[0].strip() not in seen:
            seen.add(entry[0].strip())
            result.append(entry)
    return result


def expected(made: list[Document]) -> dict[tuple[str, str], list[int]]:
    result: dict[tuple[str, str], list[int]] = {}
    for written, language, repo in made:
        side = SPLITS[int(split_codes(pa.array([repo or str(written).strip()]), 0.5)[0])]
        result.setdefault((side, language), []).extend([*str(written).encode(), EOS])
    return result


class Failing(ListSource):
    """A source that fails once before each shard in `failures`, as a network does."""

    failures: list[int]

    def read(self, shard: int, row: int) -> Any:
        if shard in self.failures:
            self.failures.remove(shard)
            raise SourceError("gone")
        return super().read(shard, row)


@examples(20)
@given(
    corpus,
    st.integers(1, 6),
    st.integers(1, 30),
    st.lists(st.integers(1, 20), max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 8), max_size=2),
)
def test_the_store_is_that_of_a_set_based_one(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[Document],
    per_batch: int,
    commit_tokens: int,
    budgets: list[int],
    by_tokens: bool,
    failures: list[int],
):
    """For any batches, commits, growing budgets and failures."""
    source = Failing(tuple(made), 4, per_batch, dedup="exact")
    object.__setattr__(source, "failures", failures.copy())
    folder = tmp_path_factory.mktemp("data")
    left = kept(made)
    ends = np.cumsum([len(str(entry[0]).encode()) + 1 for entry in left])
    for budget in [*sorted(budgets), None]:
        limit = {"max_tokens" if by_tokens else "max_documents": budget}
        while True:
            try:
                store = prepare(
                    source, ByteTokenizer(), data_dir=folder, val_fraction=0.5, commit_tokens=commit_tokens, **limit
                )
                break
            except SourceError:
                continue
        count = len(left) if budget is None else int(np.searchsorted(ends, budget)) + 1 if by_tokens else budget
        assert streams(store) == expected(left[:count])
        assert store.commit.documents == min(count, len(left))
    texts = [entry[0] for entry in made]
    blank = sum(1 for text in texts if text and not text.strip())
    counts = {
        "blank": blank,
        "duplicate": sum(map(bool, texts)) - blank - len(left),
        "empty": texts.count(""),
        "null": texts.count(None),
    }
    assert store.commit.skipped == {reason: count for reason, count in counts.items() if count}
    documents = [
        entry for row in lance.dataset(store.uri).to_table(["documents"]).to_pylist() for entry in row["documents"]
    ]
    assert sorted(entry["hash"] for entry in documents) == sorted(
        text_hashes(pa.array([entry[0] for entry in left])).tolist()
    )


def test_duplicates_are_not_tokenized_and_do_not_count_for_the_budget(tmp_path: Path):
    encoded: list[str] = []

    class Watched:
        def load(self, *_: Any) -> Any:
            tokenizer = ByteTokenizer().load(None, tmp_path)
            encode = tokenizer.encode_batch

            def watched(texts: pa.Array) -> Any:
                encoded.extend(texts.to_pylist())
                return encode(texts)

            tokenizer.encode_batch = watched
            return tokenizer

    made = tuple(("text " * (i // 5), "Python", f"r{i}") for i in range(5, 50))
    store = prepare(ListSource(made, dedup="exact"), Watched(), data_dir=tmp_path, max_documents=4)
    assert store.commit.documents == 4
    assert store.commit.skipped["duplicate"] == 12
    assert len(encoded) == len(set(encoded)) == 4


def test_without_it_copies_stay_and_no_hash_is_stored(tmp_path: Path):
    made = tuple(("same", "Python", f"r{i}") for i in range(5))
    store = prepare(ListSource(made), ByteTokenizer(), data_dir=tmp_path)
    commit = last_commit(StoreLocation(store.uri))
    assert commit is not None
    assert (commit.documents, "duplicate" in commit.skipped) == (5, False)
    fields = lance.dataset(store.uri).schema.field("documents").type.value_type
    assert [field.name for field in fields] == ["offset", "id", "repo"]


def test_a_way_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"source\.dedup is 'near': expected one of none, exact"):
        FilesSource(["*.py"], dedup="near")  # type: ignore[arg-type]
    check_dedup("exact")


def test_copies_in_two_repositories_are_not_on_both_sides(tmp_path: Path):
    chance = random.Random(0)
    made = tuple((f"text {chance.randrange(60)}", "Python", f"r{i}") for i in range(400))
    store = prepare(ListSource(made, dedup="exact"), ByteTokenizer(), data_dir=tmp_path, val_fraction=0.3)
    rows = lance.dataset(store.uri).to_table(["split", "documents"]).to_pylist()
    sides = {
        split: {doc["hash"] for row in rows if row["split"] == split for doc in row["documents"]} for split in SPLITS
    }
    assert sides["train"].isdisjoint(sides["val"])
    assert len(sides["train"] | sides["val"]) == store.commit.documents == 60
