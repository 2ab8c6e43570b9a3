import gzip
import json
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import zstandard

from lightning_lance import Corpus, TokenStore
from lightning_lance.documents.languages import code_extensions
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.source import Filtered
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.hub import Hub
from tests.support.streams import streams

GITHUB = {"text": "content", "repo": "repo_name", "path": "path", "license": "license"}
ROWS, GROUP, SHARDS = 240, 40, 4


def github_table(shard: int) -> pa.Table:
    names = [f"{shard}-{row}" for row in range(ROWS)]
    return pa.table(
        {
            "content": [f"text of {name}\n" * 50 for name in names],
            "repo_name": [f"owner{shard}/repo{row // 10}" for row in range(ROWS)],
            "path": [f"src/{name}{('.py', '.js', '.md')[row % 3]}" for row, name in enumerate(names)],
            "license": ["mit" if row % 2 else "gpl-3.0" for row in range(ROWS)],
            "size": pa.array(range(ROWS), pa.int32()),
        }
    )


def read(source: DatasetSource, row: int = 0, shards: slice = slice(None)) -> list[dict[str, Any]]:
    opened = source.open()
    places = range(len(opened.shards))[shards]
    return [entry for shard in places for batch in opened.read(shard, row) for entry in batch.to_pylist()]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for shard in range(SHARDS):
        pq.write_table(github_table(shard), tmp_path / f"train-{shard}.parquet", row_group_size=GROUP)
    return tmp_path


def github(corpus: Path, **changes: Any) -> DatasetSource:
    files = [str(corpus / "train-*.parquet")]
    return DatasetSource("parquet", GITHUB, data_files=files, **{"extensions": code_extensions(), **changes})


def test_parquet_gives_the_wanted_rows_in_order(corpus: Path):
    entries = read(github(corpus, languages=["Python"], where={"license": ["mit"]}, shard_seed=None))
    rows = [(shard, row) for shard in range(SHARDS) for row in range(ROWS) if row % 3 == 0 and row % 2 == 1]
    assert [entry["path"] for entry in entries] == [f"src/{shard}-{row}.py" for shard, row in rows]
    assert entries[0] == {
        "row": 0,
        "text": "text of 0-3\n" * 50,
        "language": "Python",
        "repo": "owner0/repo0",
        "path": "src/0-3.py",
        "license": "mit",
    }
    # Rows count those that pass the filter, in each shard.
    assert [entry["row"] for entry in entries] == [*range(ROWS // 6)] * SHARDS


def test_all_languages_and_a_text_filter(corpus: Path):
    entries = read(github(corpus, text_filter=TextFilter(exclude="of 0-1"), shard_seed=None), shards=slice(0, 1))
    assert {entry["language"] for entry in entries} == {"Python", "JavaScript", "Markdown"}
    assert [entry["row"] for entry in entries] == [row for row in range(ROWS) if not str(row).startswith("1")]


@pytest.mark.parametrize("row", [0, 1, 39, 40, 41, 79, 80, 200])
def test_reading_goes_on_from_any_row(corpus: Path, row: int):
    source = github(corpus, languages=["Python"])
    assert read(source, row, slice(2, 3)) == read(source, 0, slice(2, 3))[row:]


def test_the_order_of_shards_follows_the_seed(corpus: Path):
    orders = {seed: github(corpus, shard_seed=seed).open().shards for seed in (None, 0, 1)}
    assert [Path(file).name for file in orders[None]] == [f"train-{i}.parquet" for i in range(SHARDS)]
    assert len({tuple(order) for order in orders.values()}) == 3
    first = read(github(corpus, shard_seed=1), shards=slice(0, 1))[0]["path"]
    assert first.startswith(f"src/{Path(orders[1][0]).stem[-1]}-")


@pytest.mark.parametrize("kind", ["plain", "gz", "zst"])
def test_json_lines_plain_and_compressed(tmp_path: Path, kind: str):
    lines = [{"body": f"text {i}", "lang": "Rust" if i % 2 else "Go", "stars": i} for i in range(30)]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    packed = {"plain": data, "gz": gzip.compress(data), "zst": zstandard.compress(data)}[kind]
    (tmp_path / ("x.jsonl" if kind == "plain" else f"x.jsonl.{kind}")).write_bytes(packed)
    source = DatasetSource(
        "json",
        {"text": "body", "stars": "stars"},
        data_files=[str(tmp_path / "x.jsonl*")],
        language_column="lang",
        languages=["Rust"],
    )
    entries = read(source)
    assert [entry["text"] for entry in entries] == [f"text {i}" for i in range(1, 30, 2)]
    assert entries[3] == {"row": 3, "text": "text 7", "language": "Rust", "stars": "7"}
    assert read(source, 4) == entries[4:]
    assert source.open().present_languages() == ["Go", "Rust"]


def test_a_folder_per_language(tmp_path: Path):
    for language in ("python", "rust", "c++"):
        (tmp_path / "data" / language).mkdir(parents=True)
        pq.write_table(pa.table({"content": [f"in {language}"]}), tmp_path / "data" / language / "train-0.parquet")
    template = str(tmp_path / "data/{language}/*.parquet")

    def source(*languages: str) -> DatasetSource:
        return DatasetSource("parquet", {"text": "content"}, data_files=[template], languages=languages)

    assert [(e["language"], e["text"]) for e in read(source("c++", "rust"))] == [("c++", "in c++"), ("rust", "in rust")]
    assert {entry["language"] for entry in read(source())} == {"python", "rust", "c++"}
    assert len(source("rust").open().shards) == 1
    with pytest.raises(ConfigError, match=r"no language 'Rust' \(did you mean 'rust'\?\): it has c\+\+, python, rust"):
        source("Rust").open()


def test_the_identity_follows_the_content(corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    before = github(corpus).identity()
    copy = tmp_path_factory.mktemp("copy")
    for file in corpus.glob("*.parquet"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert github(copy).identity() == before
    assert github(corpus, languages=["Python"]).identity() != before
    assert github(corpus, shard_seed=1).identity() != before
    pq.write_table(github_table(7), copy / "train-0.parquet", row_group_size=GROUP)
    assert github(copy).identity() != before


def test_a_hub_source_has_an_identity_without_the_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = DatasetSource("parquet", data_files=["hf://datasets/a/b/*.parquet"], revision="v1")
    assert (
        source.identity()
        == DatasetSource("parquet", data_files=["hf://datasets/a/b/*.parquet"], revision="v1").identity()
    )
    assert source.identity() != DatasetSource("parquet", data_files=["hf://datasets/a/b/*.parquet"]).identity()
    assert source.patterns({"a/b": "1f2e"}) == ["hf://datasets/a/b@1f2e/*.parquet"]


def test_what_cannot_be_is_refused_before_anything_is_read(corpus: Path):
    with pytest.raises(ConfigError, match="names no column for 'text'"):
        DatasetSource("parquet", {"body": "content"})
    with pytest.raises(
        ConfigError, match=r"is \{content: text, repo: r\}, which .* as in \{text: content, r: repo\}\.$"
    ):
        DatasetSource("parquet", {"content": "text", "repo": "r"})
    with pytest.raises(ConfigError, match=r"has no languages, got languages=\['Python'\]"):
        DatasetSource("fineweb", languages=["Python"])
    with pytest.raises(ConfigError, match="no 'path' in"):
        DatasetSource("parquet", extensions=code_extensions())
    with pytest.raises(ConfigError, match=r"No file matches '.*/x-\*.parquet' in '.*': check source.data_files"):
        DatasetSource("parquet", data_files=[str(corpus / "train-*.parquet"), str(corpus / "x-*.parquet")]).open()
    with pytest.raises(ConfigError, match="has no column 'body': it has content, repo_name, path, license, size"):
        DatasetSource("parquet", {"text": "body"}, data_files=[str(corpus / "train-0.parquet")]).open()
    # The message names the keys that name the column.
    options: dict[str, Any]
    for options, keys in [
        ({"columns": {"text": "body"}}, "source.columns"),
        ({"language_column": "lang"}, "source.language_column"),
        ({"where": {"licence": ["mit"]}}, "source.where"),
        ({"language_column": "lang", "where": {"lang": ["C"]}}, "source.language_column and source.where"),
        ({"columns": {"text": "body"}, "language_column": "lang"}, "source.columns and source.language_column"),
    ]:
        files = [str(corpus / "train-0.parquet")]
        with pytest.raises(ConfigError) as refused:
            DatasetSource("parquet", **{"columns": {"text": "content"}, **options}, data_files=files).open()
        assert str(refused.value).endswith(f"it has content, repo_name, path, license, size; set {keys}.")


# From here on, a Hub on loopback, and the command line in a process of its own, since HF_ENDPOINT is read at import.


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    code = folder / "datasets/codeparrot/github-code"
    (code / "data").mkdir(parents=True)
    for shard in range(SHARDS):
        pq.write_table(
            github_table(shard), code / f"data/train-{shard:05}-of-{SHARDS:05}.parquet", row_group_size=GROUP
        )
    (code / "github-code.py").write_text("import datasets\n")
    for repo in ("bigcode/the-stack", "own/plain", "own/scripted"):
        data = folder / "datasets" / repo / "data"
        for language in ("python", "rust"):
            (data / language).mkdir(parents=True)
            pq.write_table(pa.table({"text": [f"in {language}"] * 20}), data / language / "train-0.parquet")
    (folder / "datasets/own/scripted/scripted.py").write_text("import datasets\n")
    with Hub(folder) as hub:
        hub.gated.add("bigcode/the-stack")
        yield hub


MAIN = "import sys; from lightning_lance.cli.main import main; sys.argv[1:] = {}; main()"


def prepare(hub: Hub, home: Path, *arguments: str) -> tuple[int, str, str]:
    process = hub.run(MAIN.format(["prepare", "tokenizer=bytes", *arguments]), home)
    return process.returncode, process.stdout, process.stderr


def python_in(folder: Path) -> Path:
    """Make an environment with the packages of this one, and return its Python."""
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path("purelib")
    there = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    there.joinpath("these.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    return folder / "bin/python"


def test_github_code_is_streamed_without_its_script_and_only_as_far_as_needed(hub: Hub, tmp_path: Path):
    python_rows = ROWS // 3
    code, out, err = prepare(
        hub, tmp_path, "source=github_code", "languages=[Python]", f"max_documents={python_rows // 2}"
    )
    assert (code, err) == (0, "")
    assert f"{python_rows // 2} documents" in out.splitlines()[-1]
    shards = [file for file in hub.opened() if file.endswith(".parquet")]
    # The first of the listing for its schema, the first of the drawn order for its rows; the reader may look at the next.
    assert len(shards) <= 3
    assert hub.bytes_served("*.parquet") < 3 * hub.bytes_served("*00000-of*") + 200_000
    assert not [request for request in hub.requests if request.file.endswith(".py") and request.sent]

    # The second command finds the store without a request.
    asked = len(hub.requests)
    code, out, _ = prepare(
        hub, tmp_path, "source=github_code", "languages=[Python]", f"max_documents={python_rows // 2}"
    )
    assert (code, len(hub.requests)) == (0, asked)

    # A larger budget resumes after the smaller one; without a budget, the rest is read.
    code, out, err = prepare(hub, tmp_path, "source=github_code", "languages=[Python]")
    assert (code, err) == (0, "")
    assert f"{python_rows * SHARDS} documents" in out.splitlines()[-1]
    (local,) = (tmp_path / "data").glob("*.lance")

    # Ray's workers make the same of it, with copies left out by default; and by a Python in a folder with a space.
    pytest.importorskip("ray")
    arguments = ["source=github_code", "languages=[Python]", "engine=ray", "engine.address=local", "engine.num_cpus=1"]
    python = python_in(tmp_path / "my environment")
    started = f"import sys; sys.executable = {str(python)!r}; "
    process = hub.run(started + MAIN.format(["prepare", "tokenizer=bytes", *arguments]), tmp_path / "ray")
    assert process.returncode == 0, process.stderr
    (made,) = (tmp_path / "ray/data").glob("*.lance")
    assert made.name == local.name
    assert streams(TokenStore.open(made)) == streams(TokenStore.open(local))


REFUSED: list[tuple[list[str], str]] = [
    (["source=hub", "source.path=codeparrot/github-code"], "use source=github_code, which reads its files."),
    (
        ["source=hub", "source.path=own/scripted"],
        "read its files instead, with source=parquet 'source.data_files=[hf://datasets/own/scripted/data/python/*.parquet]'",
    ),
    (
        ["source=the_stack"],
        "The dataset 'bigcode/the-stack' is gated: accept its terms at "
        "https://huggingface.co/datasets/bigcode/the-stack, then run 'hf auth login' or set HF_TOKEN.",
    ),
    (["source=hub", "source.path=no/such"], "There is no dataset 'no/such' on the Hub, or it is private"),
    (["source=starcoder"], "There is no dataset 'bigcode/starcoderdata' on the Hub, or it is private"),
    (["source=hub", "source.path=own/plain", "source.revision=v9"], "has no revision 'v9': check source.revision."),
    (["source=github_code", "source.revision=v9"], "has no revision 'v9': check source.revision."),
    (
        [
            "source=parquet",
            "source.data_files=['hf://datasets/own/plain/data/{language}/*.parquet']",
            "languages=[ruby]",
        ],
        "Source 'parquet' has no language 'ruby': it has python, rust.",
    ),
    (["source=hub", "source.path=own/plain", "source.split=test"], "has no split 'test': it has train."),
    (["source=hub", "source.path=own/plain", "source.columns.text=code"], "has no column 'code': it has text"),
    (["source=github_code", "languages=[Pyton]"], "has no language 'Pyton' (did you mean 'Python'?)"),
]
EACH = """
import json, sys
from lightning_lance.cli.main import main
for arguments in json.loads({!r}):
    sys.argv[1:] = ["prepare", "tokenizer=bytes", *arguments]
    try:
        main()
        ended = 0
    except SystemExit as error:
        ended = error.code
    print(ended, end="\\0", flush=True)
"""


def test_what_the_hub_refuses_is_told_in_one_sentence(hub: Hub, tmp_path: Path):
    done = hub.run(EACH.format(json.dumps([arguments for arguments, _ in REFUSED])), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "committed" not in done.stdout
    *ended, nothing = done.stdout.split("\0")
    assert nothing == ""
    for (arguments, message), told in zip(REFUSED, ended, strict=True):
        assert told.startswith("error: "), arguments
        assert "\n" not in told, arguments
        assert message in told, arguments


def test_a_dataset_by_name(hub: Hub, tmp_path: Path):
    code, out, err = prepare(hub, tmp_path, "source=hub", "source.path=own/plain")
    assert (code, err) == (0, "")
    assert "40 documents" in out.splitlines()[-1]
    (store,) = (tmp_path / "data").glob("*.lance")
    script = f"from lightning_lance import TokenStore; print(TokenStore.open({str(store)!r}).commit.pin['revision'])"
    assert hub.run(script, tmp_path).stdout.strip() == hub.sha("datasets/own/plain")


def test_a_mirror_without_a_check_of_terms(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "lacks", {"auth-check"})
    arguments = ["source=parquet", "source.data_files=['hf://datasets/own/plain/data/*/*.parquet']"]
    code, out, err = prepare(hub, tmp_path, *arguments)
    assert (code, err) == (0, "")
    assert "40 documents" in out.splitlines()[-1]


def test_requests_are_no_lines_of_the_log_in_python_either(hub: Hub, tmp_path: Path):
    """For any package of the Hub's client; the logging of the user's own requests is unchanged."""
    script = """
import logging
logging.basicConfig(level="INFO", format="%(name)s %(levelname)s %(message)s")
from huggingface_hub import get_session
from lightning_lance import Corpus
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer
client = type(get_session()).__module__.partition(".")[0]
print(client)
Corpus(DatasetSource("parquet", data_files=["hf://datasets/own/plain/data/*/*.parquet"]), ByteTokenizer()).prepare()
logging.getLogger(client).info("of the user")
print(logging.getLogger(client).level, logging.getLogger(client).filters, logging.getLogger().level)
"""
    process = hub.run(script, tmp_path)
    assert process.returncode == 0, process.stderr
    client, after = process.stdout.splitlines()
    assert after == "0 [] 20"
    lines = [line for line in process.stderr.splitlines() if not line.startswith("lightning_lance")]
    assert lines == [f"{client} INFO of the user"]


def test_an_endpoint_that_is_down_is_one_sentence(hub: Hub, tmp_path: Path):
    """The same if the tokenizer is requested first."""
    files = "source.data_files=['hf://datasets/a/b/x.parquet']"
    for tokenizer, told in {
        "bytes": "The dataset 'a/b' cannot be reached (http://127.0.0.1:9: connection refused): check the network, set HF",
        "gpt2": "The tokenizer 'openai-community/gpt2' cannot be reached (http://127.0.0.1:9: connection refused): ",
    }.items():
        arguments = ["prepare", "source=parquet", files, "source.max_retries=0", f"tokenizer={tokenizer}"]
        before = "import os; os.environ['HF_ENDPOINT'] = 'http://127.0.0.1:9'; "
        fewer = "import lightning_lance.tokenization.configs as choice; choice._TRIES = 1; "
        process = hub.run(before + fewer + MAIN.format(arguments), tmp_path)
        assert process.returncode == 1
        assert process.stderr.startswith(f"error: {told}") or f"\nerror: {told}" in process.stderr, process.stderr
        assert "Traceback" not in process.stderr


# pandas 2 leaves the file to the garbage collector.
CSV = pytest.param("csv", marks=pytest.mark.filterwarnings("ignore:unclosed file .*csv:ResourceWarning"))


@pytest.mark.parametrize("ending", ["parquet", "jsonl", CSV])
def test_a_misspelled_value_of_where_is_told_with_a_similar_one(tmp_path: Path, ending: str):
    rows = [{"text": f"text {row}", "license": ("mit", None, "gpl-3.0")[row % 3], "stars": row} for row in range(30)]
    file = str(tmp_path / f"x.{ending}")
    table = pa.Table.from_pylist(rows)
    if ending == "parquet":
        pq.write_table(table, file, row_group_size=5)
    elif ending == "csv":
        csv.write_csv(table, file)
    else:
        Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    def told(where: dict[str, list[Any]], **options: Any) -> str:
        kind = {"jsonl": "json"}.get(ending, ending)
        source = DatasetSource(kind, data_files=[file], where=where, **options)
        with pytest.raises(SourceError, match="gave no documents") as refused:
            Corpus(source, ByteTokenizer(), data_dir=tmp_path).prepare()
        return str(refused.value)

    assert ": source.where.license has 'mti' (did you mean 'mit'?); check its files" in told({"license": ["mti"]})
    # Not the language: no row with that license is read.
    both = {"language_column": "license", "languages": ["mit"]}
    assert "has 'gpl-3.' (did you mean 'gpl-3.0'?); check" in told({"license": ["zlib", "gpl-3."]}, **both)
    # Nothing is similar, or each value is there.
    assert "documents: check its files" in told({"license": ["zlib"]})
    assert "documents: check its files" in told({"license": ["mit"], "stars": [1]})
    assert "documents: check its files" in told({"stars": [300]})


def test_a_misspelled_language_is_told_where_the_filter_has_kept_something(tmp_path: Path):
    rows = {"text": ["a", "b"], "license": ["mit", "bsd-2-clause"], "lang": ["Python", "Rust"]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    source = DatasetSource.parquet(
        str(tmp_path / "x.parquet"),
        where={"license": ["mit", "bsd-3-clause"]},
        language_column="lang",
        languages=["Pyton"],
    )
    with pytest.raises(ConfigError, match=r"has no language 'Pyton' \(did you mean 'Python'\?\)"):
        Corpus(source, ByteTokenizer(), data_dir=tmp_path).prepare()


def test_a_misspelled_value_of_where_is_looked_for_in_lists_and_never_hides_an_error(tmp_path: Path):
    table = pa.table({"text": ["a", "b"], "licenses": [["mit", "zlib"], None]})
    pq.write_table(table, tmp_path / "x.parquet")
    opened = DatasetSource.parquet(str(tmp_path / "x.parquet"), where={"licenses": ["zlb"]}).open()
    assert isinstance(opened, Filtered)
    assert opened.filter_hint() == "source.where.licenses has 'zlb' (did you mean 'zlib'?)"
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert opened.filter_hint() == ""


def test_languages_under_other_names(tmp_path: Path):
    names = ["PY", "python", "Python", "rs", "C", None]
    table = pa.table({"text": [f"text {name}" for name in names], "lang": names})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=1)
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()), encoding="utf-8")
    plain: dict[str, Any] = {"language_column": "lang", "shard_seed": None}
    aliased = {"Python": ["PY", "python"], "Rust": "rs"}
    for make, file in ((DatasetSource.parquet, "x.parquet"), (DatasetSource.jsonl, "x.jsonl")):
        files = str(tmp_path / file)
        source = make(files, languages=aliased, **plain)
        opened = source.open()
        read = pa.concat_tables(opened.read(0, 0))
        assert read.column("language").to_pylist() == ["Python", "Python", "Python", "Rust"]
        assert read.column("row").to_pylist() == [0, 1, 2, 3]
        assert opened.present_languages() == ["C", "None", "Python", "Rust"]
        assert source.wanted == ["Python", "Rust"]
        # A mapping has settings of its own; a list keeps those that it always had.
        listed = make(files, languages=["Rust", "Python"], **plain)
        assert listed.identity()["languages"] == ["Python", "Rust"]
        assert source.identity()["languages"] == {"Python": ["PY", "Python", "python"], "Rust": ["Rust", "rs"]}
        assert make(files, languages={"Rust": [], "Python": "Python"}, **plain).identity() == listed.identity()
    for languages, told in [
        ({"Python": ["PY"], "Go": ["PY"]}, "has the name 'PY' for 'Python' and for 'Go': remove it"),
        ({"Python": 3}, r"languages\.Python is 3: expected a list of names"),
        ({"Python": [3]}, "has the name 3: expected text"),
    ]:
        with pytest.raises(ConfigError, match=told):
            DatasetSource.parquet(str(tmp_path / "x.parquet"), languages=languages, **plain)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"has folders of languages, got the mapping"):
        DatasetSource.parquet("{language}/x.parquet", languages=aliased, language_column="lang")
    with pytest.raises(ConfigError, match=r"has no column of languages, got the mapping"):
        DatasetSource.parquet("x.parquet", languages=aliased)


def test_columns_the_wrong_way_round_are_told_with_the_right_spelling(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a"], "repo_name": ["b"]}), tmp_path / "x.parquet")
    source = DatasetSource.parquet(str(tmp_path / "x.parquet"), columns={"text": "text", "repo_name": "repo"})
    with pytest.raises(
        ConfigError, match=r"has \{repo_name: repo\} the wrong way round; .* as in \{repo: repo_name\}\.$"
    ):
        source.open()
