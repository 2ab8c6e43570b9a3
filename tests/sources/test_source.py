from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.errors import ConfigError
from lightning_lance.sources.files import FilesSource, content_identity, python_stdlib
from lightning_lance.sources.source import BATCH_BYTES, shard_order
from lightning_lance.tokenization.configs import ByteTokenizer, TrainedBPE
from tests.support.corpora import prepare


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in {"a.py": "a", "b/c.rs": "c", "b/d.py": "d", "b/.venv/e.py": "e", "notes": "n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "b/latin.py").write_bytes(b"# caf\xe9")
    (tmp_path / "b/empty.py").touch()
    return tmp_path


def read(source: FilesSource, row: int = 0) -> list[dict[str, object]]:
    opened = source.open()
    return [entry for shard in range(len(opened.shards)) for b in opened.read(shard, row) for entry in b.to_pylist()]


def test_files_become_documents_with_path_and_language(tree: Path):
    documents = read(FilesSource(["**/*"], root=str(tree), shard_seed=None))
    assert [row.pop("not_utf8") for row in documents] == [False, False, False, False, True, False]
    assert documents == [
        {"row": 0, "text": "a", "language": "Python", "path": "a.py"},
        {"row": 1, "text": "c", "language": "Rust", "path": "b/c.rs"},
        {"row": 2, "text": "d", "language": "Python", "path": "b/d.py"},
        {"row": 3, "text": "", "language": "Python", "path": "b/empty.py"},
        {"row": 4, "text": None, "language": "Python", "path": "b/latin.py"},
        {"row": 5, "text": "n", "language": "Other", "path": "notes"},
    ]


def test_only_the_wanted_languages_are_read(tree: Path):
    source = FilesSource(["**/*"], root=str(tree), languages=["Rust"])
    assert [entry["path"] for entry in read(source)] == ["b/c.rs"]
    assert source.open().present_languages() == ["Rust"]


def test_reading_goes_on_from_any_row(tree: Path):
    source = FilesSource(["**/*.py"], root=str(tree), shard_seed=3)
    whole = read(source)
    assert [read(source, row) for row in range(len(whole) + 1)] == [whole[row:] for row in range(len(whole) + 1)]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TrainedBPE(vocab_size=300)])
def test_a_folder_of_texts_may_hold_the_folder_of_its_stores(tree: Path, tokenizer: ByteTokenizer | TrainedBPE):
    source = FilesSource(["."], root=str(tree))
    stores = [prepare(source, tokenizer, max_documents=budget, data_dir=tree / "data") for budget in (2, None, None)]
    assert len({store.uri for store in stores}) == 1
    assert stores[-1].commit.documents == 4
    assert stores[-1].commit.skipped == {"empty": 1, "not_utf8": 1}


def test_large_files_come_in_several_batches(tmp_path: Path):
    for i in range(3):
        (tmp_path / f"{i}.py").write_text("x" * (BATCH_BYTES * 2 // 3 - 1))
    opened = FilesSource(["*.py"], root=str(tmp_path), shard_seed=None).open()
    assert [batch.column("row").to_pylist() for batch in opened.read(0, 0)] == [[0], [1, 2]]
    assert [batch.column("row").to_pylist() for batch in opened.read(0, 1)] == [[1], [2]]


def test_the_identity_is_of_the_content_and_not_of_the_place(tree: Path, tmp_path_factory: pytest.TempPathFactory):
    copy = tmp_path_factory.mktemp("copy") / "deep"
    tree.rename(copy)
    tree.mkdir()
    moved = FilesSource(["**/*.py"], root=str(copy)).identity()
    for name in ("a.py", "b/d.py", "b/latin.py", "b/empty.py"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes((copy / name).read_bytes())
    assert FilesSource(["**/*.py"], root=str(tree)).identity() == moved
    (tree / "a.py").write_text("A")  # the same size
    assert FilesSource(["**/*.py"], root=str(tree)).identity() != moved


@given(st.integers(0, 300_000), st.integers(0, 1000))
def test_an_edit_at_either_end_of_a_file_shows(tmp_path_factory: pytest.TempPathFactory, size: int, where: int):
    file = tmp_path_factory.getbasetemp() / "edited"
    content = bytearray(size)
    file.write_bytes(content)
    before = content_identity([file], file.parent)
    assert content_identity([file], file.parent) == before
    if size:
        content[where % min(size, 1000)] ^= 1
        file.write_bytes(content)
        assert content_identity([file], file.parent) != before
        content[where % min(size, 1000)] ^= 1
        content[-1 - where % min(size, 1000)] ^= 1
        file.write_bytes(content)
        assert content_identity([file], file.parent) != before


def test_the_order_of_shards_is_drawn_from_the_seed():
    assert shard_order(5, None) == [0, 1, 2, 3, 4]
    assert shard_order(5, 0) == [0, 2, 4, 1, 3]
    assert sorted(shard_order(100, 7)) == list(range(100))
    assert shard_order(100, 7) != shard_order(100, 8)


def test_what_is_not_there_is_told_in_one_sentence(tree: Path):
    with pytest.raises(ConfigError, match=r"No file matches 'x/\*.py' in '.*': check source\.patterns\."):
        FilesSource(["x/*.py"], root=str(tree)).open()
    with pytest.raises(ConfigError, match=r"has no language 'Pyton' \(did you mean 'Python'"):
        FilesSource(["**/*"], root=str(tree), languages=["Pyton"])
    with pytest.raises(ConfigError, match="has no language 'Haskell': it has Other, Python, Rust"):
        FilesSource(["**/*"], root=str(tree), languages=["Haskell"]).open()
    with pytest.raises(ConfigError, match=r"languages is the string 'Python,Rust': write a list, \[Python,Rust\]\."):
        FilesSource("**/*.py", languages="Python,Rust")
    with pytest.raises(ConfigError, match=r"languages is a mapping, but .* source\.extensions\."):
        FilesSource("**/*.py", languages={"Python": ["py"]})  # type: ignore[arg-type]


def test_the_standard_library_is_a_corpus():
    opened = python_stdlib().open()
    files = sum(int(shard.split(" and ")[1].split()[0]) + 1 for shard in opened.shards)
    assert files > 500
    assert opened.present_languages() == ["Python"]
    assert not any("site-packages" in path for path in next(opened.read(0, 0)).column("path").to_pylist())
