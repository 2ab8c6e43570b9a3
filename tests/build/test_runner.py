import contextlib
import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore
from lightning_lance.build.waiting import wait_for
from lightning_lance.documents.splits import SPLITS
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.format.checksums import Root
from lightning_lance.format.commit import last_commit, last_version
from lightning_lance.format.tags import keep_build
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import compaction
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.maintenance.removal import find_orphans
from lightning_lance.tokenization.configs import ByteTokenizer, TrainedBPE
from lightning_lance.tokenization.tokenizer import Tokenizer
from tests.support.builders import STDLIB, TEXTS, Builder, Builders, Watched, until
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import Document, ListSource, documents, kept
from tests.support.streams import expected, provenance, streams
from tests.support.warm import BUILDING, server


def assert_same(store: TokenStore, whole: TokenStore) -> None:
    assert streams(store) == streams(whole)
    assert provenance(store) == provenance(whole)
    assert store.commit == whole.commit


document = st.tuples(
    st.one_of(st.none(), st.text(max_size=30), st.text("ab\n", min_size=2000, max_size=2100)),
    st.sampled_from(["Python", "Rust"]),
    st.sampled_from(["r1", "r2", "r3", "r4"]),
)
made_documents = (
    st.lists(document, min_size=1, max_size=12).filter(lambda made: any(kept(text) for text, _, _ in made)).map(tuple)
)


@examples(13)
@given(made_documents, st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.5]), st.integers(1, 5000))
def test_the_streams_are_the_documents_joined_by_eos(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[Document, ...],
    per_shard: int,
    per_batch: int,
    val_fraction: float,
    commit_tokens: int,
):
    """For any shards, batches and commits."""
    store = prepare(
        ListSource(made, per_shard, per_batch),
        ByteTokenizer(),
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


class Breaks(ListSource):
    """Fails after some batches in each build, until `breaks` is used up."""

    breaks: ClassVar[list[int]] = []

    def identity(self) -> dict[str, Any]:
        return {}

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        for batch in super().read(shard, row):
            if self.breaks:
                self.breaks[-1] -= 1
                if self.breaks[-1] < 0:
                    self.breaks.pop()
                    raise SourceError("gone")
            yield batch


budgets = st.tuples(st.none() | st.integers(1, 12), st.none() | st.integers(1, 3000))


@examples(6)
@given(
    made_documents,
    st.integers(1, 5),
    st.lists(budgets, min_size=1, max_size=4),
    st.integers(1, 3000),
    st.sampled_from([0.0, 60.0]),
    st.lists(st.integers(0, 4), max_size=4),
)
def test_a_budget_is_kept_to_the_document_and_a_larger_one_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[Document, ...],
    per_batch: int,
    limits: list[tuple[int | None, int | None]],
    commit_tokens: int,
    commit_seconds: float,
    breaks: list[int],
):
    """Growing in steps, with commits of any size and builds that fail, equals one build; every step is exact."""
    folder, Breaks.breaks = tmp_path_factory.mktemp("data"), breaks
    source = Breaks(made, 4, per_batch)
    whole = [entry for entry in made if kept(entry[0])]
    ends = np.cumsum([len(kept(text).encode()) + 1 for text, _, _ in whole])

    def count_for(limit: tuple[int | None, int | None]) -> int:
        by_tokens = len(whole) if limit[1] is None else int(np.searchsorted(ends, limit[1])) + 1
        return min(len(whole) if limit[0] is None else limit[0], by_tokens, len(whole))

    grown = [(0, 0)]
    for limit in [*sorted(limits, key=count_for), (None, None)]:
        options: dict[str, Any] = {"max_documents": limit[0], "max_tokens": limit[1], "val_fraction": 0.5}
        store: TokenStore | None = None
        while store is None:
            with contextlib.suppress(SourceError):
                options |= {"commit_tokens": commit_tokens, "commit_seconds": commit_seconds}
                store = prepare(source, ByteTokenizer(), str(folder / "grown.lance"), **options)
        count = count_for(limit)
        assert store.commit.documents == count
        assert store.commit.tokens == ends[count - 1]
        assert streams(store) == expected(tuple(whole[:count]), 0.5)
        assert store.version > grown[-1][1] or count == grown[-1][0]
        grown.append((count, store.version))
    Breaks.breaks = []
    assert_same(store, prepare(source, ByteTokenizer(), str(folder / "whole.lance"), **options))


@examples(5)
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
    store = prepare(ListSource(made, per_shard=3, per_batch=2), ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
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
    prepare(Watched(made, per_shard=4, per_batch=4), ByteTokenizer(), data_dir=tmp_path, max_documents=8)
    # Only the batches read ahead.
    assert max(read) <= 6


def test_a_prepared_store_is_opened_and_nothing_is_read(tmp_path: Path):
    class Once(ListSource):
        def open(self, pin: Any = None) -> Any:
            opened.append(1)
            return super().open(pin)

    opened: list[int] = []
    source = Once(documents("some", "more", "text"))
    first = prepare(source, ByteTokenizer(), data_dir=tmp_path)
    assert prepare(source, ByteTokenizer(), data_dir=tmp_path).version == first.version
    assert prepare(source, ByteTokenizer(), data_dir=tmp_path, max_documents=2).version == first.version
    assert len(opened) == 1


def test_a_smaller_budget_finds_its_version_again(tmp_path: Path):
    source = ListSource(documents(*"abcdef"))
    versions = [prepare(source, ByteTokenizer(), data_dir=tmp_path, max_documents=n).version for n in (2, 4, 6, 4, 2)]
    assert versions == [1, 2, 3, 2, 1]


def test_names_are_no_sources_and_no_tokenizers(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"source is 'c\.jsonl': pass files as a list to DatasetSource\.parquet"):
        prepare("c.jsonl", ByteTokenizer(), data_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tokenizer is 'gpt2': use PretrainedTokenizer\('gpt2'\)"):
        prepare(ListSource(documents("a")), "gpt2", data_dir=tmp_path)  # type: ignore[arg-type]


def test_a_source_without_documents_is_told(tmp_path: Path):
    with pytest.raises(SourceError, match=r"gave no documents \(skipped: 2 empty, 1 null\)"):
        prepare(ListSource(documents("", None, "")), ByteTokenizer(), data_dir=tmp_path)
    assert not list(tmp_path.glob("*.lance"))


def test_a_language_that_no_document_has_is_told_with_those_there_are(tmp_path: Path):
    made = (*documents("a"), *documents("b", language="Rust"))
    with pytest.raises(ConfigError, match="has no language 'Rusty' \\(did you mean 'Rust'\\?\\): it has Python, Rust"):
        prepare(ListSource(made, languages=("Rusty",)), ByteTokenizer(), data_dir=tmp_path)
    with pytest.raises(ConfigError, match="has no language 'Klingon': it has Python, Rust"):
        prepare(ListSource(made, languages=("Python", "Klingon")), ByteTokenizer(), data_dir=tmp_path)
    # A misspelled language is reported after the first shard, not after the whole corpus.
    many = documents(*["a"] * 4000)
    with pytest.raises(ConfigError, match="did you mean 'Python'"):
        prepare(ListSource(many, languages=("Pyton",), name="many"), ByteTokenizer(), data_dir=tmp_path)


def test_a_source_that_changed_under_an_unfinished_build_is_refused(tmp_path: Path):
    class Stubborn(ListSource):
        def identity(self) -> dict[str, Any]:
            return {}

    prepare(Stubborn(documents(*"abcdef")), ByteTokenizer(), data_dir=tmp_path, max_documents=2)
    with pytest.raises(SourceError, match=r"has other files than when the store .* was begun"):
        prepare(Stubborn(documents(*"abcdefghi")), ByteTokenizer(), data_dir=tmp_path)


def test_an_error_of_the_source_keeps_what_was_committed(tmp_path: Path):
    class Broken(ListSource):
        def read(self, shard: int, row: int) -> Any:
            if shard == 3 and not mended:
                raise SourceError("the network is gone")
            return super().read(shard, row)

    mended: list[bool] = []
    source = Broken(documents(*["text"] * 20))
    with pytest.raises(SourceError, match="the network is gone"):
        prepare(source, ByteTokenizer(), data_dir=tmp_path, commit_tokens=10)
    (uri,) = tmp_path.glob("*.lance")
    before = last_commit(StoreLocation(str(uri)))
    assert before is not None
    assert 0 < before.documents <= 12
    mended.append(True)
    assert prepare(source, ByteTokenizer(), data_dir=tmp_path, commit_tokens=10).commit.documents == 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Return the store of an uninterrupted build."""
    uri = str(tmp_path_factory.mktemp("whole") / "x.lance")
    return prepare(Watched(STDLIB, 20, 4), ByteTokenizer(), uri, val_fraction=0.3)


@pytest.fixture(scope="module")
def builders() -> Iterator[Builders]:
    with Builders() as started:
        yield started


def unreferenced(uri: Path) -> set[str]:
    """Return the data files that belong to no version."""
    files = {path.name for path in (uri / "data").glob("*")}
    if not list(uri.glob("_versions/*.manifest")):
        return files
    fragments = lance.dataset(str(uri)).get_fragments()
    return files - {file.path for fragment in fragments for file in fragment.data_files()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(uri: Path) -> set[str]:
    """Return the files that a build leaves beside its store."""
    return {path.name for path in uri.parent.iterdir()} - {uri.name}


def test_a_killed_build_goes_on_and_nothing_is_lost_or_doubled(tmp_path: Path, whole: TokenStore, builders: Builders):
    """`kill -9` at 12 moments, some of them inside a commit, with a budget that grows meanwhile."""
    uri, chance, inside = tmp_path / "store/x.lance", random.Random(1), 0
    watched = [uri / "data", uri / "_transactions", uri / "_versions"]

    def names() -> set[str]:
        return {name for folder in watched if folder.exists() for name in os.listdir(folder)}  # noqa: PTH208 - fast

    for kill in range(12):
        limit = {"max_tokens": whole.commit.tokens * 3 // 4} if kill < 6 else {}
        builder = builders.start(uri, commit_tokens=50_000, **limit)
        # At the next step of a commit (a data file, its transaction, the manifest), some steps later, or soon after.
        for _ in range(chance.randint(0, 6)):
            before = names()
            until(lambda before=before: names() != before)
        time.sleep(chance.choice([0, 0, chance.uniform(0, 0.3)]))
        assert builder.kill(), "the build was through: make the corpus larger"
        inside += bool(unreferenced(uri))
    assert inside > 1
    assert "version" in builders.start(uri, commit_tokens=500_000).result()
    assert_same(TokenStore.open(uri), whole)
    assert beside(uri) == {"x.tokenizer.json"}


DIES = """
import os, signal, sys
from tests.support.stores import ListSource, documents
from tests.support.corpora import prepare
from lightning_lance.maintenance import compaction
from lightning_lance.maintenance.cleanup import clean
from lightning_lance.tokenization.configs import ByteTokenizer
compaction.keep_build = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
prepare(ListSource(documents(*["some text"] * 40)), ByteTokenizer(), sys.argv[1], max_documents=10, commit_tokens=30)
"""


def test_what_a_builder_that_was_killed_after_its_last_commit_left_undone_a_clean_does(tmp_path: Path):
    uri, source = str(tmp_path / "x.lance"), ListSource(documents(*["some text"] * 40))
    done = server(BUILDING).run(DIES, uri, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ended = last_version(StoreLocation(uri))[0]
    assert lance.dataset(uri).tags.list() == {}
    before = contents(Path(uri))
    assert prepare(source, ByteTokenizer(), uri, max_documents=3).version < ended
    assert prepare(source, ByteTokenizer(), uri, max_documents=10).version == ended
    assert contents(Path(uri)) == before
    assert f"version {ended}, the last of a build: tagged, so that it is kept" in clean(uri).done
    assert clean(uri) == ([], [])
    assert {name: tag["version"] for name, tag in lance.dataset(uri).tags.list().items()} == {"build-100": ended}
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [ended]
    assert beside(tmp_path / "x.lance") == {"x.tokenizer.json"}
    assert prepare(source, ByteTokenizer(), uri).commit.documents == 40
    assert prepare(source, ByteTokenizer(), uri, max_documents=10).version == ended


def test_what_a_killed_growth_left_goes_with_a_clean_or_a_build_and_stays_where_a_store_is_only_found(
    tmp_path: Path, whole: TokenStore, builders: Builders
):
    uri, gate, small = tmp_path / "store/x.lance", str(tmp_path / "gate"), {"max_documents": 100}

    def ask() -> TokenStore:
        return prepare(Watched(STDLIB, 20, 4), ByteTokenizer(), str(uri), val_fraction=0.3, **small)

    first = ask()
    grows = builders.start(uri, source={"gate": gate, "at": 20})
    until(lambda: Path(gate + ".reached").exists() and find_orphans(StoreLocation(str(uri))))
    # Not while it is alive: it may commit them at any time. Processes that need nothing of it do not wait.
    left, begin = find_orphans(StoreLocation(str(uri))), time.monotonic()
    assert "is being written by another process" in str(clean(str(uri)).left)
    assert ask().version == first.version
    assert time.monotonic() - begin < 5
    assert find_orphans(StoreLocation(str(uri))) == left
    assert beside(uri) == {"x.tokenizer.json", "x.lock", "x.building.json"}
    assert grows.kill()
    (uri.parent / "x.building.json.0123.part").touch()
    before = contents(uri.parent)
    assert ask().version == first.version
    assert contents(uri.parent) == before
    assert clean(str(uri)).left == []
    assert ask().commit == first.commit
    assert find_orphans(StoreLocation(str(uri))) == set()
    assert beside(uri) == {"x.tokenizer.json"}
    assert "version" in builders.start(uri).result()
    assert_same(TokenStore.open(uri), whole)
    assert streams(ask()) == streams(first)


def test_where_checksums_cannot_be_written_nothing_goes_that_they_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As on a disk that is full during the clean-up: the store does not count as damaged, and `clean` removes the rest."""
    uri, source = str(tmp_path / "x.lance"), ListSource(documents(*["some text"] * 40))

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full(dataset: Any, uri: str) -> None:
        keep_build(dataset, uri)
        monkeypatch.setattr(Root, "put", fails)

    monkeypatch.setattr(compaction, "keep_build", full)
    version = prepare(source, ByteTokenizer(), uri, max_documents=10, commit_tokens=30).version
    assert "The checksums of " in caplog.text
    assert len(lance.dataset(uri).versions()) > 1
    assert not verify_store(uri)
    monkeypatch.undo()
    before = contents(tmp_path)
    assert prepare(source, ByteTokenizer(), uri, max_documents=3).version < version
    assert prepare(source, ByteTokenizer(), uri, max_documents=10).version == version
    assert contents(tmp_path) == before
    (done,) = clean(uri).done
    assert done.endswith("without a tag, older than the end of a build: removed")
    assert [entry["version"] for entry in lance.dataset(uri).versions()] == [version]
    assert not verify_store(uri)
    assert beside(tmp_path / "x.lance") == {"x.tokenizer.json"}


def test_of_processes_that_ask_at_once_one_builds(tmp_path: Path, whole: TokenStore, builders: Builders):
    uri, gate = tmp_path / "store/x.lance", str(tmp_path / "gate")
    started = [builders.start(uri, source={"gate": gate, "at": 20}, commit_tokens=500_000) for _ in range(4)]
    until(Path(gate + ".reached").exists)
    until(lambda: beside(uri) >= {"x.building.json", "x.lock"})
    # All wait: one for the gate, the others for its build.
    until(lambda: sum(builder.has_warned() for builder in started) == 3)
    Path(gate).touch()
    results = [builder.result() for builder in started]
    assert [result.get("error") for result in results] == [None] * 4
    assert len({result["version"] for result in results}) == 1
    (built,) = (result for result in results if result["reads"])
    assert built["reads"] == len(Watched(STDLIB, 20, 4).shards)
    assert built["messages"] == []
    for result in results:
        if result is not built:
            assert re.match(
                f"Another process builds {re.escape(str(uri))}; waiting for it \\(process \\d+ on .*, since .*: .* tokens",
                result["messages"][0],
            )
    assert_same(TokenStore.open(uri), whole)
    assert beside(uri) == {"x.tokenizer.json"}


def test_a_builder_that_dies_or_stands_still_is_replaced(tmp_path: Path, whole: TokenStore, builders: Builders):
    """The stopped builder resumes, and commits nothing."""
    uri, gates = tmp_path / "store/x.lance", [str(tmp_path / f"gate{i}") for i in range(2)]

    def start(gate: str, at: int) -> Builder:
        return builders.start(uri, source={"gate": gate, "at": at}, commit_tokens=200_000, lease=2.0)

    dies = start(gates[0], 5)
    until(Path(gates[0] + ".reached").exists)
    stops = start(gates[1], 10)
    assert dies.kill()
    until(Path(gates[1] + ".reached").exists)
    goes_on = start("", -1)
    stops.signal(signal.SIGSTOP)
    last = goes_on.result()
    Path(gates[1]).touch()
    stops.signal(signal.SIGCONT)
    stopped = stops.result()
    assert stopped.get("version") == last["version"], stopped
    assert_same(TokenStore.open(uri), whole)
    assert beside(uri) == {"x.tokenizer.json"}


def test_those_who_wait_for_a_build_that_fails_tell_its_cause(
    tmp_path: Path, builders: Builders, caplog: pytest.LogCaptureFixture
):
    uri, gate = tmp_path / "store/x.lance", str(tmp_path / "gate")
    fails = builders.start(uri, source={"gate": gate, "at": 9, "fails": True}, commit_tokens=50_000)
    until(Path(gate + ".reached").exists)
    waits = builders.start(uri, source={"gate": gate, "at": 9})
    until(lambda: (uri.parent / "x.building.json").exists())
    until(waits.has_warned)
    with ThreadPoolExecutor(1) as thread:
        trains = thread.submit(wait_for, StoreLocation(str(uri)), 10**9)
        until(lambda: "Waiting for the store" in caplog.text)
        Path(gate).touch()
        with pytest.raises(
            SourceError, match=r"waited for the build of .* by process \d+ on .*, which failed: the network is gone "
        ):
            trains.result(60)
    assert fails.result()["error"] == "SourceError: the network is gone"
    assert re.match(r"\d+ documents \(.* tokens\) are committed in ", fails.result()["messages"][0])
    told = waits.result()
    assert told["reads"] == 0
    assert re.match(r"SourceError: .* by process \d+ on .*, which failed: the network is gone ", told["error"])
    # A new run tries again, and leaves no files.
    assert "version" in builders.start(uri).result()
    assert beside(uri) == {"x.tokenizer.json"}


RSS = """
import re, resource, sys
from pathlib import Path
from lightning_lance import Corpus
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import TrainedBPE
source = DatasetSource("parquet", data_files=[sys.argv[1]])
Corpus(source, TrainedBPE(vocab_size=2048, train_bytes=10**6), sys.argv[2]).prepare()
# On Linux, ru_maxrss of a child includes the peak of its parent; VmHWM does not.
status = Path("/proc/self/status")
peak = re.search("VmHWM:\\s+(\\d+) kB", status.read_text())[1] if status.exists() else None
print(peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_follow_the_corpus_nor_its_longest_document(tmp_path: Path):
    """130 MB of text, with documents of 50 MB, in less than the promised 1.5 GB."""
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
            prepare(source, ByteTokenizer(), data_dir=tmp_path)


def test_a_rare_language_that_looks_like_a_common_one_is_no_mistake(tmp_path: Path):
    made = (*documents(*"abcd", language="JavaScript"), *documents("e", language="TypeScript"))

    class Blind(ListSource):
        def present_languages(self) -> list[str]:
            return ["JavaScript"]  # of the first shard

    store = prepare(Blind(made, languages=("TypeScript", "JavaScript")), ByteTokenizer(), data_dir=tmp_path)
    assert store.commit.languages == {"JavaScript": 4, "TypeScript": 1}


def test_documents_without_a_repository_are_split_by_their_text(tmp_path: Path):
    made = tuple((f"text {i}", "Python", "") for i in range(400))
    store = prepare(ListSource(made), ByteTokenizer(), data_dir=tmp_path, val_fraction=0.5)
    assert 0.3 < store.num_tokens("val") / store.commit.tokens < 0.7


def test_stores_whose_names_have_dots_keep_to_themselves(tmp_path: Path):
    source = ListSource(documents("some text " * 30))
    prepare(source, ByteTokenizer(), str(tmp_path / "x-0.1"))
    prepare(source, TrainedBPE(vocab_size=260), "file://" + str(tmp_path / "x-0.2.lance"), data_dir=tmp_path)
    assert {path.name for path in tmp_path.glob("*.tokenizer.json")} == {"x-0.1.tokenizer.json", "x-0.2.tokenizer.json"}
    assert TokenStore.open(tmp_path / "x-0.2.lance").reader == "mapped"
    with pytest.raises(ConfigError, match="data_dir is 's3://bucket'"):
        prepare(source, ByteTokenizer(), data_dir="s3://bucket")
