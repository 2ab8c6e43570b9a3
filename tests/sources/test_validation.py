from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.build.plan import make_plan
from lightning_lance.errors import ConfigError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer, TrainedBPE
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.streams import EOS, streams


def write(folder: Path, name: str, texts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=2)


TRAIN, VAL = (
    [[f"train {s} {i}" for i in range(4)] for s in range(3)],
    [[f"val {s} {i}" for i in range(3)] for s in range(2)],
)


def sources(folder: Path, **options: Any) -> dict[str, DatasetSource]:
    """One corpus, with validation documents by files and by a split."""
    for split, shards in (("train", TRAIN), ("validation", VAL)):
        for number, texts in enumerate(shards):
            write(folder, f"{split}-{number}.parquet", texts)
    files = {"data_files": [str(folder / "train-*.parquet")], "val_files": [str(folder / "validation-*.parquet")]}
    return {
        "files": DatasetSource("parquet", **files, shard_seed=None, **options),
        "split": DatasetSource(str(folder), val_split="validation", shard_seed=None, **options),
    }


def flat(shards: list[list[str]]) -> list[str]:
    return [text for texts in shards for text in texts]


def tokens(*texts: str) -> list[int]:
    return [token for text in texts for token in [*text.encode(), EOS]]


@examples(5)
@given(st.sampled_from(["files", "split"]), st.lists(st.integers(1, 20), max_size=2), st.booleans(), st.integers(1, 60))
def test_validation_is_the_split_of_that_name_first_and_within_the_budget(
    tmp_path_factory: pytest.TempPathFactory, kind: str, budgets: list[int], by_tokens: bool, commit_tokens: int
):
    """For any way of building, growing and committing it."""
    folder = tmp_path_factory.mktemp("data")
    source = sources(folder / "corpus")[kind]
    val, train = flat(VAL), flat(TRAIN)
    for budget in [*sorted(budgets), None]:
        limit = {"max_tokens" if by_tokens else "max_documents": budget and budget * (9 if by_tokens else 1)}
        options = {"data_dir": folder, "val_fraction": 0.5, "commit_tokens": commit_tokens}
        store = prepare(source, ByteTokenizer(), **options, **limit)
        count = store.commit.documents
        expected = {("train", ""): tokens(*train[: max(count - 6, 0)]), ("val", ""): tokens(*val[:count])}
        assert streams(store) == {key: value for key, value in expected.items() if value}
        assert by_tokens or count == min(budget or 18, 18)
    rows = lance.dataset(store.uri).to_table(columns=["split", "documents"]).to_pylist()
    ids = {doc["id"]: row["split"] for row in rows for doc in row["documents"]}
    assert [ids[key] for key in ("0:0", "1:2", "2:0", "4:3")] == ["val", "val", "train", "train"]


def test_copies_of_validation_documents_are_taken_out_of_training(tmp_path: Path):
    source = sources(tmp_path / "corpus", dedup="exact")["files"]
    write(tmp_path / "corpus", "train-9.parquet", ["  val 1 1\n", "fresh", "val 0 0"])
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path)
    assert streams(store) == {
        ("train", ""): tokens(*flat(TRAIN), "fresh"),
        ("val", ""): tokens(*flat(VAL)),
    }
    assert store.commit.skipped["duplicate"] == 2


def test_the_fingerprint_is_of_both_and_of_no_share(tmp_path: Path):
    made = sources(tmp_path / "corpus")

    def fingerprint(source: DatasetSource, share: float = 0.01) -> str:
        return make_plan(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=share).fingerprint

    for source in made.values():
        assert fingerprint(source) == fingerprint(source, 0.5)
        before = fingerprint(source)
        write(tmp_path / "corpus", "validation-1.parquet", ["another"])
        assert fingerprint(source) != before
        write(tmp_path / "corpus", "validation-1.parquet", VAL[1])
        assert fingerprint(source) == before
    alone = DatasetSource("parquet", data_files=made["files"].data_files, shard_seed=None)
    assert fingerprint(alone) != fingerprint(made["files"])
    assert fingerprint(alone) != fingerprint(alone, 0.5)


def test_a_tokenizer_is_trained_on_training_texts_only(tmp_path: Path):
    source = sources(tmp_path / "corpus")["files"]
    choice = TrainedBPE(vocab_size=270)
    alone = DatasetSource("parquet", data_files=source.data_files, shard_seed=None)
    assert choice.load(source, tmp_path).to_json() == choice.load(alone, tmp_path).to_json()


def test_what_does_not_go_together_is_refused(tmp_path: Path):
    write(tmp_path, "x.parquet", ["a"])
    files = [str(tmp_path / "*.parquet")]
    with pytest.raises(ConfigError, match="is read for training and for validation"):
        DatasetSource("parquet", data_files=files, val_files=files).open()
    with pytest.raises(ConfigError, match=r"has data_files: use source\.val_files"):
        DatasetSource("parquet", data_files=files, val_split="validation")
    with pytest.raises(ConfigError, match=r"has no data_files: use source\.val_split"):
        DatasetSource("some/dataset", val_files=files)
    with pytest.raises(ConfigError, match=r"no split 'dev'"):
        DatasetSource(str(tmp_path), val_split="dev").open()
    assert not FilesSource(["*"]).has_validation
