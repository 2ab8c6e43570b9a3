import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.documents.filters import EndsWith, RowFilter
from lightning_lance.documents.languages import (
    CODE_EXTENSIONS,
    check_languages,
    code_extensions,
    folder_language,
    language_of_path,
    path_tails,
)
from lightning_lance.errors import ConfigError
from lightning_lance.messages.formatting import nearest

PATHS = {
    "a/b.py": "Python",
    "main.rs": "Rust",
    "x/y.tar.cc": "C++",
    "x.C": "C++",
    "x.c": "C",
    "deep/er/Makefile": "Makefile",
    "Dockerfile": "Dockerfile",
    "GNUMakefile": "Other",
    "a.py/readme": "Other",
    "archive.py.gz": "Other",
    "": "Other",
    ".py": "Python",
}


def test_the_language_follows_from_extension_or_file_name():
    assert language_of_path(pa.array([*PATHS, None]), CODE_EXTENSIONS).to_pylist() == [*PATHS.values(), "Other"]


def test_no_two_languages_share_an_extension():
    tails = [tail for tails in CODE_EXTENSIONS.values() for tail in tails]
    assert len(tails) == len(set(tails))


@given(st.lists(st.sampled_from(sorted(CODE_EXTENSIONS)), min_size=1, max_size=4, unique=True))
def test_the_pushed_down_filter_keeps_every_path_of_the_languages(languages: list[str]):
    table = pa.table({"at": [f"dir/name{tail}" for tails in CODE_EXTENSIONS.values() for tail in tails] + [*PATHS]})
    ends = EndsWith("at", tuple(path_tails(languages, CODE_EXTENSIONS)))
    kept = set(RowFilter((ends,)).passing(table, "it").column("at").to_pylist())
    exact = language_of_path(table.column("at"), CODE_EXTENSIONS).to_pylist()
    wanted = {
        path for path, language in zip(table.column("at").to_pylist(), exact, strict=True) if language in languages
    }
    assert wanted <= kept


def test_extensions_can_be_added():
    assert code_extensions(Zig=[".zig"])["Zig"] == [".zig"]
    assert "Zig" not in CODE_EXTENSIONS


def test_a_language_that_is_not_there_is_refused_with_the_nearest_and_all_there_are():
    check_languages(["Rust"], ["Python", "Rust"], "It")
    with pytest.raises(
        ConfigError, match=r"^It has no language 'rust' \(did you mean 'Rust'\?\): it has Python, Rust\.$"
    ):
        check_languages(["rust"], ["Rust", "Python"], "It")
    assert nearest("Pyton", ["Perl", "Python"]) == "Python"
    assert nearest("Klingon", ["Perl", "Python"]) is None


@pytest.mark.parametrize(
    ("shard", "template", "language"),
    [
        ("hf://datasets/a/b@1f2e/data/c++/train-0.parquet", "hf://datasets/a/b/data/{language}/*.parquet", "c++"),
        ("hf://datasets/a/b@1f2e/python/x.parquet", "hf://datasets/a/b/{language}/*.parquet", "python"),
        ("/abs/corpus/rust/deep/er/x.jsonl", "corpus/{language}/**/*.jsonl", "rust"),
    ],
)
def test_the_language_follows_from_the_folder(shard: str, template: str, language: str):
    assert folder_language(shard, [template]) == language


def test_a_folder_that_does_not_match_is_refused():
    with pytest.raises(ConfigError, match=r"put \{language\} in place of one whole folder"):
        folder_language("corpus/x.jsonl", ["corpus/{language}-x/*.parquet"])
