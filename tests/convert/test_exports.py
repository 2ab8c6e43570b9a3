"""Stores as files of other tools: as those tools write them, and the same store when they are imported again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.convert import export_tokens, exports, import_tokens
from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.maintenance import forget
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.laws import examples
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents
from tests.support.streams import EOS, streams

FORMATS = ROOT / "tests/fixtures/formats"

Import = Callable[..., TokenStore]


def imported(kind: str, place: Path, uri: Path, **options: Any) -> TokenStore:
    return import_tokens(kind, place, uri, ByteTokenizer(), data_dir=uri.parent / "data", **options)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def described(store: TokenStore, split: str) -> list[dict[str, Any]]:
    """The documents of a split but for their places in the source."""
    if not store.num_tokens(split):
        return []
    found = store.documents(store.document_begins(split), 1, split)
    rows = found.select(["language", "repo"]).to_pylist()
    begins = store.document_begins(split).tolist()
    return [{**row, "begin": begin} for row, begin in zip(rows, begins, strict=True)]


def plain(store: TokenStore, split: str) -> tuple[list[int], list[int]]:
    """The tokens of a split, and where its documents begin."""
    if not store.num_tokens(split):
        return [], []
    tokens = store.read(np.zeros(1, np.int64), store.num_tokens(split), split)[0]
    return tokens.tolist(), store.document_begins(split).tolist()


TEXT = st.text("ab\n\u00e9", min_size=1, max_size=30).filter(lambda text: not text.isspace())
DOCUMENT = st.tuples(TEXT, st.sampled_from(["", "Python", "Rust"]), st.sampled_from(["", "a/b", "c/d", "e/f"]))


@examples(5)
@given(st.lists(DOCUMENT, min_size=1, max_size=12), st.sampled_from([0.0, 0.4]), st.integers(1, 40))
def test_what_is_exported_and_imported_is_the_same(
    made: list[tuple[str, str, str]], val_fraction: float, together: int
):
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        patch.setattr(exports, "_TOGETHER_TOKENS", together)
        source = ListSource(tuple(made))
        store = prepare(source, ByteTokenizer(), folder / "x.lance", data_dir=folder, val_fraction=val_fraction)
        for kind in ("nanogpt", "megatron", "parquet"):
            done = export_tokens(store.uri, kind, folder / kind)
            assert sum(one.documents for one in done) == len(made)
            options: dict[str, Any] = {}
            if kind == "parquet":
                options = {"columns": {"repo": "repo"}, "language_column": "language"}
            if [one.split for one in done] == ["val"]:
                # A file alone is for training.
                continue
            again = imported(kind, folder / kind, folder / f"{kind}.lance", **options)
            for split in ("train", "val"):
                assert plain(again, split) == plain(store, split)
                if kind == "parquet":
                    assert described(again, split) == described(store, split)
            if kind == "parquet":
                assert streams(again) == streams(store)


def test_megatron_files_are_those_that_megatron_writes(tmp_path: Path):
    store = imported("megatron", FORMATS / "megatron", tmp_path / "x.lance")
    export_tokens(store.uri, "megatron", tmp_path / "out")
    assert names(tmp_path / "out") == ["train.bin", "train.idx", "val.bin", "val.idx"]
    for name in names(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (FORMATS / "megatron" / name).read_bytes()


@pytest.fixture
def store(byte_store: Callable[..., TokenStore]) -> TokenStore:
    made = documents("abc", "defg", repo="a/b") + documents("hij", language="Rust", repo="c/d")
    return byte_store(source=ListSource(made))


def test_nanogpt_files_are_flat_tokens(store: TokenStore, tmp_path: Path):
    (done,) = export_tokens(store.uri, "nanogpt", tmp_path / "out")
    assert (done.split, done.documents, done.tokens) == ("train", 3, 13)
    assert done.files == [str(tmp_path / "out/train.bin")]
    expected = [*b"abc", EOS, *b"defg", EOS, *b"hij", EOS]
    assert np.fromfile(tmp_path / "out/train.bin", np.uint16).tolist() == expected


def test_parquet_files_have_a_row_for_each_document(store: TokenStore, tmp_path: Path):
    export_tokens(store.uri, "parquet", tmp_path / "out", language="Python")
    table = pq.read_table(tmp_path / "out/train.parquet")
    assert table.column("input_ids").to_pylist() == [[*b"abc", EOS], [*b"defg", EOS]]
    assert table.select(["id", "repo", "language"]).to_pylist() == [
        {"id": "0:0", "repo": "a/b", "language": "Python"},
        {"id": "0:1", "repo": "a/b", "language": "Python"},
    ]
    assert pa.types.is_int32(table.schema.field("input_ids").type.value_type)


def test_what_was_forgotten_is_not_exported(store: TokenStore, tmp_path: Path):
    forget(store.uri, {"repo": "a/b"})
    export_tokens(store.uri, "nanogpt", tmp_path / "out")
    assert np.fromfile(tmp_path / "out/train.bin", np.uint16).tolist() == [*b"hij", EOS]


@pytest.mark.parametrize("kind", ["nanogpt", "megatron", "parquet"])
def test_a_file_that_is_not_whole_has_no_name(
    store: TokenStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    export_tokens(store.uri, kind, out, language="Rust")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    # A part that a killed export left.
    (out / f"train.{'bin' if kind != 'parquet' else 'parquet'}.{'0' * 16}.part").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"train.\w+' exists already: give another place, or overwrite=true"):
        export_tokens(store.uri, kind, out)
    runs = exports._Export._runs

    def failing(export: Any) -> Any:
        yield next(runs(export))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exports._Export, "_runs", failing)
        with pytest.raises(StoreError, match=r"cannot be written .*No space left"):
            export_tokens(store.uri, kind, out, overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    export_tokens(store.uri, kind, out, overwrite=True)
    assert names(out) == sorted(before)
    assert {file.name: file.read_bytes() for file in out.iterdir()} != before


def test_what_cannot_be_exported_is_refused(store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    cases: list[tuple[str, Any, dict[str, Any], str]] = [
        ("nanogtp", "out", {}, "did you mean 'nanogpt'"),
        ("mds", "out", {}, "^format is 'mds': expected one of nanogpt, megatron, parquet"),
        ("nanogpt", "s3://bucket/out", {}, "expected a folder on a disk"),
        ("nanogpt", tmp_path / "file", {}, "which is a file: expected a folder"),
        ("nanogpt", Path(store.uri) / "out", {}, "in the folder of the store"),
        ("nanogpt", "out", {"language": "Rast"}, "Rust"),
        ("nanogpt", "out", {"split": "val"}, "no tokens of split=val"),
        ("nanogpt", "out", {"split": "test"}, "^split is 'test'"),
        ("nanogpt", "out", {"overwrite": "no"}, "^overwrite is 'no'"),
    ]
    for kind, place, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            export_tokens(store.uri, kind, tmp_path / place if place == "out" else place, **options)
    with monkeypatch.context() as patch:
        patch.setattr(TokenStore, "vocab_size", 128_256)
        with pytest.raises(ConfigError, match="128,256 ids, and nanoGPT's files hold up to 65,536"):
            export_tokens(store.uri, "nanogpt", tmp_path / "out")
        export_tokens(store.uri, "megatron", tmp_path / "large")
    assert np.fromfile(tmp_path / "large/train.bin", np.int32).tolist()[:4] == [*b"abc", EOS]
    assert not (tmp_path / "out").exists()
    shutil.rmtree(store.uri)
    with pytest.raises(StoreError, match="There is no committed token store"):
        export_tokens(store.uri, "nanogpt", tmp_path / "out")
