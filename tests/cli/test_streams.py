"""A reader of a command's output that goes away is no error: the command goes on, and says nothing of it."""

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lightning_lance.cli.streams import safe_output
from tests.support.commands import COMMAND


def test_a_build_ends_well_without_a_reader(tmp_path: Path):
    """Of either stream, as after `2>&1 | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, "prepare", "tokenizer=bytes", "max_documents=3", "source=files", "source.patterns=['*.txt']"],
        cwd=folder_of_texts(tmp_path),
        stdout=writing,
        stderr=writing,
        timeout=100,
    )
    os.close(writing)
    assert done.returncode == 0
    assert list((tmp_path / "data").glob("*.lance"))


def folder_of_texts(folder: Path) -> Path:
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["prepare", "--help"], ["prepare", "--cfg", "job"], ["nope"], ["verify", "-h"], ["verify", "x.lance"]],
)
def test_no_command_shows_a_traceback_to_a_reader_that_went_away(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
):
    from lightning_lance.cli.main import main

    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-lance", *arguments])
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with suppress(SystemExit):
            main()
        assert sys.stdout is gone
    assert errors.getvalue() == ""


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch):
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding="ascii"))
    with safe_output():
        print("caf\u00e9")
    assert kept.getvalue() == b"caf\\xe9\n"
