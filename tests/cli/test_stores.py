"""What list, info, forget and remove print, and when remove refuses."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from lightning_lance import TokenStore
from lightning_lance.errors import SourceError
from lightning_lance.process.build_status import StatusFile
from lightning_lance.process.locks import Lease
from lightning_lance.tokenization.configs import ByteTokenizer, TrainedBPE
from tests.support.commands import Run
from tests.support.corpora import prepare
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents

SOURCE = ListSource(
    documents("def f(): pass", "x = 1", language="Python", repo="a")
    + documents("fn main() {}", language="Rust", repo="b")
)


@pytest.fixture
def store(tmp_path: Path, byte_store: Callable[..., TokenStore]) -> TokenStore:
    return byte_store(source=SOURCE, uri=tmp_path / "data/mine.lance")


def test_list_shows_each_store_or_says_why_not(tmp_path: Path, store: TokenStore, run: Run):
    data = tmp_path / "data"
    shutil.copytree(ROOT / "tests/fixtures/store_0_1/code.lance", data / "old.lance")
    shutil.copytree(store.uri, data / "bad\x1b[31m.lance")
    for manifest in (data / "bad\x1b[31m.lance/_versions").glob("*.manifest"):
        manifest.write_bytes(b"nonsense")
    shutil.copytree(store.uri, data / "gone.lance.being-removed")
    lance.write_dataset(pa.table({"a": [1]}), str(data / "others"))
    (data / "empty.lance").mkdir()
    (data / "no.lance").touch()
    (data / "tokenizers").mkdir()
    code, out, err = run("list", data, "format=json")
    assert (code, err) == (0, "")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert {name: entry["state"] for name, entry in listed.items()} == {
        "bad\x1b[31m.lance": "damaged",
        "empty.lance": "empty",
        "gone.lance.being-removed": "removing",
        "mine.lance": "complete",
        "old.lance": "unfinished",
        "others": "foreign",
    }
    mine, old = listed["mine.lance"], listed["old.lance"]
    assert (mine["source"], mine["tokenizer"], mine["documents"], mine["tokens"]) == ("list", "bytes", 3, 33)
    assert mine["built"]
    assert mine["used"]
    assert mine["bytes"] == sum(path.stat().st_size for path in Path(store.uri).rglob("*") if path.is_file())
    # Of an earlier version, without the words of the user.
    assert (old["source"], old["tokenizer"], old["tokens"]) == ("parquet", "384 ids", 10372)
    code, out, _ = run("list", data)
    assert code == 0
    title, *lines = out.splitlines()
    assert title.split() == ["NAME", "SOURCE", "TOKENIZER", "DOCUMENTS", "TOKENS", "SIZE", "BUILT", "USED", "STATE"]
    assert len(lines) == 6
    assert "\\x1b[31m.lance" in lines[0]
    assert len({line.rindex(" ") for line in [title, *lines]}) == 1
    assert run("list", store.uri)[1].count("\n") == 2
    assert run("list", data / "tokenizers") == (0, f"There is no token store in {data}/tokenizers.\n", "")
    assert run("list", data / "tokenizers", "format=json")[1] == "[]\n"


@pytest.mark.parametrize(
    "words",
    [
        ["info"], ["verify"], ["forget", "repo=a"], ["remove", "yes=true"], ["card"], ["push", "own/name"], ["show"],
        ["where", "repo=a"], ["export", "nanogpt", "out"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_folder_of_stores_is_no_store(words: list[str], store: TokenStore, run: Run, monkeypatch: pytest.MonkeyPatch):
    data = Path(store.uri).parent
    monkeypatch.chdir(data)
    name, *rest = words
    code, out, err = run(name, data, *rest)
    assert (code, out) == (1, "")
    assert f"is a folder of token stores: lightning-lance list {data} lists them; give the place of one" in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in data.iterdir()) == ["mine.lance", "mine.tokenizer.json"]


EMPTY = ListSource(documents("", ""))


def test_a_build_that_failed_before_its_first_commit_is_listed_and_cleaned(tmp_path: Path, run: Run):
    data = tmp_path / "da ta"
    with pytest.raises(SourceError, match="no documents"):
        prepare(EMPTY, ByteTokenizer(), data / "a.lance")
    with pytest.raises(SourceError, match="no documents"):
        prepare(EMPTY, ByteTokenizer(), data / "b")
    # A failed build takes its tokenizer with it, which a killed one cannot.
    assert not [*data.glob("*tokenizer.json")]
    StatusFile(data / "killed.building.json", "f").begin()
    tokenizer = data / "killed.tokenizer.json"
    tokenizer.write_text(ByteTokenizer().load(None, Path()).to_json())
    # Of others.
    (data / "mine.building.json").write_text("{}")
    for name in ("a.tokenizer.json", "lone.tokenizer.json"):
        shutil.copy(tokenizer, data / name)
    os.utime(data / "a.tokenizer.json", (1e9, 1e9))
    (data / "no.lance").mkdir()
    others = {"no.lance", "mine.building.json", "a.tokenizer.json", "lone.tokenizer.json"}
    code, out, err = run("list", data, "format=json")
    assert (code, err) == (0, "")
    states = {entry["name"]: entry["state"] for entry in json.loads(out)}
    assert states == {"a.lance": "failed", "b": "failed", "killed.lance": "empty", "no.lance": "empty"}
    assert f"is a folder of token stores: lightning-lance list {data}" in run("info", data)[2]
    assert "failed before its first commit (Source 'list' gave no documents" in run("info", data / "a.lance")[2]
    assert run("clean", data / "b")[:2] == (
        0,
        f"{data}/b.store-building.json, of a build that committed nothing: removed.\n",
    )
    lease = Lease(data / "killed.lock")
    assert lease.take()
    assert "in use" in run("clean", data)[1]
    lease.release()
    code, out, err = run("clean", data, "format=json")
    assert (code, err) == (0, "")
    assert {path.name for path in data.iterdir()} == others
    assert f"killed.lance: {tokenizer}, of a build that committed nothing: removed" in json.loads(out)["done"]
    assert run("clean", data)[:2] == (0, f"{data}: nothing to clean.\n")


def test_a_trained_tokenizer_is_called_by_the_ids_that_it_has(tmp_path: Path, run: Run):
    made = prepare(SOURCE, TrainedBPE(1000), tmp_path / "x.lance")
    assert made.commit.vocab_size < 300
    assert json.loads(run("list", tmp_path, "format=json")[1])[0]["tokenizer"] == f"bpe of {made.commit.vocab_size} ids"
    assert (
        json.loads(run("info", made.uri, "format=json")[1])["settings"]["tokenizer"]
        == f"bpe of {made.commit.vocab_size} ids"
    )


def test_info_counts_languages_and_splits(run: Run, tmp_path: Path):
    old = tmp_path / "old.lance"
    shutil.copytree(ROOT / "tests/fixtures/store_0_1/code.lance", old)
    code, out, err = run("info", old, "format=json")
    assert (code, err) == (0, "")
    info = json.loads(out)
    tokens = {entry["language"]: entry["split_tokens"] for entry in info["languages"]}
    assert tokens == {"Python": {"train": 2950, "val": 1228}, "Rust": {"train": 4163, "val": 2031}}
    opened = TokenStore.open(old)
    for entry in info["languages"]:
        assert sum(entry["split_documents"].values()) == entry["documents"]
        for split, count in entry["split_documents"].items():
            extent = next(stream for stream in opened.streams(split) if stream.language == entry["language"])
            begun = opened.documents([extent.start], extent.num_tokens, split)
            assert len(begun) == count
    assert info["settings"]["columns"] == {
        "text": "content", "repo": "repo_name", "path": "path", "license": "license"
    }  # fmt: skip
    assert info["forgotten"][0]["rule"] == {"repo": "owner/repo3"}
    assert info["versions"][0]["kept_by"] == ["newest", "checkpoint-11286-96171f6c"]
    sizes = [path.stat().st_size for path in (old / "data").iterdir()]
    assert info["disk"]["newest"] >= sum(sizes)
    assert info["disk"]["reclaimable"] == 0
    code, out, _ = run("info", old)
    assert f"{old}: unfinished, " in out
    assert "forgotten" in out


def test_info_writes_a_report_and_replaces_no_file_of_others(store: TokenStore, run: Run, tmp_path: Path):
    page = tmp_path / "r.html"
    table = tmp_path / "c.parquet"
    code, out, err = run(
        "info", store.uri, f"report={page}", f"counts={table}", "context_length=8", "sample=20", "windows=2"
    )
    assert (code, err) == (0, "")
    assert out.startswith(f"{store.uri}: written to {page} and {table} (a sample of ")
    page.write_text("mine")
    assert "a file that is no earlier report" in run("info", store.uri, f"report={page}")[2]
    planned = ("max_steps=2", "batch_size=1", "mix.Python=1", "mix.Rust=2", "context_length=8")
    code, out, _ = run("info", store.uri, f"report={page}", "overwrite=true", "sample=all", *planned, "format=json")
    assert json.loads(out) == {
        "uri": store.uri, "report": str(page), "exact": True, "tokens": 33, "tokens_read": 33
    }  # fmt: skip
    assert "A planned run" in page.read_text()
    assert run("info", store.uri, f"counts={table}")[0] == 0
    for words, said in (
        (["windows=3"], "windows is about a report: give report=out.html too"),
        ([f"counts={table}", "windows=3"], "windows is about a report: give report=out.html too"),
        ([f"report={page}", "windows=x"], "windows is x: expected a whole number"),
        ([f"report={page}", "mix.Rust=x", *planned[:2]], "mix.Rust is x: expected a weight"),
        ([f"report={page}", "mix.Rut=1", *planned[:2]], "did you mean 'Rust'?"),
        ([f"report={page}", "overwrite=yes"], "got overwrite=yes"),
        ([f"reprot={page}"], "expected info URI [report=FILE]"),
        ([f"report={page}", "tokenizer=none.json"], "There is no tokenizer.json at"),
    ):
        code, out, err = run("info", store.uri, *words)
        assert (code, out) == (1, ""), words
        assert said in err


def test_forget_counts_without_changing_anything(store: TokenStore, run: Run):
    before = {path: path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file()}
    code, out, err = run("forget", store.uri, "repo=a", "dry_run=true", "format=json")
    assert (code, err) == (0, "")
    counted = json.loads(out)
    assert counted["languages"] == [{"language": "Python", "documents": 2, "tokens": 20}]
    assert (
        "2 documents (20 tokens) would be forgotten; nothing was changed."
        in run("forget", store.uri, "repo=a", "dry_run=true")[1]
    )
    assert "did you mean language=Python?" in run("forget", store.uri, "language=Pyton", "dry_run=true")[1]
    assert {path: path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file()} == before
    code, out, _ = run("forget", store.uri, "repo=a", "format=json")
    forgotten = json.loads(out)
    assert (forgotten["documents"], forgotten["tokens"]) == (counted["documents"], counted["tokens"]) == (2, 20)
    assert json.loads(run("clean", store.uri, "format=json")[1])["left"] == []
    assert json.loads(run("verify", store.uri, "format=json")[1])["problems"] == []


def test_a_word_of_the_command_that_is_also_a_documents_is_refused(byte_store: Callable[..., TokenStore], run: Run):
    source = ListSource(documents("a"), metadata=("repo",))
    uri = byte_store(source=source).uri
    # As if `format` were a column.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_lance.maintenance.forgetting.keys_at", lambda *_: ["format", "repo"])
        code, _, err = run("forget", uri, "repo=a", "format=json")
    assert code == 1
    assert "format is a word of this command and of the documents" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_remove_asks_and_takes_what_belongs_to_the_store(store: TokenStore, run: Run, monkeypatch: pytest.MonkeyPatch):
    uri = store.uri
    del store
    beside = {path.name for path in Path(uri).parent.iterdir()}
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, out, err = run("remove", uri)
    assert (code, out) == (1, "")
    assert err.endswith("is not removed without a question, and there is no terminal to ask: give yes=true.\n")
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    code, out, err = run("remove", uri, "format=json")
    assert (code, out) == (1, "")
    assert "3 documents, 33 tokens. Nothing brings it back.\nRemove it? [y/N] error: nothing was removed.\n" in err
    assert {path.name for path in Path(uri).parent.iterdir()} == beside
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, _ = run("remove", uri, "format=json")
    tokenizer = f"{uri.removesuffix('.lance')}.tokenizer.json"
    assert (code, json.loads(out)["removed"]) == (0, [uri, tokenizer])
    assert list(Path(uri).parent.iterdir()) == []


def test_remove_refuses_what_is_in_use_or_not_provably_a_store(tmp_path: Path, store: TokenStore, run: Run):
    uri = store.uri

    def refused(place: object, *more: str) -> str:
        code, out, err = run("remove", place, "yes=true", *more)
        assert (code, out) == (1, "")
        assert Path(str(place)).exists()
        return err

    lease = Lease(Path(uri).with_suffix(".lock"))
    assert lease.take()
    assert "is in use: another process is building it" in refused(uri)
    lease.release()
    store.keep_for_training()
    assert "1 training run without a checkpoint so far keeps it (tags checkpoint-33-run-" in refused(uri)
    script = (
        "import mmap, sys, pathlib; f = next(pathlib.Path(sys.argv[1], 'data').iterdir()).open('rb'); "
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", script, uri], **pipes) as reader:  # type: ignore[call-overload]
        reader.stdout.readline()
        assert f"process {reader.pid} of this machine reads it" in refused(uri, "ignore_runs=true")
        reader.communicate()
    (Path(uri) / "thesis.txt").touch()
    assert "its folder contains files of others ('thesis.txt')" in refused(uri, "ignore_runs=true")
    (Path(uri) / "thesis.txt").unlink()
    others = tmp_path / "others.lance"
    lance.write_dataset(pa.table({"a": [1]}), str(others))
    assert "is not provably a token store" in refused(others)
    folder = tmp_path / "plain.lance"
    folder.mkdir()
    (folder / "data").mkdir()
    (folder / "data/mine.txt").touch()
    assert "There is no committed token store at" in refused(folder)
    # A link, and what is damaged but ours by its content.
    (tmp_path / "link.lance").symlink_to(uri)
    for manifest in Path(uri, "_versions").glob("*.manifest"):
        manifest.write_bytes(b"nonsense")
    code, out, _ = run("remove", tmp_path / "link.lance", "yes=true")
    assert (code, "a damaged or unfinished token store" in out) == (0, True)
    assert not Path(uri).exists()


def test_remove_ends_what_a_killed_removal_has_begun(store: TokenStore, run: Run):
    Path(store.uri).rename(f"{store.uri}.being-removed")
    assert run("remove", store.uri, "yes=true")[0] == 0
    assert not list(Path(store.uri).parent.glob("*.lance*"))


def test_a_closed_pipe_ends_a_command_quietly(store: TokenStore):
    command = [sys.executable, "-c", "from lightning_lance.cli.main import main; main()"]
    for arguments in (["--help"], ["list", str(Path(store.uri).parent)]):
        with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ended:
            assert ended.stdout is not None
            assert ended.stderr is not None
            ended.stdout.close()
            assert ended.stderr.read() == b""
            assert ended.wait(60) == 0
