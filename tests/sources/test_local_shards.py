import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_lance.errors import ConfigError
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare


def write(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        with Path(name).open("wb") as file:
            pq.write_table(pa.table({"text": [name.encode("utf-8", "backslashreplace").decode()]}), file)


def source(*files: Any, **options: Any) -> DatasetSource:
    return DatasetSource(options.pop("path", "parquet"), data_files=files, **{"shard_seed": None, **options})


def texts(source: DatasetSource) -> list[str]:
    """Return the texts, each with its language if it has one."""
    opened = source.open()
    rows = [row for i in range(len(opened.shards)) for batch in opened.read(i, 0) for row in batch.to_pylist()]
    return [row["text"] + (f" {row['language']}" if row["language"] else "") for row in rows]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("d/a.parquet", "d/sub/b.parquet", "d/.h.parquet", "other/z.parquet", "run [1]/a.parquet", "part[1].parquet")
    write("part1.parquet", "{x}.parquet", "a::b.parquet", "u%20.parquet", "new\nline.parquet")
    Path("d/link.parquet").symlink_to("a.parquet")
    Path("d/z.parquet").symlink_to("../other/z.parquet")
    Path("d/up").symlink_to("..")
    Path("d/again").symlink_to("sub")
    Path("dl").symlink_to("d")


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["run [1]/*.parquet"], ["run [1]/a.parquet"]),
        (["part[1].parquet"], ["part[1].parquet"]),
        (["part[1].parquet", "part1.parquet"], ["part[1].parquet", "part1.parquet"]),
        (["{x}.parquet", "a::b.parquet", "new\nline.parquet"], ["{x}.parquet", "a::b.parquet", "new\nline.parquet"]),
        (["d"], ["d/a.parquet", "d/sub/b.parquet"]),
        (["d/"], ["d/a.parquet", "d/sub/b.parquet"]),
        (["dl"], ["d/a.parquet", "d/sub/b.parquet"]),
        (["d/**/*.parquet"], ["d/a.parquet", "d/sub/b.parquet"]),
        (["d/*/*.parquet"], ["d/sub/b.parquet"]),
        (["./d/../other/*.parquet"], ["other/z.parquet"]),
        ([Path("d/a.parquet")], ["d/a.parquet"]),
        (["file://{here}/u%20.parquet"], ["u%20.parquet"]),
        (["file://{here}/d/%61.parquet"], ["d/a.parquet"]),
        (["{here}/d/link.parquet"], ["d/a.parquet"]),
        (["d/z.parquet"], ["other/z.parquet"]),
    ],
)
def test_paths_mean_what_they_say(files: list[Any], read: list[str]):
    files = [file.replace("{here}", str(Path.cwd())) if isinstance(file, str) else file for file in files]
    assert texts(source(*files)) == read


def test_a_home_folder_and_names_that_are_not_utf8(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert texts(source("~/d")) == ["d/a.parquet", "d/sub/b.parquet"]
    odd = os.fsdecode(b"caf\xe9.parquet")
    write(odd)
    opened = source("caf*.parquet").open()
    assert opened.shards == [rf"{Path.cwd()}/caf\xe9.parquet"]
    assert texts(source(odd)) == [r"caf\udce9.parquet"]
    store = prepare(source("caf*.parquet"), ByteTokenizer(), data_dir="data", val_fraction=0.0)
    assert list(store.commit.files) == list(opened.shards)


def test_links_out_of_the_folder_are_followed_if_asked(caplog: pytest.LogCaptureFixture):
    store = prepare(source("d"), ByteTokenizer(), data_dir="data", val_fraction=0.0)
    assert store.commit.documents == 2
    assert "does not follow 2 links out of its folder" in caplog.text
    assert texts(source("d/*.parquet", follow_links=True)) == ["d/a.parquet", "other/z.parquet"]
    with pytest.raises(ConfigError, match=r"'d/z.parquet' is a link out of its folder .* source.follow_links=true"):
        source("d/z.*").open()


def test_a_folder_that_is_a_dataset_is_read_once_too():
    Path("set").mkdir()
    write("set/train-0.parquet")
    Path("set/train-1.parquet").symlink_to("train-0.parquet")
    Path("set/train-2.parquet").symlink_to("../other/z.parquet")
    assert texts(DatasetSource("set", shard_seed=None)) == ["set/train-0.parquet"]
    assert texts(DatasetSource("set", shard_seed=None, follow_links=True)) == ["set/train-0.parquet", "other/z.parquet"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["d/a.parquet", "./d/a.parquet"], "finds '.*/d/a.parquet' with several patterns of source.data_files"),
        (["d/a.parquet", "d/link.parquet"], r"finds '.*/d/link.parquet' \(also called '.*/d/a.parquet'\) with several"),
        (["d/*.parquet", "dl/*.parquet"], "with several patterns of source.data_files"),
        (["d/x.parquet"], r"No file matches 'd/x.parquet' in '.*': the most similar name is .*; check source"),
        (["d/.h*.jsonl"], "No file matches"),
        (["**.parquet"], r"with \*\* as part of a name"),
        (["x" * 300, "a"], "No file matches 'xxx"),
        ([""], "source.data_files has an empty string"),
        ([3], "source.data_files has 3"),
    ],
)
def test_what_cannot_be_is_one_sentence(files: list[Any], told: str):
    with pytest.raises(ConfigError, match=told):
        source(*files).open()


def test_a_format_without_files_is_refused():
    with pytest.raises(
        ConfigError, match=r"source.data_files is empty: expected the files, such as \['corpus/\*.parquet'\]"
    ):
        DatasetSource("parquet").open()


def test_a_folder_of_another_format_is_refused():
    with pytest.raises(ConfigError, match=r"in a folder, only \*.jsonl, .* are read"):
        source("d", path="json").open()
    with pytest.raises(ConfigError, match=r"for a folder, write a pattern such as d/\*"):
        source("d", path="webdataset").open()


def test_folders_with_the_name_of_a_file_are_told(caplog: pytest.LogCaptureFixture):
    write("t/x.parquet/part-0.parquet", "t/y.parquet")
    assert texts(source("t/x.parquet")) == ["t/x.parquet/part-0.parquet"]
    opened = source("t/*.parquet").open()
    assert len(opened.shards) == 1
    assert "a folder named like a file" in str(opened.trouble.remarks)


def languages(*files: str, **options: Any) -> list[str]:
    return [text.replace(".parquet", "") for text in texts(source(*files, **options))]


def test_the_language_is_where_the_template_says():
    write("l/py/0.parquet", "l/py/deep/1.parquet", "l/rs/0.parquet", "[q]/go/0.parquet")
    Path("l/python").symlink_to("py")
    flat = ["l/py/0 py", "l/rs/0 rs"]
    for template in ("l/{language}/*.parquet", "./l/{language}/0.parquet"):
        assert languages(template) == flat
    for before in (f"{Path.cwd()}/l", f"file://{Path.cwd()}/l", "l/../l", "[l]", "[l-l]", "l*"):
        assert languages(f"{before}/{{language}}/*.parquet") == flat
    assert languages("l/{language}/**/*.parquet") == ["l/py/0 py", "l/py/deep/1 py", "l/rs/0 rs"]
    assert languages("**/{language}/0.parquet") == ["[q]/go/0 go", *flat]
    assert languages("l/{language}/[01].parquet") == flat
    assert languages("[q]/{language}/*.parquet") == ["[q]/go/0 go"]
    assert languages("l/rs/{language}.parquet") == ["l/rs/0 0"]
    assert languages("l/{language}/*.parquet", languages=["rs"]) == ["l/rs/0 rs"]
    assert languages("l/{language}/*.parquet", languages=["python"]) == ["l/py/0 python"]
    with pytest.raises(ConfigError, match=r"Shard '.*/d/a.parquet' does not match l/\{language\}/0.parquet: put"):
        languages("l/{language}/0.parquet", "d/a.parquet")
    with pytest.raises(ConfigError, match=r"has no language 'Py' \(did you mean 'py'"):
        languages("l/{language}/*.parquet", languages=["Py"])


def test_a_language_is_chosen_by_the_name_of_its_folder_also_where_that_is_not_utf8():
    odd = os.fsdecode(b"l/caf\xe9")
    write(f"{odd}/0.parquet", "l/py/0.parquet")
    names = sorted(path.name for path in Path("l").iterdir())
    assert [row.split()[1] for row in languages("l/{language}/0.parquet", languages=names[:1])] == [r"caf\xe9"]
    assert len(languages("l/{language}/0.parquet", languages=names)) == 2


def test_languages_that_have_folders_of_their_own_are_not_missed_in_the_first(caplog: pytest.LogCaptureFixture):
    write("l/de/0.parquet", "l/en/0.parquet")
    prepare(source("l/{language}/*.parquet", languages=["de", "en"]), ByteTokenizer(), val_fraction=0.0)
    assert "has no document" not in caplog.text


def test_validation_files_are_no_training_files(caplog: pytest.LogCaptureFixture):
    for val in (
        "d/a.parquet",
        "./d/../d/a.parquet",
        "d/link.parquet",
        "dl/a.parquet",
        f"file://{Path.cwd()}/d/a.parquet",
    ):
        with pytest.raises(ConfigError, match=r"is read for training .*and for validation"):
            source("d/a.parquet", val_files=[val]).open()
    shutil.copy("d/a.parquet", "copy.parquet")
    os.link("d/a.parquet", "hard.parquet")
    # Hard links of one file are equal names, and are treated like copies.
    for val in ("copy.parquet", "hard.parquet"):
        remarks = source("d/a.parquet", val_files=[val]).open().trouble.remarks
        assert "validates on training documents" in str(remarks)
        assert source("d/a.parquet", val_files=[val], dedup="exact").open().trouble.remarks == []
    assert source("d/a.parquet", val_files=["part1.parquet"]).open().trouble.remarks == []


def test_a_corpus_that_was_moved_goes_on():
    make = {"tokenizer": ByteTokenizer(), "data_dir": "data", "val_fraction": 0.0}
    store = prepare(source("d"), max_documents=1, **make)  # type: ignore[arg-type]
    Path("d").rename("moved")
    grown = prepare(source("moved"), **make)  # type: ignore[arg-type]
    assert (grown.uri, grown.commit.documents) == (store.uri, 2)


def test_files_have_their_path_below_the_root():
    for name in ("tree/a.py", "tree/b/c.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path(os.fsdecode(b"tree/caf\xe9.py")).write_text("x")
    Path("tree/again").symlink_to("b")

    def stored(*patterns: str, root: str = "tree") -> list[str]:
        opened = FilesSource(patterns, root=root, shard_seed=None).open()
        return [path for batch in opened.read(0, 0) for path in batch.column("path").to_pylist()]

    everything = ["a.py", "b/c.py", r"caf\xe9.py"]
    for pattern in ("**/*.py", "./**/*.py", ".", "b/../**/*.py", f"{Path.cwd()}/tree/**/*.py"):
        assert stored(pattern) == everything
    assert stored("**/*.py", root=f"{Path.cwd()}/tree") == everything
    assert stored("*.py", "./a.py", "b//../a.py") == ["a.py", r"caf\xe9.py"]
    assert stored("../a.py", "../b/*.py", root="tree/b") == ["../a.py", "c.py"]


def test_the_log_of_a_build_says_what_is_left_out(caplog: pytest.LogCaptureFixture):
    for name in ("tree/a.py", "tree/b/c.py", "tree/.d/e.py", "tree/.f.py", "tree/.git/g.py", "out/secret.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("tree/up").symlink_to("..")
    Path("tree/b/again").symlink_to("../b")
    Path("tree/out").symlink_to("../out")
    caplog.set_level("INFO")

    def build(**options: Any) -> int:
        caplog.clear()
        source = FilesSource(["**/*.py"], root="tree", **options)
        return prepare(source, ByteTokenizer(), data_dir="data", val_fraction=0.0).commit.documents

    assert build() == 2
    assert "1 hidden file, 1 hidden folder and 1 folder of source.exclude were left out (with 2 matching" in caplog.text
    assert "skips" not in caplog.text
    assert "does not follow 2 links out of its folder, such as 'out' -> " in caplog.text
    # The store exists, so nothing is logged.
    assert build() == 2
    assert caplog.messages == []
    assert build(follow_links=True) == 3
    assert re.search(r"follows \d+ links out of its folder", caplog.text)


def test_a_root_that_is_no_folder_is_one_sentence():
    Path("file").touch()
    for root, told in [
        ("file", "which is a file"),
        ("none", "which does not exist"),
        ("file/x", "which does not exist"),
    ]:
        with pytest.raises(ConfigError, match=rf"source.root is '{root}', {told}: expected a folder"):
            FilesSource(["*"], root=root).identity()
    with pytest.raises(ConfigError, match=r"source.patterns is empty"):
        FilesSource([])
    with pytest.raises(ConfigError, match=r"source.exclude is the string 'x': write a list"):
        FilesSource(["*"], exclude="x")
    with pytest.raises(ConfigError, match=r"No file matches 'd/sub' in '.*': 1 is in a folder of source.exclude"):
        FilesSource(["d/sub"], exclude=["sub"]).open()
