"""The commands import and export; what a reader does with them is in docs/convert.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Run
from tests.support.paths import ROOT

MDS = ROOT / "tests/fixtures/formats/mds"


def test_import_and_export_say_what_they_did(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("import", "mds", MDS, "tokenizer=bytes", "uri=data/x.lance", "columns.book=source")
    assert (code, err) == (0, "")
    assert "Reading mds (" in out
    assert out.count("data/x.lance: 19 documents, 864 train and 55 val tokens, version 1\n") == 1
    again = run("import", "mds", MDS, "tokenizer=bytes", "uri=data/x.lance", "columns.book=source")
    assert again == (0, out.splitlines()[-1] + "\n", "")
    code, out, err = run("export", "data/x.lance", "nanogpt", "out", "split=val", "format=json")
    assert (code, err) == (0, "")
    (one,) = json.loads(out)["exported"]
    assert (one["documents"], one["tokens"]) == (5, 55)
    code, out, _ = run("import", "nanogpt", "out", "tokenizer=data/x.tokenizer.json", "uri=y.lance", "format=json")
    assert (code, json.loads(out)["train_tokens"]) == (0, 55)
    assert Path("y.tokenizer.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import"], "got nothing, expected import FORMAT PLACE tokenizer="),
        (["import", "mds"], "got mds, expected import FORMAT PLACE"),
        (["import", "mds", "tokenizer=bytes"], "got tokenizer=bytes, expected import"),
        (["import", "mds", "x", "uri=x.lance"], "got no tokenizer, expected import"),
        (["import", "mds", "x", "tokenizer=bytes"], "got no uri, expected import"),
        (["import", "mds", "x", "tokenizer=bytes", "url=x"], "there is no key url: did you mean uri? expected"),
        (
            ["import", "mds", "x", "tokenizer=bytes", "uri=x", "max_tokens=many"],
            "max_tokens is many: expected a number",
        ),
        (["import", "mdx", "x", "tokenizer=bytes", "uri=x"], "format is 'mdx': expected one of"),
        (["import", "mds", "x", "tokenizer=bytes", "uri=x"], "place is 'x', which does not exist: expected a folder"),
        (["import", "mds", "x", "tokenizer=bpe", "uri=x"], "tokenizer is bpe: expected the one that made the tokens"),
        (["import", "mds", "x", "tokenizer=no.json", "uri=x"], "There is no tokenizer.json at 'no.json'"),
        (["import", "mds", "x", "tokenizer=bytes", "uri=x", "rebuild=yes"], "got rebuild=yes, expected import"),
        (["export", "x.lance", "nanogpt"], "got x.lance nanogpt, expected export URI FORMAT PLACE"),
        (["export", "x.lance", "nanogpt", "out", "splits=val"], "got splits=val, expected export"),
        (["export", "x.lance", "nanogpt", "out"], "There is no committed token store"),
    ],
)
def test_a_wrong_argument_is_a_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
