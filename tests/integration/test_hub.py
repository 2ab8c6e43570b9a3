"""What the real client libraries do with a Hub: the ground that `sources` and `tokenization` stand on.

Each script runs in its own process, because the libraries read `HF_ENDPOINT` when they are imported.
"""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.hub import Hub

ROWS, GROUP = 400, 50  # of each shard of github-code, and of each of its row groups
SHARDS = [f"data/train-{shard:05d}-of-00004.parquet" for shard in range(4)]
GLOB = "hf://datasets/codeparrot/github-code/data/train-*.parquet"

PRELUDE = """
import json, os, sys
os.environ["USE_TORCH"] = "0"  # `datasets` would import torch, which takes a second
def report(value):
    print(json.dumps(value))
def failure(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error), type(error.__cause__).__name__]
"""


def shard_table(shard: int) -> pa.Table:
    names = range(ROWS)
    return pa.table(
        {
            "content": [f"text {name} of {shard}\n" for name in names],
            "repo_name": [f"owner{shard}/repo{name // 10}" for name in names],
            "path": [f"src/{shard}-{name}{('.py', '.js', '.md')[name % 3]}" for name in names],
            "license": ["mit"] * ROWS,
            "size": pa.array(names, pa.int32()),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    code, wide = folder / "datasets/codeparrot/github-code", folder / "datasets/wide/code"
    stack, tiny, gated = (
        folder / "datasets/bigcode/the-stack",
        folder / "models/tiny/letters",
        folder / "models/big/gated",
    )
    for root in (code / "data", wide / "data", stack / "data", tiny, gated):
        root.mkdir(parents=True)
    for shard, file in enumerate(SHARDS):
        pq.write_table(shard_table(shard), code / file, row_group_size=GROUP)
    (code / "github-code.py").write_text("import datasets\n")
    (code / "README.md").write_text("---\nlicense: other\n---\n# GitHub code\n")
    pq.write_table(shard_table(0), stack / "data/train-00000-of-00001.parquet")
    content = [base64.b64encode(Random(row).randbytes(3 << 20)).decode() for row in range(4)]  # 4 MiB each
    table = pa.table({"content": content, "path": [f"{row}.py" for row in range(4)]})
    for name in ("streamed", "mapped", "opened"):
        pq.write_table(table, wide / f"data/{name}.parquet", row_group_size=2, use_dictionary=False)
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for root in (tiny, gated):
        tokenizer.save(str(root / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
        (root / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        hub.gated |= {"bigcode/the-stack", "big/gated"}
        yield hub


def run(hub: Hub, home: Path, script: str) -> Any:
    """What the script reports, after a clean exit."""
    process = hub.run(PRELUDE + script, home)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_a_file_is_sent_whole_or_in_part(hub: Hub, folder: Path):
    url = f"{hub.endpoint}/datasets/codeparrot/github-code/resolve/main/{SHARDS[0]}"
    content = (folder / "datasets/codeparrot/github-code" / SHARDS[0]).read_bytes()
    size = len(content)
    for asked, part, described in [
        (None, content, None),
        ("bytes=10-19", content[10:20], f"bytes 10-19/{size}"),
        ("bytes=10-", content[10:], f"bytes 10-{size - 1}/{size}"),
        ("bytes=-8", content[-8:], f"bytes {size - 8}-{size - 1}/{size}"),
        (f"bytes=0-{2 * size}", content, f"bytes 0-{size - 1}/{size}"),
    ]:
        request = urllib.request.Request(url, headers={"Range": asked} if asked else {})
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == part
            assert answer.headers["Content-Range"] == described
            assert answer.headers["X-Repo-Commit"] == hub.sha("datasets/codeparrot/github-code")
        assert hub.requests[-1].sent == len(part)
    with pytest.raises(urllib.error.HTTPError) as beyond:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": f"bytes={size}-"}))
    with beyond.value as answer:
        assert (answer.code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    assert hub.opened() == {SHARDS[0]}
    assert hub.bytes_served("*.md") == 0


def test_a_glob_streams_the_rows_that_pass_the_filter_in_order(hub: Hub, tmp_path: Path):
    script = f"""
import pyarrow.compute as pc
from datasets import load_dataset
columns, python = ["content", "repo_name", "path"], pc.ends_with(pc.field("path"), ".py")
shards = load_dataset("parquet", data_files="{GLOB}", split="train", streaming=True, columns=columns, filters=python)
tables = shards.shard(shards.num_shards, 1).with_format("arrow").iter(batch_size=100)
report([shards.num_shards, list(shards), [row for table in tables for row in table.to_pylist()]])
"""
    num_shards, rows, rows_of_1 = run(hub, tmp_path, script)
    tables = [shard_table(shard).select(["content", "repo_name", "path"]).to_pylist() for shard in range(4)]
    expected = [[row for row in table if row["path"].endswith(".py")] for table in tables]
    assert num_shards == 4
    assert rows == [row for table in expected for row in table]
    assert rows_of_1 == expected[1]
    assert hub.opened() == set(SHARDS)  # neither the script nor the card


def test_a_shard_opens_its_file_and_the_first_for_the_schema(hub: Hub, tmp_path: Path):
    script = f"""
from datasets import load_dataset
shards = load_dataset("parquet", data_files="{GLOB}", split="train", streaming=True)
report([row["path"] for row in shards.shard(shards.num_shards, 2)])
"""
    assert run(hub, tmp_path, script) == shard_table(2)["path"].to_pylist()
    assert hub.opened() == {SHARDS[0], SHARDS[2]}


def test_a_projection_fetches_less_and_least_without_read_ahead(hub: Hub, tmp_path: Path):
    script = """
import pyarrow.parquet as pq
from huggingface_hub import HfFileSystem
url, paths = "hf://datasets/wide/code/data/", []
for name, cache in [("mapped", "readahead"), ("opened", "none")]:
    with HfFileSystem().open(url + name + ".parquet", cache_type=cache) as file:
        # Without threads of Arrow's, which may still read when Python ends, and abort it.
        batches = pq.ParquetFile(file, pre_buffer=False).iter_batches(columns=["path"], use_threads=False)
        paths.append([path for batch in batches for path in batch["path"].to_pylist()])
report(paths)
"""
    assert run(hub, tmp_path, script) == [["0.py", "1.py", "2.py", "3.py"]] * 2
    whole = (hub.folder / "datasets/wide/code/data/opened.parquet").stat().st_size
    assert hub.bytes_served("data/mapped.parquet") < whole / 2
    assert hub.bytes_served("data/opened.parquet") < 100_000


def test_leaving_a_parquet_file_in_the_middle_is_clean(hub: Hub, tmp_path: Path):
    """`iter_batches` is: `load_dataset` and `Fragment.to_batches` abort or hang at exit, as threads still read."""
    script = f"""
import pyarrow.parquet as pq
from huggingface_hub import HfFileSystem
file = HfFileSystem().open("{GLOB[: -len("train-*.parquet")]}{SHARDS[1][5:]}")
batches = pq.ParquetFile(file).iter_batches(batch_size=60, columns=["path"])
next(batches)
"""
    process = hub.run(script, tmp_path, timeout=20)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_a_glob_costs_a_listing_and_no_request_per_file(hub: Hub, tmp_path: Path):
    hub.page_size = 3
    script = """
from huggingface_hub import HfApi, HfFileSystem
sha = HfApi().dataset_info("codeparrot/github-code").sha
report([sha, HfFileSystem().glob(f"datasets/codeparrot/github-code@{sha}/data/train-*.parquet")])
"""
    sha, files = run(hub, tmp_path, script)
    assert sha == hub.sha("datasets/codeparrot/github-code")
    assert files == [f"datasets/codeparrot/github-code@{sha}/{file}" for file in SHARDS]
    assert [request.file for request in hub.requests] == [""] * len(hub.requests)


def test_a_name_that_datasets_cannot_load(hub: Hub, tmp_path: Path):
    """A failed glob says what is wrong only without `*`: with it, a missing repository looks like an empty list."""
    script = """
from datasets import load_dataset, load_dataset_builder
from huggingface_hub import HfApi
def parquet(url):
    return failure(load_dataset, "parquet", data_files="hf://datasets/" + url, split="train", streaming=True)
report({
    "script": failure(load_dataset_builder, "codeparrot/github-code"),
    "script, files": failure(load_dataset_builder, "codeparrot/github-code", data_files="data/train-*.parquet"),
    "gated": failure(load_dataset_builder, "bigcode/the-stack"),
    "gated glob": parquet("bigcode/the-stack/data/train-*.parquet"),
    "gated check": failure(HfApi().auth_check, "bigcode/the-stack", repo_type="dataset"),
    "missing": failure(load_dataset_builder, "no/such"),
    "missing glob": parquet("no/such/data/train-*.parquet"),
    "missing file": parquet("no/such/data/train-0.parquet"),
    "empty glob": parquet("codeparrot/github-code/data/test-*.parquet"),
    "revision": failure(load_dataset_builder, "codeparrot/github-code", revision="v9"),
    "revision glob": parquet("codeparrot/github-code@v9/data/train-*.parquet"),
    "revision file": parquet("codeparrot/github-code@v9/data/train-00000-of-00004.parquet"),
    "converted glob": parquet("codeparrot/github-code@refs/convert/parquet/default/train/*.parquet"),
})
"""
    failures = run(hub, tmp_path, script)
    empty = "At least one valid data file must be specified, all the data_files are invalid: {'train': []}"
    restricted = "Access to dataset bigcode/the-stack is restricted. You must have access to it and be authenticated"
    for case, kind, message in [
        ("script", "RuntimeError", "Dataset scripts are no longer supported, but found github-code.py"),
        ("script, files", "RuntimeError", "Dataset scripts are no longer supported, but found github-code.py"),
        (
            "gated",
            "DatasetNotFoundError",
            "Dataset 'bigcode/the-stack' is a gated dataset on the Hub. You must be auth",
        ),
        ("gated glob", "GatedRepoError", restricted),
        ("gated check", "GatedRepoError", restricted),
        ("missing", "DatasetNotFoundError", "Dataset 'no/such' doesn't exist on the Hub or cannot be accessed."),
        ("missing glob", "ValueError", empty),
        ("missing file", "FileNotFoundError", "(repository not found)"),
        ("empty glob", "ValueError", empty),
        ("revision", "DatasetNotFoundError", "Revision 'v9' doesn't exist for dataset 'codeparrot/github-code'"),
        ("revision glob", "ValueError", empty),
        ("revision file", "FileNotFoundError", "(revision not found)"),
        ("converted glob", "ValueError", empty),
    ]:
        assert failures[case][0] == kind, case
        assert message in failures[case][1], case


def test_a_tokenizer_comes_from_the_hub_unless_gated(hub: Hub, tmp_path: Path):
    script = """
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("tiny/letters")
names = ("big/gated", "no/such")
report([tokenizer("b a").input_ids, tokenizer.eos_token, [failure(AutoTokenizer.from_pretrained, n) for n in names]])
"""
    ids, eos, (gated, missing) = run(hub, tmp_path, script)
    assert (ids, eos) == ([2, 1], "<eos>")
    assert gated[0] == missing[0] == "OSError"
    assert gated[2] == "GatedRepoError"
    assert "You are trying to access a gated repo." in gated[1]
    assert missing[2] == "RepositoryNotFoundError"
    assert "no/such is not a local folder and is not a valid model identifier" in missing[1]
