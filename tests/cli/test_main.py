import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lightning_lance
from lightning_lance.cli.arguments import COMMANDS
from lightning_lance.cli.main import main
from lightning_lance.errors import StoreError
from lightning_lance.inspection.summary import describe_store
from tests.support.commands import COMMAND, Run, run
from tests.support.paths import ROOT
from tests.support.warm import BUILDING, server


def test_prepare_builds_and_finds_again(tmp_path: Path):
    arguments = ("prepare", "tokenizer=bytes", "max_documents=30")
    code, out, err = run(tmp_path, *arguments)
    assert (code, err) == (0, "")
    line = out.splitlines()[-1]
    assert line.startswith(f"{tmp_path}/data/python_stdlib-")
    assert "30 documents" in line
    assert run(tmp_path, *arguments) == (0, line + "\n", "")
    # One line for what is read, and that one; the disk is large enough.
    lines = [text.partition(" ")[0] for text in out.splitlines()[:-1] if "nothing to validate on" not in text]
    assert lines == ["Reading"]
    code, shown, err = run(tmp_path, *arguments, "--cfg", "job")
    assert (code, err) == (0, "")
    assert "max_documents: 30" in shown
    # Only a store: no folders of Hydra, no log.
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["conext_length=3"],
            "There is no key 'conext_length': did you mean 'context_length'? the configuration has build, ckpt_path, "
            "context_length, corpus, data, data_dir, engine, languages, logger, max_documents, max_tokens, model, output_dir, "
            "progress, seed, source, tokenizer, trainer, watch.",
        ),
        (
            ["+val_fraction=0.1"],
            "There is no key 'val_fraction': did you mean corpus.val_fraction? the configuration has ",
        ),
        (
            ["source.shardseed=3"],
            "There is no key 'source.shardseed': did you mean 'shard_seed'? source has dedup, languages, ",
        ),
        (
            ["source=parket"],
            "There is no source 'parket': did you mean 'parquet'? expected one of files, fineweb, github_code, ",
        ),
        (
            ["source=corpus/a.jsonl.gz"],
            "There is no source 'corpus/a.jsonl.gz': a file is given as source=jsonl 'source.data_files=[corpus/a.jsonl.gz]'; ",
        ),
        (
            ["source=x.lance"],
            "There is no source 'x.lance': a store that is there is served by data.corpus=x.lance; expected one of ",
        ),
        (["source=/"], "There is no source '/': files and folders are given as source=files 'source.patterns=[/]'; "),
        (
            ["source=notes/"],
            "There is no source 'notes/': files and folders are given as source=files 'source.patterns=[notes/]'; ",
        ),
        (["tokenizer=byte"], "There is no tokenizer 'byte': did you mean 'bytes'? expected one of bpe, bytes, file, "),
        (
            ["tokenizer=own/name"],
            "There is no tokenizer 'own/name': a model of the Hub is given as tokenizer=hub tokenizer.model=own/name; ",
        ),
        (
            ["tokenizer=my/tokenizer.json"],
            "There is no tokenizer 'my/tokenizer.json': a tokenizer.json is given as tokenizer=file tokenizer.path=my/token",
        ),
        (
            ["data=x.lance"],
            "There is no data 'x.lance': a store that is there is served by data.corpus=x.lance, and files to be tokenized ",
        ),
        (
            ["data_files=a.jsonl"],
            "There is no key 'data_files': did you mean source.data_files, which other sources have? the configuration ",
        ),
        (
            ["corpus=data/x.lance"],
            "There is no corpus 'data/x.lance': a store that is there is served by data.corpus=data/x.lance",
        ),
        (
            ["watch.losses.factor=3"],
            "There is no key 'watch.losses', since losses is not chosen: add watch=losses.",
        ),
        (["source=files"], "The key source.patterns has no value: give it one on the command line"),
        (["source=files", "source.patterns=['no/*.py']"], "No file matches 'no/*.py' in '"),
        (["source=parquet", "source.data_files=['no/*.parquet']"], "No file matches 'no/*.parquet' in '"),
        (["tokenizer=file", "tokenizer.path=no.json"], "There is no tokenizer.json at 'no.json'"),
        (["languages=[Pyton]"], "has no language 'Pyton' (did you mean 'Python'?): it has Assembly, Batchfile, C"),
        (
            ["languages=[Python,", "Rust]"],
            "languages=[Python, Rust] arrived as 2 arguments, since the shell cuts at spaces: quote it, as in "
            "'languages=[Python, Rust]'.",
        ),
        (
            ["data.mix=Python:0.7", "data.mix=Rust:0.3"],
            "data.mix is given 2 times in a row, as where the shell expands braces, and only the last would count: quote the "
            "whole, as in 'data.mix={Python: 0.7, Rust: 0.3}'.",
        ),
        (["languages=[Rust]"], "Source 'python_stdlib' has no language 'Rust': it has Python."),
        (["source=fineweb", "languages=[English]"], "Source 'fineweb' has no languages, got languages=['English']"),
        (["foo"], "Got 'foo', which is not key=value: expected text such as context_length=512, "),
        (
            ["languages=[Python"],
            "The value of 'languages=[Python' cannot be parsed: expected text such as context_length=512",
        ),
        (
            ["source=parquet", "source.data_files=[c.parquet]", "source.columns=content"],
            "source.columns of 'parquet' is 'content': expected a mapping of our words to its columns, such as {text: cont",
        ),
        (
            ["source=jsonl", "source.data_files=[c.jsonl]", "source.where=mit"],
            "source.where is 'mit': expected a mapping of columns to values to keep, such as {license: [mit]}.",
        ),
        (["source.text_filter.min_bytes=a"], "text_filter.min_bytes is 'a': expected a whole number."),
        (["max_tokens=-1"], "max_tokens is -1: expected a positive whole number, or null for no bound."),
        (
            ["tokenizer.vocab_size=9"],
            "tokenizer.vocab_size is 9: expected a whole number, at least 257 for 256 bytes and EOS.",
        ),
        (["+data.uri=x"], "There is no key 'data.uri': the place of a store that is built is corpus.uri"),
        (["+data.bogus=3"], "There is no key 'data.bogus': data has at_max_epochs, batch_format, "),
        (["data.build.rebuild=true"], "There is no key 'data.build.rebuild': it is build.rebuild."),
        (
            ["data.corpus.uri=x.lance"],
            "There is no key 'data.corpus.uri': a key of the corpus is corpus.uri, and several",
        ),
        (["data.corpus=nope.lance"], "/nope.lance': check the place"),
        (["corpus.uri=memory://x"], "uri is 'memory://x', which would be gone with the process: give a folder"),
        (["progress=xml"], "progress is 'xml': expected one of lines, json."),
        (
            ["tokenizer=bytes", "--foo", "a=b"],
            "there is no option --foo: expected key=value, or an option such as --cfg job",
        ),
        (["~data.corpus"], "The key data.corpus is missing: leave out what removes it."),
        (
            ["data.corpus=x.lance", "source=files", "source.patterns=[a]"],
            "source=files is given, but data.corpus is an existing",
        ),
        (
            ["data.corpus=x.lance", "corpus.uri=y"],
            "corpus.uri=y is given, but data.corpus is an existing store, and nothing",
        ),
        (
            ["data.corpus=x.lance", "build.rebuild=true"],
            "build.rebuild=true is given, but data.corpus is an existing store",
        ),
        (
            ["corpus.val_fraction=2"],
            "val_fraction is 2: expected a share of the documents, 0 <= val_fraction < 1; on the command line: corpus.",
        ),
        (
            ["data.batch_format=hf"],
            "batch_format is 'hf': expected one of default, huggingface; on the command line: data.batch_format.",
        ),
        (
            ["tokenizer=bytes", "data.fim={prefix_token: fim_a, middle_token: b, suffix_token: c}"],
            "The tokenizer has no token 'fim_a': ",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(
    tmp_path: Path, arguments: list[str], sentence: str, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("prepare", *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    # Reported before anything is read, and before a tokenizer is trained.
    assert "Training" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_for_those_who_ask(tmp_path: Path):
    code, _, err = run(tmp_path, "prepare", "max_documents=0", HYDRA_FULL_ERROR="1")
    assert code == 1
    assert "Traceback" in err


def test_help_version_and_other_words(tmp_path: Path):
    assert "lightning-lance prepare key=value" in run(tmp_path)[1]
    assert run(tmp_path, "--help")[1] == run(tmp_path)[1]
    stated = re.search('^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None
    assert run(tmp_path, "--version")[1] == f"{stated[1]}\n"
    assert lightning_lance.__version__ == stated[1]
    code, _, err = run(tmp_path, "prepair")
    assert code == 1
    assert err.startswith(
        "error: there is no command 'prepair': did you mean prepare? expected train, prepare, list, info, verify, forget, "
        "clean, remove, import, export, card, push, doctor, show, where or verify-resume; lightning-lance --help says more.\n"
    )
    assert err.count("\n") == 1


def test_a_run_whose_folder_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "outputs").touch()
    code, out, err = run(tmp_path, "train")
    assert (code, out) == (1, "")
    assert err.startswith("error: 'outputs', for the files of the run, cannot be written (")
    assert err.endswith("): give another folder as output_dir.\n")
    assert err.count("\n") == 1


def test_a_refused_run_leaves_no_folder_of_its_own(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    for folder in ("outputs", "runs/first", "mine", "mine/first"):
        code, out, err = run(tmp_path, "train", f"output_dir={folder}", "data.batch_size=0")
        assert (code, out) == (1, "")
        assert err.startswith("error: batch_size is 0")
    # The documented way to a configuration of one's own.
    (tmp_path / "mine/notes.yaml").write_text("seed: 3\n")
    code, out, err = run(tmp_path, "train", "--config-dir", "mine", "+notes=0", "output_dir=o/a/b", "data.batch_size=0")
    assert (code, out) == (1, "")
    assert {*tmp_path.rglob("*")} == {tmp_path / "mine", tmp_path / "mine/notes.yaml"}


@pytest.mark.parametrize(
    "arguments", [["--version"], ["prepare", "--version"], ["train", "seed=1", "--version"]], ids=str
)
def test_the_package_is_a_command_too(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["__main__.py", *arguments])
    runpy.run_module("lightning_lance", run_name="__main__")
    assert capsys.readouterr().out == f"{lightning_lance.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("verify", "error: got nothing, expected verify URI [sample=SHARE] [format=json] [--storage"),
        ("verify sample=2", "error: got sample=2, expected verify URI [sample=SHARE] [format=json] [--storage"),
        ("list x y", "error: got y, expected list [DIR] [format=json] [--storage"),
        ("list", "error: There is no folder 'data': give the folder of the stores, as in lightning-lance list DIR."),
        ("list format=xml", "error: got format=xml, expected list [DIR] [format=json]"),
        ("info", "error: got nothing, expected info URI [report=FILE]"),
        ("info x.lance", "error: There is no committed token store at '"),
        ("remove", "error: got nothing, expected remove URI [yes=true]"),
        ("remove x.lance yes=1", "error: got yes=1, expected remove URI [yes=true]"),
        ("remove x.lance yes=true", "error: There is no committed token store at '"),
        ("forget x.lance repo=a dry_run=yes", "error: got dry_run=yes, expected forget URI KEY=VALUE"),
        (
            "verify x.lance sample=2",
            "error: sample is 2: expected a share of the data files, above 0 and up to 1, such as 0.1.",
        ),
        ("verify x.lance sample=few", "error: sample is few: expected a share"),
        ("verify x.lance smple=0.1", "error: got smple=0.1, expected verify URI"),
        ("verify x.lance all", "error: got all, expected verify URI"),
        ("verify x.lance", "error: There is no committed token store at '"),
        ("verify --all", "error: got --all, expected verify URI"),
        ("forget x.lance", "error: got no key=value, expected forget URI KEY=VALUE ... [purge=true]"),
        ("forget repo=a/b", "error: got repo=a/b, expected forget URI"),
        ("forget x.lance repo=a/b repo=c", "error: repo is given twice: give it once, and the other to"),
        ("forget x.lance repo=a/b purge=1", "error: got purge=1, expected forget URI"),
        ("verify s3://b/x aws_a=1 aws_a=2", "error: aws_a is given twice: give it once"),
        ("verify s3://b/x --storage-option a=1 --storage-option a=2", "error: a is given twice: give it once"),
        ("verify s3://b/x endpoint=y", "error: got endpoint=y, expected verify URI"),
        ("clean x.lance --storage-option", "error: argument --storage-option: expected one argument."),
        ("clean x.lance --storage-option endpoint", "error: got endpoint, expected clean URI"),
        ("clean x.lance --storage endpoint=y", "error: got --storage, expected clean URI"),
        ("verify-resume uri=x", "error: got uri=x, expected verify-resume CKPT"),
        ("verify-resume x.ckpt y", "error: got y, expected verify-resume CKPT|DIR [uri=PLACE | NAME=PLACE ...]"),
    ],
)
def test_the_other_commands_say_what_they_expect(
    arguments: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-lance", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith(told)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for arguments in (["--help"], ["x.lance", "-h"]):
        monkeypatch.setattr(sys, "argv", ["lightning-lance", name, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: lightning-lance {name} ")


@pytest.mark.parametrize(
    ("words", "rule", "options"),
    [
        ("s3://b/x.lance repo=a aws_region=r", {"repo": "a"}, {"aws_region": "r"}),
        ("s3://b/x.lance allow_http=true repo=a=b", {"repo": "a=b"}, {"allow_http": "true"}),
        ("s3://b/x.lance --storage-option endpoint=e repo=a", {"repo": "a"}, {"endpoint": "e"}),
        ("--storage-option=a=b=c s3://b/x.lance azure_x=a", {"azure_x": "a"}, {"a": "b=c"}),
        ("s3://b/x.lance azure_x=a --storage-option a=1 purge=false", {"azure_x": "a"}, {"a": "1"}),
        ("x.lance azure_x=a", {"azure_x": "a"}, {}),
    ],
)
def test_what_is_a_rule_and_what_an_option_of_the_object_store(
    words: str, rule: dict[str, str], options: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    given: list[object] = []

    def forget(*arguments: object) -> None:
        given.extend(arguments)
        raise StoreError("enough")

    monkeypatch.setattr("lightning_lance.maintenance.forgetting.forget", forget)
    monkeypatch.setattr("lightning_lance.maintenance.forgetting.keys_at", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["lightning-lance", "forget", *words.split()])
    with pytest.raises(SystemExit, match="error: enough"):
        main()
    assert given[:4] == [*(word for word in words.split() if word.endswith("x.lance")), rule, options, False]


def test_help_of_prepare_shows_its_own_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(tmp_path)

    def shown(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lightning-lance", "prepare", *arguments])
        main()
        return capsys.readouterr().out

    words = {*re.findall(r"\w+", shown("--help"))}
    assert {
        "github_code",
        "languages",
        "max_tokens",
        "shard_seed",
        "vocab_size",
        "commit_seconds",
        "uri",
        "verify",
    } <= words
    # No keys of training or Hydra.
    others = {
        "trainer",
        "n_layer",
        "context_length",
        "ckpt_path",
        "batch_size",
        "order",
        "output_dir",
        "_target_",
        "Powered",
    }
    assert not others & words
    assert "source.data_files=???" in shown("source=parquet", "-h")
    with pytest.raises(SystemExit) as ended:
        shown("-h", "source=parket")
    assert str(ended.value.code).startswith("error: There is no source 'parket': did you mean 'parquet'?")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code", "moment"), [(signal.SIGTERM, 143, "before"), (signal.SIGINT, 130, "between")]
)
def test_an_interrupted_build_says_how_to_go_on(tmp_path: Path, number: int, code: int, moment: str):
    """Before the build begins, and between two commits."""
    arguments = ["prepare", "tokenizer=bytes", "build.commit_seconds=0", f"corpus.uri={tmp_path}/x.lance"]
    arguments.append("max_documents=700")
    process = server(BUILDING).start(Path(COMMAND[0]), *arguments, folder=tmp_path)
    awaited = "x.lock" if moment == "before" else "x.lance/_versions/*.manifest"
    # A lease is there once it names its holder.
    while process.is_running() and not any(path.stat().st_size for path in tmp_path.glob(awaited)):
        time.sleep(0.005)
    os.kill(process.pid, number)
    assert process.wait(60) == code
    _, err = process.output()
    assert re.fullmatch(
        r"interrupted: .*committed in .*: run it again to (continue from there|start from the beginning)\.\n", err
    ), err
    if moment == "between":
        assert "documents (" in err
    # Only an unfinished store.
    assert {path.name for path in tmp_path.iterdir()} <= {"x.lance", "x.tokenizer.json"}
    if moment == "between":
        assert run(tmp_path, *arguments, "build.commit_seconds=60")[0] == 0


# Libraries that take from a tenth of a second to several to import, and what runs without them.
HYDRA = {"hydra", "omegaconf", "antlr4", "yaml"}
ARRAYS = {"numpy", "pyarrow", "lance"}
TORCH = {"torch", "lightning", "transformers", "datasets", "tokenizers", "gigatoken"}
# What was imported stays, so each is run without what those after it need.
EACH = """
import sys
for each in sys.argv[1:]:
    sys.argv[1:] = []
    try:
        exec(each, {})
    except SystemExit:
        pass
    print("modules:", *sys.modules)
"""
MAIN = "import lightning_lance.cli.main as cli; sys.argv[1:] = {}; cli.main()"
NEED_NOTHING = [
    "import lightning_lance",
    "import lightning_lance.sources, lightning_lance.tokenization, lightning_lance.maintenance",
    "import lightning_lance.cli.main",
    *(
        f"import sys; {MAIN.format(arguments)}"
        for arguments in (
            [], ["--help"], ["--version"], ["verify", "--help"], ["forget", "-h"], ["clean", "-h"], ["verify-resume", "-h"],
            ["verfy", "x"], ["forget", "x"], ["verify", "x", "y"],
        )
    ),
]  # fmt: skip
NEED_HYDRA = [
    f"import sys; {MAIN.format(arguments)}"
    for arguments in (["prepare", "-h"], ["train", "-h"], ["train", "contxt_length=3"], ["prepare", "contxt_length=3"])
]
NEED_ARRAYS = [f"import sys; {MAIN.format(arguments)}" for arguments in (["list"], ["verify", "x"])]


@pytest.mark.parametrize(
    "run_these",
    [
        [(each, HYDRA | ARRAYS | TORCH) for each in NEED_NOTHING] + [(each, ARRAYS | TORCH) for each in NEED_HYDRA],
        [(each, HYDRA | TORCH) for each in NEED_ARRAYS],
    ],
    ids=["Hydra at most", "arrays at most"],
)
def test_what_needs_no_library_imports_none(run_these: list[tuple[str, set[str]]], tmp_path: Path):
    command = [sys.executable, "-c", EACH, *(each for each, _ in run_these)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("modules:")]
    for (run_this, absent), imported in zip(run_these, lines, strict=True):
        assert "lightning_lance" in imported
        assert {*imported} & absent == set(), run_this


def test_the_names_of_a_room_are_what_they_are_named():
    from lightning_lance import inspection, maintenance, sources, tokenization

    for room in (inspection, maintenance, sources, tokenization):
        assert dir(room) == sorted(room.__all__)
        for name in room.__all__:
            assert getattr(room, name).__name__ == name
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = room.nothing


def test_dicts_are_filled_as_the_readme_says(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"content": "some text", "lang": "Rust", "license": "mit", "repo_name": "x"}\n')
    arguments = [
        "prepare", "source=jsonl", f"source.data_files=[{tmp_path}/a.jsonl]", "tokenizer=bytes", f"data_dir={tmp_path}/data",
        "source.columns={text: content, repo: repo_name}", "source.language_column=lang", "source.where={license: [mit]}",
        "data.mix={Rust: 0.7}", "data.where={language: [Rust]}",
    ]  # fmt: skip
    code, out, error = run(tmp_path, *arguments)
    assert code == 0, error
    assert "1 document," in out
    # A mapping in place of the list of languages.
    aliased = [*(part for part in arguments if not part.startswith("data.")), "languages={Crab: [Rust]}"]
    code, out, error = run(tmp_path, *aliased, f"corpus.uri={tmp_path}/x.lance")
    assert code == 0, error
    assert describe_store(tmp_path / "x.lance").languages[0].language == "Crab"
