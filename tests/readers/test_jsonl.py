"""JSON Lines, read as Python's own parser reads them one by one."""

import errno
import gzip
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.columns import REPLACED
from lightning_lance.documents.filters import OneOf, RowFilter
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.readers import jsonl
from lightning_lance.readers.json_table import NOT_JSON
from lightning_lance.readers.jsonl import LinesShard, NotLines
from lightning_lance.readers.retry import is_transient
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.stored import stored

# A line, the text that it gives, and why it is left out.
TABLE: list[tuple[bytes, str | None, str | None]] = [
    (b'{"text": "plain"}', "plain", None),
    (b'{"text": "other columns", "x": [1, {"y": null}], "text2": "no"}', "other columns", None),
    (b'{"text": "line end"}\r', "line end", None),
    (b'  {"text" : "white space"}\t', "white space", None),
    (b'{"text": "\\ud83d\\ude00"}', "\U0001f600", None),
    (b'{"text": "half of it \\ud83d"}', None, "not_utf8"),
    (b'{"text": "other half \\ude00"}', None, "not_utf8"),
    (b'{"text": "caf\xe9"}', None, "not_utf8"),
    (b'{"text": "\xed\xa0\x80"}', None, "not_utf8"),
    (b'{"text": "elsewhere", "x": "caf\xe9"}', "elsewhere", None),
    (b'{"text": "elsewhere", "x": "\\ud800"}', "elsewhere", None),
    (b'{"te\\u0078t": "spelled otherwise"}', "spelled otherwise", None),
    (b'{"text": "first", "text": "last"}', "last", None),
    (b'{"text": "NaN", "x": NaN, "y": 1e400}', "NaN", None),
    (b'{"text": null}', None, "null"),
    (b"{}", None, "null"),
    (b'{"text": 7}', None, "null"),
    (b'{"text": ""}', None, "empty"),
    (b'{"text": " \\n"}', None, "blank"),
    (b"", "", None),  # no row at all
    (b" \t\r", "", None),
    (b"null", None, "not_json"),
    (b"7", None, "not_json"),
    (b'"text"', None, "not_json"),
    (b'["text"]', None, "not_json"),
    (b'{"text": "cut', None, "not_json"),
    (b'{"text": "a"} {"text": "b"}', None, "not_json"),
    (b'{"text": "a"},', None, "not_json"),
    (b'{"text": "a",}', None, "not_json"),
    (b"{'text': 'a'}", None, "not_json"),
    (b'{"text": "tab\there"}', None, "not_json"),
    (b'{"text": "\0"}', None, "not_json"),
    (b"\xff\xfe\0", None, "not_json"),
]
KINDS = ("", ".gz", ".zst")


def packed(data: bytes, kind: str) -> bytes:
    return {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[kind](data)


def write(folder: Path, data: bytes, name: str = "x.jsonl", kind: str = "") -> str:
    place = folder / (name + kind)
    place.write_bytes(packed(data, kind))
    return str(place)


def rows(shard: LinesShard, row: int = 0, filters: Any = None, starts: Any = None) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = []
    for first, table in shard.tables(["text", "x"], "text", filters, row, {} if starts is None else starts):
        read += table.slice(max(row - first, 0)).to_pylist()
    return [{**made, "text": utf8(made["text"]), REPLACED: bool(made.get(REPLACED))} for made in read]


def utf8(text: bytes | None) -> str | None:
    try:
        return None if text is None else text.decode()
    except UnicodeDecodeError:
        return "NOT UTF-8"


def by_python(data: bytes, wanted: set[str] | None = None) -> list[dict[str, Any]]:
    """Each line by Python's parser, and how a value of `x` is spelled; it, or an element of it, is one of those wanted."""
    made = []
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if not line.strip(b" \t\r"):
            continue
        try:
            value = json.loads(line.decode("utf-8", "surrogateescape"))
        except ValueError:
            value = None
        bad = not isinstance(value, dict)
        text, x = (None, None) if bad else (value.get("text"), value.get("x"))
        text = utf8(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else None
        spelled = None if x is None else json.dumps(x) if isinstance(x, bool) else str(x)
        values = x if isinstance(x, list) else [x]
        if not (bad or wanted is None or any(str(value) in wanted for value in values)):
            continue
        x = None if spelled is None else spelled.encode("utf-8", "replace").decode()
        made.append({"text": text, "x": x, NOT_JSON: bad, REPLACED: x != spelled})
    return made


VALUES = st.one_of(
    st.none(), st.text(max_size=3), st.integers(-3, 3), st.integers(-(2**70), 2**70), st.booleans(),
    st.floats(allow_nan=False), st.lists(st.one_of(st.text(max_size=2), st.integers(2**62, 2**66)), max_size=2),
)  # fmt: skip
# Often columns of one type, else of any.
OBJECTS = st.one_of(
    *(st.fixed_dictionaries({"text": st.text(max_size=5), "x": st.just(x)}) for x in (1, "a", True, None)),
    st.fixed_dictionaries({"text": st.text(max_size=20)}, optional={"x": VALUES, "other": VALUES}),
)
WRITTEN = st.tuples(OBJECTS, st.booleans()).map(lambda made: json.dumps(made[0], ensure_ascii=made[1]).encode())
LINES = st.lists(st.one_of(WRITTEN, WRITTEN, st.sampled_from([line for line, *_ in TABLE])), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@examples(120)
@given(
    LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans(), st.sampled_from(KINDS),
    st.sampled_from([7, 40, 300, 1 << 20]), st.integers(0, 14), st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_rows_are_those_of_python_line_by_line(
    folder: Path, lines: list[bytes], end: bytes, last: bool, bom: bool, kind: str, block: int, row: int, some: bool,
    again: bool, remote: bool,
):  # fmt: skip
    # Of a file that begins with what is none it is said elsewhere.
    data = end.join([b'{"text": "first", "x": 1}', *lines]) + (end if last or kind else b"")
    if bom:
        data = b"\xef\xbb\xbf" + data
    filters = RowFilter((OneOf("x", (1, "a", True)),)) if some else None
    expected = by_python(data, {"1", "1.0", "a", "True"} if some else None)
    starts: dict[int, int] = {}
    place = write(folder, data, kind=kind)
    shard = LinesShard(f"file://{place}" if remote else place, {}, block)
    if again:
        assert rows(shard, 0, filters, starts) == expected
    assert rows(shard, row, filters, starts) == expected[row:]
    assert bool(starts) == (kind == "")
    assert {*shard.columns(["text", "x"], "text")} >= {"text", "x"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [False, True])
def test_odd_lines_are_kept_or_left_out_and_counted(tmp_path: Path, kind: str, alone: bool):
    """Together in one block, and each in a file with good lines around it."""
    good = b'{"text": "good"}'
    files = [[good, line, good] for line, *_ in TABLE] if alone else [[good, *(line for line, *_ in TABLE), good]]
    for i, lines in enumerate(files):
        write(tmp_path, b"\n".join(lines) + b"\n", f"{i:02}.jsonl", kind)
    source = DatasetSource("json", data_files=[str(tmp_path / "*.jsonl*")], shard_seed=None)
    store = prepare(source, ByteTokenizer(), str(tmp_path / "x.lance"), val_fraction=0.0)
    texts = [[text] if text else [] for _, text, _ in TABLE]
    between = texts if alone else [[text for one in texts for text in one]]
    assert stored(store) == [text.encode() for some in between for text in ("good", *some, "good")]
    reasons = [reason for *_, reason in TABLE if reason]
    assert store.commit.skipped == {reason: reasons.count(reason) for reason in sorted({*reasons})}
    assert store.commit.bad_shards == []


def test_a_filter_lets_through_what_is_no_object_so_that_it_is_counted(tmp_path: Path):
    lines = [{"text": str(i), "lang": ("Go", "Rust")[i % 2], "stars": i % 3} for i in range(6)]
    write(tmp_path, b"nothing\n".join(json.dumps(line).encode() + b"\n" for line in lines))
    options: Mapping[str, Any] = {"language_column": "lang", "languages": ["Go"], "where": {"stars": [0, 1.0]}}
    source = DatasetSource("json", data_files=[str(tmp_path / "x.jsonl")], **options)
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    assert (stored(store), store.commit.skipped) == ([b"0", b"4"], {"not_json": 5})
    assert [*store.commit.files.values()] == [7]


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_a_file_that_is_cut_off_is_a_bad_shard(tmp_path: Path, kind: str):
    lines = [json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(300)]
    frames = [packed(b"".join(lines)[:1500], kind), packed(b"".join(lines)[1500:], kind)]
    whole = b"".join(frames)
    for cut in (0, 3, 100, len(frames[0]) - 1, len(frames[0]), len(frames[0]) + 5, len(whole) - 1, len(whole)):
        (tmp_path / f"x.jsonl{kind}").write_bytes(whole[:cut])
        opened = DatasetSource("json", data_files=[str(tmp_path / "x.jsonl*")], on_bad_shard="skip").open()
        read = [text for batch in opened.read(0, 0) for text in batch.column("text").to_pylist()]
        assert read == [f"text {i}" for i in range(len(read))]
        assert [*opened.trouble.bad_shards] == ([] if cut == len(whole) else [0])
    assert len(read) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_first_file_does_not_stop_the_opening(tmp_path: Path, kind: str):
    (tmp_path / f"0.jsonl{kind}").write_bytes(b"this is no such file\n" * 100)
    write(tmp_path, b'{"text": "a", "x": 1}\n', "1.jsonl", kind)
    files: dict[str, Any] = {"data_files": [str(tmp_path / "*.jsonl*")], "shard_seed": None}
    skip = DatasetSource("json", on_bad_shard="skip", **files)
    store = prepare(skip, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    assert stored(store) == [b"a"]
    assert [(Path(bad["shard"]).name, bad["row"]) for bad in store.commit.bad_shards] == [(f"0.jsonl{kind}", 0)]
    with pytest.raises(SourceError, match=r"Shard '.*0\.jsonl.*source\.on_bad_shard=skip"):
        [*DatasetSource("json", **files).open().read(0, 0)]
    # Which columns there are, the next file tells.
    with pytest.raises(ConfigError, match=r"has no column 'body': it has text, x; set source\.columns\."):
        DatasetSource("json", {"text": "body"}, on_bad_shard="skip", **files).open()


def test_columns_may_be_missing_in_some_lines_but_not_in_all(tmp_path: Path):
    place = write(tmp_path, b'\n{"text": "a"}\n{"text": "b", "license": ["mit"]}\n')
    columns = {"text": "text", "license": "license"}
    opened = DatasetSource("json", columns, data_files=[place]).open()
    assert [batch.column("license").to_pylist() for batch in opened.read(0, 0)] == [[None, "['mit']"]]
    with pytest.raises(ConfigError, match=r"has no column 'repo': it has text, license; set source\.columns\."):
        DatasetSource("json", {"text": "text", "repo": "repo"}, data_files=[place]).open()
    numbers = write(tmp_path, b'{"text": 1}\n{"text": 2}\n', "n.jsonl")
    with pytest.raises(SourceError, match=r"Column 'text' of .* cannot be read as 'text': it holds int64, expected"):
        [*DatasetSource("json", data_files=[numbers]).open().read(0, 0)]


@pytest.mark.parametrize("kind", ["", ".gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_one_array_or_one_object_is_left_to_datasets(tmp_path: Path, kind: str, indent: int | None):
    write(tmp_path, json.dumps([{"text": "a"}, {"text": "b"}], indent=indent).encode(), "0.json", kind)
    write(tmp_path, b'{"text": "c"}\n{"text": "d"}\n', "1.json", kind)
    write(tmp_path, json.dumps({"text": "e"}, indent=indent).encode(), "2.json", kind)
    for seed in (None, 0, 1):  # whichever is first
        opened = DatasetSource("json", data_files=[str(tmp_path / "*.json*")], shard_seed=seed).open()
        read = [[t for batch in opened.read(i, 0) for t in batch.column("text").to_pylist()] for i in range(3)]
        assert sorted(read) == [["a", "b"], ["c", "d"], ["e"]]
    with pytest.raises(NotLines):
        LinesShard(str(tmp_path / f"0.json{kind}"), {}).columns(["text"], "text")


def test_other_options_of_datasets_are_left_to_it(tmp_path: Path):
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: x.json\n  field: rows\n---\n")
    write(tmp_path, json.dumps({"rows": [{"text": "a"}, {"text": "b"}]}).encode(), "x.json")
    opened = DatasetSource(str(tmp_path), config="one").open()
    assert [batch.column("text").to_pylist() for batch in opened.read(0, 0)] == [["a", "b"]]


def test_going_on_parses_nothing_again_and_a_plain_file_is_not_even_read(tmp_path: Path, monkeypatch: Any):
    data = b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(1000))
    fs = fsspec.filesystem("memory")
    fs.pipe("/lines/x.jsonl", data)
    parsed: list[int] = []
    fetched: list[int] = []
    honest, kind = jsonl.table_of, type(fs.open("/lines/x.jsonl"))
    monkeypatch.setattr(jsonl, "table_of", lambda lines, *a: parsed.append(len(lines)) or honest(lines, *a))
    monkeypatch.setattr(
        kind, "read", lambda self, size: fetched.append(size) or super(kind, self).read(size), raising=False
    )
    for place in (write(tmp_path, data, kind=".zst"), "memory://lines/x.jsonl"):
        parsed.clear()
        starts: dict[int, int] = {}
        shard = LinesShard(place, {}, 1000)
        assert [row["text"] for row in rows(shard, 990, None, starts)] == [f"text {i}" for i in range(990, 1000)]
        assert sum(parsed) < 100
    fetched.clear()
    seeks: list[int] = []
    monkeypatch.setattr(kind, "seek", lambda self, *a: seeks.append(a[0]) or super(kind, self).seek(*a), raising=False)
    assert len(rows(LinesShard(place, {}, 1000), 990, None, starts)) == 10
    assert len(data) - 2000 < max(seeks) < len(data)


def test_what_comes_short_is_asked_for_again_and_not_the_end(monkeypatch: Any):
    fs = fsspec.filesystem("memory")
    fs.pipe("/short/x.jsonl", b'{"text": "a"}\n' * 100)
    kind = type(fs.open("/short/x.jsonl"))
    monkeypatch.setattr(kind, "read", lambda self, size: super(kind, self).read(size)[:140][: 1400 - self.tell()])
    with pytest.raises(ConnectionError, match="of 1400 bytes came"):
        rows(LinesShard("memory://short/x.jsonl", {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [OSError(errno.EIO, "no answer"), ConnectionError("gone"), TimeoutError()])
def test_a_failure_of_the_file_comes_through_as_it_is(kind: str, error: Exception, monkeypatch: Any):
    fs = fsspec.filesystem("memory")
    fs.pipe(f"/failing/x.jsonl{kind}", packed(b'{"text": "a"}\n' * 100, kind))

    def fail(self: Any, size: int) -> bytes:
        raise error

    monkeypatch.setattr(type(fs.open(f"/failing/x.jsonl{kind}")), "read", fail, raising=False)
    with pytest.raises(type(error)) as told:
        rows(LinesShard(f"memory://failing/x.jsonl{kind}", {}))
    assert is_transient(told.value)


def test_only_what_is_asked_for_is_kept_and_batches_are_small(tmp_path: Path):
    data = b"".join(b'{"text": "%d", "x": %d, "other": {"a": [1]}}\n' % (i, i) for i in range(2500))
    shard = LinesShard(write(tmp_path, data), {})
    tables = [table for _, table in shard.tables(["x", "text"], "text", None, 0, {})]
    assert {tuple(table.column_names) for table in tables} == {("x", "text", NOT_JSON)}
    assert max(map(len, tables)) == 1000
    assert pa.concat_tables(tables).column("x").to_pylist() == [str(i) for i in range(2500)]


PEAK = """
import sys
from pathlib import Path
from lightning_lance.readers.jsonl import LinesShard
def peak():
    # What `resource` tells may be of the process that started this one.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10
def read(place):
    shard = LinesShard(place, {})
    found = "text" in shard.columns(["text"], "text")
    return found and sum(table.nbytes for _, table in shard.tables(["text"], "text", None, 0, {}))
small, *places = sys.argv[1:]
read(small)
before = peak()
for place in places:
    size = read(place)
    print(size >> 20, peak() - before, flush=True)
"""


def test_memory_follows_neither_the_file_nor_more_than_its_longest_line(tmp_path: Path):
    line = b'{"text": "' + b"some words " * 1000 + b'"}\n'
    huge = b'{"text": "' + b"lorem" * 10_000_000 + b'"}\n'
    places = [
        write(tmp_path, line * 10, "0.jsonl", ".zst"),
        write(tmp_path, line * 18_000, "1.jsonl", ".zst"),
        write(tmp_path, line + huge + line, "2.jsonl", ".zst"),
        write(tmp_path, huge[:-1], "3.jsonl"),
    ]
    done = subprocess.run([sys.executable, "-c", PEAK, *places], capture_output=True, text=True, check=True)
    (many, flat), (one, high), (alone, higher) = [map(int, told.split()) for told in done.stdout.splitlines()]
    assert (many, one, alone) == (188, 47, 47)
    assert flat < 60  # MB, of 188
    assert max(high, higher) < 8 * 48  # a line, parsed by Python for its columns, is held some six times
