"""The law of the fingerprint: it changes if and only if the stored tokens change."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance import Corpus
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import LightningLanceError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer, TokenizerConfig, TokenizerFile, TrainedBPE
from lightning_lance.tokenization.tokenizer import Tokenizer
from tests.support.builders import TEXTS
from tests.support.corpora import data_of, prepare
from tests.support.laws import examples
from tests.support.paths import ROOT
from tests.support.streams import streams

CODE = {"text": "content", "repo": "repo_name", "path": "path", "license": "license"}
FIM = {"prefix_token": "a", "middle_token": "b", "suffix_token": "c", "fim_rate": 0.5}
# Options of a source, each spelled in several ways; the first of each is the usual one. Pairs of tables where one option
# alone makes no sense.
SOURCE: dict[str, list[dict[str, Any]]] = {
    "columns": [{"columns": CODE}, {"columns": dict(reversed(CODE.items()))}, {"columns": {**CODE, "repo": "license"}}]
    + [{"columns": {key: CODE[key] for key in keys}} for keys in (("text", "path"), ("path", "text", "license"))],
    "language": [
        {"language_column": "lang"},
        {"language_column": "lang", "languages": ["Rust", "Python"]},
        {"language_column": "lang", "languages": ["Python", "Rust", "Python"]},
        {"language_column": "lang", "languages": ["Python"]},
        {"language_column": "lang", "extensions": {"Python": [".py"]}},
        {"extensions": {"Python": [".py", ".pyi"], "Rust": [".rs"]}},
        {"extensions": {"Rust": [".rs"], "Python": [".pyi", ".py", ".py"]}},
        {"extensions": {"Python": [".py"], "Rust": [".rs"]}},
        {"extensions": {"Python": [".py", ".pyi"], "Rust": [".rs"]}, "languages": ["Python"]},
        {},
    ],
    "where": [
        {},
        {"where": {}},
        {"where": {"license": ["mit", "bsd"]}},
        {"where": {"license": ["bsd", "mit", "mit"]}},
        {"where": {"license": ["mit"]}},
        {"where": {"stars": [1, 2]}},
        {"where": {"stars": [2, 1], "license": ["mit"]}},
    ],
    "text_filter": [{"text_filter": TextFilter(**options)} for options in ({}, {"min_bytes": 1}, {"min_bytes": 40})]
    + [
        {"text_filter": TextFilter(**options)}
        for options in ({"max_bytes": 60}, {"max_bytes": 60.0}, {"exclude": "seven"})
    ],
    "shard_seed": [{"shard_seed": seed} for seed in (0, None, 3)],
    "dedup": [{}, {"dedup": "none"}, {"dedup": "exact"}],
    "files": [
        {"data_files": files} for files in (["*.parquet"], ["a.parquet", "b.parquet", "c.parquet"], ["[cab].parquet"])
    ]
    + [{"data_files": files} for files in (["c.parquet", "a.parquet", "b.parquet"], ["a.parquet", "c.parquet"])],
    "of no matter": [{}, {"split": "any"}, {"revision": "main"}, {"config": "some"}, {"name": "other"}],
}
DATA: dict[str, list[dict[str, Any]]] = {
    "val_fraction": [{"val_fraction": share} for share in (0.1, 0.10, 0, 0.0, 0.5)],
    "of no matter": [
        {},
        {"max_documents": 5, "seed": 3, "order": "random"},
        {"max_tokens": 10**9, "shuffle_block": 4, "remainder": "wrap"},
        {"document_ids": True, "batch_format": "huggingface", "where": {"language": ["Python"]}},
        {"wait_for_tokens": 5, "mix": {"Python": 1.0}, "fim": FIM, "storage_options": {"a": "b"}},
    ],
    "sizes": [{"context_length": 8, "batch_size": 2}, {"context_length": 9, "batch_size": 1}],
}
TOKENIZERS = [
    ByteTokenizer(),
    TokenizerFile("bytes.json"),
    TokenizerFile("bytes.json", "<|endoftext|>"),
    TrainedBPE(260),
    TrainedBPE(300),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus in which every choice shows."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, name in enumerate("abc"):
        rows = range(12 * number, 12 * number + 12)
        table = {
            "content": [("one " if i % 5 else "seven ") * (i % 9 + 2) + str(i // 2) for i in rows],
            "repo_name": [f"repo{i // 3}" for i in rows],
            "path": [f"src/{i}{('.py', '.rs', '.pyi', '.c')[i % 4]}" for i in rows],
            "license": [("mit", "bsd", "gpl")[i % 3] for i in rows],
            "lang": [("Rust", "Python", "C", "Python")[i % 4] for i in rows],
            "stars": [i % 4 for i in rows],
        }
        # Copies, so that de-duplication shows.
        pq.write_table(
            pa.table({key: [*values, *values[3:6]] for key, values in table.items()}), folder / f"{name}.parquet"
        )
    (folder / "bytes.json").write_text(ByteTokenizer().load(None, folder).to_json(), encoding="utf-8")
    return folder


Choice = dict[str, int]
FIELDS = {
    **{f"source.{key}": len(values) for key, values in SOURCE.items()},
    **{key: len(values) for key, values in DATA.items()},
}
FIELDS["tokenizer"] = len(TOKENIZERS)


def source_of(choice: Choice, folder: Path) -> DatasetSource:
    source = {key: value for name in SOURCE for key, value in SOURCE[name][choice.get(f"source.{name}", 0)].items()}
    source["data_files"] = [str(folder / file) for file in source["data_files"]]
    return DatasetSource("parquet", **source)


def tokenizer_of(choice: Choice, folder: Path) -> TokenizerConfig:
    tokenizer = TOKENIZERS[choice.get("tokenizer", 0)]
    if isinstance(tokenizer, TokenizerFile):
        tokenizer = TokenizerFile(str(folder / tokenizer.path), tokenizer.eos_token)
    return tokenizer


def corpus_of(choice: Choice, folder: Path, **changes: Any) -> Corpus:
    options = {key: value for name in DATA for key, value in DATA[name][choice.get(name, 0)].items()} | changes
    source, tokenizer = source_of(choice, folder), tokenizer_of(choice, folder)
    return data_of(source, tokenizer, data_dir=str(folder / "data"), **options).corpus


def fingerprint(choice: Choice, folder: Path) -> str:
    return corpus_of(choice, folder).fingerprint


def stored(choice: Choice, folder: Path, uri: Path) -> Any:
    """Return what a build of it stores: all streams, and the metadata of all documents."""
    store = corpus_of(choice, folder, uri=str(uri), max_documents=None, max_tokens=None, wait_for_tokens=None).prepare()
    rows = lance.dataset(store.uri).to_table(columns=["documents"]).column("documents").to_pylist()
    return streams(store), [{**document, "hash": None} for row in rows for document in row], store.commit.eos_id


@pytest.fixture(scope="module")
def kinds(corpus: Path) -> dict[str, list[int]]:
    """Group the spellings of each option by what their builds store."""
    found = {}
    for field, count in FIELDS.items():
        built: list[Any] = []
        found[field] = []
        for i in range(count):
            what = stored({field: i}, corpus, corpus / "builds" / f"{field}{i}.lance")
            if what not in built:
                built.append(what)
            found[field].append(built.index(what))
    return found


def test_the_corpus_shows_every_choice(kinds: dict[str, list[int]]):
    assert kinds == {
        "source.columns": [0, 0, 1, 2, 3],
        "source.language": [0, 1, 1, 2, 0, 3, 3, 4, 5, 6],
        "source.where": [0, 0, 1, 1, 2, 3, 4],
        "source.text_filter": [0, 0, 1, 2, 2, 3],
        "source.shard_seed": [0, 1, 2],
        "source.dedup": [0, 0, 1],
        "source.files": [0, 0, 0, 1, 2],
        "source.of no matter": [0] * 5,
        "val_fraction": [0, 0, 1, 1, 2],
        "of no matter": [0] * 5,
        "sizes": [0, 0],
        "tokenizer": [0, 0, 0, 1, 2],
    }


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_single_option_is_told_apart_or_not_as_it_should(corpus: Path, kinds: dict[str, list[int]], field: str):
    prints = [fingerprint({field: i}, corpus) for i in range(FIELDS[field])]
    assert [prints.index(each) for each in prints] == [kinds[field].index(kind) for kind in kinds[field]]


choices = st.fixed_dictionaries({}, optional={key: st.integers(0, n - 1) for key, n in FIELDS.items()})


@examples(10)
@given(choices, choices, st.sets(st.sampled_from(sorted(FIELDS)), max_size=2))
def test_it_changes_if_and_only_if_what_is_stored_would(
    corpus: Path, kinds: dict[str, list[int]], choice: Choice, changes: Choice, fields: set[str]
):
    """For any two configurations that differ in some options, or only in spelling."""
    other = {**choice, **{field: changes.get(field, 0) for field in fields}}
    same = all(kinds[field][choice.get(field, 0)] == kinds[field][other.get(field, 0)] for field in FIELDS)
    assert (fingerprint(choice, corpus) == fingerprint(other, corpus)) == same


@examples(5)
@given(choices, st.randoms(use_true_random=False))
def test_what_has_one_fingerprint_is_stored_as_one(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, kinds: dict[str, list[int]], choice: Choice, chance: Any
):
    other = {
        field: chance.choice([i for i, kind in enumerate(kinds[field]) if kind == kinds[field][choice.get(field, 0)]])
        for field in FIELDS
    }
    folder = tmp_path_factory.mktemp("builds")
    assert fingerprint(choice, corpus) == fingerprint(other, corpus)
    try:
        expected = stored(choice, corpus, folder / "a.lance")
    except LightningLanceError as error:  # nothing passes all the filters, say
        with pytest.raises(type(error)):
            stored(other, corpus, folder / "b.lance")
    else:
        assert stored(other, corpus, folder / "b.lance") == expected


SCRIPT = """
import sys; sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from tests.build.test_fingerprint import Corpus, source_of, tokenizer_of
folder = Path(sys.argv[2])
for tokenizer in (1, 3):
    choice = {"source.language": 5, "source.where": 6, "tokenizer": tokenizer}
    parts = source_of(choice, folder), tokenizer_of(choice, folder)
    print(Corpus(*parts, data_dir=folder / "data", val_fraction=0.1).fingerprint)
"""


def test_it_is_the_same_in_every_process_and_wherever_the_files_are(corpus: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy, ignore=shutil.ignore_patterns("data", "builds"))
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(copy)]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    spelled = {"source.language": 6, "source.where": 6}
    assert printed.split() == [fingerprint({**spelled, "tokenizer": tokenizer}, corpus) for tokenizer in (1, 3)]


def test_a_tokenizer_that_was_used_is_the_same(tmp_path: Path):
    tokenizer = TrainedBPE(400).load(FilesSource(["*.py"], str(ROOT / "lightning_lance")), tmp_path)
    texts = pa.array(TEXTS[:20], pa.large_string())
    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(lambda _: tokenizer.encode_batch(texts).ids.tolist(), range(8)))
    assert all(each == ids[0] for each in ids)
    assert Tokenizer(tokenizer.to_json(), tokenizer.eos_token).digest == tokenizer.digest


def test_columns_in_another_order_go_on_with_the_store(corpus: Path, tmp_path: Path):
    """They have one fingerprint, so each must be able to continue the build of the other."""
    sources = [corpus_of({"source.columns": i}, corpus).source for i in (0, 1)]
    uri = str(tmp_path / "x.lance")
    for source, budget in zip(sources, (3, 9), strict=True):
        store = prepare(source, ByteTokenizer(), uri, max_documents=budget)  # type: ignore[arg-type]
    whole = prepare(sources[0], ByteTokenizer(), str(tmp_path / "y.lance"), max_documents=9)  # type: ignore[arg-type]
    tables = [lance.dataset(each.uri).to_table(columns=["documents"]).column("documents") for each in (store, whole)]
    flat = [sorted((doc for row in table.to_pylist() for doc in row), key=str) for table in tables]
    assert [{**doc, "offset": 0} for doc in flat[0]] == [{**doc, "offset": 0} for doc in flat[1]]
