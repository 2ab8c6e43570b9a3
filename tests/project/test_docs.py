"""The code of README.md and docs/ runs as it stands, and what they name is there.

Each page has a folder of its own, with a reader's files in it. Its commands and its Python run there one after the other, and
each may go on from those before. Three things are smaller than for a reader: the standard library is a few of its files,
training takes a few steps of a small model, where the page does not ask for others, and what the model writes is short.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from lightning_lance.cli import hydra_app
from lightning_lance.cli.main import USAGE
from tests.support.bucket import serving
from tests.support.library import READ_LIBRARY, copy_library
from tests.support.pages import PAGES, Block, blocks, commands, is_said, name_of
from tests.support.paths import ROOT
from tests.support.warm import TRAINING, server

# Before whatever the page says, so that the page has the last word.
SMALL_BUILD = ("tokenizer.vocab_size=300", "corpus.val_fraction=0.1")
SMALL_RUN = (
    "data.batch_size=2", "context_length=32", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.warmup_steps=1",
    "trainer.max_steps=6", "trainer.limit_val_batches=1", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1",
    "trainer.callbacks.0.every_n_train_steps=2",
)  # fmt: skip
# Forces nothing onto the disk, as in all tests, has a small standard library, and says where it hangs.
PRELUDE = """
import faulthandler
faulthandler.dump_traceback_later(200, exit=True)
from lightning_lance.format import durability
from lightning_lance.examples import train_gpt
train_gpt._SAMPLE_TOKENS = 20
durability._force = lambda path: None
"""
PYTHON = """
page = {{"__name__": "__main__"}}
for place, line, code in {blocks!r}:
    exec(compile("\\n" * (line - 1) + code, place, "exec"), page)
    print(end="\\0", flush=True)
"""
COMMAND = """
import sys
sys.argv[0] = "lightning-lance"
from lightning_lance.cli.main import main
main()
"""
# Commands that fail, one after the other.
MISTAKES = """
import json, sys
sys.argv[0] = "lightning-lance"
from lightning_lance.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
        print("It did not fail.")
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        print(end="\\0", file=stream, flush=True)
"""
SCRIPT = """
import runpy, sys
from pathlib import Path
sys.argv[0] = {script!r}
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few files of the standard library."""
    return copy_library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's folder."""
    rows = [
        {
            "text": f"def f{i}(x):\n    return x + {i}\n" * 20,
            "content": f"def f{i}(x):\n    return x + {i}\n" * 20,
            "lang": ("Python", "Rust")[i % 2],
            "repo_name": f"owner/name{i % 10}",
            "path": f"src/f{i}.py",
            "license": ("mit", "gpl-3.0")[i % 3 == 0],
        }
        for i in range(60)
    ]
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus" / "part-0.parquet")
    (tmp_path / "corpus" / "part-0.jsonl").write_text("".join(f'{{"text": "Line {i}. "}}\n' for i in range(200)))
    (tmp_path / "src").mkdir()
    (tmp_path / "notes").mkdir()
    for i in range(20):
        (tmp_path / "src" / f"f{i}.py").write_text(f"def f{i}(x):\n    return x\n" * 40)
        (tmp_path / "notes" / f"{i}.md").write_text(f"# Note {i}\n\nText.\n" * 40)
    return tmp_path


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, folder: Path, library: str) -> None:
        self._folder = folder
        self._prelude = PRELUDE + READ_LIBRARY.format(library=library)
        # Ray starts workers when there are tasks for them.
        ray = {"RAY_prestart_worker_first_driver": "0"}
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT / "examples"), **ray}
        self._written = ""

    def read(self, page: Path) -> None:
        """Run all blocks of a page. Blocks of Python without a command in between share their names."""
        session: list[Block] = []
        mistakes: list[Block] = []
        for block in blocks(page):
            if block.kind == "mistake":
                self._run_python(session)
                session = []
                mistakes.append(block)
                continue
            if block.kind != "not run":
                self._make_mistakes(mistakes)
                mistakes = []
            if (block.language == "python" and not block.kind) or (block.kind == "output" and session):
                session.append(block)
                continue
            if block.language == "bash":
                self._run_python(session)
                session = []
            self._do(block)
        self._run_python(session)
        self._make_mistakes(mistakes)

    def _do(self, block: Block) -> None:
        if block.kind == "file":
            file = self._folder / block.detail
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code, encoding="utf-8")
        elif block.kind == "output":
            self._check_output(block)
        elif block.language == "bash" and block.kind in ("", "fails"):
            *before, last = commands(block.code)
            for command in before:
                self.run_command(command, block, fails=False)
            self.run_command(last, block, fails=block.kind == "fails")
        elif block.language == "yaml":
            yaml.safe_load(block.code)

    def _check_output(self, block: Block) -> None:
        assert is_said(block.code, self._written), f"{block.place}: not in\n{self._written}"

    def _run_python(self, session: list[Block]) -> None:
        """Run blocks of Python in one process, and check what each has written."""
        code = [(block.place, block.line, block.code) for block in session if block.language == "python"]
        if not code:
            return
        done = self._fork(PYTHON.format(blocks=code))
        assert done.returncode == 0, f"{session[0].place}\n{done.stdout}\n{done.stderr}"
        # Of transformers, if a model's special ids are beyond its vocabulary.
        assert "unexpected behavior" not in done.stderr
        written = iter(done.stdout.split("\0"))
        for block in session:
            if block.kind == "output":
                self._check_output(block)
            else:
                self._written = next(written)

    def _make_mistakes(self, mistakes: list[Block]) -> None:
        """Run commands of nothing but words in one process, and the others each in its own; check what each has written."""
        plain = [block for block in mistakes if shlex.split(block.detail)[0] == "lightning-lance"]
        commands = [self._script(shlex.split(block.detail))[1] for block in plain]
        if plain:
            out, err = self._written_by(self._fork(MISTAKES, json.dumps(commands)), plain)
            for block, *written in zip(plain, out, err, strict=True):
                self._written = "\n".join(written)
                assert "Traceback" not in self._written, f"{block.place}: {block.detail}\n{self._written}"
                self._check_output(block)
        for block in mistakes:
            if block not in plain:
                self.run_command(block.detail, block, fails=True)
                self._check_output(block)

    def _written_by(self, done: subprocess.CompletedProcess[str], commands: list[Block]) -> tuple[list[str], list[str]]:
        """Return what each command has written to the standard output and to the standard error."""
        out, err = done.stdout.split("\0"), done.stderr.split("\0")
        assert (done.returncode, len(out), len(err)) == (0, len(commands) + 1, len(commands) + 1), f"{out}\n{err}"
        assert not any("It did not fail." in text for text in out), f"{out}\n{err}"
        return out[:-1], err[:-1]

    def _fork(self, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return server(TRAINING).run(
            self._prelude + code,
            *arguments,
            folder=self._folder,
            environment={**self._environment, **environment},
            warnings=["ignore"],
            timeout=250,
        )

    def run_command(self, command: str, block: Block, fails: bool) -> None:
        """Run a command of a block."""
        words = shlex.split(command, comments=True)
        environment = {}
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        code, arguments = self._script(words)
        if code is None:
            done = subprocess.run(
                ["bash", "-c", command], cwd=self._folder, capture_output=True, text=True, timeout=60, check=False
            )
        else:
            done = self._fork(code, *arguments, **environment)
        self._written = done.stdout + "\n" + done.stderr
        assert "Traceback" not in self._written, f"{block.place}: {command}\n{self._written}"
        assert (done.returncode != 0) == fails, f"{block.place}: {command}\n{self._written}"

    def _script(self, words: list[str]) -> tuple[str | None, list[str]]:
        """Return the Python that a command stands for, and its arguments; None for a command of the system."""
        if words[0] == "lightning-lance":
            if words[1] == "train":
                return COMMAND, ["train", *small(words[2:], SMALL_BUILD + SMALL_RUN)]
            if words[1] == "prepare":
                return COMMAND, ["prepare", *small(words[2:], SMALL_BUILD)]
            return COMMAND, words[1:]
        if words[0] == "python" and words[1] == "examples/train_gpt.py":
            script = SCRIPT.format(script=str(ROOT / words[1]))
            return script, small(words[2:], SMALL_BUILD + SMALL_RUN)
        if words[0] == "python":
            return SCRIPT.format(script=str(self._folder / words[1])), words[2:]
        return None, []


def is_a_command(name: str) -> bool:
    return f"lightning-lance {name} " in USAGE


def small(given: list[str], defaults: tuple[str, ...]) -> list[str]:
    """Return the arguments of a command that takes overrides, with smaller defaults."""
    if {"--help", "--cfg", "-h"} & {*given}:
        return given
    keys = {argument.partition("=")[0] for argument in given}
    left_out = []
    if "data.corpus" in keys:  # nothing is built
        left_out = ["tokenizer.", "corpus."]
    elif not {"tokenizer=bpe", "experiment=smoke"} & {*given} and {"tokenizer", "experiment"} & keys:
        left_out = ["tokenizer."]  # another tokenizer has other keys
    chosen = []
    for default in defaults:
        if default.partition("=")[0] not in keys and not default.startswith(tuple(left_out)):
            chosen.append(default)
    return [*chosen, *given]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, folder: Path, library: str):
    Reader(folder, library).read(page)


def test_the_commands_for_a_bucket_run(folder: Path, library: str, monkeypatch: pytest.MonkeyPatch):
    """With a server of this machine, whose keys are in the environment, and a disk of the reader's."""
    with serving() as bucket:
        bucket.client.create_bucket(Bucket="my-bucket")
        bucket.client.upload_file(str(folder / "corpus/part-0.parquet"), "my-bucket", "corpus/part-0.parquet")
        for name, value in {
            "AWS_ENDPOINT_URL": bucket.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "KEY": "k",
            "SECRET": "s",
        }.items():
            monkeypatch.setenv(name, value)
        reader = Reader(folder, library)
        stage = folder / "nvme"
        ran = 0
        for block in blocks(ROOT / "docs/object-stores.md"):
            code = block.code.replace("http://localhost:9000", bucket.endpoint).replace("/local/nvme", str(stage))
            for command in commands(code):
                if block.language == "bash" and "s3://my-bucket" in command:
                    reader.run_command(command, block, fails=False)
                    ran += 1
        assert ran == 6
        assert (stage / "lightning-lance-stage").is_dir()
        keys = [entry["Key"] for entry in bucket.client.list_objects_v2(Bucket="my-bucket")["Contents"]]
        assert any(key.startswith("code.lance/data/") for key in keys)


# What is not run is checked for all that can be known without running it.


@pytest.fixture
def configurations() -> Iterator[None]:
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        yield


NOT_RUN = [block for page in PAGES for block in blocks(page) if block.kind == "not run"]


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_what_is_not_run_could_be(block: Block, configurations: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert block.detail, "a block that is not run says why"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEY", "x")
    monkeypatch.setenv("SECRET", "x")
    if block.language == "python":
        check_python(block.code)
    elif block.language == "bash":
        for command in commands(block.code):
            check_command([word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)])


def check_command(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets, words
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE), (
                extra
            )
    elif "lightning_lance.examples.train_gpt" in words:
        check_overrides(words[words.index("lightning_lance.examples.train_gpt") + 1 :])
    elif words[0] == "lightning-lance":
        assert is_a_command(words[1]) or words[1] == "--version", words
        if words[1] in ("train", "prepare"):
            check_overrides(words[2:])


def check_overrides(overrides: list[str]) -> None:
    """Make what is stored and served, which reads nothing."""
    config = compose("config", overrides=[hydra_app._filled([one])[0] for one in overrides if not one.startswith("--")])
    instantiate(config.data)


def check_python(code: str) -> None:
    """Check that all names of this package are there, and take the arguments that they are given."""
    tree = ast.parse(code)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lightning_lance"):
            module = importlib.import_module(node.module)
            known |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
            given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(known[node.func.id]).bind_partial(**given)


# What the pages name is there, and what is there they name.


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150
    first = next(block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert len([line for line in first.code.splitlines() if line]) <= 10


def test_the_readme_names_the_commands_of_development():
    ci = re.findall(r"^make ([\w-]+)$", text_of(".ci/run"), re.MULTILINE)
    assert {"lint", "docs", "test"} <= {*ci}
    for target in ci:
        assert f"`make {target}`" in text_of("README.md")


@pytest.mark.parametrize("page", ["docs/reference/guarantees.md", "SECURITY.md"])
def test_the_tests_that_guarantee_something_are_there(page: str):
    claims = re.sub(r"\[test_\w+\.py\]\((tests/[\w/]+\.py)\)", r"`\1`", text_of(page))
    named = re.findall(r"`(tests/[\w/]+\.py)`((?: `\w+`,?)*)", claims)
    assert len(named) > 12
    for file, names in named:
        text = text_of(file)
        for name in re.findall(r"`(\w+)`", names):
            assert f"def test_{name}(" in text, f"{file} has no test_{name}"


def test_each_guarantee_has_a_test():
    rows = [row for row in text_of("docs/reference/guarantees.md").splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 50
    for row in rows:
        assert "`tests/" in row, row


def keys_of(config: Any, path: str = "") -> Iterator[str]:
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if not str(key).startswith("_") and key != "defaults":
            yield f"{path}{key}"
            yield from keys_of(value, f"{path}{key}.")


def test_every_option_is_documented():
    page = text_of("docs/reference/configuration.md")
    for group in ("source", "tokenizer", "model", "trainer", "experiment"):
        for file in (ROOT / "conf" / group).glob("[!_]*.yaml"):
            assert f"`{file.stem}`" in page, f"{group}={file.stem}"


@pytest.mark.parametrize("file", ["config", "corpus/default", "data/default", "source/*", "tokenizer/*", "watch/*"])
def test_every_key_is_documented(file: str):
    named = {*re.findall(r"`(\w+(?:\.\w+)*)(?:=[^`]*)?`", text_of("docs/reference/configuration.md"))}
    for path in (ROOT / "conf").glob(f"{file}.yaml"):
        group = path.parent.name if path.parent.name != "conf" else ""
        for key in keys_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
            full = f"{group}.{key}" if group else key
            # Words for columns, and names of languages, are the reader's own.
            if key.startswith(("columns.", "hydra", "extensions.")):
                continue
            assert full in named, f"docs/reference/configuration.md does not say what {full} is"


def test_every_command_is_documented():
    page = text_of("docs/reference/cli.md")
    for command in re.findall(r"^lightning-lance ([\w-]+)", USAGE, re.MULTILINE):
        assert command == "COMMAND" or f"## {command}" in page or command == "--version"


def test_every_public_name_is_documented():
    page = text_of("docs/reference/api.md")
    for module in ("", ".sources", ".tokenization", ".maintenance", ".inspection", ".callbacks"):
        package = importlib.import_module(f"lightning_lance{module}")
        for name in getattr(package, "__all__", ()):
            assert f"::: lightning_lance{module}.{name}\n" in page


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "ARCHITECTURE.md"]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def test_every_page_is_in_the_navigation():
    named = re.findall(r"[\w/-]+\.md", text_of("mkdocs.yml"))
    assert sorted(named) == sorted(
        page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name != "README.md"
    )


def test_the_commonest_mistakes_are_made():
    made = [block for block in blocks(ROOT / "docs/troubleshooting.md") if block.kind == "mistake"]
    assert len(made) >= 20
