"""Wrong `datasets` sources."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.sources.datasets import DatasetSource


def write(folder: Path, name: str, **columns: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)


def texts(source: DatasetSource) -> list[str | None]:
    opened = source.open()
    return [
        t for i in range(len(opened.shards)) for batch in opened.read(i, 0) for t in batch.column("text").to_pylist()
    ]


def test_a_language_or_file_that_is_named_twice_is_read_once(tmp_path: Path):
    write(tmp_path / "python", "x.parquet", text=["a"])
    template = str(tmp_path / "{language}/*.parquet")
    assert texts(DatasetSource("parquet", data_files=[template], languages=["python", "python"])) == ["a"]
    both = [str(tmp_path / "python/*.parquet"), str(tmp_path / "python/x*.parquet")]
    with pytest.raises(ConfigError, match=r"with several patterns of source\.data_files"):
        DatasetSource("parquet", data_files=both).open()


def test_an_extension_belongs_to_one_language():
    columns = {"text": "text", "path": "path"}
    with pytest.raises(ConfigError, match=r"Both 'C' and 'C\+\+' have the extension '.h'"):
        DatasetSource("parquet", columns, extensions={"C": [".c", ".h"], "C++": [".h"]})


@pytest.mark.parametrize("word", ["id", "row", "offset", "language"])
def test_words_of_the_store_are_refused(word: str):
    with pytest.raises(ConfigError, match=f"uses the reserved word '{word}'"):
        DatasetSource("parquet", {"text": "text", word: "x"})
    with pytest.raises(
        ConfigError, match=r"word 'language': set source\.language_column=lang to store it as the language, or"
    ):
        DatasetSource("parquet", {"text": "text", "language": "lang"})


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": None}, "has None for 'text': expected the name of a column, or remove the word"),
        ({"text": "text", "license": ["x"]}, "has \\['x'\\] for 'license': expected the name of a column"),
        ({"text": "text", "": "x"}, "has the word '': expected text"),
        ({"text": "text", None: "x"}, "has the word None: expected text"),
        ({"text": "text", "caf\udce9": "x"}, r"has the word 'caf\\udce9': expected text"),
    ],
)
def test_words_and_columns_are_text(columns: dict[str, str], told: str):
    with pytest.raises(ConfigError, match=told):
        DatasetSource("parquet", columns)


def test_names_of_columns_may_have_digits_only(tmp_path: Path):
    write(tmp_path, "x.parquet", **{"0": ["a"], "1": ["mit"]})
    source = DatasetSource("parquet", {"text": 0, 7: 1}, data_files=[str(tmp_path / "x.parquet")])  # type: ignore[dict-item]
    assert texts(source) == ["a"]
    assert source.metadata == ("7",)


def test_texts_that_are_not_utf8_are_null(tmp_path: Path):
    raw = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    write(tmp_path, "x.parquet", text=broken)
    assert texts(DatasetSource("parquet", data_files=[str(tmp_path / "*.parquet")])) == ["fine", None, None]


def test_a_broken_shard_is_named(tmp_path: Path):
    write(tmp_path, "0.parquet", text=["a"])
    (tmp_path / "1.parquet").write_bytes(b"PAR1 this is no parquet PAR1")
    source = DatasetSource("parquet", data_files=[str(tmp_path / "*.parquet")], shard_seed=None)
    with pytest.raises(SourceError, match=r"Shard '.*1.parquet' of source 'dataset' cannot be read: ArrowInvalid"):
        texts(source)
