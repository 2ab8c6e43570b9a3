"""A build leaves a store and its tokenizer, and nothing anywhere else, and needs no place but that of the store."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.hub import Hub

BUILD = """
import os, sys
os.environ["USE_TORCH"] = "0"  # `datasets` would import torch, which takes a second
from lightning_lance import Corpus
from lightning_lance.sources.files import FilesSource
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import TrainedBPE
place = {place!r}
for name, source in {{
    "files": FilesSource(["*.txt"], root=place),
    "jsonl": DatasetSource("json", data_files=[place + "/*.jsonl"], name="jsonl"),
    "compressed": DatasetSource("json", data_files=[place + "/*.jsonl.gz"], name="compressed"),
    "parquet": DatasetSource("parquet", data_files=[place + "/*.parquet"], name="parquet"),
    "hub": DatasetSource("parquet", data_files=["hf://datasets/some/text/data/*.parquet"], name="hub"),
}}.items():
    store = Corpus(source, TrainedBPE(vocab_size=300), data_dir="../data").prepare()
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
    # What the client libraries note about themselves; no data, no locks.
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in left) < 2000, left
    assert list(tmp_path.rglob("*.lock")) == []
    names = [path.name for path in (tmp_path / "data").iterdir() if path.name != "tokenizers"]
    assert {name[name.index(".") :] for name in names} == {".lance", ".tokenizer.json"}
    assert len(list((tmp_path / "data").glob("*.lance"))) == 5


LOCAL = """
import sys
from lightning_lance import Corpus
from lightning_lance.sources.files import FilesSource
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer, TrainedBPE
for source in (
    FilesSource(["in/*.txt"]),
    DatasetSource("parquet", data_files=["in"]),
    DatasetSource("json", data_files=["in/*.jsonl"]),
    DatasetSource("json", data_files=["in/*.json"]),
    DatasetSource("csv", data_files=["in/*.csv"]),
):
    tokenizer = TrainedBPE(vocab_size=300) if source.name == "files" else ByteTokenizer()
    corpus = Corpus(source, tokenizer, data_dir=sys.argv[1], val_fraction=0.0)
    print(corpus.prepare().commit.documents)
print(sorted(name for name in sys.modules if name in ("datasets", "transformers", "torch", "lightning")))
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local files of several formats, and the script that builds stores of them in a folder."""
    top = tmp_path_factory.mktemp("local")
    texts = [f"document {i}, which is not long\n" * 20 for i in range(12)]
    (top / "in").mkdir()
    (top / "in/a.txt").write_text(texts[0])
    (top / "in/a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (top / "in/a.json").write_text(json.dumps([{"text": text} for text in texts]))
    (top / "in/a.csv").write_text("text\n" + "".join(f"document {i}\n" for i in range(12)))
    pq.write_table(pa.table({"text": texts}), top / "in/a.parquet")
    (top / "build.py").write_text(LOCAL)
    return top


def run(folder: Path, data_dir: Path, *before: str, **environment: str | None) -> str:
    """What the script prints, in an environment of almost nothing."""
    plain = {"PATH": os.environ["PATH"], "USE_TORCH": "0"} | {key: value for key, value in environment.items() if value}
    command = [*before, sys.executable, "build.py", str(data_dir)]
    done = subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


NOWHERE = "/proc/nowhere"


CALLS = "trace=open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod"


def written(trace: Path) -> set[str]:
    """All paths that a traced process has made or written, as it spelled them."""
    lines = [line for line in trace.read_text(errors="replace").splitlines() if "= -1 " not in line]
    made = [line for line in lines if "O_CREAT" in line or not re.search(r"\bopen(at)?\(", line)]
    return {place for line in made for place in re.findall(r'"([^"]*)"', line)}


def test_local_files_need_no_cache_and_a_store_that_is_there_no_library(local: Path, tmp_path: Path):
    (tmp_path / "tmp").mkdir()
    traced = ("strace", "-f", "-qq", "-e", CALLS, "-o", str(tmp_path / "trace")) if shutil.which("strace") else ()
    homeless = dict.fromkeys(("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HOME"), NOWHERE)
    out = run(local, tmp_path / "data", *traced, TMPDIR=str(tmp_path / "tmp"), **homeless)
    assert out.split("[")[0].split() == ["1", *["12"] * 4]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list(tmp_path.rglob("*.lock")) == []
    if traced:
        places = {place for place in written(tmp_path / "trace") if Path(local, place).exists()}
        elsewhere = {place for place in places if not place.startswith((str(tmp_path), "/dev/", "/proc/"))}
        assert {place for place in elsewhere if "__pycache__" not in place} == set()
    # Now nothing may be written at all, and `datasets` is not even imported.
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    again = run(local, tmp_path / "data", TMPDIR=NOWHERE, **homeless)
    assert again == out.split("[")[0] + "[]\n"
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
