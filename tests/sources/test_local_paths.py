import os
import re
from pathlib import Path

import pytest

from lightning_lance.errors import ConfigError
from lightning_lance.sources.local_paths import data_folder, hint, is_local, local_path, path_list, readable


def test_urls_and_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [is_local(path) for path in ("a", "/a::b", "file:///a", "s3://a/b", "zip://a::/b.zip")] == [True] * 3 + [
        False
    ] * 2
    assert local_path("~/a/*") == f"{tmp_path}/a/*"
    assert local_path("~root/a").endswith("/a") != local_path("~root/a").startswith("~")
    assert [local_path(each) for each in ("a~", "~nobody-of-this-name/x", "$HOME/x", "a/")] == [
        "a~", "~nobody-of-this-name/x", "$HOME/x", "a/",
    ]  # fmt: skip
    (tmp_path / "a%20b").touch()
    assert local_path(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a%20b"
    assert local_path(f"file://localhost{tmp_path}/a%20c") == f"{tmp_path}/a c"


def test_names_that_are_not_utf8_are_readable():
    assert readable(os.fsdecode(b"f/caf\xe9.py")) == r"f/caf\xe9.py"
    assert readable("f/caf\u00e9.py") == "f/caf\u00e9.py"


def test_a_list_of_paths():
    assert path_list("source.patterns", [Path("a/b"), "c/"], "x") == ("a/b", "c/")
    assert path_list("source.patterns", "a,b", "x") == path_list("source.patterns", Path("a,b"), "x") == ("a,b",)
    for given, told in [
        (None, r"source.patterns is None: expected a list of paths, such as \['x'\]"),
        ({"a": "b"}, "expected a list of paths"),
        (["a", 1], "source.patterns has 1: expected a path, such as 'x'"),
        ([b"a"], "source.patterns has b'a': expected a path"),
        ([""], "has an empty string"),
        (["a\0"], "a null character"),
    ]:
        with pytest.raises(ConfigError, match=told):
            path_list("source.patterns", given, "x")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("~nobody-of-this-name/x", "this home folder does not exist"),
        ("$HOME/x", "variables such as .HOME are not expanded"),
        ("a\\b.txt", r"write / between folders, not \\"),
        ("{a,b}.txt", "braces are not wildcards"),
        ("folder/nam.txt", "the most similar name is 'name.txt'"),
        ("fodler/name.txt", "the most similar name is 'folder'"),
        ("cafe\u0301", "the most similar name is 'caf\u00e9'"),
        ("*.txt", "^$"),
        ("quite/different", "^$"),
    ],
)
def test_what_may_help_where_nothing_is_found(tmp_path: Path, pattern: str, told: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/name.txt").touch()
    (tmp_path / "caf\u00e9").touch()
    assert re.search(told, hint(pattern, str(tmp_path)))


def test_the_folder_of_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("nowhere")
    assert data_folder("data") == f"{tmp_path}/data"
    assert data_folder(Path("a b/../c")) == f"{tmp_path}/c"
    assert data_folder(f"file://{tmp_path}/x") == f"{tmp_path}/x"
    assert data_folder("~/data") == f"{tmp_path}/home/data"
    assert caplog.messages == []
    # Made by earlier versions.
    (tmp_path / "~/data").mkdir(parents=True)
    assert data_folder("~/data") == f"{tmp_path}/home/data"
    assert "The folder with the name '~/data' is not used" in caplog.text
    for given, told in [
        ("", "expected the path of a folder"),
        (3, "data_dir is 3: expected the path of a folder"),
        ("a\0", "expected the path of a folder"),
        ("s3://bucket/x", "expected a local folder; for a store in a bucket, set uri"),
        ("~nobody-of-this-name/x", "this home folder does not exist"),
        ("$HOME/x", r"variables are not expanded: write the path, or \$\{oc.env:HOME\}"),
        ("file", "data_dir is 'file', but 'file' is a file: choose another"),
        ("file/x/y", "data_dir is 'file/x/y', but 'file' is a file"),
        ("gone", "'gone' is a broken link"),
    ]:
        with pytest.raises(ConfigError, match=told):
            data_folder(given)
