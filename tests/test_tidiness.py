"""A build leaves a store and its tokenizer, and nothing anywhere else, not even the lease and the status that it had."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Hub

BUILD = """
import os, sys
os.environ["USE_TORCH"] = "0"  # `datasets` would import torch, which takes a second
from lightning_lance import prepare
from lightning_lance.sources import FilesSource
from lightning_lance.streaming import DatasetSource
from lightning_lance.tokenizer_choice import TrainedBPE
place = {place!r}
for name, source in {{
    "files": FilesSource(["*.txt"], root=place),
    "jsonl": DatasetSource("json", data_files=[place + "/*.jsonl"], name="jsonl"),
    "compressed": DatasetSource("json", data_files=[place + "/*.jsonl.gz"], name="compressed"),
    "parquet": DatasetSource("parquet", data_files=[place + "/*.parquet"], name="parquet"),
    "hub": DatasetSource("parquet", data_files=["hf://datasets/some/text/data/*.parquet"], name="hub"),
}}.items():
    store = prepare(source, TrainedBPE(vocab_size=300), data_dir="../data")
    assert store.commit.documents == 300, (name, store.commit)
"""


def test_nothing_stays_but_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [f"document {i}, which is not long but is a document\n" * 20 for i in range(300)]
    place, repo, temporary = tmp_path / "in", tmp_path / "hub/datasets/some/text/data", tmp_path / "tmp"
    for folder in (place, repo, temporary):
        folder.mkdir(parents=True)
    for i, text in enumerate(texts):
        (place / f"{i}.txt").write_text(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (place / "x.jsonl").write_text(lines)
    (place / "y.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for folder in (place, repo):
        pq.write_table(pa.table({"text": texts}), folder / "x.parquet")
    monkeypatch.setenv("TMPDIR", str(temporary))
    with Hub(tmp_path / "hub") as hub:
        done = hub.run(BUILD.format(place=str(place)), tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []
    # What the client libraries note about themselves; no data.
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sum(path.stat().st_size for path in left) < 2000, left
    names = [path.name for path in (tmp_path / "data").iterdir() if path.name != "tokenizers"]
    assert {name[name.index(".") :] for name in names} == {".lance", ".tokenizer.json"}
    assert len(list((tmp_path / "data").glob("*.lance"))) == 5
