"""Columns of odd types and names, differing shards, metadata that is not UTF-8: built, and read back by every reader."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_lance import TokenStore
from lightning_lance.build import row_writer
from lightning_lance.documents import batch as documents_module
from lightning_lance.documents import columns as columns_module
from lightning_lance.documents.batch import decode_utf8
from lightning_lance.documents.columns import (
    in_words,
    leaves,
    simple,
    steps_to,
    text_bytes,
    valid_strings,
    without_rest,
)
from lightning_lance.errors import ConfigError, LightningLanceError, SourceError, StoreError
from lightning_lance.maintenance.forgetting import forget
from lightning_lance.maintenance.integrity import verify_store
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents

BAD = [b"src/ok.py", b"src/caf\xe9.py", None, b"\xed\xa0\x80"]
MENDED = ["src/ok.py", "src/caf\ufffd.py", None, "\ufffd\ufffd\ufffd"]


def strings(values: list[bytes | None], kind: pa.DataType | None = None) -> pa.Array:
    """Return strings of invalid UTF-8, as other writers produce; Arrow itself refuses to make them."""
    raw = {pa.string_view(): pa.binary_view(), pa.large_string(): pa.large_binary()}.get(kind, pa.binary())
    made = pa.array(values, raw)
    return pa.Array.from_buffers(kind or pa.string(), len(made), made.buffers())


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def texts(count: int, before: str = "text") -> list[str]:
    return [f"{before} {i}" for i in range(count)]


def built(folder: Path, *files: Path | str, kind: str = "parquet", **options: Any) -> TokenStore:
    source = DatasetSource(kind, data_files=[str(file) for file in files], shard_seed=None, **options)
    return prepare(source, ByteTokenizer(), data_dir=folder / "data", val_fraction=0.0)


def described(store: TokenStore, word: str) -> list[Any]:
    found = store.documents(np.array([0]), store.num_tokens())
    order = np.argsort([int(place.split(":")[1]) for place in found.column("id").to_pylist()], kind="stable")
    return found.column(word).take(pa.array(order)).to_pylist()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), "categories", "list", "struct"], ids=str
)
def test_metadata_that_is_not_utf8_is_replaced_and_counted(tmp_path: Path, kind: Any):
    column = strings(BAD) if isinstance(kind, str) else strings(BAD, kind)
    name, mended = "p", MENDED
    if kind == "list":
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int32()), column)
        mended = [str([value]) for value in MENDED]
    elif kind == "categories":
        values = strings([value for value in BAD if value is not None])
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2], pa.int8()), values)
    elif kind == "struct":
        column, name = pa.StructArray.from_arrays([column], ["q"]), "p.q"
    for part in range(2):  # two, so that fragments are merged
        pq.write_table(pa.table({"text": texts(4, f"of {part}"), "p": column}), tmp_path / f"{part}.parquet")
    source = DatasetSource(
        "parquet", data_files=[str(tmp_path / "*.parquet")], columns={"text": "text", "path": name}, shard_seed=None
    )
    for budget in (5, None):
        store = prepare(source, ByteTokenizer(), data_dir=tmp_path / "data", val_fraction=0.0, max_documents=budget)
    assert (store.commit.documents, store.commit.noted) == (8, {"metadata_not_utf8": 4})
    assert sorted(map(str, described(store, "path"))) == sorted(map(str, [*mended, *mended]))
    assert verify_store(store.uri) == []
    assert forget(store.uri, {"path": mended[1]}).documents == 2  # type: ignore[dict-item] # of these, none is null
    assert lance.dataset(store.uri).to_table().num_rows == 1


def test_a_language_that_is_not_utf8_is_a_stream_and_counted(tmp_path: Path):
    pq.write_table(pa.table({"text": texts(4), "lang": strings(BAD)}), tmp_path / "x.parquet")
    store = built(tmp_path, tmp_path / "x.parquet", language_column="lang")
    assert [stream.language for stream in store.streams()] == sorted(value or "" for value in MENDED)
    assert store.commit.noted == {"metadata_not_utf8": 2}
    # The repaired name selects it.
    one = built(tmp_path, tmp_path / "x.parquet", language_column="lang", languages=["src/caf\ufffd.py"])
    assert (one.commit.documents, one.commit.noted) == (1, {"metadata_not_utf8": 1})


def test_metadata_of_json_that_is_no_unicode_is_replaced_and_counted(tmp_path: Path):
    lines = [
        b'{"text": "a", "p": "x\\ud800", "l": "\\udfff"}',
        b'{"text": "b", "p": "ok"}',
        b'{"text": "c", "p": "caf\xe9"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "d", "p": "a\\u0000b", "l": "\\u001b[31m"}']))
    columns = {"text": "text", "path": "p"}
    store = built(tmp_path, tmp_path / "x.jsonl", kind="json", columns=columns, language_column="l")
    assert store.commit.noted == {"metadata_not_utf8": 2}
    assert sorted(described(store, "path")) == ["a\0b", "caf?", "ok", "x?"]
    assert [stream.language for stream in store.streams()] == ["", "\x1b[31m", "?"]
    assert verify_store(store.uri) == []


def test_what_cannot_be_a_language_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"text": texts(2), "lang": ["x" * 1_000_000, "C"]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"a language of 1,000,000 bytes, expected at most 65,536: set source\.lang"):
        built(tmp_path, tmp_path / "x.parquet", language_column="lang")
    assert built(tmp_path, tmp_path / "x.parquet", language_column="lang", languages=["C"]).commit.documents == 1


def test_rows_that_lance_could_not_read_again_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_store: Callable[..., TokenStore]
):
    """A user's own source may yield such strings, past the check of the batch."""
    monkeypatch.setattr(documents_module, "valid_strings", lambda values: (values, None))

    class Odd(ListSource):
        def read(self, shard: int, row: int) -> Any:
            for batch in super().read(shard, row):
                yield batch.set_column(batch.column_names.index("repo"), "repo", strings([b"\xff"] * len(batch)))

    with pytest.raises(StoreError, match=r"are not valid .*Invalid UTF8 .*and were not stored: all strings"):
        byte_store(source=Odd(documents("a", "b")))


def test_a_store_that_is_damaged_in_this_way_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Written as by earlier versions; Lance noticed only if there were nulls as well."""
    for part in range(2):
        paths = strings([value or b"" for value in BAD])
        pq.write_table(pa.table({"text": texts(4, f"of {part}"), "p": paths}), tmp_path / f"{part}.parquet")
    source = DatasetSource(
        "parquet", data_files=[str(tmp_path / "*.parquet")], columns={"text": "text", "path": "p"}, shard_seed=None
    )
    with monkeypatch.context() as before:
        for module in (columns_module, documents_module):
            before.setattr(module, "valid_strings", lambda values: (values, None))
        before.setattr(row_writer, "_check_readable", lambda rows, uri: None)
        store = prepare(source, ByteTokenizer(), data_dir=tmp_path / "data", val_fraction=0.0, max_documents=5)
    told = "has metadata of documents that is not UTF-8, .*; remove the store and build it again"
    with pytest.raises(StoreError, match=told):
        store.documents(np.array([0]), 20)
    with pytest.raises(StoreError, match=told):
        forget(store.uri, {"path": "src/ok.py"})
    with pytest.raises(StoreError, match=told):
        prepare(source, ByteTokenizer(), data_dir=tmp_path / "data", val_fraction=0.0)
    assert ["cannot be decoded" in problem.what for problem in verify_store(store.uri)] == [True]
    assert len(TokenStore.open(store.uri).read(np.array([0]), 20)[0]) == 20


TEXTS = [
    *(pa.array(["a", None, "b"], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *(pa.array([b"a", None, b"b"], kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1))),
    pa.array(["a", None, "b"]).dictionary_encode(),
    pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.uint8()), pa.array(["b", "a"], pa.string_view())),
    pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), pa.array(["a", None, "b"], pa.large_string())),
]


@pytest.mark.parametrize("values", TEXTS, ids=lambda values: str(values.type))
def test_strings_of_every_type_are_read_alike(values: pa.Array):
    for low in range(3):
        part, expected = values.slice(low), ["a", None, "b"][low:]
        assert decode_utf8(text_bytes(part))[0].to_pylist() == expected
        assert in_words(part)[0].to_pylist() == expected
    assert decode_utf8(text_bytes(values.slice(3)))[0].to_pylist() == []


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.large_string()], ids=str)
def test_corpora_of_such_columns_are_as_those_of_strings(tmp_path: Path, kind: pa.DataType):
    values = {"text": texts(6), "lang": ["Go", "Rust", None] * 2, "license": ["mit", "bsd"] * 3}
    table = pa.table({name: pa.array(column).cast(kind) for name, column in values.items()})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2 if kind != pa.string_view() else 6)
    options: dict[str, Any] = {"columns": {"text": "text", "lic": "license"}, "language_column": "lang"}
    store = built(tmp_path, tmp_path / "x.parquet", **options)
    assert [stream.language for stream in store.streams()] == ["", "Go", "Rust"]
    assert described(store, "lic") == ["mit", "bsd"] * 3
    some = built(tmp_path, tmp_path / "x.parquet", languages=["Go"], where={"license": ["bsd"]}, **options)
    assert described(some, "lic") == ["bsd"]


def test_lists_structs_and_maps_lose_what_arrow_cannot_handle():
    views = pa.string_view()
    kind = pa.struct([("a", pa.list_(views)), ("b", pa.map_(views, views)), ("c", pa.list_view(pa.int8()))])
    values = pa.array([{"a": ["x", None], "b": [("k", "v")], "c": [1]}, None, {"a": None, "b": None, "c": []}], kind)
    for low in range(3):
        made = simple(values.slice(low))
        assert made.to_pylist() == values.slice(low).to_pylist()
        assert "view" not in str(made.type)


def test_a_name_with_dots_is_a_column_or_a_field():
    kind = pa.struct(
        [("set", pa.string()), ("of.dots", pa.string()), ("more", pa.list_(pa.struct([("n", pa.int8())])))]
    )
    schema = pa.schema(
        [("text", pa.string()), ("meta", kind), ("meta.set", pa.string()), ("m", pa.map_(pa.string(), kind))]
    )
    steps = {
        name: steps_to(schema, name)
        for name in ("meta", "meta.set", "meta.of.dots", "meta.more.n", "meta.none", "m.key", "text.a", "")
    }
    assert steps == {
        "meta": (1,), "meta.set": (2,), "meta.of.dots": (1, 1), "meta.more.n": (1, 2, 0), "meta.none": None, "m.key": None,
        "text.a": None, "": None,
    }  # fmt: skip
    assert [list(leaves(schema, way)) for way in ((0,), (1,), (1, 2, 0), (2,), (3,))] == [
        [0],
        [1, 2, 3],
        [3],
        [4],
        [5, 6, 7, 8],
    ]


META = [{"set": "C4", "in": {"l": "Go"}, "by": [{"n": "x"}]}, {"set": "Git", "in": None, "by": []}, None]


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_fields_of_structs_are_columns_everywhere(tmp_path: Path, kind: str):
    """As text, word, language and filter; null if the struct is null."""
    rows = [{"body": {"text": f"text {i}"}, "meta": META[i % 3], "a.b": "own", "a": {"b": "inner"}} for i in range(6)]
    file = tmp_path / f"x.{'parquet' if kind == 'parquet' else 'jsonl'}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": "body.text", "set": "meta.set", "by": "meta.by.n", "own": "a.b"}
    store = built(tmp_path, file, kind=kind, columns=columns, language_column="meta.in.l")
    assert [stream.language for stream in store.streams()] == ["", "Go"]
    assert sorted(map(str, described(store, "set"))) == ["C4", "C4", "Git", "Git", "None", "None"]
    assert sorted(map(str, described(store, "by"))) == ["None", "None", "['x']", "['x']", "[]", "[]"]
    assert {*described(store, "own")} == {"own"}
    wheres: list[tuple[dict[str, list[Any]], int]] = [
        ({"meta.set": ["C4"]}, 2), ({"meta.set": [None]}, 2), ({"meta.by.n": ["x"]}, 2), ({"meta.in.l": [None]}, 4),
        ({"a.b": ["inner"]}, 0), ({"meta.set": ["C4", "Git"], "meta.in.l": ["Go"]}, 2),
    ]  # fmt: skip
    for where, count in wheres:
        opened = DatasetSource(kind, {"text": "body.text"}, data_files=[str(file)], where=where).open()
        assert sum(len(batch) for batch in opened.read(0, 0)) == count, where
    with pytest.raises(
        ConfigError, match=r"has no column 'meta.sets' \(did you mean 'meta.set'\?\): it has .*source.where"
    ):
        DatasetSource(kind, {"text": "body.text"}, data_files=[str(file)], where={"meta.sets": ["C4"]}).open()


LICENSE = {"text": "text", "license": "license"}


@pytest.mark.parametrize(
    ("second", "options", "count"),
    [
        ({"license": pa.nulls(4)}, {"columns": LICENSE}, 8),
        ({"license": pa.nulls(4)}, {"where": {"license": ["mit"]}}, 4),
        ({"license": pa.nulls(4)}, {"where": {"license": [None]}}, 4),
        ({}, {"columns": LICENSE}, 8),
        ({}, {"where": {"license": ["mit"]}}, 4),
        ({}, {"language_column": "license"}, 8),
        ({"license": [["mit", "bsd"]] * 4}, {"where": {"license": ["mit"]}}, 8),
        ({"license": [1] * 4}, {"columns": LICENSE}, 8),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_shards_may_differ(
    tmp_path: Path, second: dict[str, Any], options: dict[str, Any], count: int, first: bool, caplog: Any
):
    shards = [pa.table({"text": texts(4), "license": ["mit"] * 4}), pa.table({"text": texts(4), **second})]
    for i, shard in enumerate(shards if first else reversed(shards)):
        pq.write_table(shard, tmp_path / f"{i}.parquet")
    with caplog.at_level(logging.WARNING):
        store = built(tmp_path, tmp_path / "*.parquet", **options)
    assert store.commit.documents == count
    told = [message for message in caplog.messages if "has no column 'license': null is stored" in message]
    assert len(told) == (not second)


@pytest.mark.parametrize("kind", ["parquet", "json"])
@pytest.mark.parametrize("first", [True, False])
def test_a_shard_without_text_is_the_shards_fault_where_others_have_it(tmp_path: Path, kind: str, first: bool):
    for i, name in enumerate(("text", "Text") if first else ("Text", "text")):
        table = pa.table({name: texts(3, "some"), "x": [1, 2, 3]})
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{i}.parquet")
        else:
            (tmp_path / f"{i}.json").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    told = (
        r"Shard '.*' has no column 'text' \(did you mean 'Text'\?\), .*: it has Text, x; .*on_bad_shard=skip, then run"
    )
    with pytest.raises(SourceError, match=told):
        built(tmp_path, tmp_path / f"*.{kind}", kind=kind)
    store = built(tmp_path, tmp_path / f"*.{kind}", kind=kind, on_bad_shard="skip")
    assert (store.commit.documents, len(store.commit.bad_shards)) == (3, 1)
    # A column that no shard has is a mistake in the settings.
    for policy in ("error", "skip"):
        with pytest.raises(ConfigError, match=r"has no column 'body': it has .*; set source\.columns\.$"):
            built(tmp_path, tmp_path / f"*.{kind}", kind=kind, columns={"text": "body"}, on_bad_shard=policy)


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [{"a": "b"}] * 2, [True, False]], ids=str)
@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_text_that_is_none_is_refused_with_its_type_and_no_advice_to_skip(
    tmp_path: Path, kind: str, values: list[Any]
):
    table = pa.table({"text": values})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "x.parquet")
    else:
        (tmp_path / "x.json").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    with pytest.raises(
        SourceError, match=r"Column 'text' of shard .* it holds (int64|list|struct|bool).*expected strings"
    ) as told:
        built(tmp_path, tmp_path / f"x.{kind}", kind=kind, on_bad_shard="skip")
    assert str(told.value).endswith("; set source.columns.")


def test_empty_shards_and_columns_of_no_pieces_are_read(tmp_path: Path):
    nothing = pa.table({"other": pa.array([], pa.int64())})
    pq.write_table(nothing, tmp_path / "0.parquet")
    pq.ParquetWriter(tmp_path / "1.parquet", pa.schema([("text", pa.string())])).close()
    pq.write_table(pa.table({"text": texts(2), "x": ["a", "b"]}), tmp_path / "2.parquet")
    assert built(tmp_path, tmp_path / "*.parquet", columns={"text": "text", "x": "x"}).commit.documents == 2
    for kind in (pa.string(), pa.string_view(), pa.list_(pa.string())):
        words = documents_module.select_columns(
            pa.table({"text": pa.chunked_array([], pa.string()), "x": pa.chunked_array([], kind)}),
            {"text": "text", "x": "x", "y": "y"},
            "it",
        )
        assert {word: len(column) for word, column in words.items()} == {"text": 0, "x": 0, "y": 0}


def test_a_name_of_two_columns_is_refused(tmp_path: Path):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), tmp_path / "x.parquet")
    with pytest.raises(LightningLanceError, match="has 2 columns 'text', expected one: rename"):
        built(tmp_path, tmp_path / "x.parquet")


def test_nothing_is_left_beneath_nulls():
    raw = pa.array([b"abc", b"\xff\xff", b"x"], pa.large_binary())
    null = pa.Array.from_buffers(pa.large_binary(), 3, [pa.py_buffer(b"\x05"), *raw.buffers()[1:]])
    assert without_rest(null).buffers()[2].to_pybytes() == b"abcx"
    assert without_rest(raw) is raw
    # The same for text that was not UTF-8: Arrow's functions read all bytes.
    texts, invalid = decode_utf8(raw)
    assert texts.buffers()[2].to_pybytes() == b"abcx"
    assert invalid is not None
    assert invalid.tolist() == [False, True, False]
    strings, replaced = valid_strings(null.cast(pa.binary()).view(pa.string()))
    assert (strings.to_pylist(), replaced) == (["abc", None, "x"], None)


def test_what_datasets_reads_has_the_same_columns(tmp_path: Path):
    table = pa.table(
        {
            "text": pa.array(texts(6), pa.large_string()),
            "license": pa.array(["mit", "bsd", None] * 2).dictionary_encode(),
            "meta": pa.array([{"set": "a"}, {"set": "b"}, None] * 2),
            "tags": [["x"], [], None] * 2,
        }
    )
    write_arrow(table, tmp_path / "x.arrow")
    columns = {"text": "text", "lic": "license", "set": "meta.set"}
    options: dict[str, Any] = {"columns": columns, "language_column": "meta.set", "kind": "arrow"}
    store = built(tmp_path, tmp_path / "x.arrow", **options)
    assert [stream.language for stream in store.streams()] == ["", "a", "b"]
    some = built(tmp_path, tmp_path / "x.arrow", where={"tags": ["x"], "license": ["mit"]}, **options)
    assert (described(some, "lic"), described(some, "set")) == (["mit"] * 2, ["a"] * 2)
    with pytest.raises(ConfigError, match=r"has no column 'licence' \(did you mean 'license'\?"):
        built(tmp_path, tmp_path / "x.arrow", kind="arrow", where={"licence": ["mit"]})
    # `datasets` refuses shards that differ from the first one.
    write_arrow(pa.table({"text": texts(2), "other": [1, 2]}), tmp_path / "y.arrow")
    with pytest.raises(SourceError, match=r"y.arrow' .* cannot be read: CastError: .*source\.on_bad_shard=skip"):
        built(tmp_path, tmp_path / "*.arrow", kind="arrow")
    store = built(tmp_path, tmp_path / "*.arrow", kind="arrow", on_bad_shard="skip")
    assert (store.commit.documents, len(store.commit.bad_shards)) == (6, 1)
