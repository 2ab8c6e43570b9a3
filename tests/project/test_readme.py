"""The README's Python runs as it stands, and what it names is there."""

import os
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.warm import TRAINING, server

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_python_runs(number: int, tmp_path: Path):
    (tmp_path / "corpus.py").write_text("def f(x):\n    return x\n" * 400)
    for i in range(20):
        (tmp_path / f"notes{i}.md").write_text(f"# {i}\n" * 40)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "examples")}
    done = server(TRAINING).run(
        SNIPPETS[number], folder=tmp_path, environment=environment, warnings=["ignore"], timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    # Of transformers, if a model's special ids are beyond its vocabulary.
    assert "unexpected behavior" not in done.stderr


def test_the_first_snippet_is_ten_lines():
    assert len([line for line in SNIPPETS[0].splitlines() if line]) <= 10


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md"])
def test_the_tests_that_guarantee_something_are_there(page: str):
    claims = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"\[test_\w+\.py\]\((tests/[\w/]+\.py)\)((?: `\w+`,?)*)", claims)
    assert len(named) > 12
    for file, names in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert f"def test_{name}(" in text, f"{file} has no test_{name}"


def test_every_option_is_in_the_tables():
    for group in ("source", "tokenizer", "model", "trainer", "experiment"):
        for file in (ROOT / "conf" / group).glob("[!_]*.yaml"):
            assert f"`{file.stem}`" in README, f"{group}={file.stem}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
