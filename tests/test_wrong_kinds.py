"""What people pass in place of a source, a tokenizer or a store is named, and the error says what to write."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lance
import pytest
import tokenizers
import transformers

from lightning_lance import Corpus, LanceDataModule, TokenStore, TokenWindows, WindowLoader
from lightning_lance.errors import ConfigError
from lightning_lance.sources import DatasetSource, FilesSource, python_stdlib
from lightning_lance.tokenization import ByteTokenizer, PretrainedTokenizer, TokenizerFile
from tests.support.corpora import prepare

BPE = tokenizers.Tokenizer(tokenizers.models.BPE())
ROWS = datasets.Dataset.from_dict({"text": ["a"]})
SOURCE: Any = FilesSource(["*.none"])

CALLS: dict[str, Callable[[Any], Any]] = {
    "prepare(source)": lambda value: prepare(value, ByteTokenizer()),
    "Corpus(source)": lambda value: Corpus(value, ByteTokenizer()),
    "prepare(tokenizer)": lambda value: prepare(SOURCE, value),
    "Corpus(tokenizer)": lambda value: Corpus(SOURCE, value),
    "WindowLoader": lambda value: WindowLoader(value, 16, 2),
    "WindowLoader(mapping)": lambda value: WindowLoader({"x": value}, 16, 2),
    "TokenWindows": lambda value: TokenWindows(value, 16),
    "TokenStore.open": TokenStore.open,
    "TokenStore": TokenStore,
    "TokenizerFile": TokenizerFile,
    "PretrainedTokenizer": PretrainedTokenizer,
}
SOURCES = ["prepare(source)", "Corpus(source)"]
TOKENIZERS = ["prepare(tokenizer)", "Corpus(tokenizer)"]
STORES = ["WindowLoader", "WindowLoader(mapping)", "TokenWindows"]

SAVED = "save it, as in dataset.to_parquet('x.parquet'), and use DatasetSource.parquet(['x.parquet'])"
SAVED_BPE = "save it, as in tokenizer.save('tokenizer.json'), and use TokenizerFile('tokenizer.json')"
SAVED_FAST = "save it, as in tokenizer.save_pretrained('folder'), and use TokenizerFile('folder')"
FILES = "pass files as a list to DatasetSource.parquet"

# Where it is passed; what; what the error calls it; and the cure in it.
TABLE: list[tuple[list[str], Callable[[], Any], str, str]] = [
    (SOURCES, lambda: "c.jsonl", "'c.jsonl'", FILES),
    (SOURCES, lambda: Path("folder"), "PosixPath('folder')", FILES),
    (SOURCES, lambda: ROWS, "of type datasets.Dataset", SAVED),
    (SOURCES, ROWS.to_iterable_dataset, "of type datasets.IterableDataset", SAVED),
    (SOURCES, lambda: datasets.DatasetDict({"train": ROWS}), "of type datasets.DatasetDict", SAVED),
    (SOURCES, lambda: python_stdlib, "the function python_stdlib", "call it, as in python_stdlib(...)"),
    (SOURCES, lambda: DatasetSource.hub, "the function hub", "call it, as in DatasetSource.hub(...)"),
    (SOURCES, lambda: lambda: SOURCE, "the function <lambda>", "; call it."),
    (SOURCES, lambda: functools.partial(python_stdlib), "of type functools.partial", "; call it."),
    (SOURCES, lambda: FilesSource, "the class FilesSource", "make an object of it, as in FilesSource(...)"),
    (SOURCES, ByteTokenizer, "of type lightning_lance.ByteTokenizer", "the source comes first"),
    (SOURCES, lambda: STORE, "of type lightning_lance.TokenStore", "LanceDataModule(store.uri, ...)"),
    (TOKENIZERS, lambda: "gpt2", "'gpt2'", "use PretrainedTokenizer('gpt2') for a model"),
    (TOKENIZERS, lambda: Path("t.json"), "PosixPath('t.json')", "TokenizerFile('t.json') for a tokenizer.json"),
    (TOKENIZERS, lambda: BPE, "of type tokenizers.Tokenizer", SAVED_BPE),
    (TOKENIZERS, lambda: fast(), "of type transformers.", SAVED_FAST),
    (TOKENIZERS, lambda: transformers.AutoTokenizer, "the class AutoTokenizer", "use PretrainedTokenizer(name)"),
    (TOKENIZERS, lambda: ByteTokenizer, "the class ByteTokenizer", "make an object of it, as in ByteTokenizer(...)"),
    (TOKENIZERS, lambda: SOURCE, "of type lightning_lance.FilesSource", "the source comes first"),
    (TOKENIZERS, lambda: print, "the function print", "call it, as in print(...)"),
    (["TokenizerFile", "PretrainedTokenizer"], lambda: BPE, "of type tokenizers.Tokenizer", SAVED_BPE),
    (["TokenizerFile", "PretrainedTokenizer"], lambda: fast(), "of type transformers.", SAVED_FAST),
    (STORES, lambda: "x.lance", "'x.lance'", "TokenStore.open('x.lance')"),
    (STORES, lambda: Path("x.lance"), "PosixPath('x.lance')", "TokenStore.open('x.lance')"),
    (STORES, lambda: TokenStore, "the class TokenStore", "as in TokenStore.open(uri)"),
    (STORES, lambda: TokenStore.open, "the function open", "call it, as in TokenStore.open(...)"),
    (STORES, lambda: SOURCE, "of type lightning_lance.FilesSource", "Corpus(source, tokenizer).prepare()"),
    (
        STORES,
        lambda: ROWS,
        "of type datasets.Dataset",
        "expected a TokenStore, as TokenStore.open(uri) and corpus.prepare()",
    ),
    (STORES, lambda: lance.dataset(STORE.uri), "of type lance.LanceDataset", "TokenStore.open(dataset.uri)"),
    (STORES, lambda: BPE, "of type tokenizers.Tokenizer", "expected a TokenStore"),
    (["TokenStore.open"], lambda: ROWS, "of type datasets.Dataset", "expected a place"),
    (["TokenStore.open"], lambda: STORE, "of type lightning_lance.TokenStore", "it is open already"),
    (
        ["TokenStore.open"],
        lambda: lance.dataset(STORE.uri),
        "of type lance.LanceDataset",
        "give its place, dataset.uri",
    ),
    (["TokenStore.open"], lambda: python_stdlib, "the function python_stdlib", "call it, as in python_stdlib(...)"),
    (["TokenStore"], lambda: "x.lance", "opens nothing", "use TokenStore.open('x.lance')"),
    (["TokenStore"], lambda: Path("x.lance"), "opens nothing", "use TokenStore.open('x.lance')"),
    (["TokenStore"], lambda: ROWS, "opens nothing", "use TokenStore.open(uri)"),
]
ROWS_OF_TABLE = [(call, *row) for calls, *row in TABLE for call in calls]
STORE: Any = None


def fast() -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=BPE)


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> None:
    global STORE
    STORE = prepare(python_stdlib(), ByteTokenizer(), tmp_path_factory.mktemp("store") / "x.lance", max_documents=5)


@pytest.mark.parametrize(("call", "make", "shown", "cure"), ROWS_OF_TABLE)
def test_the_error_says_what_to_write(
    call: str, make: Callable[[], Any], shown: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        CALLS[call](make())
    sentence = str(refused.value)
    assert shown in sentence
    assert cure in sentence
    assert "\n" not in sentence
    assert len(sentence) < 300
    assert sentence.endswith(".")
    assert not [*tmp_path.iterdir()]


def test_a_password_in_a_place_is_not_shown():
    with pytest.raises(ConfigError) as refused:
        WindowLoader("s3://me:hunter2@bucket/x.lance", 16, 2)  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


def test_a_mapping_of_stores_has_names():
    with pytest.raises(ConfigError, match="store has the name 1: expected text"):
        WindowLoader({1: STORE}, 16, 2)  # type: ignore[dict-item]


def test_objects_of_other_classes_will_do():
    """A source or tokenizer of one's own needs the methods only."""

    class Mine:
        def load(self, source: Any, folder: Path) -> Any:
            return ByteTokenizer().load(source, folder)

    LanceDataModule(Corpus(SOURCE, Mine()), 16, 2)
