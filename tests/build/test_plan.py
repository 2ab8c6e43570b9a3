import json
import re
import subprocess
import sys
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from lightning_lance.build import plan
from lightning_lance.build.plan import Budget, Plan, check_same, make_plan, open_prepared, wait_for
from lightning_lance.build.runner import prepare
from lightning_lance.errors import ConfigError, SourceError, StoreError
from lightning_lance.format.commit import last_commit
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.process import locks
from lightning_lance.process.build_status import StatusFile
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.chosen import ChosenTokenizer
from lightning_lance.tokenization.configs import ByteTokenizer, TokenizerFile, TrainedBPE
from tests.support.paths import ROOT
from tests.support.stores import ListSource, append_commit, documents

SOURCE = ListSource(documents("some text", "other text"))


@pytest.mark.parametrize(
    ("budget", "documents_", "tokens", "exhausted", "met"),
    [
        (Budget(), 10**9, 10**12, False, False),
        (Budget(), 1, 1, True, True),
        (Budget(max_documents=5), 4, 99, False, False),
        (Budget(max_documents=5), 5, 99, False, True),
        (Budget(max_tokens=50), 4, 49, False, False),
        (Budget(max_tokens=50), 4, 50, False, True),
        (Budget(max_documents=5, max_tokens=50), 5, 20, False, True),
        (Budget(max_documents=5, max_tokens=50), 4, 60, False, True),
        (Budget(max_documents=5), 3, 30, True, True),
    ],
)
def test_when_a_budget_is_met(budget: Budget, documents_: int, tokens: int, exhausted: bool, met: bool):
    commit = CommitMetadata("f", {}, {}, "", "<eos>", 0, 1, documents=documents_, tokens=tokens, exhausted=exhausted)
    assert budget.met(commit) is met
    assert (budget.share(commit, 7) >= 1) is met


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="max_tokens is 0: expected a positive whole number"):
        Budget(max_tokens=0)
    with pytest.raises(ConfigError, match=r"max_documents is 1\.5: expected a positive whole"):
        Budget(max_documents=1.5)  # type: ignore[arg-type]
    assert Budget(max_documents=5e3).max_documents == 5000  # type: ignore[arg-type]
    assert str(Budget(max_documents=5000, max_tokens=7)) == "max_documents=5,000 and max_tokens=7"
    assert str(Budget()) == "all that the source has"
    with pytest.raises(ConfigError, match="max_tokens is 'many'"):
        Budget(
            max_tokens="many"  # type: ignore[arg-type]
        )


def fingerprint(tmp_path: Path, source: ListSource = SOURCE, **changes: object) -> str:
    choice = changes.pop("tokenizer", ByteTokenizer())
    return make_plan(source, choice, data_dir=tmp_path, **changes).fingerprint  # type: ignore[arg-type]


def test_the_fingerprint_is_of_what_decides_the_tokens(tmp_path: Path):
    prints = {
        fingerprint(tmp_path),
        fingerprint(tmp_path, replace(SOURCE, languages=("Python",))),
        fingerprint(tmp_path, ListSource(documents("some text", "Other text"))),
        fingerprint(tmp_path, tokenizer=TrainedBPE(vocab_size=258)),
        fingerprint(tmp_path, tokenizer=TrainedBPE(vocab_size=259)),
        fingerprint(tmp_path, val_fraction=0.5),
    }
    assert len(prints) == 6
    assert fingerprint(tmp_path / "elsewhere") == fingerprint(tmp_path)
    with pytest.raises(ConfigError, match="val_fraction is 1"):
        fingerprint(tmp_path, val_fraction=1)


SCRIPT = """
import sys; sys.path[:0] = [sys.argv[1]]
from tests.build.test_plan import SOURCE, ByteTokenizer, make_plan
print(make_plan(SOURCE, ByteTokenizer()).fingerprint)
"""


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT, str(ROOT)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}).stdout
    assert printed.strip() == fingerprint(tmp_path)


def test_another_recipe_at_the_same_place_is_refused_with_what_differs(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    prepare(SOURCE, ByteTokenizer(), uri)
    with pytest.raises(StoreError, match=r"made by another recipe \(source.languages: \[\] -> \['Python'\]\)"):
        prepare(replace(SOURCE, languages=("Python",)), ByteTokenizer(), uri)
    with pytest.raises(StoreError, match=r"\(val_fraction: 0.01 -> 0.5\)"):
        prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.5)


def test_same_recipe_is_the_same(tmp_path: Path):
    chosen = ChosenTokenizer.of(ByteTokenizer(), SOURCE, tmp_path)
    mine = Plan({"a": 1}, "f", "x.lance", chosen)
    check_same(CommitMetadata("f", {"a": 1}, {}, "", "<eos>", 0, 1), mine)
    assert mine.tokenizer_file == Path("x.tokenizer.json")
    assert Plan({}, "f", "s3://bucket/x.lance", chosen).tokenizer_file is None


def test_who_waits_for_tokens_waits_for_a_builder_that_lives_and_fails_with_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plan, "_POLL_SECONDS", 0.01)
    uri, file = str(tmp_path / "x.lance"), tmp_path / "x.building.json"

    def left_waiting(waits: Future[None]) -> bool:
        return not futures.wait([waits], timeout=0.3).done

    with ThreadPoolExecutor(1) as thread:
        # The failure of the last build, which is begun again soon.
        StatusFile(file, "f").failed(SourceError("the network is gone"))
        waits = thread.submit(wait_for, uri, 15)
        assert left_waiting(waits)
        lives = StatusFile(file, "f").begin()
        prepare(SOURCE, ByteTokenizer(), str(tmp_path / "y.lance"))
        (tmp_path / "y.lance").rename(uri)
        waits.result(60)
        waits = thread.submit(wait_for, uri, 10**9)
        waits.result(60)  # the source has no more
        append_commit(uri, lance.dataset(uri).to_table().slice(0, 0), replace(last_commit(uri), exhausted=False))
        waits = thread.submit(wait_for, uri, 10**9)
        assert left_waiting(waits)
        lives.failed(StoreError("the disk is full"))
        with pytest.raises(
            StoreError, match=rf"The build of '{uri}' by process \d+ on .* failed, .*: the disk is full"
        ):
            waits.result(60)
        # What is there is no failure, whatever became of the builder.
        wait_for(uri, 15)
        monkeypatch.setattr(plan, "_BEGIN_SECONDS", 0.1)
        with pytest.raises(StoreError, match="the disk is full"):
            wait_for(uri, 10**9)


def test_who_waits_says_what_for_and_ends_with_a_builder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A lease that nobody keeps fresh, as a builder leaves that was killed, here or on another machine."""
    monkeypatch.setattr(plan, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(plan, "_TELL_SECONDS", 0.2)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.3)
    uri, lock = str(tmp_path / "x.lance"), tmp_path / "x.lock"
    said = f"Waiting for the store {uri}: 10 of 15 tokens are committed"
    prepare(SOURCE, ByteTokenizer(), uri, max_documents=1)

    def until_told(what: str, live: bool = False) -> None:
        """Wait for a line; a builder that lives keeps its lease fresh meanwhile."""
        begin = time.monotonic()
        while f"{said}{what}" not in [record.getMessage() for record in caplog.records]:
            assert time.monotonic() - begin < 30, caplog.messages
            if live:
                lock.write_text("somebody")
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(wait_for, uri, 15)
        try:
            nobody = ", and no process builds it: run 'lightning-lance prepare' for it."
            until_told(nobody)
            caplog.clear()
            until_told(nobody)  # once more, though nothing has changed
            until_told(".", live=True)
            StatusFile(tmp_path / "x.building.json", "f").begin()
            with pytest.raises(
                StoreError, match=r"has 10 of the 15 .*its builder \(process \d+ on .* has shown no sign of life"
            ):
                waits.result(60)
            assert any("shows no sign of life" in message for message in caplog.messages)
        finally:
            # Another one takes over, and what is asked for is there.
            lock.unlink(missing_ok=True)
            prepare(SOURCE, ByteTokenizer(), uri)
    wait_for(uri, 15)


def test_a_store_of_another_recipe_is_replaced_if_that_is_asked_for(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    old = prepare(SOURCE, ByteTokenizer(), uri)
    other = ListSource(documents("these", "are", "others"))
    with pytest.raises(StoreError, match="or set rebuild=true to replace this one"):
        prepare(other, ByteTokenizer(), uri)
    new = prepare(other, ByteTokenizer(), uri, max_documents=2, rebuild=True)
    assert new.commit.documents == 2
    # Whoever had the old one open reads on, and nothing of it stays beside the new one.
    assert old.read([0], 10)[0].tolist() == [*b"some text", 256]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.lance", "x.tokenizer.json"]
    # Of this recipe it is continued, not replaced.
    grown = prepare(other, ByteTokenizer(), uri, rebuild=True)
    assert (grown.version, grown.commit.documents) == (new.version + 1, 3)


def test_a_rebuild_that_was_stopped_goes_on(tmp_path: Path):
    class Broken(ListSource):
        def read(self, shard: int, row: int) -> Any:
            if failures and failures[0] == shard:
                failures.pop(0)
                raise SourceError("the network is gone")
            read.append((shard, row))
            return super().read(shard, row)

    failures, read = [0, 2], list[tuple[int, int]]()
    uri = str(tmp_path / "x.lance")
    prepare(SOURCE, ByteTokenizer(), uri)
    other = Broken(documents(*["text"] * 16))
    for _ in range(2):
        with pytest.raises(SourceError):
            prepare(other, ByteTokenizer(), uri, rebuild=True, commit_tokens=1)
    read.clear()
    # As if it had been killed while it removed the old one; whoever goes on need not ask for a rebuild.
    (tmp_path / "x.lance.being-removed").mkdir()
    assert prepare(other, ByteTokenizer(), uri, commit_tokens=1).commit.documents == 16
    assert min(read) > (0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.lance", "x.tokenizer.json"]


def test_a_rebuild_touches_nothing_before_it_can_begin_and_no_folder_that_is_no_store(tmp_path: Path):
    class Shut(ListSource):
        def open(self, pin: Any = None) -> Any:
            raise SourceError("no access")

    uri = str(tmp_path / "x.lance")
    version = prepare(SOURCE, ByteTokenizer(), uri).version
    with pytest.raises(SourceError, match="no access"):
        prepare(Shut(documents("other")), ByteTokenizer(), uri, rebuild=True)
    assert prepare(SOURCE, ByteTokenizer(), uri).version == version
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no token store"):
        prepare(SOURCE, ByteTokenizer(), str(tmp_path / "folder"), rebuild=True)
    lance.write_dataset(pa.table({"x": [1]}), tmp_path / "foreign.lance")
    with pytest.raises(StoreError, match="is no token store"):
        prepare(SOURCE, ByteTokenizer(), str(tmp_path / "foreign.lance"), rebuild=True)
    assert lance.dataset(tmp_path / "foreign.lance").count_rows() == 1
    assert (tmp_path / "folder/thesis.tex").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data_dir": None}, "data_dir is None: expected the path of a folder"),
        ({"data_dir": ["a"]}, "data_dir is ['a']: expected the path of a folder"),
        ({"uri": ["a"]}, "uri is ['a']: expected a place"),
    ],
)
def test_a_place_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        make_plan(SOURCE, ByteTokenizer(), **{"data_dir": tmp_path, **changes})


FIND = """
import sys
from lightning_lance import prepare
from lightning_lance.sources import FilesSource
from lightning_lance.tokenization import TokenizerFile
prepare(FilesSource(["*.txt"]), TokenizerFile("tokenizer.json"), *sys.argv[1:], val_fraction=0.0)
print(sorted({"tokenizers", "gigatoken"} & {*sys.modules}))
"""


@pytest.mark.parametrize("uri", [[], ["x.lance"]])
def test_a_store_that_is_there_is_found_without_loading_its_tokenizer(
    uri: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some text")
    Path("tokenizer.json").write_text(ByteTokenizer().load(None, tmp_path).to_json())
    source, tokenizer = FilesSource(["*.txt"]), TokenizerFile("tokenizer.json")
    prepare(source, tokenizer, *uri, val_fraction=0.0)
    command = [sys.executable, "-c", FIND, *uri]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.stdout.strip() == "[]", ended.stderr

    planned = make_plan(source, tokenizer, *uri, val_fraction=0.0)
    assert open_prepared(planned, Budget()).num_tokens("train") == 10
    assert "loaded" not in vars(planned.chosen)
    assert planned.tokenizer.vocab_size == planned.chosen.identity.vocab_size == 257


def test_a_tokenizer_that_cannot_be_used_is_refused_before_the_source_is_opened(tmp_path: Path):
    fields = json.loads(ByteTokenizer().load(None, tmp_path).to_json())
    fields["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    config, uri = TokenizerFile(str(tmp_path)), str(tmp_path / "x.lance")
    assert config.identify(SOURCE, tmp_path) is not None  # only loading sees it
    source = ListSource([])  # which is refused too, once it is opened
    with pytest.raises(ConfigError, match=r"makes its EOS token '<\|endoftext\|>' of the text"):
        prepare(source, config, uri)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json"}


def test_a_tokenizer_that_changes_between_two_reads_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(ByteTokenizer().load(None, tmp_path).to_json())
    planned = make_plan(SOURCE, TokenizerFile(str(tmp_path)), tmp_path / "x.lance")
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["added_tokens"].append({**fields["added_tokens"][0], "id": 257, "content": "<pad>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="was changed while it was read"):
        _ = planned.tokenizer
