"""The commands import and export; what a reader does with them is in docs/convert.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_lance.convert.source import FORMATS
from tests.support.commands import Run
from tests.support.paths import ROOT
from tests.support.permissions import held_to_permissions

MDS = ROOT / "tests/fixtures/formats/mds"


def test_info_of_an_import_has_the_words_of_an_import(run: Run, tmp_path: Path):
    given = ["tokenizer=bytes", f"uri={tmp_path}/x.lance", "columns.book=source", "language=English"]
    assert run("import", "mds", MDS, *given)[0] == 0
    described = json.loads(run("info", tmp_path / "x.lance", "format=json")[1])
    assert described["settings"] == {
        "format": "mds", "place": str(MDS), "documents": "items", "columns": {"book": "source"}, "language": "English",
        "dtype": "int64", "tokenizer": "bytes", "vocab_size": 257, "eos_token": "<|endoftext|>",
    }  # fmt: skip


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
        (
            ["import", "mds", "x", "tokenizer=no.json", "uri=x"],
            "There is no tokenizer.json at 'no.json': set tokenizer to the file, or to its folder.",
        ),
        (
            ["import", "mds", "x", "tokenizer=byte", "uri=x"],
            "There is no tokenizer 'byte': did you mean bytes? expected a tokenizer.json, one of bytes, gpt2, ",
        ),
        (["import", "mds", "x", "tokenizer=gpt-neox", "uri=x"], "did you mean gpt_neox?"),
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


@pytest.mark.parametrize("kind", FORMATS)
def test_a_place_without_tokens_is_named_as_it_was_given(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("some.txt").write_text("text")
    endings = {"nanogpt": ".bin", "megatron": ".idx", "parquet": ".parquet"}
    cases = {
        f"./nothing{endings.get(kind, '')}": ", which does not exist: expected ",
        "./emty": ", which does not exist (the most similar name is 'empty'): expected ",
        "empty": ", a folder without such files: expected ",
    }
    if kind != "parquet":
        cases["some.txt"] = ", which is a file: expected "
    for name in ("place", "val"):
        for place, why in cases.items():
            words = [place]
            if name == "val":
                words = [str(sample_of(kind)), f"val={place}"]
            code, out, err = run("import", kind, *words, "tokenizer=bytes", "uri=x.lance")
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert err.startswith(f"error: {name} is {place!r}{why}"), err
            assert err.endswith("; check the place and the format.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "some.txt"]


def sample_of(kind: str) -> Path:
    """Return tokens of a format, without any for validation."""
    if kind == "nanogpt":
        file = Path("../train.bin").absolute()
        file.write_bytes(bytes([1, 0, 0, 1]))
        return file
    if kind == "parquet":
        file = Path("../train.parquet").absolute()
        pq.write_table(pa.table({"input_ids": [[1]]}), file)
        return file
    return MDS.parent / kind / "train"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("texts.jsonl", "The place has '.*/texts.jsonl', which is not Parquet by its name: write it as Parquet."),
        ("none/*.parquet", r"No file matches 'none/\*.parquet' in '.*': check the place."),
        (
            "torn.parquet",
            "Shard '.*/torn.parquet' of source 'parquet' cannot be read: .*: repair the shard, then run",
        ),
        (
            "texts.parquet",
            "has no column 'input_ids': it has text; set columns.tokens.",
        ),
    ],
)
def test_parquet_that_does_not_fit_is_told_in_the_words_of_an_import(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
):
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text('{"text": "a"}\n')
    Path("torn.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"text": ["a"]}), "texts.parquet")
    code, _, err = run("import", "parquet", place, "tokenizer=bytes", "uri=x.lance")
    assert code == 1
    assert re.search(message, err), err
    assert "source." not in err


def test_what_must_not_be_read_or_written_is_said(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert run("import", "mds", MDS, "tokenizer=bytes", "uri=x.lance")[0] == 0
    denied = tmp_path / "denied"
    denied.mkdir(mode=0)
    given = ["tokenizer=bytes", "uri=y.lance"]
    cases = [(["import", kind, "denied", *given], "place is 'denied', which cannot be read") for kind in FORMATS]
    cases += [
        (["import", "nanogpt", "denied/x.bin", *given], "place is 'denied/x.bin', which cannot be read"),
        (["import", "parquet", "denied/x.parquet", *given], "place is 'denied/x.parquet', which cannot be read"),
        (
            ["import", "mds", MDS, "tokenizer=denied/t.json", "uri=y.lance"],
            "The tokenizer 'denied/t.json' cannot be read",
        ),
        (["import", "mds", MDS, "tokenizer=bytes", "uri=denied/y.lance"], "denied/y.lance' cannot be reached"),
        (["info", "denied/x.lance"], "denied/x.lance' cannot be reached"),
        (["export", "x.lance", "parquet", "denied"], "denied' cannot be written"),
        (["export", "x.lance", "parquet", "denied/a"], "denied/a' cannot be written"),
    ]
    try:
        for words, message in cases:
            with held_to_permissions():
                code, out, err = run(*words)
            assert (code, out, err.count("\n")) == (1, "", 1), words
            assert message in err
            assert "(Permission denied): " in err
    finally:
        denied.chmod(0o700)
