"""After documents are forgotten, the store is as if they had never been there, and stays so."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.documents.splits import FORGOTTEN
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.commit import last_version
from lightning_lance.format.lance_io import write_rows
from lightning_lance.format.layout import StoreContent
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import StoreLocation
from lightning_lance.maintenance import forgetting
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.maintenance.removal import find_orphans
from lightning_lance.process.locks import exclusive
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.bucket import serving
from tests.support.builders import until
from tests.support.commands import run
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stores import Document, ListSource, documents, only_append
from tests.support.streams import expected, provenance, streams
from tests.support.warm import BUILDING, server

text = st.text("ab", min_size=1, max_size=4) | st.integers(1, 5000).map(lambda size: "x" * size)
made = st.lists(
    st.tuples(text, st.sampled_from(["Python", "Rust"]), st.sampled_from(["r1", "r2", "r3", "r4"])),
    min_size=2,
    max_size=25,
)
condition = st.sampled_from(
    [
        {"repo": "r1"},
        {"repo": "r2"},
        {"repo": "nobody"},
        {"language": "Rust"},
        {"language": "Rust", "repo": "r3"},
        {"id": "0:1"},
    ]
)


def build(source: ListSource, uri: Path, budget: int | None = None, commit_tokens: int = 3000) -> TokenStore:
    return prepare(
        source, ByteTokenizer(), str(uri), max_documents=budget, val_fraction=0.5, commit_tokens=commit_tokens
    )


def readable(store: TokenStore) -> Any:
    """Return the content of a store, without the hashes of forgotten documents."""
    return {key: value for key, value in provenance(store).items() if key[0] != FORGOTTEN}


def without(documents: list[Document], rules: list[dict[str, str]]) -> list[tuple[int, Document]]:
    """Return the remaining documents by brute force, with their places in the source."""
    left = []
    for i, (text, language, repo) in enumerate(documents):
        told = {"id": f"{i // 4}:{i % 4}", "language": language, "repo": repo}
        if not any(all(told[key] == value for key, value in rule.items()) for rule in rules):
            left.append((i, (text, language, repo)))
    return left


def counts(commit: CommitMetadata) -> Any:
    return [entry for entry in commit.forgotten if entry["documents"]]


@examples(10)
@given(made, st.lists(condition, min_size=1, max_size=2, unique_by=str), st.integers(1, 25), st.integers(1, 6000))
def test_what_is_left_is_a_store_without_those_documents(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[Document],
    rules: list[dict[str, str]],
    budget: int,
    commit_tokens: int,
):
    folder = tmp_path_factory.mktemp("data")
    source = ListSource(tuple(made))
    before = build(source, folder / "x.lance", budget, commit_tokens)
    for rule in rules:
        forget(before.uri, rule, future=True)
    for grown in (min(budget, len(made)), len(made)):
        # With the same budget, nothing is read; documents added later are left out too.
        store = build(source, folder / "x.lance", grown, commit_tokens)
        left = without(made[:grown], rules)
        assert streams(store) == expected(tuple(document for _, document in left), 0.5)
        assert streams(TokenStore.open(store.uri, reader="take")) == streams(store)
        found = [(i, repo) for entries in readable(store).values() for _, i, repo in entries]
        assert sorted(found) == sorted((f"{i // 4}:{i % 4}", repo) for i, (_, _, repo) in left)
        for split in ("train", "val"):
            if total := store.num_tokens(split):
                table = store.documents(np.zeros(1, np.int64), total, split)
                assert table.column("id").to_pylist() == [
                    i for key, entries in sorted(readable(store).items()) if key[0] == split for _, i, _ in entries
                ]
        commit = store.commit
        assert (commit.documents, commit.stored_documents) == (grown, len(left))
        assert commit.stored_tokens == sum(map(store.num_tokens, ("train", "val")))
        assert commit.stored_languages == {
            language: number
            for language in sorted({language for _, (_, language, _) in left})
            if (number := sum(document[1] == language for _, document in left))
        }
        assert verify_store(store.uri) == []


@examples(8)
@given(made, st.lists(condition, min_size=1, max_size=2, unique_by=str), st.integers(1, 25), st.booleans())
def test_to_forget_and_then_grow_is_to_grow_and_then_forget(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[Document],
    rules: list[dict[str, str]],
    budget: int,
    dedup: bool,
):
    folder = tmp_path_factory.mktemp("data")
    source = ListSource(tuple(made), dedup="exact" if dedup else "none")
    first, then = folder / "first.lance", folder / "then.lance"
    build(source, first, budget)
    for rule in rules:
        forget(str(first), rule, future=True)
    grown = build(source, first)
    whole = build(source, then)
    for rule in rules:
        forget(str(then), rule, future=True)
    forgotten = TokenStore.open(then)
    assert streams(grown) == streams(forgotten)
    assert readable(grown) == readable(forgotten)
    assert grown.commit.skipped == forgotten.commit.skipped == whole.commit.skipped
    assert (grown.commit.documents, grown.commit.tokens) == (whole.commit.documents, whole.commit.tokens)
    assert counts(grown.commit) == counts(forgotten.commit)
    assert grown.commit.extent == forgotten.commit.extent
    loaders = [WindowLoader(store, 1, 1) for store in (grown, forgotten) if store.num_tokens() > 2]
    assert len({str([batch["input_ids"].tolist() for batch in loader]) for loader in loaders}) <= 1


def test_a_copy_of_what_was_forgotten_is_still_a_copy(tmp_path: Path):
    made = (("a", "Python", "r1"), ("b", "Python", "r2"), ("c", "Python", "r3"), ("a", "Python", "r4"))
    source = ListSource(made, dedup="exact", per_batch=1)
    build(source, tmp_path / "x.lance", 2)
    forget(str(tmp_path / "x.lance"), {"repo": "r1"})
    store = build(source, tmp_path / "x.lance")
    assert store.commit.skipped["duplicate"] == 1
    rows = lance.dataset(store.uri).to_table().to_pylist()
    (row,) = (row for row in rows if row["split"] == FORGOTTEN)
    assert row["num_tokens"] == 0
    assert [(entry["id"], entry["repo"]) for entry in row["documents"]] == [(None, None)]


def store_of(tmp_path: Path, **options: Any) -> TokenStore:
    texts = [f"{i} " * 300 for i in range(60)]
    source = ListSource(tuple((text, "Python", f"r{i % 3}") for i, text in enumerate(texts)))
    return prepare(source, ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0, commit_tokens=9000, **options)


def test_documents_that_go_on_where_streams_take_turns_are_counted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_lance.build.packing._HELD_BYTES", 1)
    monkeypatch.setattr("lightning_lance.build.packing._LEAST_BYTES", 1)
    made = tuple((f"{i}" * 5000, ("C", "Rust")[i % 2], f"r{i % 4}") for i in range(8))
    store = prepare(ListSource(made, per_batch=1), ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0)
    told: list[tuple[int, int]] = []
    done = forget(store.uri, {"repo": "r1"}, tell=lambda *found: told.append(found))
    assert told == [(2, 10_002)] == [done[:2]]


def test_all_forgotten_is_an_empty_store(tmp_path: Path):
    store = store_of(tmp_path)
    assert forget(store.uri, {"language": "Python"})[:2] == (60, store.commit.tokens)
    empty = TokenStore.open(store.uri)
    assert (empty.num_tokens(), empty.streams(), empty.commit.stored_documents) == (0, [], 0)
    assert verify_store(store.uri) == []
    assert store_of(tmp_path).version == empty.version


def test_forgotten_twice_is_forgotten_once(tmp_path: Path):
    store = store_of(tmp_path)
    told: list[tuple[int, int]] = []
    with pytest.raises(ConfigError, match="its source has no more to add"):
        forget(store.uri, {"repo": "nobody"})
    first = forget(store.uri, {"repo": "r1"}, tell=lambda *found: told.append(found))
    again = forget(store.uri, {"repo": "r1"}, tell=lambda *found: told.append(found))
    assert (first.documents, again.documents, again.version) == (20, 0, first.version)
    assert told == [(20, first.tokens), (0, 0)]
    assert forget(store.uri, {"repo": "nobody"}, future=True).version == first.version
    assert len(lance.dataset(store.uri).versions()) == 1


def test_other_budgets_never_go_back_to_what_was_forgotten(tmp_path: Path):
    store_of(tmp_path, max_documents=20)
    store = store_of(tmp_path)
    forget(store.uri, {"repo": "r1"})
    for budget in (20, 40, None):
        found = store_of(tmp_path, max_documents=budget)
        assert found.commit.extent == StoreContent(store.commit.tokens, ("repo=r1",))
    assert list(lance.dataset(store.uri).tags.list()) == [f"build-{store.commit.tokens}"]


def test_a_checkpoint_keeps_its_version_until_it_is_purged(tmp_path: Path):
    old = store_of(tmp_path)
    old.keep_for_training()
    old.keep_for_checkpoints()
    loader = WindowLoader(old, 64, 2)
    batches = iter(loader)
    next(batches)
    state, following = loader.state_dict(), next(batches)["input_ids"].tolist()
    done = forget(old.uri, {"repo": "r1"})
    assert done.kept == [f"checkpoint-{old.commit.tokens}"]
    new = TokenStore.open(old.uri)
    resumed = WindowLoader(new, 64, 2)
    resumed.load_state_dict(state)
    assert next(iter(resumed))["input_ids"].tolist() == following
    # The new store has other windows, in another order, with a tag of their own.
    new.keep_for_training()
    assert len(lance.dataset(old.uri).tags.list()) == 3
    orders = [WindowLoader(store, 64, 2)._cursor.serving.orders()[""].key for store in (old, new)]
    assert orders[0] != orders[1]
    pattern = np.frombuffer(b"31 31 31 ", np.uint8).astype(np.uint16).tobytes()  # of r1
    inside = [path for path in (tmp_path / "x.lance").rglob("*") if path.is_file() and pattern in path.read_bytes()]
    assert inside
    assert forget(old.uri, {"repo": "r1"}, purge=True).kept == []
    for path in (tmp_path / "x.lance").rglob("*"):
        assert not path.is_file() or pattern not in path.read_bytes()
    resumed = WindowLoader(TokenStore.open(old.uri), 64, 2)
    said = (
        r"continues other data \(stores.forgotten: \[\[\]\] -> \[\['repo=r1'\]\]\): documents were forgotten since, and"
    )
    with pytest.raises(
        StoreError, match=rf"{said} the version .* was removed, as by purge=true; it cannot come back, start without"
    ):
        resumed.load_state_dict(state)
    resumed = WindowLoader(TokenStore.open(old.uri), 64, 2, on_data_change="continue")
    resumed.load_state_dict(state)
    next(iter(resumed))
    assert verify_store(old.uri) == []


def test_what_cannot_be_is_told(tmp_path: Path):
    store = store_of(tmp_path)
    with pytest.raises(ConfigError, match="have no 'licence': expected one of id, language, repo"):
        forget(store.uri, {"licence": "gpl"})
    with pytest.raises(ConfigError, match="The rule is empty: expected key=value"):
        forget(store.uri, {})
    with pytest.raises(StoreError, match="no committed token store"):
        forget(str(tmp_path / "y.lance"), {"repo": "r1"})
    assert not (tmp_path / "y.lock").exists()


def test_the_command(tmp_path: Path):
    store = store_of(tmp_path)
    store.keep()
    code, out, err = run(tmp_path, "forget", "x.lance", "repo=r1")
    assert (code, err) == (0, "")
    first, second, third = out.splitlines()
    forgotten = store.commit.tokens - TokenStore.open(store.uri).commit.stored_tokens
    assert first == f"20 documents ({forgotten:,} tokens) match."
    assert second == f"x.lance: 20 documents ({forgotten:,} tokens) are forgotten, version {store.version + 1}."
    assert f"(tags checkpoint-{store.commit.tokens}): purge=true removes" in third
    code, out, _ = run(tmp_path, "forget", "x.lance", "repo=r1", "purge=true")
    assert code == 0
    assert (
        out.splitlines()[1]
        == f"x.lance: nothing was forgotten, version {store.version + 1}; its source has no more to add."
    )
    assert out.splitlines()[2].endswith(f"are gone with their tags: checkpoint-{store.commit.tokens}.")
    code, _, err = run(tmp_path, "forget", "x.lance", "licence=gpl")
    assert (code, err.count("\n")) == (1, 1)
    assert run(tmp_path, "forget", "x.lance")[0] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"x.lance", "x.tokenizer.json"}


SCRIPT = """
import sys, time
from pathlib import Path
from lightning_lance.maintenance.forgetting import forget
print(flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
forget(sys.argv[1], {"repo": "r1"})
"""


def test_a_rule_that_nothing_matches_is_refused_unless_it_is_for_the_future(tmp_path: Path):
    store = store_of(tmp_path, max_documents=30)

    def refused(rule: dict[str, str]) -> str:
        with pytest.raises(ConfigError, match=r"No document of '.*x\.lance' has ") as caught:
            forget(store.uri, rule)
        return str(caught.value)

    assert refused({"language": "Pyhton"}).endswith(
        "has language=Pyhton: did you mean language=Python? check the value, or give future=true to leave out such documents "
        "when the store grows, which cannot be taken back."
    )
    # Existing values are not mistakes, though no document has both.
    assert "did you mean language=Python? " in refused({"language": "python", "repo": "r1", "id": "0:1"})
    assert "did you mean" not in refused({"repo": "somebody/else"})
    assert TokenStore.open(store.uri).version == store.version
    done = forget(store.uri, {"repo": "R2"}, future=True)
    assert (done.documents, done.rule_kept, done.near) == (0, True, {"repo": "r2"})
    assert forget(store.uri, {"repo": "r1"}, future=True).near == {}
    # A rule that was given before needs no permission.
    again = forget(store.uri, {"repo": "r1"})
    assert (again.documents, again.near) == (0, {})
    code, out, err = run(tmp_path, "forget", "x.lance", "repo=rr2")
    assert (code, out) == (1, "")
    assert "did you mean repo=r2? " in err
    code, out, _ = run(tmp_path, "forget", "x.lance", "repo=rr2", "future=true")
    assert code == 0
    assert out.splitlines() == [
        "0 documents (0 tokens) match.",
        f"x.lance: nothing was forgotten, version {TokenStore.open(store.uri).version}; the rule is kept for documents "
        "that will be added.",
        "No document has repo=rr2: did you mean repo=r2?",
    ]
    assert [entry["rule"] for entry in TokenStore.open(store.uri).commit.forgotten if not entry["documents"]] == [
        {"repo": "R2"},
        {"repo": "rr2"},
    ]


def test_killed_at_any_moment_it_is_done_or_not(tmp_path: Path):
    store = store_of(tmp_path)
    before, data = streams(store), tmp_path / "x.lance"

    def names() -> set[str]:
        return {path.name for path in data.rglob("*")}

    for kill in range(4):
        process = server(BUILDING).start(SCRIPT, store.uri, tmp_path / "go")
        process.wait_for_line(timeout=60)
        # After the first new file, or the next ones: the data file, its transaction, the manifest, the checksums.
        for _ in range(kill + 1):
            last = names()
            (tmp_path / "go").touch()
            while process.is_running() and names() == last:
                time.sleep(0.0005)
        (tmp_path / "go").unlink()
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        now = TokenStore.open(store.uri)
        assert streams(now) == before if not now.commit.forgotten else now.commit.stored_documents == 40
    forget(store.uri, {"repo": "r1"})
    now = TokenStore.open(store.uri)
    assert now.commit.stored_documents == 40
    files = {fragment.metadata.files[0].path for fragment in lance.dataset(store.uri).get_fragments()}
    assert set(os.listdir(data / "data")) == files  # noqa: PTH208
    assert not (tmp_path / "x.lock").exists()


INTERRUPTED = """
import sys, time
from lightning_lance.format import lance_io
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.cli.interrupts import InterruptHandler
real, left = lance_io.hash_local, [1, 0]
def hash_local(path):
    if not left.pop(0):
        print("hashes", flush=True)
        while signals.received is None:
            time.sleep(0.01)
        time.sleep(0.5)  # the main thread says that it is over, in no time
    return real(path)
lance_io.hash_local = hash_local
with InterruptHandler() as signals:
    forget(sys.argv[1], {"repo": "r1"})
"""


def test_interrupted_it_leaves_no_file(tmp_path: Path):
    """While the second of three fragments is rewritten."""
    uri = tmp_path / "x.lance"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_lance.engines.local.commit_final", only_append)
        build(ListSource(tuple(("x" * 5000, "Python", f"r{i % 2}") for i in range(9)), 1, 1), uri, commit_tokens=15_000)
    assert len(lance.dataset(str(uri)).get_fragments()) == 3
    process = server(BUILDING).start(INTERRUPTED, uri)
    assert process.wait_for_line(timeout=60) == "hashes\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    assert process.output()[1].endswith("KeyboardInterrupt\n")
    assert find_orphans(StoreLocation(str(uri))) == set()
    assert not verify_store(str(uri))
    assert {path.name for path in tmp_path.iterdir()} == {"x.lance", "x.tokenizer.json"}


def test_what_it_removes_nobody_can_commit(tmp_path: Path):
    """Even if there is nothing to forget: the builder that left it may only be suspended."""
    uri = tmp_path / "x.lance"
    version = build(ListSource(documents("some text")), uri).version
    before = lance.dataset(uri)
    write_rows(StoreLocation(str(uri)), before, before.schema, before.to_table().to_batches())
    assert forget(str(uri), {"repo": "nobody"}, future=True).documents == 0
    assert find_orphans(StoreLocation(str(uri))) == set()
    assert last_version(StoreLocation(str(uri)))[0] == version + 1


def test_it_waits_for_a_builder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = store_of(tmp_path)
    with ThreadPoolExecutor(1) as thread:
        with exclusive(tmp_path / "x.lock", "building"):
            waiting = thread.submit(forget, store.uri, {"repo": "r1"})
            until(lambda: "Another process is writing to" in caplog.text)
            assert TokenStore.open(store.uri).version == store.version
        assert waiting.result(60).documents == 20


def test_in_a_bucket_it_begins_again_where_a_builder_commits_first():
    with serving() as bucket:
        source = ListSource(documents(*[f"text {i}" for i in range(40)]))
        uri, options = "s3://bucket/x.lance", bucket.lance_options

        def build(budget: int | None) -> TokenStore:
            return prepare(
                source, ByteTokenizer(), uri, val_fraction=0.0, storage_options=options, max_documents=budget
            )

        def tell(documents: int, tokens: int) -> None:
            told.append(documents)
            build(30)  # commits the first time only

        build(20)
        told: list[int] = []
        done = forget(uri, {"repo": "repo3"}, options, purge=True, tell=tell)
        assert (done.documents, done.kept, told) == (1, [], [1, 1])
        store = build(None)
        assert (store.commit.documents, store.commit.stored_documents) == (40, 39)
        assert store.commit.extent.forgotten == ("repo=repo3",)
        assert verify_store(uri, options) == []


@pytest.mark.parametrize("purge", [False, True])
def test_a_run_that_starts_meanwhile_is_told_or_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purge: bool):
    """It has opened the store before, and tags its version at each moment at the end of `forget`."""
    moments = {"announce_purge", "retag", "clean_up"} - ({"announce_purge"} if not purge else set())
    for moment in sorted(moments):
        store = store_of(tmp_path / moment)
        run, kept, real = TokenStore.open(store.uri), list[bool](), getattr(forgetting, moment)

        def starts(
            *arguments: Any, run: TokenStore = run, kept: list[bool] = kept, real: Callable[..., Any] = real
        ) -> Any:
            kept.append(run.keep_for_training("ab"))
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(forgetting, moment, starts)
            done = forget(store.uri, {"repo": "r1"}, purge=purge)
        there = {entry["version"] for entry in lance.dataset(store.uri).versions()}
        tag = f"checkpoint-{store.commit.tokens}-run-ab"
        assert (store.version in there) == (not purge and kept[0])
        if purge:
            # A run that began before the purge is treated like older runs.
            assert kept[0] == (tag in done.purged) == (moment == "announce_purge")
            assert done.kept == []
        else:
            assert kept[0]
            assert done.kept == [tag]


def test_what_cannot_be_purged_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = store_of(tmp_path)
    (tmp_path / "x.lance" / "_refs" / "tags" / "other.json").write_text("garbage")
    with pytest.raises(StoreError, match=r"older versions of .* could not be removed .* run it again with purge=true"):
        forget(store.uri, {"repo": "r1"}, purge=True)
    (tmp_path / "x.lance" / "_refs" / "tags" / "other.json").unlink()
    assert forget(store.uri, {"repo": "r1"}, purge=True).kept == []
    assert len(lance.dataset(store.uri).versions()) == 1
