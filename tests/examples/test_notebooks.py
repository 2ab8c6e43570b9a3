"""The notebooks run from their first cell to the last, and show what they say."""

import json
import os
from pathlib import Path

from lightning_lance import Corpus, WindowLoader
from lightning_lance.sources import FilesSource
from lightning_lance.tokenization import ByteTokenizer
from tests.support.library import READ_LIBRARY, copy_library
from tests.support.paths import ROOT
from tests.support.warm import TRAINING, server

NOTEBOOK = ROOT / "examples/notebooks/first_look.ipynb"
# What Jupyter does with a cell: run it, and show its last expression.
SHOWING = """
import ast, sys
cells = {cells!r}
names = {{}}
for cell in cells:
    body = ast.parse(cell).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if last is not None:
        value = eval(compile(last, "cell", "eval"), names)
        print("shown:", value._repr_html_() if hasattr(value, "_repr_html_") else repr(value), flush=True)
"""


def test_the_first_look(tmp_path: Path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    code = [cell.replace("steps = 150", "steps = 2").replace("max_documents=300", "max_documents=40") for cell in cells]
    assert code != cells
    (tmp_path / "library").mkdir()
    prelude = READ_LIBRARY.format(library=copy_library(tmp_path / "library"))
    done = server(TRAINING).run(
        prelude + SHOWING.format(cells=code),
        folder=tmp_path,
        environment={**os.environ},
        warnings=["ignore"],
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout.split("shown: ")[1:]
    assert [part.startswith("<table>") for part in shown] == [True, True, True, False, False, False, False]
    assert "train_loss" in shown[5]
    assert shown[-1].startswith("None")


def test_tables_escape_what_they_show(tmp_path: Path):
    (tmp_path / "a<b>.py").write_text("<script>alert(1)</script> \x1b[31m" * 20)
    corpus = Corpus(FilesSource(["*.py"], root=str(tmp_path)), ByteTokenizer(), tmp_path / "x.lance", val_fraction=0.0)
    store = corpus.prepare()
    windows = WindowLoader(store, 64, 2).windows(0)
    for table in (corpus._repr_html_(), store._repr_html_(), windows._repr_html_()):
        assert table.startswith("<table>")
        assert "<script>" not in table
        assert "<b>" not in table
        assert "\x1b" not in table
    assert "a&lt;b&gt;.py" in windows._repr_html_()
