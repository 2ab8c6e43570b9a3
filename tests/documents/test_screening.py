import json
import re
from pathlib import Path
from typing import Any, Literal

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from lightning_lance.documents.screening import count_reasons, spelled
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource
from lightning_lance.sources.source import Source
from lightning_lance.tokenization.configs import ByteTokenizer, TokenizerFile
from lightning_lance.tokenization.tokenizer import Tokenizer
from tests.support.corpora import prepare
from tests.support.stored import stored
from tests.support.stores import ListSource, documents

LINE = "let a=1;" * 40  # one line without spaces, longer than the limit of these tests
# Document: the stored text (None for nothing), the reason to skip it, its counted properties.
TABLE: list[tuple[str, bytes, str | None, str | None, list[str]]] = [
    ("plain", b"text\n", "text\n", None, []),
    ("empty", b"", None, "empty", []),
    ("blank", b" \t\r\n\n", None, "blank", []),
    ("no-break-space", "\u00a0\u3000".encode(), None, "blank", []),
    ("nul", b"a\0b", "a\0b", None, ["nul"]),
    ("only-nul", b"\0", "\0", None, ["nul"]),
    ("crlf", b"a\r\nb\r\n", "a\r\nb\r\n", None, ["crlf"]),
    ("old-mac", b"a\rb\n", "a\rb\n", None, []),
    ("bom", b"\xef\xbb\xbfusing System;", "using System;", None, ["bom"]),
    ("bom-within", b"a\xef\xbb\xbf", "a\ufeff", None, []),
    ("only-bom", b"\xef\xbb\xbf", None, "empty", []),
    ("bom-crlf", b"\xef\xbb\xbfa\r\n", "a\r\n", None, ["bom", "crlf"]),
    ("latin-1", b"caf\xe9", None, "not_utf8", []),
    ("utf-16", "text".encode("utf-16"), None, "not_utf8", []),
    ("utf-16-without-mark", "text".encode("utf-16-le"), "t\0e\0x\0t\0", None, ["nul"]),
    ("surrogate", b"a\xed\xa0\x80b", None, "not_utf8", []),
    ("overlong", b"\xc0\xaf", None, "not_utf8", []),
    ("cut-short", "東京".encode()[:-1], None, "not_utf8", []),
    ("noncharacter", "\uffff\U0010ffff".encode(), "\uffff\U0010ffff", None, []),
    ("special", b"a<|endoftext|>b", "a<|endoftext|>b", None, ["special"]),
    ("nearly-special", b"a<|endoftext|b", "a<|endoftext|b", None, []),
    ("long", LINE.encode(), LINE, None, ["split"]),
]


def streamed(tmp_path: Path, kind: str) -> tuple[Source, int]:
    """Return a source of the table's documents, and the number of additional nulls."""
    if kind == "files":
        for i, (name, data, *_) in enumerate(TABLE):
            (tmp_path / f"{i:02}-{name}").write_bytes(data)
        return FilesSource(["*"], root=str(tmp_path), shard_seed=None), 0
    raw = pa.array([*(data for _, data, *_ in TABLE), None], pa.binary())
    if kind == "string":
        # Arrow itself refuses to make such strings; other writers do.
        raw = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    for part, rows in enumerate((slice(0, 7), slice(7, None))):
        pq.write_table(pa.table({"text": raw[rows]}), tmp_path / f"{part}.parquet")
    return DatasetSource("parquet", data_files=[str(tmp_path / "*.parquet")], shard_seed=None), 1


@pytest.mark.parametrize("kind", ["files", "binary", "string"])
def test_documents_as_they_come(tmp_path: Path, kind: str):
    (tmp_path / "in").mkdir()
    source, nulls = streamed(tmp_path / "in", kind)
    uri = str(tmp_path / "x.lance")
    store = prepare(source, ByteTokenizer(), uri, val_fraction=0.0, max_document_bytes=100)
    assert stored(store) == [text.encode() for _, _, text, _, _ in TABLE if text is not None]
    reasons = [reason for *_, reason, _ in TABLE if reason] + ["null"] * nulls
    remarks = [remark for *_, noted in TABLE for remark in noted]
    assert store.commit.skipped == {reason: reasons.count(reason) for reason in sorted({*reasons})}
    assert store.commit.noted == {remark: remarks.count(remark) for remark in sorted({*remarks})}
    assert store.commit.documents + sum(store.commit.skipped.values()) == len(TABLE) + nulls


@pytest.mark.parametrize(("how", "count"), [("split", 3), ("skip", 2)])
def test_long_documents_are_one_document_or_none(tmp_path: Path, how: Literal["split", "skip"], count: int):
    source = ListSource(documents("a", LINE, "b"))
    options: dict[str, Any] = {"val_fraction": 0.0, "max_document_bytes": 100, "long_documents": how}
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path, **options)
    assert (store.commit.documents, store.num_tokens()) == (count, 4 + (len(LINE) + 1 if how == "split" else 0))
    assert (store.commit.noted, store.commit.skipped) == (({"split": 1}, {}) if how == "split" else ({}, {"long": 1}))
    rows = lance.dataset(store.uri).to_table(["documents"]).to_pylist()
    assert sum(len(row["documents"]) for row in rows) == count
    # It changes what is stored, so it is in the settings.
    other = prepare(source, ByteTokenizer(), data_dir=tmp_path, **{**options, "max_document_bytes": 101})
    assert other.uri != store.uri


def test_counts_end_where_the_budget_ends_and_go_on_with_it(tmp_path: Path):
    source = ListSource(documents("\0a", "", "b<|endoftext|>", " ", "c\r\n", None), per_shard=6, per_batch=6)
    seen = []
    for budget in (1, 2, 3, 9):
        commit = prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0, max_documents=budget).commit
        seen.append((commit.skipped, commit.noted))
    assert seen == [
        ({}, {"nul": 1}),
        ({"empty": 1}, {"nul": 1, "special": 1}),
        ({"blank": 1, "empty": 1}, {"crlf": 1, "nul": 1, "special": 1}),
        ({"blank": 1, "empty": 1, "null": 1}, {"crlf": 1, "nul": 1, "special": 1}),
    ]


def test_what_was_left_out_is_told_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", "lightning_lance"):
        prepare(ListSource(documents("a", "", "b\0", "")), ByteTokenizer(), data_dir=tmp_path)
        assert caplog.messages[-1].endswith(" (skipped: 2 empty; stored, with remarks: 1 nul)")
        caplog.clear()
        prepare(ListSource(documents("a", "b\0")), ByteTokenizer(), data_dir=tmp_path)
        assert caplog.messages[-1].endswith(" (stored, with remarks: 1 nul)")
        caplog.clear()
        prepare(ListSource(documents("a", "b")), ByteTokenizer(), data_dir=tmp_path)
        assert not any("with remarks" in message for message in caplog.messages)


def word_piece() -> str:
    """Return a tokenizer that only `tokenizers` can run, with special tokens in two kinds of brackets."""
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[EOS]", "<extra_1>", "<extra_2>"]
    model.train_from_iterator(["a b c [ ] < > _ EOS extra 1"], trainers.WordPieceTrainer(special_tokens=special))
    return model.to_str()


@pytest.mark.parametrize("engine", ["gigatoken", "tokenizers", "word pieces"])
def test_special_spellings_are_counted_whatever_the_engine(tmp_path: Path, engine: str):
    spec = word_piece() if engine == "word pieces" else ByteTokenizer().load(None, tmp_path).to_json()
    if engine == "tokenizers":
        # An option that gigatoken does not support.
        fields = json.loads(spec)
        fields["pre_tokenizer"]["use_regex"] = False
        spec = json.dumps(fields)
    (tmp_path / "tokenizer.json").write_text(spec)
    choice = TokenizerFile(str(tmp_path))
    loaded = choice.load(None, tmp_path)
    assert loaded.engine == ("gigatoken" if engine == "gigatoken" else "tokenizers")
    token = loaded.eos_token
    made = documents("a", f"b {token} c {token}", f"{token[:-1]} c", token)
    store = prepare(ListSource(made), choice, data_dir=tmp_path, val_fraction=0.0)
    assert store.commit.noted == {"special": 2}
    tokens = store.read(np.zeros(1, np.int64), store.num_tokens())[0]
    assert (tokens == loaded.eos_id).sum() == store.commit.documents == 4


@given(
    st.lists(st.text(st.sampled_from("<|a>[]. -\n"), max_size=5), max_size=6),
    st.text(st.sampled_from("<|a>[]. -\n"), max_size=20),
)
def test_the_expressions_find_what_is_spelled(tokens: list[str], text: str):
    found = any(pa.compute.match_substring_regex(pa.array([text]), pattern)[0].as_py() for pattern in spelled(tokens))
    assert found == any(token in text for token in tokens if token)


def test_expressions_begin_with_literal_text():
    patterns = spelled(["<|end|>", "<|im_start|>", "<pad>", "[CLS]"])
    assert [re.split(r"\(\?:", pattern)[0] for pattern in patterns] == ["<", "\\[CLS\\]"]


def test_counts_are_of_the_first_and_none_is_left_out():
    assert count_reasons({"a": np.array([True, False, True]), "b": np.array([False, False, True])}, 2) == {"a": 1}


def test_one_line_of_megabytes_is_done_in_bounded_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A small version of the 50 MB line in benchmarks/bench_memory.py: the engine never gets more than a piece."""
    sizes: list[int] = []
    honest = Tokenizer.encode_batch

    def watched(tokenizer: Tokenizer, texts: pa.Array) -> Any:
        sizes.extend(pa.compute.binary_length(texts).to_pylist())
        return honest(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", watched)
    (tmp_path / "line.txt").write_text("lorem" * 1_000_000)
    store = prepare(
        FilesSource(["*.txt"], root=str(tmp_path)), ByteTokenizer(), data_dir=tmp_path / "data", val_fraction=0.0
    )
    assert (store.commit.documents, store.commit.noted, store.num_tokens()) == (1, {"split": 1}, 5_000_001)
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= 1 << 20


def test_many_tiny_documents(tmp_path: Path):
    texts = [str(i % 10) for i in range(100_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet")
    source = DatasetSource("parquet", data_files=[str(tmp_path / "x.parquet")])
    store = prepare(source, ByteTokenizer(), data_dir=tmp_path, val_fraction=0.0)
    assert (store.commit.documents, store.num_tokens()) == (100_000, 200_000)
    tokens = store.read(np.zeros(1, np.int64), 200_000)[0].reshape(-1, 2)
    assert (tokens[:, 1] == 256).all()
    assert tokens[:, 0].tolist() == [ord(text) for text in texts]
