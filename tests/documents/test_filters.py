"""The filter keeps the same rows as a plain loop over Python values, in every format."""

import datetime as dt
import gzip
import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_lance.documents.filters import EndsWith, OneOf, RowFilter, SpelledAs, checked_where
from lightning_lance.errors import ConfigError
from lightning_lance.readers.jsonl import LinesShard
from lightning_lance.readers.parquet import ParquetShard
from lightning_lance.sources.datasets import DatasetSource
from tests.support.laws import examples

UTC = dt.timezone.utc
DAY, MORNING = dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, 6, 30)
TEXTS, BYTES, WHOLE = ["a", "mit", "", "é", "x" * 100], [b"ab", b"cd"], [0, 1, 2, 100]
FRACTIONS = [0.0, math.nan, -0.0, 1.5, -1.0, math.inf]
KINDS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.string(), TEXTS), (pa.large_string(), TEXTS), (pa.string_view(), TEXTS),
    (pa.dictionary(pa.int8(), pa.string()), TEXTS), (pa.dictionary(pa.uint16(), pa.large_string()), TEXTS),
    (pa.binary(), [*BYTES, b"\xff"]), (pa.binary(2), BYTES), (pa.binary_view(), BYTES), (pa.null(), [None]),
    (pa.int8(), WHOLE), (pa.uint16(), WHOLE), (pa.int64(), [*WHOLE, 2**62]), (pa.uint64(), [*WHOLE, 2**63]),
    (pa.float16(), [0.0, 1.5]), (pa.float32(), FRACTIONS), (pa.float64(), FRACTIONS), (pa.bool_(), [True, False]),
    (pa.date32(), [DAY.date(), dt.date(1960, 5, 5)]), (pa.date64(), [DAY.date()]),
    (pa.timestamp("s"), [DAY]), (pa.timestamp("us"), [DAY, MORNING]), (pa.timestamp("ns"), [DAY, MORNING]),
    (pa.timestamp("us", "UTC"), [DAY.replace(tzinfo=UTC)]), (pa.time64("us"), [dt.time(1, 2), dt.time(3)]),
    (pa.decimal128(6, 2), [Decimal("1.50"), Decimal("-2")]), (pa.decimal32(6, 2), [Decimal("1.50")]),
]  # fmt: skip
if int(pa.__version__.split(".")[0]) < 25:
    # Arrow 21 makes no such dictionary of Python's values, and writes no such decimals.
    _LATER = [pa.dictionary(pa.uint16(), pa.large_string()), pa.decimal32(6, 2)]
    KINDS = [(kind, pool) for kind, pool in KINDS if kind not in _LATER]
# A wrapping type, the function that wraps a value, and the name to filter by.
SHAPES: dict[str, tuple[str, Callable[[pa.DataType], pa.DataType], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "flat": ("x", lambda kind: kind, lambda made: made[0], lambda value: value),
    "list": ("x", pa.list_, lambda made: made, lambda value: value),
    "lists": ("x", lambda kind: pa.large_list(pa.list_(kind)), lambda made: [made, None, []], lambda value: value),
    "struct": (
        "x.y",
        lambda kind: pa.struct([("z", pa.int8()), ("y", kind)]),
        lambda made: {"z": 1, "y": made[0]},
        lambda value: value and value["y"],
    ),
    "list in a struct": (
        "x.y",
        lambda kind: pa.struct([("y", pa.list_(kind))]),
        lambda made: {"y": made},
        lambda value: value and value["y"],
    ),
    "structs in a list": (
        "x.y",
        lambda kind: pa.list_(pa.struct([("y", kind)])),
        lambda made: [{"y": one} for one in made],
        lambda value: value and [one["y"] for one in value],
    ),
}


def kept(value: Any, wanted: list[Any]) -> bool:
    """Return whether a plain Python filter keeps a value."""
    if isinstance(value, list):
        return any(kept(one, wanted) for one in value)
    if isinstance(value, bytes):
        return value in [one.encode() for one in wanted if isinstance(one, str)]
    return value in wanted or (value != value and any(one != one for one in wanted))


@st.composite
def columns(draw: Any) -> tuple[pa.Array, str, Callable[[Any], Any], list[Any]]:
    """Draw a column of any type, the name to filter by, a function that returns a row's value, and the wanted values."""
    kind, pool = draw(st.sampled_from(KINDS))
    name, around, made_of, found = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    parts = st.lists(st.sampled_from([*pool, None]), min_size=1, max_size=3).map(made_of)
    values = pa.array(draw(st.lists(st.none() | parts, max_size=12)), around(kind))
    wanted = [one.decode("latin-1") if isinstance(one, bytes) else one for one in [*pool, None]]
    return values, name, found, draw(st.lists(st.sampled_from(wanted), min_size=1, max_size=3))


@examples(32)
@given(columns(), st.booleans(), st.booleans(), st.integers(1, 5), st.integers(0, 12), st.integers(0, 3))
def test_parquet_keeps_what_python_keeps(
    tmp_path_factory: pytest.TempPathFactory,
    column: tuple[pa.Array, str, Callable[[Any], Any], list[Any]],
    statistics: bool,
    dictionary: bool,
    group: int,
    row: int,
    cut: int,
):
    """With and without statistics, from any row on, also for sliced columns."""
    values, name, found, wanted = column
    views = any(_is_view(kind) for kind in _leaves(values.type))
    assume(not views or values.type.num_fields == 0)  # Arrow cannot write sliced views in lists
    values = values if views else values.slice(cut)
    file = tmp_path_factory.getbasetemp() / "law.parquet"
    table = pa.table({"text": [str(i) for i in range(len(values))], "x": values})
    # Without Parquet's own dictionary, Arrow cannot write an empty dictionary in a struct that is null.
    dictionary = dictionary or any(pa.types.is_dictionary(kind) for kind in _leaves(values.type))
    pq.write_table(table, file, group, write_statistics=statistics, use_dictionary=dictionary)
    rows = pq.read_table(file).to_pylist()
    expected = [made["text"] for made in rows if kept(found(made["x"]), wanted)]
    with ParquetShard(str(file), {}) as shard:
        read: list[str] = []
        for first, some in shard.tables(["text", name], RowFilter((OneOf(name, tuple(wanted)),)), row, {}):
            read += some.column("text").to_pylist()[max(row - first, 0) :]
    assert read == expected[row:]


@pytest.mark.parametrize("shape", ["flat", "struct", "structs in a list"])
def test_no_row_group_is_passed_over_that_holds_a_row(tmp_path: Path, shape: str):
    """For each type and each one or two wanted values, over row groups of all pairs of values, with statistics."""
    name, around, made_of, found = SHAPES[shape]
    for kind, pool in KINDS if shape == "flat" else KINDS[::4]:
        if "list" in shape and _is_view(kind):
            continue  # Arrow cannot write this type
        some = [*pool[:3], None]
        schema = pa.schema([("x", around(kind))])
        with pq.ParquetWriter(tmp_path / "x.parquet", schema) as writer:
            for pair in product(some, some):
                column = pa.array([made_of([value]) for value in pair], schema.field("x").type)
                writer.write_table(pa.table([column], schema))
        rows = [found(row["x"]) for row in pq.read_table(tmp_path / "x.parquet").to_pylist()]
        texts = [one.decode("latin-1") if isinstance(one, bytes) else one for one in some]
        with ParquetShard(str(tmp_path / "x.parquet"), {}) as shard:
            for wanted in [[one] for one in texts] + [[one, None] for one in texts]:
                tables = shard.tables([name], RowFilter((OneOf(name, tuple(wanted)),)), 0, {})
                expected = sum(kept(row, wanted) for row in rows)
                assert sum(len(table) for _, table in tables) == expected, (kind, wanted)


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _leaves(kind: pa.DataType) -> list[pa.DataType]:
    inner = [leaf for i in range(kind.num_fields) for leaf in _leaves(kind.field(i).type)]
    return inner or [kind]


JSON_VALUES = st.one_of(
    st.none(), st.sampled_from(["a", "mit", "5", "5.0", "é"]), st.integers(-1, 5), st.sampled_from(FRACTIONS), st.booleans(),
    st.lists(st.none() | st.sampled_from(["a", "mit", 5]), max_size=3),
)  # fmt: skip
# Arrow reads a block at once if its values have one type.
JSON_COLUMNS = st.one_of(*(st.lists(st.none() | st.just(value)) for value in ("a", 5, True))) | st.lists(JSON_VALUES)


def kept_of_json(value: Any, wanted: list[Any]) -> bool:
    """Return whether a filter on untyped values keeps one: text that spells a number equals it, a truth value does not."""
    if isinstance(value, list):
        return any(kept_of_json(one, wanted) for one in value)
    return any(_equal(value, one) for one in wanted)


def _equal(value: Any, one: Any) -> bool:
    if value is None or one is None or isinstance(value, bool) or isinstance(one, bool):
        return value is one
    if isinstance(value, str) or isinstance(one, str):
        return str(value) == str(one) or (isinstance(value, str) and value in (f"{one}.0", str(one).removesuffix(".0")))
    return bool(value == one) or (value != value and one != one)


@examples(40)
@given(
    JSON_COLUMNS, st.lists(st.sampled_from(["a", "mit", 5, 0, 1.5, 5.0, True, None, math.nan]), min_size=1, max_size=3),
    st.sampled_from(["x", "x.y", "x.y.z", "o.y"]), st.booleans(), st.booleans(), st.sampled_from([20, 1 << 20]),
    st.integers(0, 9),
)  # fmt: skip
def test_json_lines_keep_what_python_keeps(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], wanted: list[Any], name: str, packed: bool, literal: bool,
    block: int, row: int,
):  # fmt: skip
    """For columns, fields of objects, lists, and keys with dots; from any row on."""

    def nested(value: Any) -> dict[str, Any]:
        if name == "o.y":
            return {"o": [{"y": value}, {}, None]}
        for key in reversed([name] if literal else name.split(".")):
            value = {key: value}
        return value  # type: ignore[no-any-return] # there is a key at least

    lines = [{"text": str(i), **nested(value)} for i, value in enumerate(values)]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = tmp_path_factory.getbasetemp() / f"law.jsonl{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(data) if packed else data)
    found = [[value, None, None] if name == "o.y" else value for value in values]
    expected = [line["text"] for line, value in zip(lines, found, strict=True) if kept_of_json(value, wanted)]
    shard, read = LinesShard(str(file), {}, block), []
    for first, some in shard.tables(["text", name], "text", RowFilter((OneOf(name, tuple(wanted)),)), row, {}):
        read += [text.decode() for text in some.column("text").to_pylist()[max(row - first, 0) :]]
    assert read == expected[row:]


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (pa.int64(), 5, ["5", "5.0", 5.0, Decimal(5), np.int8(5)]),
        (pa.float64(), 5.0, ["5", "5.0", "5e0", 5, np.float32(5)]),
        (pa.float32(), 0.1, [0.1, "0.1"]),
        (pa.decimal128(4, 2), Decimal("1.5"), ["1.50", "1.5", 1.5]),
        (pa.string(), "5", [5, "5"]),
        (pa.bool_(), True, ["true", "True", 1, np.True_]),
        (pa.date32(), DAY.date(), ["2020-01-01", DAY, np.datetime64("2020-01-01")]),
        (pa.timestamp("us"), DAY, ["2020-01-01", "2020-01-01T00:00:00", DAY.date(), np.datetime64("2020-01-01T00:00", "ns")]),
        (pa.timestamp("us", "UTC"), DAY.replace(tzinfo=UTC), ["2020-01-01T00:00:00Z", "2020-01-01T01:00:00+01:00", DAY]),
        (pa.uuid(), b"a" * 16, ["61616161-6161-6161-6161-616161616161"]),
    ],
    ids=str,
)  # fmt: skip
def test_values_are_found_as_people_write_them(kind: pa.DataType, value: Any, wanted: list[Any]):
    table = pa.table({"x": pa.array([value, None], kind)})
    for one in wanted:
        (plain,) = checked_where({"x": [one]})["x"]
        assert len(RowFilter((OneOf("x", (plain,)),)).passing(table, "it")) == 1, one


@pytest.mark.parametrize(
    ("kind", "wanted", "told"),
    [
        (pa.int64(), ["mit"], "holds int64, which never equals 'mit': list values of its type"),
        (pa.list_(pa.bool_()), ["maybe", 2], "holds bool, which never equals 'maybe', 2"),
        (pa.date32(), [MORNING, "soon"], "holds date32.*, which never equals '2020-01-01 06:30:00', 'soon'"),
        (pa.struct([("a", pa.int8()), ("b", pa.int8())]), ["mit"], "has fields: name one of x.a, x.b"),
        (pa.map_(pa.string(), pa.string()), ["mit"], "whose values cannot be compared: filter by another column"),
    ],
    ids=str,
)
def test_values_that_a_column_cannot_have_are_refused(tmp_path: Path, kind: pa.DataType, wanted: list[Any], told: str):
    pq.write_table(pa.table({"text": ["a"], "x": pa.nulls(1, kind)}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=f"source.where.x: the column 'x' of shard .*{told}"):
        DatasetSource("parquet", data_files=[str(tmp_path / "x.parquet")], where={"x": wanted}).open()
    # Null may also be wanted, and numbers compare whatever their size.
    DatasetSource("parquet", data_files=[str(tmp_path / "x.parquet")], where={"text": ["mit", 10**30]}).open()


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (["x"], r"source\.where is \['x'\]: expected a mapping"),
        ({"x": "mit"}, r"source\.where\.x is the string 'mit': write a list, \[mit\]"),
        ({"x": 5}, r"source\.where\.x is 5: expected a list"),
        ({"x": None}, r"source\.where\.x is None: expected a list"),
        ({"x": {"a": 1}}, "expected a list"),
        ({"x": np.array(5)}, "expected a list"),
        ({"x": []}, r"source\.where\.x is empty, which keeps no row"),
        ({"x": [["mit"]]}, r"has the value \['mit'\]: expected text, numbers"),
        ({"x": ["\udce9"]}, "valid Unicode text"),
        ({5: ["mit"]}, "has the column 5: expected a name"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(where: Any, told: str):
    with pytest.raises(ConfigError, match=told):
        DatasetSource("parquet", where=where)


def test_values_come_in_any_collection():
    wanted = [[5, 6], (5, 6), {5, 6}, range(5, 7), (i for i in (5, 6)), np.array([5, 6]), pa.array([5, 6])]
    sources = [DatasetSource("some", where={"x": values}) for values in wanted]  # type: ignore[dict-item]
    assert {json.dumps(source.identity(), sort_keys=True) for source in sources} == {
        json.dumps(DatasetSource("some", where={"x": [6, 5]}).identity(), sort_keys=True)
    }
    assert sources[0].identity()["where"] == {"x": ["5", "6"]}
    days: Mapping[str, Any] = {"x": [DAY.date(), None, "mit", True, 1.5]}
    assert DatasetSource("some", where=days).identity()["where"] == {
        "x": ['"2020-01-01"', '"mit"', "1.5", "null", "true"]
    }


def test_languages_are_compared_as_they_are_stored():
    """A list is one language, not one for each element."""
    table = pa.table({"x": [["Go"], None], "n": [1, 2], "p": ["a.py", None]})
    for condition, count in [
        (SpelledAs("x", ("Go",)), 0), (SpelledAs("x", ("['Go']",)), 1), (SpelledAs("n", ("2",)), 1),
        (EndsWith("p", (".py",)), 1), (SpelledAs("none", ("Go",)), 0), (EndsWith("none", (".py",)), 0),
    ]:  # fmt: skip
        assert len(RowFilter((condition,)).passing(table, "it")) == count
