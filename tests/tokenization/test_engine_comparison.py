"""Differences between the engines are found by comparison, and never stored."""

import json
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lance.tokenization import engine_comparison
from lightning_lance.tokenization.engine_comparison import EngineComparison, differing_characters
from lightning_lance.tokenization.tokenizer import Tokenizer
from lightning_lance.tokenization.unicode_tables import BLOCK, KNOWN, NEWER, points_of
from tests.support.laws import examples
from tests.support.small_tokenizers import EOS, LLAMA3, QWEN, token

PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    PUNCTUATION + "[^\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[" + "\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
# A quantifier that is possessive for gigatoken, and not for Oniguruma.
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)


def pipeline(*patterns: str, normalizer: str | None = None) -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not patterns}
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in patterns
    ]
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [*splits, level]} if splits else level
    return {"normalizer": normalizer and {"type": normalizer}, "pre_tokenizer": pre_tokenizer, "model": {"type": "BPE"}}


PIPELINES = {
    "gpt2": pipeline(),
    "gpt_neox": pipeline(normalizer="NFC"),
    "llama3": pipeline(LLAMA3),
    "qwen3": pipeline(QWEN, normalizer="NFC"),
    "deepseek": pipeline(*DEEPSEEK),
    "deepseek, NFC": pipeline(*DEEPSEEK, normalizer="NFC"),
}


def loaded(fields: dict[str, Any], engine: str = "auto") -> Tokenizer:
    """Return a tokenizer whose ids show every word border."""
    spec = engine_comparison._small(fields, joined=True)
    spec["added_tokens"] = [token(len(spec["model"]["vocab"]), EOS)]
    return Tokenizer(json.dumps(spec), engine=engine)


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids, offsets = tokenizer.encode_batch(pa.array(texts, pa.large_string()))
    return [ids[low:high].tolist() for low, high in pairwise(offsets)]


@pytest.fixture(scope="module", params=[*PIPELINES])
def engines(request: pytest.FixtureRequest) -> tuple[Tokenizer, Tokenizer]:
    fields = PIPELINES[request.param]
    fast = loaded(fields)
    assert fast.engine == "gigatoken"
    return fast, loaded(fields, "tokenizers")


ATOMS = ["a", "A", "Aa", "1", "1234", " ", "  ", "\n", "\r\n", "\t", "...", "'s", "'S", "/"]
ATOMS += ["\u0301", "\u0334", "\u4e00", "\u3042", "\u1100\u1161\u11a8", "\uac00\u11a8", "\U0001f469\u200d\U0001f4bb"]
ATOMS += ["\ufe0f", "\u00a0", "\u0085", "\u017f", "\u0130", "\u01c5"]
odd = st.sampled_from(sorted({int(p) + step for p in points_of(NEWER)[::7] for step in (-1, 0, 1)})).map(chr)
characters = st.one_of(st.sampled_from(ATOMS), st.characters(exclude_categories=["Cs"]), odd)


@examples(13)
@given(st.lists(st.lists(characters, max_size=14).map("".join), min_size=1, max_size=6))
def test_characters_of_all_planes_have_the_ids_of_tokenizers(engines: tuple[Tokenizer, Tokenizer], texts: list[str]):
    fast, reference = engines
    assert encode(fast, texts) == encode(reference, texts)
    assert fast.engine == "gigatoken"


@pytest.mark.parametrize("name", ["llama3", "gpt_neox", "deepseek"])
def test_what_is_known_is_what_the_engines_say(name: str):
    """For three blocks; benchmarks/engine_comparison.py compares all."""
    comparison = EngineComparison(PIPELINES[name])
    assert comparison.agrees()
    blocks = [0x301, 0x105D2, 0x1FA54]
    found = comparison.differing([point // BLOCK for point in blocks])
    assert {*found.tolist()} <= {*points_of(NEWER).tolist()}
    assert (0x1FA54 in found) == name.startswith("deepseek")
    assert (0x105D2 in found) == ("NFC" in json.dumps(PIPELINES[name]))


def test_versions_that_were_not_compared_are_asked_when_texts_come(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_comparison, "COMPARED_WITH", {"gigatoken": "0.0.1", "tokenizers": "0.0.1"})
    engine_comparison._of_pipeline.cache_clear()
    try:
        for name in ("deepseek", "gpt_neox"):
            fast, reference = loaded(PIPELINES[name]), loaded(PIPELINES[name], "tokenizers")
            texts = ["plain", "a\U0001fa54b", "\U000105d2\u0307", "x\u4e00\u0301 \U0001faea."]
            assert encode(fast, texts) == encode(reference, texts)
            assert fast.engine == "gigatoken"
            assert fast._differing is not KNOWN
    finally:
        engine_comparison._of_pipeline.cache_clear()


def test_an_engine_that_reads_an_expression_otherwise_is_not_used():
    assert differing_characters(pipeline(POSSESSIVE)) is None
    tokenizer = loaded(pipeline(POSSESSIVE))
    assert tokenizer.engine == "tokenizers"
    assert encode(tokenizer, ["1234567"]) == encode(loaded(pipeline(POSSESSIVE), "tokenizers"), ["1234567"])
