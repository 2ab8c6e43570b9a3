"""What could spoil a run is found before it begins: each check passes on sound data, and fails on data that is not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_lance import TokenStore, WindowLoader
from lightning_lance.inspection import doctor
from lightning_lance.inspection.doctor import Finding
from lightning_lance.tokenization import ByteTokenizer
from tests.support.commands import run
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents

TEXTS = [f"document {i} " * 20 for i in range(40)]


def built(folder: Path, texts: list[str] = TEXTS) -> TokenStore:
    source = ListSource(tuple((text, "Python", f"repo{i}") for i, text in enumerate(texts)))
    return prepare(source, ByteTokenizer(), str(folder / "x.lance"), val_fraction=0.3)


def states(findings: object) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}  # type: ignore[attr-defined]


def test_a_sound_store_passes(tmp_path: Path):
    store = built(tmp_path)
    assert states(doctor.check_stores({"": store})) == {"documents": "ok", "special tokens": "ok", "splits": "ok"}
    loader = WindowLoader(store, 64, 4)
    assert states(doctor.check_serving(loader, 20, 9)) == {"streams": "ok", "validation": "ok", "epochs": "ok"}
    assert states(doctor.check_speed(loader, 1e9, 1e9)) == {"speed": "ok"}
    assert loader.state_dict()["cursor"] == 0
    assert states(doctor.check_versions()) == {"versions": "ok"}


def test_a_store_of_few_batches_is_fast(tmp_path: Path):
    loader = WindowLoader(built(tmp_path), 64, 40)
    assert len(loader) == 2
    assert states(doctor.check_speed(loader, 1e9, 1e9)) == {"speed": "ok"}


def test_a_mixture_that_ends_before_the_run_is_found(tmp_path: Path):
    loader = WindowLoader(built(tmp_path), 64, 4, mix={"Python": 1}, max_epochs={"Python": 1.5})
    most = loader.most_steps
    assert most is not None
    assert len(loader) < most < 2 * len(loader)
    assert states(doctor.check_serving(loader, most, 9))["epochs"] == "ok"
    assert states(doctor.check_serving(loader, most + 1, 9))["epochs"] == "fail"


def test_an_eos_within_a_document_is_found(tmp_path: Path):
    store = built(tmp_path)
    [file] = (tmp_path / "x.lance/data").iterdir()
    # A token in the middle of the data file itself.
    content = bytearray(file.read_bytes())
    place = content.find(np.asarray([*b"document 9"], np.uint16).tobytes())
    content[place : place + 2] = np.uint16(store.commit.eos_id).tobytes()
    file.write_bytes(content)
    found = {finding.check: finding for finding in doctor.check_stores({"": TokenStore.open(store.uri)})}
    assert found["documents"].state == "fail"
    assert "lightning-lance verify" in found["documents"].cure


def test_text_in_both_splits_is_counted(tmp_path: Path):
    store = built(tmp_path, [f"document {i % 4} " * 20 for i in range(40)])
    found = [finding for finding in doctor.check_stores({"": store}) if finding.check == "splits"]
    documents_of_val = int((store.read(np.arange(store.num_tokens("val")), 1, "val") == store.commit.eos_id).sum())
    assert found == [
        Finding(
            "splits",
            "warn",
            f"{documents_of_val} of {documents_of_val} validation documents are in training too",
            "build with source.dedup=exact",
        )
    ]


def test_documents_begin_where_they_do(tmp_path: Path):
    store = built(tmp_path)
    for split in ("train", "val"):
        tokens = store.read(np.arange(store.num_tokens(split)), 1, split)[:, 0]
        [ends] = np.nonzero(tokens == store.commit.eos_id)
        assert store.document_begins(split).tolist() == [0, *(ends[:-1] + 1).tolist()]


@pytest.mark.parametrize(("rows", "state"), [(256, "fail"), (257, "ok"), (1000, "warn")])
def test_the_vocabulary_of_the_model(rows: int, state: str):
    model = torch.nn.ModuleDict({"wte": torch.nn.Embedding(rows, 4)})
    assert states(doctor.check_model(model, 257, 64)) == {"vocabulary": state}


def test_an_embedding_that_is_not_known_is_told():
    assert states(doctor.check_model(torch.nn.Linear(2, 2), 257, 64)) == {"vocabulary": "warn"}


def test_what_is_served(tmp_path: Path):
    source = ListSource(documents("short", language="Go") + documents(*TEXTS, language="Rust"))
    store = prepare(source, ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0)
    loader = WindowLoader(store, 64, 4)
    found = {finding.check: finding for finding in doctor.check_serving(loader, 10_000, 0)}
    assert {name: finding.state for name, finding in found.items()} == {
        "streams": "warn",
        "validation": "warn",
        "epochs": "warn",
    }
    assert "1 stream with 6 tokens (Go)" in found["streams"].what
    assert states(doctor.check_speed(loader, 1.0, 1e15)) == {"speed": "fail"}
    assert states(doctor.check_disk(str(tmp_path / "not" / "there"), 10**15)) == {"disk": "fail"}


def test_the_command(tmp_path: Path):
    store = built(tmp_path)
    keys = [f"data.corpus={store.uri}", "context_length=64", "data.batch_size=2"]
    code, out, err = run(tmp_path, "doctor", *keys)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("11 checks: 0 failed, ")
    code, out, _ = run(tmp_path, "doctor", *keys, "model.vocab_size=64", "format=json")
    said = json.loads(out)
    assert (code, said["failed"]) == (1, 1)
    assert {"check": "vocabulary", "state": "fail"}.items() <= next(
        finding for finding in said["findings"] if finding["check"] == "vocabulary"
    ).items()
    # A store that is not there yet, of files that are not there either.
    code, out, _ = run(tmp_path, "doctor", "source=files", "source.patterns=[nothing]", "tokenizer=bytes")
    assert code == 1
    assert "FAIL  source: " in out
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "data").exists()


def test_stores_that_are_not_there_end_no_report(tmp_path: Path):
    store = built(tmp_path)
    places = f"data.corpus={{a: {store.uri}, b: {tmp_path}/nothing.lance}}"
    code, out, err = run(tmp_path, "doctor", places, "context_length=64", "format=json")
    said = json.loads(out)
    assert (code, err, said["failed"]) == (1, "", 1)
    assert [finding["state"] for finding in said["findings"] if finding["check"] == "store"] == ["ok", "fail"]
    # A tokenizer that would be trained is not.
    (tmp_path / "a.py").write_text("def f(): pass\n" * 50)
    code, out, _ = run(tmp_path, "doctor", "source=files", "source.patterns=[a.py]")
    assert "not built yet, and neither is its tokenizer" in out
    assert not (tmp_path / "data").exists()
