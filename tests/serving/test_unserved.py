from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from lightning_lance import TokenStore, TokenWindows, WindowLoader
from lightning_lance.serving import unserved
from lightning_lance.serving.selection import WindowSelection
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents


class HeldOut(ListSource):
    """Documents of the repository `held out` are for validation."""

    has_validation = True

    def read(self, shard: int, row: int) -> Iterator[pa.Table]:
        for batch in super().read(shard, row):
            splits = ["val" if repo == "held out" else "train" for repo in batch.column("repo").to_pylist()]
            yield batch.append_column("split", pa.array(splits))


def too_short(
    store: TokenStore, context_length: int, where: Mapping[str, list[str]] | None = None
) -> unserved.TooShort | None:
    selection = WindowSelection({"": store}, "train", context_length, "shuffle", 0, None, where or {}, {})
    return unserved.too_short(selection)


def test_streams_without_a_window_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    texts = {"Go": ["a" * 50] * 4, "Python": ["b" * 9] * 2, "Rust": ["c" * 30], "Zig": ["d" * 31]}
    source = ListSource(tuple(entry for name, some in texts.items() for entry in documents(*some, language=name)))
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    # 20 and 31 tokens are too few for a window of 31 + 1; 32 are enough.
    short = too_short(store, 31)
    assert short is not None
    assert short._asdict() == {
        "streams": 2, "of_streams": 4, "tokens": 51, "documents": 3, "languages": ["Python", "Rust"]
    }  # fmt: skip
    assert too_short(store, 31, {"language": ["Go", "Zig"]}) is None
    assert too_short(store, 8) is None
    everything = too_short(store, 1000)
    assert everything is not None
    assert (everything.streams, everything.tokens, everything.documents) == (4, store.num_tokens(), 8)
    WindowLoader(store, 31, 1)
    assert (
        "2 of 4 streams of split 'train' are shorter than a window of 31 + 1 tokens and are never served: 51 tokens of 3 "
        "documents (Python, Rust); lower context_length, or store more documents."
    ) in caplog.text
    caplog.clear()
    WindowLoader(store, 31, 1, mix={"Go": 1, "Zig": 2})
    assert "never served" not in caplog.text
    TokenWindows(store, 31)
    assert "never served" not in caplog.text  # each is told once
    unserved._logged.clear()
    TokenWindows(store, 31)
    assert "2 of 4 streams of split 'train'" in caplog.text


def test_many_short_streams_are_counted_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unserved, "_COUNTED_AT_ONCE", 50)
    texts = [entry for i in range(40) for entry in documents("x" * (i % 7 + 1), "y", language=f"L{i:02d}")]
    store = prepare(ListSource(tuple(texts)), ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    short = too_short(store, 16)
    assert short is not None
    assert (short.streams, short.tokens, short.documents) == (40, store.num_tokens(), 80)


def test_languages_without_text_in_a_split_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    entries = [("train " * 20, name, name) for name in ("Go", "Python", "Rust")] + [("val " * 20, "Go", "held out")]
    source = HeldOut(tuple(entries))
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path)
    options = {"split": "val", "resumable": False}
    WindowLoader(store, 8, 1, **options)
    assert "Split 'val' has no text of Python, Rust: store more documents, or raise val_fraction" in caplog.text
    caplog.clear()
    WindowLoader(store, 8, 1, where={"language": ["Go", "Rust"]}, **options)
    assert "Split 'val' has no text of Rust: " in caplog.text
    caplog.clear()
    WindowLoader(store, 8, 1, mix={"Go": 1}, **options)
    WindowLoader(store, 8, 1)
    go = HeldOut((("train " * 20, "Go", "x"), ("val " * 20, "Go", "held out")))
    stores = {"all": store, "go": prepare(go, ByteTokenizer(), data_dir=tmp_path / "go")}
    # Languages of a store without a weight are not served.
    WindowLoader(stores, 8, 1, mix={"go": 1}, **options)
    assert "has no text" not in caplog.text
