import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import lightning
import numpy as np
import pytest

from lightning_lance import Corpus, LanceDataModule, TokenStore, TokenWindows, WindowLoader
from lightning_lance.build.options import BuildOptions
from lightning_lance.build.plan import make_plan
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.errors import ConfigError, LightningLanceError
from lightning_lance.inspection.resume import verify_resume
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource, python_stdlib
from lightning_lance.tokenization.configs import ByteTokenizer, PretrainedTokenizer, TokenizerFile, TrainedBPE
from lightning_lance.type_hints import check_arguments, type_mismatch
from tests.support.corpora import prepare

if TYPE_CHECKING:
    from datetime import timedelta


@dataclass
class Target:
    number: int
    share: Optional[float]  # noqa: UP045 # as libraries spell it
    flag: bool
    words: "Sequence[str] | str"
    columns: Mapping[str, str] | None
    pair: tuple[float, float]
    text: str
    one_of: Literal["a", "b"]
    anything: Any


def only_checked(number: int, since: "timedelta") -> None: ...


def no_such_name(number: int, since: "os.no_such_name") -> None: ...  # type: ignore[name-defined] # as a stub may have it


def only_read(number: int, since: "some time") -> None: ...  # type: ignore[valid-type] # noqa: F722 # words for readers


def without_null(number: int = None, share: float = 1.0) -> None: ...  # type: ignore[assignment] # noqa: RUF013 # as many write it


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("number", "abc", "a whole number"),
        ("number", 1.5, "a whole number"),
        ("number", 1e3, None),
        ("number", 3, None),
        ("share", "abc", "a number or null"),
        ("share", 3, None),
        ("share", None, None),
        ("flag", "yes", "true or false"),
        ("flag", 1, "true or false"),
        ("words", {"a": 1}, "a list, such as [{'a': 1}] or text"),
        ("words", "abc", None),
        ("columns", "content", "a mapping, such as {NAME: content} or null"),
        ("columns", {"text": "content"}, None),
        ("pair", 0.9, "a list, such as [0.9]"),
        ("pair", [0.9, 0.95], None),
        ("text", ["a"], "text"),
        ("text", 1234567, None),
        # Nobody can tell.
        ("one_of", "c", None),
        ("anything", "c", None),
        ("nothing", "c", None),
    ],
)
def test_what_an_argument_takes_in_words(name: str, value: Any, told: str | None):
    assert type_mismatch(Target, name, value) == told


def test_of_libraries_too_and_where_names_are_known_to_type_checkers_only():
    assert type_mismatch(lightning.Trainer, "max_steps", "abc") == "a whole number"
    told = type_mismatch(lightning.Trainer, "limit_val_batches", "abc") or ""
    # In an order that Python 3.10 takes from whoever has spelled the same union first.
    assert sorted(told.split(" or ")) == ["a number", "a whole number", "null"]
    for name, value in {"precision": "foo", "devices": "auto", "max_time": "0:1", "callbacks": []}.items():
        assert type_mismatch(lightning.Trainer, name, value) is None
    assert type_mismatch(only_checked, "number", "abc") is None
    assert type_mismatch(no_such_name, "number", "abc") is None
    assert type_mismatch(only_read, "number", "abc") is None
    assert type_mismatch(dict, "number", "abc") is None


def test_null_is_right_where_it_is_the_default():
    assert type_mismatch(without_null, "number", None) is None
    # Python 3.10 itself adds null to what is annotated, where it is the default.
    or_null = " or null" if sys.version_info < (3, 11) else ""
    assert type_mismatch(without_null, "number", "abc") == f"a whole number{or_null}"
    assert type_mismatch(without_null, "share", None) == "a number"


def of_ours(
    count: int,
    share: float,
    words: Sequence[str] = (),
    columns: Mapping[str, Sequence[Any]] | None = None,
    order: Literal["a", "b"] = "a",
    flag: bool = False,
    text: str | None = None,
    target: Target | None = None,
) -> None: ...


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("count", 3, None),
        ("count", 1e6, None),
        ("count", np.int64(3), None),
        ("count", True, "count is True: expected a whole number."),
        ("count", math.nan, "count is nan: expected a whole number."),
        ("count", 10**30, f"count is {10**30}: expected a whole number, up to {2**62:,}."),
        ("count", "3", "count is '3': expected a whole number."),
        ("count", int, "count is the class int: expected a whole number; make an object of it, as in int(...)."),
        ("count", os.getcwd, "count is the function getcwd: expected a whole number; call it, as in getcwd(...)."),
        ("share", np.float32(0.5), None),
        ("share", math.nan, "share is nan: expected a number."),
        ("words", {"a"}, None),
        ("words", ("a",), None),
        ("words", "abc", "words is the string 'abc': write a list, [abc]."),
        ("words", [1], "words is [1]: expected a list, each item text."),
        ("words", ["a\0b"], "words is ['a\\x00b']: expected a list, each item text."),
        ("words", np.array(["a"]), "words is of type numpy.ndarray: expected a list, each item text."),
        ("columns", {"a": [1, None]}, None),
        (
            "columns",
            {1: []},
            "columns is {1: []}: expected a mapping of names, each value a list, each item anything or null.",
        ),
        ("order", "c", "order is 'c': expected one of a, b."),
        ("order", ["a"], "order is ['a']: expected one of a, b."),
        ("flag", 1, "flag is 1: expected true or false."),
        ("text", Path("x"), "text is PosixPath('x'): expected text or null."),
        ("text", "x" * 500, None),
        (
            "target",
            Target,
            "target is the class Target: expected an object of Target or null; make an object of it",
        ),
        ("unknown", object(), None),
    ],
)
def test_what_a_function_of_ours_takes(name: str, value: Any, told: str | None):
    if told is None:
        check_arguments(of_ours, {name: value})
        return
    with pytest.raises(ConfigError) as refused:
        check_arguments(of_ours, {name: value})
    assert str(refused.value).startswith(told)


def test_values_that_may_be_secret_are_not_shown():
    def takes(storage_options: Mapping[str, str], password: str) -> None: ...

    for name, value in {"storage_options": ["secret"], "password": 1234}.items():
        with pytest.raises(ConfigError, match=f"{name} is of type (list|int): expected"):
            check_arguments(takes, {name: value})


WRONG: list[Any] = [
    None, "", "x\0y", -1, math.nan, 10**30, True, [], [1], [None], {1: 2}, object(), int, len, b"x", np.array([1, 2]),
    iter([1]), Path("/nowhere"), "x" * 5000, ByteTokenizer, python_stdlib,
]  # fmt: skip


def given(kind: Any) -> list[str]:
    """Return the names of what the constructor of a dataclass takes."""
    return [field.name for field in fields(kind) if field.init]


def calls() -> dict[str, Callable[[Any], Any]]:
    """Ways to give a value to what is public, that end before anything is built."""
    source, tokenizer = python_stdlib(), ByteTokenizer()
    made: dict[str, Callable[[Any], Any]] = {
        f"DatasetSource.{name}": lambda value, name=name: DatasetSource(
            **{"path": "parquet", "data_files": ["x"], name: value}
        )  # type: ignore[misc]
        for name in given(DatasetSource)
    }
    made |= {
        f"FilesSource.{name}": lambda value, name=name: FilesSource(**{"patterns": ["x"], name: value})  # type: ignore[misc]
        for name in given(FilesSource)
    }
    made |= {
        f"TextFilter.{name}": lambda value, name=name: TextFilter(**{name: value})  # type: ignore[misc]
        for name in given(TextFilter)
    }
    optional = [*inspect.signature(LanceDataModule.__init__).parameters][4:]
    of_corpus = [*inspect.signature(Corpus.__init__).parameters][3:]
    made |= {
        f"Corpus.{name}": lambda value, name=name: Corpus(source, tokenizer, **{name: value})  # type: ignore[misc]
        for name in of_corpus
    }
    made |= {
        f"BuildOptions.{name}": lambda value, name=name: BuildOptions(**{name: value})  # type: ignore[misc]
        for name in given(BuildOptions)
    }
    made |= {
        f"LanceDataModule.{name}": lambda value, name=name: LanceDataModule("x.lance", 16, 2, **{name: value})  # type: ignore[misc]
        for name in optional
    }
    return made | {
        "LanceDataModule.corpus": lambda value: LanceDataModule(value, 16, 2),
        "LanceDataModule.context_length": lambda value: LanceDataModule("x.lance", value, 2),
        "LanceDataModule.batch_size": lambda value: LanceDataModule("x.lance", 16, value),
        "Corpus.source": lambda value: Corpus(value, tokenizer),
        "Corpus.tokenizer": lambda value: Corpus(source, value),
        "TokenizerFile.path": lambda value: TokenizerFile(value).load(None, Path()),
        "TokenizerFile.eos_token": lambda value: TokenizerFile("x", value),
        "PretrainedTokenizer.model": lambda value: PretrainedTokenizer(value),
        "PretrainedTokenizer.revision": lambda value: PretrainedTokenizer("gpt2", revision=value),
        "TrainedBPE.vocab_size": lambda value: TrainedBPE(value),
        "TrainedBPE.train_bytes": lambda value: TrainedBPE(300, value),
        "TokenStore.open": lambda value: TokenStore.open(value),
        "TokenStore.open.options": lambda value: TokenStore.open("nowhere", storage_options=value),
        "WindowLoader.store": lambda value: WindowLoader(value, 16, 2),
        "TokenWindows.store": lambda value: TokenWindows(value, 16),
        "forget": lambda value: forget(value, {"path": "x"}),
        "forget.rule": lambda value: forget("nowhere", value),
        "verify_store": lambda value: verify_store(value),
        "verify_store.sample": lambda value: verify_store("nowhere", sample=value),
        "verify_resume": lambda value: verify_resume(value, {}),
        "verify_resume.uris": lambda value: verify_resume("nowhere", value),
        "prepare.source": lambda value: prepare(value, tokenizer),
        "prepare.tokenizer": lambda value: prepare(source, value),
        "prepare.data_dir": lambda value: check_plan(data_dir=value),
        "prepare.uri": lambda value: check_plan(uri=value),
    }


def check_plan(**place: Any) -> None:
    make_plan(FilesSource(["*.none"]), ByteTokenizer(), **place)


@pytest.mark.parametrize("name", calls())
def test_whatever_is_given_is_an_error_of_ours_or_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    give = calls()[name]
    for value in WRONG:
        try:
            give(value)
        except LightningLanceError:
            continue
        except Exception as error:
            raise AssertionError(f"{name} with {str(value)[:50]!r}") from error
