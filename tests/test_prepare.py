import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Document, ListSource, documents, kept
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lance import TokenStore, prepare
from lightning_lance.commit import last_commit
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.sources import python_stdlib
from lightning_lance.splits import SPLITS, split_codes
from lightning_lance.tokenization import Tokenizer
from lightning_lance.tokenizer_choice import ByteChoice, TrainedBPE

EOS = 256


def streams(store: TokenStore) -> dict[tuple[str, str], list[int]]:
    """The logical streams: all that a reader can see."""
    return {
        (split, stream.language): store.read(np.array([stream.start]), stream.num_tokens, split)[0].tolist()
        for split in SPLITS
        for stream in store.streams(split)
    }


def expected(made: tuple[Document, ...], val_fraction: float) -> dict[tuple[str, str], list[int]]:
    result: dict[tuple[str, str], list[int]] = {}
    for text, language, repo in made:
        if text := kept(text):
            side = SPLITS[int(split_codes(pa.array([repo]), val_fraction)[0])]
            result.setdefault((side, language), []).extend([*text.encode(), EOS])
    return dict(sorted(result.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1])))


document = st.tuples(
    st.one_of(st.none(), st.text(max_size=30), st.text("ab\n", min_size=2000, max_size=2100)),
    st.sampled_from(["Python", "Rust"]),
    st.sampled_from(["r1", "r2", "r3", "r4"]),
)
made_documents = (
    st.lists(document, min_size=1, max_size=12).filter(lambda made: any(kept(text) for text, _, _ in made)).map(tuple)
)


@settings(max_examples=40)
@given(made_documents, st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.5]), st.integers(1, 5000))
def test_the_streams_are_the_documents_joined_by_eos(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[Document, ...],
    per_shard: int,
    per_batch: int,
    val_fraction: float,
    commit_tokens: int,
):
    """Whatever the shards, the batches and the commits."""
    store = prepare(
        ListSource(made, per_shard, per_batch),
        ByteChoice(),
        data_dir=tmp_path_factory.mktemp("data"),
        val_fraction=val_fraction,
        commit_tokens=commit_tokens,
    )
    assert list(streams(store).items()) == list(expected(made, val_fraction).items())
    commit, texts = store.commit, [text for text, _, _ in made]
    assert commit.documents == sum(bool(kept(text)) for text in texts)
    assert commit.documents + sum(commit.skipped.values()) == len(made)
    assert commit.skipped.get("null", 0) == texts.count(None)
    assert commit.tokens == sum(store.num_tokens(split) for split in SPLITS)
    assert commit.text_bytes == sum(len(kept(text).encode()) for text in texts)
    assert sum(commit.languages.values()) == commit.documents
    assert commit.exhausted


@settings(max_examples=40)
@given(made_documents, st.integers(1, 5), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.booleans())
def test_a_budget_is_kept_to_the_document_and_a_larger_one_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[Document, ...],
    per_batch: int,
    budgets: list[int],
    by_tokens: bool,
):
    """Growing in steps makes the same streams as building at once, and every step is a prefix of them."""
    source, folder = ListSource(made, 4, per_batch), tmp_path_factory.mktemp("data")
    whole = tuple(entry for entry in made if kept(entry[0]))
    sizes = [len(kept(text).encode()) + 1 for text, _, _ in whole]
    for budget in sorted(budgets):
        limit = {"max_tokens": 3 * budget} if by_tokens else {"max_documents": budget}
        store = prepare(source, ByteChoice(), data_dir=folder, val_fraction=0.5, **limit)
        count = int(np.searchsorted(np.cumsum(sizes), 3 * budget)) + 1 if by_tokens else budget
        count = min(count, len(sizes))
        assert store.commit.documents == count
        assert streams(store) == expected(whole[:count], 0.5)
    assert streams(prepare(source, ByteChoice(), data_dir=folder, val_fraction=0.5)) == expected(made, 0.5)


@settings(max_examples=10)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=30))
def test_the_stream_is_what_the_tokenizers_library_gives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    texts = [*texts, "def f(x):\n    return x<|endoftext|>\n" * 9]
    choice, folder = TrainedBPE(vocab_size=300), tmp_path_factory.mktemp("data")
    source = ListSource(documents(*texts))
    store = prepare(source, choice, data_dir=folder, val_fraction=0.0, commit_tokens=50)
    reference = Tokenizer(choice.load(source, folder / "tokenizers").to_json(), engine="tokenizers")
    ids: list[int] = []
    for text in filter(None, map(kept, texts)):
        ids += [*reference.encode_batch(pa.array([text], pa.large_string())).ids.tolist(), reference.eos_id]
    assert streams(store) == {("train", "Python"): ids}
    assert ids.count(reference.eos_id) == store.commit.documents


def test_documents_can_be_found_again(tmp_path: Path):
    made = documents("a" * 3000, None, "b", "", "c" * 10, "d")
    store = prepare(ListSource(made, per_shard=3, per_batch=2), ByteChoice(), data_dir=tmp_path, val_fraction=0.0)
    rows = lance.dataset(store.uri).to_table().to_pylist()
    found = {
        entry["id"]: (entry["repo"], at + entry["offset"])
        for at, row in zip((0, 2048), rows, strict=True)
        for entry in row["documents"]
    }
    assert found == {"0:0": ("repo0", 0), "0:2": ("repo2", 3001), "1:1": ("repo4", 3003), "1:2": ("repo5", 3014)}


def test_a_budget_ends_the_reading(tmp_path: Path):
    read: list[int] = []

    class Watched(ListSource):
        def read(self, shard: int, row: int) -> Any:
            read.append(shard)
            return super().read(shard, row)

    made = documents(*["x" * 100] * 400)
    prepare(Watched(made, per_shard=4, per_batch=4), ByteChoice(), data_dir=tmp_path, max_documents=8)
    # What was read ahead, and no more.
    assert max(read) <= 6


def test_a_prepared_store_is_opened_and_nothing_is_read(tmp_path: Path):
    class Once(ListSource):
        def open(self, pin: Any = None) -> Any:
            opened.append(1)
            return super().open(pin)

    opened: list[int] = []
    source = Once(documents("some", "more", "text"))
    first = prepare(source, ByteChoice(), data_dir=tmp_path)
    assert prepare(source, ByteChoice(), data_dir=tmp_path).version == first.version
    assert prepare(source, ByteChoice(), data_dir=tmp_path, max_documents=2).version == first.version
    assert len(opened) == 1


def test_a_smaller_budget_finds_its_version_again(tmp_path: Path):
    source = ListSource(documents(*"abcdef"))
    versions = [prepare(source, ByteChoice(), data_dir=tmp_path, max_documents=n).version for n in (2, 4, 6, 4, 2)]
    assert versions == [1, 2, 3, 2, 1]


def test_a_source_without_documents_is_told(tmp_path: Path):
    with pytest.raises(
        SourceError, match=r"gave no documents \(skipped: 2 empty, 1 null; blank is nothing but white space\)"
    ):
        prepare(ListSource(documents("", None, "")), ByteChoice(), data_dir=tmp_path)
    assert not list(tmp_path.glob("*.lance"))


def test_a_language_that_no_document_has_is_told_with_those_there_are(tmp_path: Path):
    made = (*documents("a"), *documents("b", language="Rust"))
    with pytest.raises(ConfigError, match="has no language 'Rusty': did you mean 'Rust'\\? there are Python, Rust"):
        prepare(ListSource(made, languages=("Rusty",)), ByteChoice(), data_dir=tmp_path)
    with pytest.raises(ConfigError, match="has no language 'Klingon': there are Python, Rust"):
        prepare(ListSource(made, languages=("Python", "Klingon")), ByteChoice(), data_dir=tmp_path)
    # A word that looks like one of the first shard is told after that shard, not after the whole corpus.
    many = documents(*["a"] * 4000)
    with pytest.raises(ConfigError, match="did you mean 'Python'"):
        prepare(ListSource(many, languages=("Pyton",), name="many"), ByteChoice(), data_dir=tmp_path)


def test_a_source_that_changed_under_an_unfinished_build_is_refused(tmp_path: Path):
    class Stubborn(ListSource):
        def identity(self) -> dict[str, Any]:
            return {}

    prepare(Stubborn(documents(*"abcdef")), ByteChoice(), data_dir=tmp_path, max_documents=2)
    with pytest.raises(SourceError, match=r"are not those that the store .* was begun with"):
        prepare(Stubborn(documents(*"abcdefghi")), ByteChoice(), data_dir=tmp_path)


def test_an_error_of_the_source_keeps_what_was_committed(tmp_path: Path):
    class Broken(ListSource):
        def read(self, shard: int, row: int) -> Any:
            if shard == 3 and not mended:
                raise SourceError("the network is gone")
            return super().read(shard, row)

    mended: list[bool] = []
    source = Broken(documents(*["text"] * 20))
    with pytest.raises(SourceError, match="the network is gone"):
        prepare(source, ByteChoice(), data_dir=tmp_path, commit_tokens=10)
    (uri,) = tmp_path.glob("*.lance")
    before = last_commit(str(uri))
    assert before is not None
    assert 0 < before.documents <= 12
    mended.append(True)
    assert prepare(source, ByteChoice(), data_dir=tmp_path, commit_tokens=10).commit.documents == 20


BUILD = """
import sys; sys.path[:0] = [sys.argv[1]]
from test_prepare import STDLIB, prepare
from lightning_lance.tokenizer_choice import ByteChoice
print(prepare(STDLIB, ByteChoice(), sys.argv[2], commit_tokens=200_000).version)
"""
TEXTS = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(Path(python_stdlib().root).glob("*.py"))]
STDLIB = ListSource(documents(*TEXTS * 5), per_shard=100, per_batch=20)


def build(uri: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(Path(__file__).parent), str(uri)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_build_goes_on_and_nothing_is_lost_or_doubled(tmp_path: Path):
    """`kill -9` at random moments, until a build gets through: the streams are those of an uninterrupted build."""
    whole = prepare(STDLIB, ByteChoice(), str(tmp_path / "whole.lance"))
    chance, kills = random.Random(1), 0
    manifests = tmp_path / "killed.lance/_versions"
    while kills < 8:
        before = len(list(manifests.glob("*.manifest")))
        process = build(tmp_path / "killed.lance")
        # Some time after its first commit, or before it.
        while process.poll() is None and chance.random() > 0.01 and len(list(manifests.glob("*.manifest"))) == before:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.05))
        if process.poll() is not None:
            process.communicate()
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    assert kills > 3
    killed = prepare(STDLIB, ByteChoice(), str(tmp_path / "killed.lance"))
    assert streams(killed) == streams(whole)
    assert killed.commit == whole.commit
    ids = [
        entry["id"]
        for row in lance.dataset(killed.uri).to_table(["documents"]).to_pylist()
        for entry in row["documents"]
    ]
    assert len(ids) == len(set(ids)) == whole.commit.documents


def test_of_processes_that_ask_at_once_one_builds(tmp_path: Path):
    processes = [build(tmp_path / "shared.lance") for _ in range(3)]
    versions = {process.communicate(timeout=100)[0] for process in processes}
    assert len(versions) == 1
    store = prepare(STDLIB, ByteChoice(), str(tmp_path / "shared.lance"))
    assert store.num_tokens("train") + store.num_tokens("val") == store.commit.tokens
    assert versions == {f"{store.version}\n"}


RSS = """
import re, resource, sys
from pathlib import Path
from lightning_lance import prepare
from lightning_lance.streaming import DatasetSource
from lightning_lance.tokenizer_choice import TrainedBPE
prepare(DatasetSource("parquet", data_files=[sys.argv[1]]), TrainedBPE(vocab_size=2048, train_bytes=10**6), sys.argv[2])
# Linux hands the peak of a parent on to what it starts, in ru_maxrss; VmHWM is of this program alone.
status = Path("/proc/self/status")
peak = re.search("VmHWM:\\s+(\\d+) kB", status.read_text())[1] if status.exists() else None
print(peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_follow_the_corpus_nor_its_longest_document(tmp_path: Path):
    """130 MB of text, with documents of 50 MB, in less than the 1.5 GB that is promised for any corpus."""
    longest = ("".join(TEXTS) * 20)[:50_000_000]
    for shard in range(2):
        table = pa.table({"text": [longest, *TEXTS * 3]})
        pq.write_table(table, tmp_path / f"{shard}.parquet", row_group_size=100, compression="zstd")
    command = [sys.executable, "-c", RSS, str(tmp_path / "*.parquet"), str(tmp_path / "x.lance")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout)  # in kB
    assert TokenStore.open(tmp_path / "x.lance").commit.text_bytes > 120_000_000
    assert peak < 1_500_000


def test_a_missing_language_is_told_each_time(tmp_path: Path):
    source = ListSource(documents("a"), languages=("Python", "Klingon"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="has no language 'Klingon'"):
            prepare(source, ByteChoice(), data_dir=tmp_path)


def test_a_rare_language_that_looks_like_a_common_one_is_no_mistake(tmp_path: Path):
    made = (*documents(*"abcd", language="JavaScript"), *documents("e", language="TypeScript"))

    class Blind(ListSource):
        def present_languages(self) -> list[str]:
            return ["JavaScript"]  # of the first shard

    store = prepare(Blind(made, languages=("TypeScript", "JavaScript")), ByteChoice(), data_dir=tmp_path)
    assert store.commit.languages == {"JavaScript": 4, "TypeScript": 1}


def test_documents_without_a_repository_are_split_by_their_text(tmp_path: Path):
    made = tuple((f"text {i}", "Python", "") for i in range(400))
    store = prepare(ListSource(made), ByteChoice(), data_dir=tmp_path, val_fraction=0.5)
    assert 0.3 < store.num_tokens("val") / store.commit.tokens < 0.7


def test_stores_whose_names_have_dots_keep_to_themselves(tmp_path: Path):
    source = ListSource(documents("some text " * 30))
    prepare(source, ByteChoice(), str(tmp_path / "x-0.1"))
    prepare(source, TrainedBPE(vocab_size=260), "file://" + str(tmp_path / "x-0.2.lance"), data_dir=tmp_path)
    assert {path.name for path in tmp_path.glob("*.tokenizer.json")} == {"x-0.1.tokenizer.json", "x-0.2.tokenizer.json"}
    assert TokenStore.open(tmp_path / "x-0.2.lance").reader == "mapped"
    with pytest.raises(ConfigError, match="data_dir is 's3://bucket'"):
        prepare(source, ByteChoice(), data_dir="s3://bucket")
