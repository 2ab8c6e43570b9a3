"""Shards of a failing Hub are read in spite of it; the Hub is on loopback, and the clients are the real ones."""

import errno
import gzip
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_lance.errors import SourceError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.tokenizer import byte_tokenizer
from tests.support.hub import Faults, Hub
from tests.support.warm import BUILDING, TRAINING, server

ROWS, GROUP, SHARDS, MANY = 120, 20, 5, 1126


def table(shard: int) -> pa.Table:
    return pa.table(
        {
            "text": [f"text {row} of {shard}\n" * 20 for row in range(ROWS)],
            "language": [("Python", "Rust", "Go")[row // GROUP % 3] for row in range(ROWS)],
            "ignored": ["x" * 2000 + str(row) for row in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    data = {name: folder / "datasets/own" / name / "data" for name in ("corpus", "lines", "many", "moving")}
    for place in data.values():
        place.mkdir(parents=True)
    for shard in range(SHARDS):
        options = {"row_group_size": GROUP, "compression": "none", "use_dictionary": False}
        pq.write_table(table(shard), data["corpus"] / f"{shard}.parquet", **options)
        lines = "".join(json.dumps(row) + "\n" for row in table(shard).to_pylist())
        (data["lines"] / f"{shard}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    few = pa.table({"text": [f"text {row}\n" * 1000 for row in range(100)]})
    pq.write_table(few, data["many"] / f"train-{0:05}-of-{MANY:05}.parquet", row_group_size=20)
    for shard in range(1, MANY):
        name = data["many"] / f"train-{shard:05}-of-{MANY:05}.parquet"
        name.write_bytes((data["many"] / f"train-{0:05}-of-{MANY:05}.parquet").read_bytes())
    pq.write_table(pa.table({"text": ["old"] * 50}), data["moving"] / "0.parquet")
    with Hub(folder) as hub:
        yield hub


@pytest.fixture(autouse=True)
def healthy(hub: Hub) -> None:
    hub.faults = Faults()
    hub.requests.clear()


PRELUDE = """
import json, logging, sys
from io import BytesIO
from pathlib import Path
from random import Random
from lightning_lance import Corpus
from lightning_lance.errors import LightningLanceError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
def source(name, kind="parquet", end="*.parquet", **options):
    files = [f"hf://datasets/own/{name}/data/{end}"]
    return DatasetSource(kind, data_files=files, name=name, **options)
def digest(store):
    sizes = {split: store.num_tokens(split) for split in ("train", "val")}
    return [store.read([0], size, split=split).tolist() for split, size in sizes.items() if size]
"""


def run(hub: Hub, home: Path, script: str) -> tuple[Any, str]:
    process = hub.run(PRELUDE + script, home, timeout=120)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1]), process.stderr


BUILD = """
names = {"corpus": ("parquet", "*.parquet"), "lines": ("json", "*.jsonl.gz")}
options = dict(timeout_seconds=1.0, max_retries=12)
built = []
for name, kind in names.items():
    corpus = Corpus(source(name, *kind, **options), ByteTokenizer(), data_dir=folder)
    built.append(digest(corpus.prepare()))
print(json.dumps(built))
"""


def test_a_hub_that_fails_gives_the_same_store(hub: Hub, tmp_path: Path):
    expected, quiet = run(hub, tmp_path / "calm", "folder = 'data'" + BUILD)
    assert quiet == ""
    hub.faults = Faults(errors=0.2, limited=0.05, retry_after="1", cut=0.05, stalls=0.03, down_after=12, seed=3)
    got, told = run(hub, tmp_path / "rough", "folder = 'data'" + BUILD)
    assert got == expected
    happened = sum(number for kind, number in hub.faults.kinds.items() if kind)
    assert {"errors", "limited", "cut", "stalls", "down"} <= {*hub.faults.kinds}
    # A line for each, and a count at the end of each build; refused connections come on top.
    lines = [line for line in told.splitlines() if "; try " in line]
    assert len(lines) >= happened
    counts = [line for line in told.splitlines() if "times and was retried" in line]
    assert sum(int(line.split(" failed ")[1].split()[0]) for line in counts) == len(lines)


def test_a_hub_that_stays_away_ends_the_build_with_what_is_committed(hub: Hub, tmp_path: Path):
    hub.faults = Faults(errors=1.0, files="*4.parquet")
    script = """
options = dict(shard_seed=None, timeout_seconds=2.0)
def build(retries):
    try:
        corpus = Corpus(source("corpus", max_retries=retries, **options), ByteTokenizer(), data_dir="data")
        made = corpus.prepare(commit_tokens=1)
        return made.commit.documents
    except LightningLanceError as error:
        return str(error)
first = build(2)
from lightning_lance import TokenStore
print(json.dumps([first, TokenStore.open(next(Path("data").glob("*.lance"))).commit.documents]))
"""
    (error, documents), told = run(hub, tmp_path, script)
    assert "gave up on GET" in error
    assert "after 3 tries (HTTP 50" in error
    assert error.endswith(
        "all that is committed is safe; run the same again later and it goes on from there, or raise source.max_retries."
    )
    assert told.count("; try ") == 2
    assert documents > 0
    hub.faults = Faults()
    (documents, _), _ = run(hub, tmp_path, script)
    assert documents == SHARDS * ROWS


def test_what_cannot_be_cured_is_not_tried_again(hub: Hub, tmp_path: Path):
    script = """
def fails(name, **options):
    try:
        source(name, **options).open()
    except LightningLanceError as error:
        return [type(error).__name__, str(error)]
print(json.dumps([fails("none"), fails("corpus", columns={"text": "body"})]))
"""
    (missing, column), told = run(hub, tmp_path, script)
    assert missing[0] == "ConfigError"
    assert "There is no dataset 'own/none' on the Hub" in missing[1]
    assert column[0] == "ConfigError"
    assert "has no column 'body': it has text, language, ignored" in column[1]
    assert told == ""


def test_little_is_read(hub: Hub, tmp_path: Path):
    script = """
made = Corpus(source("many"), ByteTokenizer(), data_dir="data", max_tokens=1_000_000).prepare()
read = {}
for name, options in {"all": {}, "Rust": {"language_column": "language", "languages": ["Rust"]}}.items():
    opened = source("corpus", shard_seed=None, **options).open()
    read[name] = sum(len(batch) for batch in opened.read(0, 0))
print(json.dumps([made.commit.tokens, made.commit.files, made.commit.pin, read]))
"""
    (tokens, files, pin, read), _ = run(hub, tmp_path, script)
    assert tokens >= 1_000_000
    asked = [request for request in hub.requests if request.repo == "datasets/own/many"]
    opened = list(dict.fromkeys(Path(request.file).name for request in asked if request.file))
    assert len(opened) <= 3
    assert sum(not request.file for request in asked) < 12  # a few for the listing, and none for each file
    # The subset is reproducible from its files, the rows of each, and the commit.
    assert pin == {"revision": hub.sha("datasets/own/many")}
    assert [Path(file).name for file in files] == opened[: len(files)]
    assert 100 < sum(files.values()) <= 200
    # One of three columns, then the row groups of one of three languages.
    assert read == {"all": ROWS, "Rust": ROWS // 3}
    size = sum(len(text) + 4 for text in table(0)["text"].to_pylist())
    footers = 2 * 2 * (64 << 10) + (8 << 10)  # for the columns and for the rows, and page headers
    assert size * 4 / 3 <= hub.bytes_served("data/0.parquet") < size * 4 / 3 + footers


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_bad_shard_is_named_or_left_out(tmp_path: Path, kind: str):
    rows = [{"text": f"text {row}"} for row in range(300)]
    for shard in range(3):
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{shard}.parquet", row_group_size=100)
        else:
            (tmp_path / f"{shard}.jsonl.gz").write_bytes(
                gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
            )
    bad = next(tmp_path.glob("1.*"))
    content = bytearray(bad.read_bytes())
    if kind == "parquet":  # the second of its row groups
        place = pq.ParquetFile(bad).metadata.row_group(1).column(0).data_page_offset
        content[place : place + 40] = b"\xff" * 40
    else:
        content = content[: len(content) // 2]
    bad.write_bytes(content)

    def read(policy: str, row: int = 0) -> tuple[list[str], dict[int, dict[str, Any]]]:
        files = [str(tmp_path / f"*{''.join(bad.suffixes)}")]
        opened = DatasetSource(kind, data_files=files, shard_seed=None, on_bad_shard=policy).open()
        texts = [text for batch in opened.read(1, row) for text in batch.column("text").to_pylist()]
        texts += [text for batch in opened.read(2, 0) for text in batch.column("text").to_pylist()]
        return texts, opened.trouble.bad_shards

    with pytest.raises(
        SourceError, match=r"repair the shard, or skip the rest of it with source\.on_bad_shard=skip, then run it again"
    ):
        read("error")
    texts, bad_shards = read("skip")
    left = 100 if kind == "parquet" else 0
    assert texts == [f"text {row}" for row in [*range(left), *range(300)]]
    assert bad_shards.keys() == {1}
    assert (bad_shards[1]["shard"], bad_shards[1]["row"]) == (str(bad), left)
    assert read("skip", 40)[0] == texts[min(40, left) :]


def test_a_build_leaves_bad_shards_out_and_its_store_names_them(hub: Hub, tmp_path: Path):
    folder = hub.folder / "datasets/own/broken/data"
    folder.mkdir(parents=True)
    for shard in range(3):
        pq.write_table(table(shard), folder / f"{shard}.parquet", row_group_size=GROUP)
    whole = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(whole[: len(whole) // 2])
    script = """
made = Corpus(source("broken", shard_seed=None, on_bad_shard="skip"), ByteTokenizer(), data_dir="data").prepare()
print(json.dumps([made.commit.documents, made.commit.bad_shards, made.commit.exhausted]))
"""
    (documents, bad, exhausted), told = run(hub, tmp_path, script)
    assert (documents, exhausted) == (2 * ROWS, True)
    assert [(Path(shard["shard"]).name, shard["row"]) for shard in bad] == [("1.parquet", 0)]
    assert "cannot be read from row 0 on; the rest of it is skipped" in told


def test_a_build_stays_on_the_commit_that_it_first_saw(hub: Hub, tmp_path: Path):
    script = """
made = Corpus(source("moving"), ByteTokenizer(), data_dir="data", max_documents={}).prepare()
now = source("moving").open().pin["revision"]
print(json.dumps([made.commit.documents, made.commit.pin["revision"], now, digest(made)]))
"""
    old = hub.keep("datasets/own/moving")
    (documents, revision, now, _), _ = run(hub, tmp_path, script.format(20))
    assert (documents, revision, now) == (20, old, old)
    pq.write_table(pa.table({"text": ["new"] * 80}), hub.folder / "datasets/own/moving/data/0.parquet")
    new = hub.sha("datasets/own/moving")
    (documents, revision, now, streams), _ = run(hub, tmp_path, script.format(1000))
    assert (documents, revision, now) == (50, old, new)
    assert {bytes(stream[0][at : at + 3]) for stream in streams for at in range(0, len(stream[0]), 4)} == {b"old"}


OFFLINE = """
import socket, threading
def closed(*args, **kwargs):
    raise RuntimeError("a socket is opened")
for name in ("connect", "connect_ex", "bind", "sendto"):
    # asyncio and multiprocessing speak to themselves by sockets that were made connected.
    setattr(socket, "socket", type("Socket", (socket.socket,), {name: closed}))
socket.create_connection = socket.getaddrinfo = closed
"""

COMMAND = """
from lightning_lance.cli.main import main
sys.argv[1:] = [
    "prepare", "source=parquet", "source.data_files=[hf://datasets/own/corpus/data/*.parquet]", "max_documents=50",
    "source.name=corpus", "tokenizer=gpt2", "tokenizer.model=tiny/letters", "tokenizer.eos_token=null",
    "corpus.val_fraction=0.0",
]
main()
"""

FIT = """
import warnings; warnings.simplefilter("ignore")
import lightning, torch
from lightning_lance import LanceDataModule
from lightning_lance.tokenization.configs import PretrainedTokenizer
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def training_step(self, batch, _):
        return self.weight * batch["input_ids"].float().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
tokenizer = PretrainedTokenizer("tiny/letters")
corpus = Corpus(source("corpus"), tokenizer, data_dir="data", max_documents=50, val_fraction=0.0)
data = LanceDataModule(corpus, 16, 4)
lightning.Trainer(
    max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, limit_val_batches=0,
).fit(Model(), datamodule=data)
corpus.prepare()
"""


def test_a_prepared_store_opens_no_socket(hub: Hub, tmp_path: Path):
    tokenizer = byte_tokenizer()
    folder = hub.folder / "models/tiny/letters"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.eos_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    first = hub.run(PRELUDE + COMMAND, tmp_path, timeout=120)
    assert first.returncode == 0, first.stderr
    hub.requests.clear()
    # The Hub has another tokenizer by now, which is not requested.
    (folder / "tokenizer.json").write_text("{}")
    online = hub.environment(tmp_path)
    for imports, script, environment in (
        (TRAINING, FIT + COMMAND, online),
        (BUILDING, COMMAND, {**online, "HF_HUB_OFFLINE": "1"}),
    ):
        again = server(imports).run(OFFLINE + PRELUDE + script, folder=tmp_path, environment=environment, timeout=120)
        assert again.returncode == 0, again.stderr
        assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert hub.requests == []
    assert len([*(tmp_path / "data").glob("*.lance")]) == 1


@pytest.mark.parametrize("kind", ["parquet", "json"])
@pytest.mark.parametrize("seed", range(4))
def test_a_disk_that_fails_gives_each_row_once(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    """Sources other than the Hub resume after the last yielded row."""
    fs, lots = fsspec.filesystem("memory"), Random(seed)
    fs.pipe("/flaky/0.parquet", b"")
    rows = table(0).select(["text", "language"])
    with fs.open("/flaky/0.parquet", "wb") as file:
        pq.write_table(rows, file, row_group_size=GROUP)
    fs.pipe("/flaky/0.jsonl", "".join(json.dumps(row) + "\n" for row in rows.to_pylist()).encode())
    kinds = {type(fs.open(path)) for path in ("/flaky/0.parquet", "/flaky/0.jsonl")}
    failed: list[int] = []

    def flaky(self: Any, size: int = -1) -> bytes:
        if lots.random() < 0.3 or not failed:
            failed.append(size)
            raise OSError(errno.EIO, "Input/output error")
        return BytesIO.read(self, size)

    for file_kind in kinds:
        monkeypatch.setattr(file_kind, "read", flaky, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    files = ["memory://flaky/*" + (".parquet" if kind == "parquet" else ".jsonl")]
    options = {"language_column": "language", "languages": ["Python", "Go"]}
    opened = DatasetSource(kind, data_files=files, max_retries=40, **options).open()
    read = [row for batch in opened.read(0, 7) for row in batch.select(["text", "row"]).to_pylist()]
    passed = [row["text"] for row in rows.to_pylist() if row["language"] != "Rust"]
    assert read == [{"text": text, "row": row} for row, text in enumerate(passed)][7:]
    assert sum(opened.trouble.incidents.values()) == len(failed) > 0
