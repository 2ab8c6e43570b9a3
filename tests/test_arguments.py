import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Optional

import lightning
import pytest

from lightning_lance.arguments import expected_instead

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
    assert expected_instead(Target, name, value) == told


def test_of_libraries_too_and_where_names_are_known_to_type_checkers_only():
    assert expected_instead(lightning.Trainer, "max_steps", "abc") == "a whole number"
    assert expected_instead(lightning.Trainer, "limit_val_batches", "abc") == "a whole number or a number or null"
    for name, value in {"precision": "foo", "devices": "auto", "max_time": "0:1", "callbacks": []}.items():
        assert expected_instead(lightning.Trainer, name, value) is None
    assert expected_instead(only_checked, "number", "abc") is None
    assert expected_instead(no_such_name, "number", "abc") is None
    assert expected_instead(only_read, "number", "abc") is None
    assert expected_instead(dict, "number", "abc") is None


def test_null_is_right_where_it_is_the_default():
    assert expected_instead(without_null, "number", None) is None
    assert expected_instead(without_null, "number", "abc") == "a whole number"
    assert expected_instead(without_null, "share", None) == "a number"
