import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from lightning_lance.build.plan import Budget, Plan, check_same, make_plan, open_prepared
from lightning_lance.errors import ConfigError, SourceError, StoreError
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import StoreLocation
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.chosen import ChosenTokenizer
from lightning_lance.tokenization.configs import ByteTokenizer, TokenizerFile, TrainedBPE
from tests.support.corpora import prepare
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents

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
    with pytest.raises(StoreError, match=r"built with other settings \(source.languages: \[\] -> \['Python'\]\)"):
        prepare(replace(SOURCE, languages=("Python",)), ByteTokenizer(), uri)
    with pytest.raises(StoreError, match=r"\(val_fraction: 0.01 -> 0.5\)"):
        prepare(SOURCE, ByteTokenizer(), uri, val_fraction=0.5)


def test_same_recipe_is_the_same(tmp_path: Path):
    chosen = ChosenTokenizer.of(ByteTokenizer(), SOURCE, tmp_path)
    mine = Plan({"a": 1}, "f", StoreLocation("x.lance"), chosen)
    check_same(CommitMetadata("f", {"a": 1}, {}, "", "<eos>", 0, 1), mine)
    assert mine.tokenizer_file == Path("x.tokenizer.json")
    assert Plan({}, "f", StoreLocation("s3://bucket/x.lance"), chosen).tokenizer_file is None


def test_a_store_of_another_recipe_is_replaced_if_that_is_asked_for(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    old = prepare(SOURCE, ByteTokenizer(), uri)
    other = ListSource(documents("these", "are", "others"))
    with pytest.raises(StoreError, match="or set rebuild=true to replace this one"):
        prepare(other, ByteTokenizer(), uri)
    new = prepare(other, ByteTokenizer(), uri, max_documents=2, rebuild=True)
    assert new.commit.documents == 2
    # An open reader of the old store continues, and no file of it stays beside the new one.
    assert old.read([0], 10)[0].tolist() == [*b"some text", 256]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.lance", "x.tokenizer.json"]
    # A store with these settings is continued, not replaced.
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
    # As if killed while it removed the old store; the next build needs no `rebuild` to continue.
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
    with pytest.raises(ConfigError, match="is not a token store"):
        prepare(SOURCE, ByteTokenizer(), str(tmp_path / "folder"), rebuild=True)
    lance.write_dataset(pa.table({"x": [1]}), tmp_path / "foreign.lance")
    with pytest.raises(StoreError, match="is not a token store"):
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
from lightning_lance import Corpus
from lightning_lance.sources import FilesSource
from lightning_lance.tokenization import TokenizerFile
Corpus(FilesSource(["*.txt"]), TokenizerFile("tokenizer.json"), *sys.argv[1:], val_fraction=0.0).prepare()
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
    with pytest.raises(ConfigError, match=r"encodes the text '.*' to its EOS token '<\|endoftext\|>'"):
        prepare(source, config, uri)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json"}


def test_a_tokenizer_that_changes_between_two_reads_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(ByteTokenizer().load(None, tmp_path).to_json())
    planned = make_plan(SOURCE, TokenizerFile(str(tmp_path)), tmp_path / "x.lance")
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["added_tokens"].append({**fields["added_tokens"][0], "id": 257, "content": "<pad>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="changed while it was read"):
        _ = planned.tokenizer
