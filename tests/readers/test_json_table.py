import json
from contextlib import suppress
from typing import Any

import pytest

from lightning_lance.documents.columns import REPLACED
from lightning_lance.documents.filters import spellings_of
from lightning_lance.readers.json_table import NOT_JSON, parsed, rows_of, table_of

# What the other column of a line holds, and how it is spelled.
VALUES: list[tuple[str, str | None]] = [
    ('"mit"', "mit"), ('""', ""), ("null", None), ("7", "7"), ("-0", "0"),
    ("12345678901234567890123", "12345678901234567890123"), ("1.50", "1.5"),
    ("1.0", "1.0"), ("true", "true"), ("false", "false"), ("[]", "[]"), ('["mit",null]', "['mit', None]"),
    ('["mit",1]', "['mit', 1]"), ('{"a":[1.0]}', "{'a': [1.0]}"), ('"2020-01-01"', "2020-01-01"), ('"\\ud800"', "?"),
    ('"a\\u0000b"', "a\0b"), ('"12"', "12"), ("NaN", "nan"), ("1e400", "inf"),
]  # fmt: skip


@pytest.mark.parametrize("neighbours", VALUES, ids=[spelling for spelling, _ in VALUES])
def test_a_value_is_spelled_the_same_whatever_is_beside_it(neighbours: tuple[str, str | None]):
    """Alone in its block, and before and after any other."""
    for value, expected in VALUES:
        for pair in ([value], [value, neighbours[0]], [neighbours[0], value]):
            block = "".join(f'{{"text": "t", "x": {one}}}\n' for one in pair).encode()
            table = table_of(rows_of(block), ["text", "x"], "text")
            assert table.column("x").to_pylist() == [{**dict(VALUES)}[one] for one in pair]
            odd = [one == '"\\ud800"' for one in pair]
            assert table.column_names == ["text", "x", NOT_JSON, *([REPLACED] if any(odd) else [])]
            assert not any(odd) or table.column(REPLACED).to_pylist() == odd
            assert (table.column("text")[0].as_py(), expected) == (b"t", {**dict(VALUES)}[value])


def test_lines_that_are_no_objects_are_rows_without_values():
    table = table_of(rows_of(b'null\n{"text":"a"}\nnull\n[1]\n'), ["text"], "text")
    assert table.to_pylist() == [{"text": text, NOT_JSON: text is None} for text in (None, b"a", None, None)]


@pytest.mark.parametrize("number", [2**63, 2**64, 10**18, 10**30, 10**400])
@pytest.mark.parametrize("place", ["%d", "-%d", "[%d]", '{"a": [1.5, {"b": %d}]}', '{"x": %d, "x": %d}'])
def test_whole_numbers_are_exact_however_large(number: int, place: str):
    line = f'{{"text": "t", "x": {place.replace("%d", str(number))}}}'.encode()
    assert table_of([line], ["text", "x"], "text").column("x").to_pylist() == [str(json.loads(line)["x"])]


@pytest.mark.parametrize("depth", [10, 500, 1010, 100_000])
def test_a_value_that_is_too_deep_is_no_json(depth: int):
    """As for Python's parser, which ends where orjson still goes on: at about 1,000 until Python 3.12."""
    line = b'{"text": "t", "x": %s7%s}' % (b"[" * depth, b"]" * depth)
    expected = None
    with suppress(RecursionError):
        expected = json.loads(line)["text"].encode()
    if depth != 1010:
        assert (expected is None) == (depth == 100_000)
    assert table_of([line], ["text", "x"], "text").column("text").to_pylist() == [expected]


def test_only_objects_are_parsed():
    assert [parsed(line) for line in (b'{"a":1}', b"[1]", b"1", b"null", b"{", b'{"a":1} {}', b"[" * 100_000)] == [
        {"a": 1}, None, None, None, None, None, None,
    ]  # fmt: skip
    assert parsed(b'{"n": %s}' % (b"9" * 10_000)) == {"n": float("inf")}
    assert rows_of(b" {}\r\n\n\t\r\n{}") == [b"{}", b"{}"]


def test_numbers_are_looked_for_as_they_may_be_spelled():
    values: list[Any] = ["mit", 1, 2.0, 2.5, True, None, 0, json.loads("1e400")]
    expected = [["mit"], ["1", "1.0"], ["2.0", "2"], ["2.5"], ["true"], [], ["0", "0.0", "-0.0"], ["inf"]]
    assert [spellings_of(value) for value in values] == expected
    # A fraction holds no such number, or none so large.
    assert spellings_of(2**53 + 1) == [str(2**53 + 1)]
    assert spellings_of(10**400) == [str(10**400)]
