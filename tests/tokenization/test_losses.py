"""Text that a tokenizer loses is counted per document; a lossless tokenizer is not checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import TokenizerFile
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer
from lightning_lance.tokenization.tokenizer_json import byte_characters
from tests.support.corpora import prepare
from tests.support.small_tokenizers import byte_level, repositories, sentence_piece, unigram
from tests.support.stores import ListSource, documents

LETTERS = {letter: place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz .\u2581")}


def bpe(**parts: Any) -> str:
    """Return a BPE with tokens for small letters, the space and the dot; it drops all other characters."""
    model = tokenizers.Tokenizer(models.BPE(LETTERS, [], unk_token=parts.pop("unk_token", None)))
    for name, part in parts.items():
        setattr(model, name, part)
    model.add_special_tokens(["</s>"])
    return str(model.to_str())


def word_piece() -> str:
    vocabulary = {"[UNK]": 0, "the": 1, "thing": 2, "##s": 3, ".": 4}
    model = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(["[EOS]"])
    return str(model.to_str())


def lossy(*parts: normalizers.Normalizer) -> str:
    model = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    model.normalizer = normalizers.Sequence([*parts])
    return str(model.to_str())


TEXTS = ["the thing.", "The thing", "the caf\u00e9", "a\u0301", "\u2581x", "\u6771\u4eac", "\ufb01n"]
CASES: dict[str, tuple[Callable[[], str], dict[str, list[int]]]] = {
    "silent": (bpe, {"dropped": [1, 2, 3, 5, 6], "no_tokens": [5]}),
    "lowercase": (lambda: lossy(normalizers.Lowercase()), {"changed": [1]}),
    "accents": (lambda: lossy(normalizers.NFD(), normalizers.StripAccents()), {"changed": [2, 3]}),
    "NFKC": (lambda: lossy(normalizers.NFKC()), {"changed": [6]}),
    "replace": (lambda: lossy(normalizers.Replace(Regex("th"), "")), {"changed": [0, 1, 2]}),
    "NFC": (lambda: lossy(normalizers.NFC()), {}),
    "prepend": (lambda: lossy(normalizers.Prepend("x")), {}),
    "spaces": (lambda: bpe(pre_tokenizer=pre_tokenizers.Metaspace()), {"dropped": [1, 2, 3, 5, 6], "changed": [4]}),
    "word pieces": (word_piece, {"unk": [2, 3, 4, 5, 6], "changed": [1, 2, 3, 5]}),
    "removed": (
        lambda: lossy_split(pre_tokenizers.Split("g", "removed")),
        {"dropped": [0, 1]},
    ),
}
CASES["unk"] = (lambda: bpe(unk_token="."), {"unk": [0, 1, 2, 3, 5, 6]})


def lossy_split(split: pre_tokenizers.PreTokenizer) -> str:
    model = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    model.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    model.decoder = decoders.ByteLevel()
    return str(model.to_str())


def noted(spec: str, texts: list[str], folder: Path, **options: Any) -> dict[str, int]:
    (folder / "tokenizer.json").write_text(spec, encoding="utf-8")
    source = ListSource(documents(*texts))
    store = prepare(source, TokenizerFile(str(folder)), data_dir=folder / "data", val_fraction=0.0, **options)
    assert store.commit.documents == len(texts)
    assert store.num_tokens() >= len(texts)
    return dict(store.commit.noted)


@pytest.mark.parametrize("case", [*CASES])
def test_what_is_lost_is_counted(case: str, tmp_path: Path):
    make, expected = CASES[case]
    assert noted(make(), TEXTS, tmp_path) == {name: len(places) for name, places in expected.items()}


@pytest.mark.parametrize("case", ["silent", "accents"])
def test_so_it_is_in_texts_that_are_encoded_in_pieces(case: str, tmp_path: Path):
    make, _ = CASES[case]
    found = noted(
        make(), ["a word. " * 20 + "caf\u00e9 " + "a word. " * 20, "a word. " * 9], tmp_path, max_document_bytes=64
    )
    assert found == {"split": 2, "dropped" if case == "silent" else "changed": 1}


def test_a_document_without_tokens_is_its_end_alone(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(bpe(), encoding="utf-8")
    choice = TokenizerFile(str(tmp_path))
    store = prepare(ListSource(documents("ab", "\u6771", "c")), choice, data_dir=tmp_path, val_fraction=0.0)
    tokens = store.read(np.zeros(1, np.int64), store.num_tokens())[0].tolist()
    end = choice.load(None, tmp_path).eos_id
    assert tokens == [0, 1, end, end, 2, end]
    assert store.commit.noted == {"dropped": 1, "no_tokens": 1}


@pytest.mark.parametrize("family", ["bytes", "gpt2", "neox", "llama3", "qwen3", "split"])
def test_tokenizers_that_lose_nothing_are_not_asked(family: str):
    if family in repositories():
        files = repositories()[family]
        tokenizer = Tokenizer(json.dumps(files["tokenizer.json"]), files["tokenizer_config.json"].get("eos_token"))
    else:
        tokenizer = byte_tokenizer() if family == "bytes" else Tokenizer(byte_level(r"\p{L}+|\P{L}+"))
    assert not tokenizer.losses.possible


@pytest.mark.parametrize(
    ("lacks", "losses"), [([0xC0, 0xC1, *range(0xF5, 0x100)], False), ([0xC3], True), ([0x41], True)]
)
def test_bytes_that_no_text_has_need_no_tokens(lacks: list[int], losses: bool):
    """As in the vocabulary of GPT-NeoX, which was made from text."""
    pieces = [piece for byte, piece in enumerate(byte_characters()) if byte not in lacks]
    model = tokenizers.Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(str(model.to_str()))
    assert tokenizer.losses.possible == losses
    texts = ["Caf\u00e9", "caf\u00e9", "cafe", "\u6771\U0001f9ff"]
    array = pa.array(texts, pa.large_string())
    found = tokenizer.losses.find(array, tokenizer.encode_batch(array), enumerate(texts))
    assert found["dropped"].tolist() == [{*text.encode()} & {*lacks} != set() for text in texts]


def test_sentencepiece_with_bytes_loses_nothing_but_what_looks_like_its_space(tmp_path: Path):
    assert noted(sentence_piece(), TEXTS, tmp_path) == {"changed": 1}


def test_what_a_unigram_does_not_know(tmp_path: Path):
    assert noted(unigram(), ["def main", "\U0001f9ff", "\u2581"], tmp_path)["unk"] == 1


def test_a_model_that_cannot_encode_is_one_sentence(tmp_path: Path):
    model = tokenizers.Tokenizer(models.Unigram([("a", -1.0), ("b", -1.0)], unk_id=None))
    model.add_special_tokens(["</s>"])
    with pytest.raises(ConfigError, match="has no unknown token") as caught:
        noted(model.to_str(), ["ab", "x"], tmp_path)
    assert "\n" not in str(caught.value)


@given(st.lists(st.text(st.sampled_from("abA \u00e9\u6771\n"), min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_silent_ones_are_those_with_a_letter_that_is_not_known(texts: list[str]):
    tokenizer = Tokenizer(bpe())
    array = pa.array(texts, pa.large_string())
    found = tokenizer.losses.find(array, tokenizer.encode_batch(array), enumerate(texts))
    assert found["dropped"].tolist() == [any(letter in text for letter in "A\u00e9\u6771") for text in texts]
