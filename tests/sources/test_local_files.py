import glob
import logging
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.sources.local_files import (
    BROKEN,
    EXCLUDED,
    HIDDEN,
    IGNORED,
    IN_HIDDEN,
    OTHER_FORMAT,
    OWN,
    SPECIAL,
    Rules,
    Search,
)
from lightning_lance.sources.local_shards import IGNORED_NAMES
from tests.support.laws import examples

NAMES = ["a", "b", "a.py", "b.py", ".h", "__s", "x-y", "x", "[q]", "config.json", "README.md", "c d", "é"]
PARTS = [
    "*",
    "**",
    "?",
    "a*",
    "[ab]",
    "[!a]*",
    ".*",
    "__*",
    "a",
    ".h",
    "b",
    "*.py",
    "x*",
    "[[]q]",
    "c d",
    "config.json",
]


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def found(root: Path, *patterns: str, **rules: object) -> list[str]:
    search = Search(str(root), Rules(**rules))  # type: ignore[arg-type]
    return [match.name for pattern in patterns for match in search.find(pattern)]


# A tree: names of files, and folders with trees in them.
trees = st.recursive(
    st.none(), lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=4), max_leaves=12
)


def make(root: Path, tree: dict[str, object] | None) -> None:
    for name, inner in (tree or {}).items():
        if inner is None:
            (root / name).touch()
        else:
            (root / name).mkdir()
            make(root / name, inner)  # type: ignore[arg-type]


@examples(20)
@given(trees, st.lists(st.sampled_from(PARTS), min_size=1, max_size=4), st.sampled_from(["", "./", "{root}/", "a/../"]))
def test_without_links_it_finds_what_glob_and_datasets_find_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object] | None, parts: list[str], before: str
):
    """Fingerprints of existing stores depend on it."""
    from datasets.data_files import FILES_TO_IGNORE, resolve_pattern

    assert set(FILES_TO_IGNORE) == IGNORED_NAMES
    root = tmp_path_factory.mktemp("tree")
    make(root, tree)
    if before == "a/../" and not (root / "a").is_file():
        (root / "a").mkdir(exist_ok=True)
    pattern = before.replace("{root}", str(root)) + "/".join(parts)
    if (root / pattern).is_dir() or (before == "a/../" and (root / "a").is_file()):
        return  # here, a folder stands for its files
    matches = {match for match in glob.glob(pattern, root_dir=root, recursive=True) if (root / match).is_file()}  # noqa: PTH207
    kept = sorted(match for match in matches if not {*Path(match).parts[:-1]} & {"x"})
    search = Search(str(root), Rules({"x"}, bounded=True))
    names = [search.from_root(match) for match in search.find(pattern)]
    # Python's glob returns the file for `file/**`.
    if parts[-1] != "**" or parts == ["**"]:
        assert names == [os.path.relpath(root / match, root) for match in kept]
    try:
        listed = [os.path.normpath(file) for file in resolve_pattern(pattern, str(root))]
    except FileNotFoundError:
        listed = []
    ours = found(root, pattern, special=True, ignored=IGNORED_NAMES)
    assert [os.path.normpath(root / name) for name in ours] == listed


def visible(folder: Path, root: Path, seen: set[Path]) -> set[Path]:
    """Return all real files that are reachable through names that are not hidden, including links within the root."""
    real = folder.resolve()
    if real in seen or not real.is_relative_to(root):
        return set()
    seen.add(real)
    files: set[Path] = set()
    for entry in real.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files |= visible(entry, root, seen)
        elif entry.is_file() and entry.resolve().is_relative_to(root):
            files.add(entry.resolve())
    return files


FOLDERS = ["", "a", "a/b", "c", ".h", ".h/d"]
links = st.lists(
    st.tuples(
        st.sampled_from(FOLDERS),
        st.sampled_from("klm"),
        st.sampled_from([*FOLDERS, "a/1", "c/1", ".h/1", "../out", "gone"]),
    ),
    max_size=6,
)


@examples(20)
@given(links)
def test_each_real_file_is_found_once_whatever_links_there_are(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, str, str]]
):
    top = tmp_path_factory.mktemp("links").resolve()
    root = top / "root"
    write(root, *(f"{folder}/{number}" for folder in FOLDERS for number in (0, 1)))
    write(top, "out/secret")
    for folder, name, target in made:
        if not os.path.lexists(root / folder / name):
            (root / folder / name).symlink_to(root / target)
    search = Search(str(root), Rules(bounded=True))
    matches = search.find("**/*")
    assert len({match.real for match in matches}) == len(matches)
    assert {Path(match.real) for match in matches} == visible(root, root, set())
    for match in matches:
        assert (root / match.name).resolve() == Path(match.real)
        real = Path(match.real).relative_to(root)
        # The name without links is preferred if the pattern finds it.
        assert match.linked == any(part.startswith(".") for part in real.parts)
    everything = Search(str(root), Rules(bounded=True, follow_links=True)).find("**/*")
    assert {Path(match.real) for match in everything} - {Path(match.real) for match in matches} <= {top / "out/secret"}


def test_folders_that_are_linked_to_each_other_end_soon(tmp_path: Path):
    write(tmp_path, *(f"{i}/file" for i in range(25)))
    for i in range(25):
        for j in range(25):
            (tmp_path / f"{i}/to{j}").symlink_to(f"../{j}")
    begin = time.monotonic()
    assert len(found(tmp_path, "**/file", bounded=True)) == 25
    assert len(found(tmp_path, "*/*/*/file", bounded=True)) == 25
    assert time.monotonic() - begin < 5


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = write(
        tmp_path / "root", "a.py", "b/c.py", ".h/d.py", ".e.py", "b/node_modules/f.py", ".git/node_modules/g.py"
    )
    write(tmp_path, "out/h.py")
    (root / "out").symlink_to("../out")
    (root / "l.py").symlink_to("../out/h.py")
    (root / "again").symlink_to("b")
    (root / "gone.py").symlink_to("nowhere")
    (root / "self.py").symlink_to("self.py")
    os.mkfifo(root / "fifo.py")
    return root


def test_what_is_left_out_is_counted_and_told(tree: Path):
    search = Search(str(tree), Rules({"node_modules"}, bounded=True), counting=True)
    files = search.find("**/*.py")
    assert [match.name for match in files] == ["a.py", "b/c.py"]
    assert search.account.counts() == {HIDDEN: 1, IN_HIDDEN: 2, EXCLUDED: 1, BROKEN: 2, SPECIAL: 1}
    # Folders without a matching file, which nobody misses.
    for name in (".empty", "node_modules", "b/node_modules"):
        (tree / name / "x").mkdir(parents=True, exist_ok=True)
    search.find("**/*.py")
    told = search.account.remarks("mine", {match.real for match in files}, follow_links=False)
    assert told == [
        (
            logging.INFO,
            "Source 'mine': 1 hidden file, 2 hidden folders and 1 folder of source.exclude were left out (with 3 matching "
            "files in the folders).",
        ),
        (
            logging.WARNING,
            f"Source 'mine' does not follow 2 links out of its folder, such as 'l.py' -> '{tree.parent}/out/h.py': "
            "to read their targets, set source.follow_links=true.",
        ),
        (
            logging.INFO,
            "Source 'mine' skips 3 matching files: a broken link (2), not a regular file (1).",
        ),
    ]


def test_stores_and_what_lies_beside_them_are_found_by_their_names_only(tmp_path: Path):
    mine = ["data/a.json", "data/uv.lock", "data/tokenizer.json", "data/b.tokenizer.json", "data/a@b/origin.txt"]
    own = [
        "data/s.lance/x.json", "data/s.lock", "data/s.tokenizer.json", "data/t.lock", "data/t.building.json",
        "data/u/_versions/1.manifest", "data/u.store-lock", "data/tokenizers/files-bpe400-6e7e48fece0e24fb.json",
        "data/tokenizers/files-bpe400-6e7e48fece0e24fb.lock", "data/tokenizers/gpt2@main/origin.json",
        "data/tokenizers/gpt2@main/tokenizer.json",
    ]  # fmt: skip
    root = write(tmp_path, *mine, *own)
    for pattern in ("data", ".", "**/*", f"{root}/**"):
        search = Search(str(root), Rules(), counting=True)
        assert sorted(match.real for match in search.find(pattern)) == sorted(f"{root}/{name}" for name in mine), (
            pattern
        )
        assert search.account.counts() == {OWN: len(own)}, pattern
    for name in ("data/s.lance/x.json", "data/s.lock", "data/t.building.json"):
        assert found(root, name) == [name]
    assert found(root, "data/s.lance") == ["data/s.lance/x.json"]


def test_links_out_of_the_root_are_followed_if_asked(tree: Path):
    search = Search(str(tree), Rules({"node_modules"}, bounded=True, follow_links=True))
    files = search.find("**/*.py")
    # Two links to one file.
    assert [match.name for match in files] == ["a.py", "b/c.py", "l.py"]
    told = search.account.remarks("mine", {match.real for match in files}, follow_links=True)
    assert any("follows 2 links out of its folder, such as 'l.py'" in sentence for _, sentence in told)


def test_a_link_by_its_name_is_bounded_by_the_root_too(tree: Path):
    assert found(tree, "again/*.py", bounded=True) == ["again/c.py"]
    for pattern in ("out/*.py", "l.py", "out", f"{tree}/out/*.py"):
        search = Search(str(tree), Rules(bounded=True))
        assert search.find(pattern) == []
        assert "is a link out of its folder to" in search.account.reason()
        assert len(Search(str(tree), Rules(bounded=True, follow_links=True)).find(pattern)) == 1
    # A pattern that does not begin in the root has no boundary.
    assert found(tree, "../out/*.py", bounded=True) == ["../out/h.py"]
    assert found(tree, "b/../../out/h.py", bounded=True) == ["../out/h.py"]


def test_without_a_root_the_folder_that_is_named_is_the_boundary(tree: Path):
    assert found(tree.parent, "root/*.py") == ["root/a.py"]
    assert found(tree.parent, "root/out/*.py") == ["root/out/h.py"]
    assert found(tree.parent, "root/l.py") == ["root/l.py"]
    assert found(tree.parent, "root/*.py", follow_links=True) == ["root/a.py", "root/l.py"]


def test_a_link_into_an_excluded_folder_is_excluded(tree: Path):
    (tree / "vendor").symlink_to("b/node_modules")
    (tree / "f.py").symlink_to("b/node_modules/f.py")
    assert found(tree, "**/*.py", "vendor/*.py", excluded={"node_modules"}, bounded=True) == ["a.py", "b/c.py"]


def test_what_exists_means_itself_and_a_folder_its_files(tmp_path: Path):
    write(
        tmp_path,
        "run [1]/a.x",
        "run 1/b.x",
        "part[1].x",
        "part1.x",
        "q?",
        "qa",
        "s*",
        "st",
        "{a,b}.x",
        "d/e/f.x",
        "d/g.y",
        "[",
    )
    assert found(tmp_path, "run [1]/*.x") == ["run [1]/a.x"]
    assert found(tmp_path, "part[1].x", "q?", "s*", "{a,b}.x", "[") == ["part[1].x", "q?", "s*", "{a,b}.x", "["]
    # After a wildcard, a name with brackets matches literally and as a pattern.
    assert found(tmp_path.parent, f"{tmp_path.name[:-1]}*/part[1].x") == [
        f"{tmp_path.name}/part1.x",
        f"{tmp_path.name}/part[1].x",
    ]
    assert found(tmp_path, "d", "d/") == ["d/e/f.x", "d/g.y"] * 2
    assert found(tmp_path, "d", endings=(".x",)) == ["d/e/f.x"]
    search = Search(str(tmp_path), Rules(endings=(".x",)))
    search.find("d")
    search.find("s*")
    assert search.account.counts() == {OTHER_FORMAT: 1}
    assert search.account.literal == ["'s*' exists and is taken literally, so it does not match 'st' as a pattern"]


def test_names_that_describe_a_dataset_are_counted(tmp_path: Path):
    write(tmp_path, "a.json", "config.json", "b/config.json")
    search = Search(str(tmp_path), Rules(ignored=IGNORED_NAMES))
    assert [match.name for match in search.find("*.json")] == ["a.json"]
    assert search.account.counts() == {IGNORED: 1}
    assert found(tmp_path, "**/config.json", ignored=IGNORED_NAMES) == ["b/config.json", "config.json"]


def test_odd_names_are_names(tmp_path: Path):
    odd = [
        "new\nline",
        "quote'\"",
        "back\\slash",
        "a::b",
        "#?%20@",
        "~",
        "$HOME",
        "\u00e9",
        "e\u0301",
        "x" * 255,
        os.fsdecode(b"caf\xe9"),
    ]
    write(tmp_path, *odd)
    assert found(tmp_path, *(f"./{name}" for name in odd)) == odd
    assert sorted(found(tmp_path, "*")) == sorted(odd)
    assert found(tmp_path, "x" * 256, "x" * 5000, "/".join("x" * 3000)) == []
