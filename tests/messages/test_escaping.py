"""Foreign text does not control the terminal: not in errors, logs and reprs, nor in the output of commands."""

import ast
import logging
import os
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import BuildInterrupted, ConfigError, StoreError
from lightning_lance.maintenance.integrity import Problem
from lightning_lance.messages.escaping import logger, say, shown, shown_lines
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.commands import run
from tests.support.corpora import prepare
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents

PACKAGE = ROOT / "lightning_lance"
CLEAR = "\x1b[2J"
READABLE = "größer 中文 日本語 עברית العربية 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 naïve\u00a0café \\x1b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (READABLE, READABLE),
        (CLEAR, r"\x1b[2J"),
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("\x7f\x9b31m\x85", r"\x7f\x9b31m\x85"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\u202etxt.exe\u2066\u2069", r"\u202etxt.exe\u2066\u2069"),
        ("name\udcff.py", r"name\udcff.py"),
    ],
)
def test_literal_texts(text: str, expected: str):
    assert shown(text) == expected
    assert shown(shown(text)) == expected


@given(st.text(st.characters()))
def test_what_is_shown_is_one_line_that_can_be_printed(text: str):
    line = shown(text)
    assert line.encode().decode().splitlines() in ([line], [])
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in line)
    assert shown_lines(text).split("\n") == [shown(part) for part in text.split("\n")]


@pytest.mark.parametrize("kind", [ConfigError, StoreError, BuildInterrupted])
def test_errors_show_escapes(kind: type[BaseException]):
    error = kind(f"The repository {CLEAR} is\nnot {READABLE}.")
    assert str(error) == rf"The repository \x1b[2J is\nnot {READABLE}."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert CLEAR not in repr(error)


def test_further_lines_of_an_error_are_its_own():
    assert str(StoreError("They differ.", "rank 0: a\nb", "rank 1: c")) == "They differ.\nrank 0: a\\nb\nrank 1: c"


def test_log_lines_show_escapes(caplog: pytest.LogCaptureFixture):
    logger("lightning_lance.test").warning("The source %s of %d: %s", CLEAR, 3, ValueError("a\nb"))
    assert caplog.messages == [r"The source \x1b[2J of 3: a\nb"]


def test_what_is_said_shows_escapes(capsys: pytest.CaptureFixture[str]):
    say(f"one{CLEAR}", "two\nthree")
    assert capsys.readouterr().out == "one\\x1b[2J\ntwo\\nthree\n"
    assert str(Problem("data/\u202e", "is\nmissing", "bring it back")) == r"data/\u202e: is\nmissing; bring it back."


def test_all_modules_log_through_it():
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
                # Loggers of other libraries are looked up by name.
                known = file.stem in ("escaping", "request_logs")
                root = not node.args
                assert known or root or isinstance(node.args[0], ast.Constant), f"{file.name}:{node.lineno}"


def test_a_store_of_odd_names_shows_escapes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A language with control characters, and text that spells other lines."""
    odd = f"C{CLEAR}\nerror: all is lost"
    with caplog.at_level(logging.INFO):
        store = prepare(
            ListSource(documents("a text", language=odd)), ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0
        )
    assert repr(store).count("\\x1b[2J\\nerror") == 1
    assert not any(character in text for text in [repr(store), *caplog.messages] for character in "\x1b\n")


def test_the_commands_show_escapes(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    table = pa.table({"text": ["a document"] * 10, "repo": [f"owner/name{CLEAR}\u202e"] * 10})
    pq.write_table(table, tmp_path / "c.parquet")
    source = DatasetSource(
        "parquet", data_files=[str(tmp_path / "c.parquet")], columns={"text": "text", "repo": "repo"}
    )
    prepare(source, ByteTokenizer(), uri, val_fraction=0.0, max_documents=5)
    code, out, err = run(tmp_path, "forget", uri, "repo=owner/name")
    assert code == 1
    assert "did you mean repo=owner/name\\x1b[2J\\u202e?" in out + err
    assert not any(character in out + err for character in "\x1b\u202e")


def test_clean_shows_escapes_and_says_all_on_any_terminal(tmp_path: Path):
    """With odd names of a path and a tag, on an ASCII terminal."""
    uri = tmp_path / "d\xe9j\xe0\u202e.lance"
    prepare(ListSource(documents("a text")), ByteTokenizer(), str(uri), val_fraction=0.0)
    (uri / "_refs/tags/n\u2028o.json").touch()
    command = [sys.executable, "-c", "from lightning_lance.cli.main import main; main()", "clean", str(uri)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for said in ("n\\u2028o.json is empty: removed.\n", "d\\xe9j\\xe0\\u202e.lance: nothing to clean.\n"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(said)
