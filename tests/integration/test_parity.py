"""The fast engine gives the ids of `tokenizers`, for every family of tokenizers that conf/tokenizer/ has, and for others.

The vocabularies are small and trained here; normalizers, pre-tokenizers and options are those of the real files.
"""

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise

import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer, train_bpe
from lightning_lance.tokenization.unicode_tables import NEWER
from tests.support.laws import examples
from tests.support.paths import ROOT
from tests.support.small_tokenizers import TRAINING, byte_level, sentence_piece, unigram

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def word_piece() -> str:
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[EOS]"]
    model.train_from_iterator(
        TRAINING, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    return model.to_str()


# Each with the engine that it is expected to get.
FAMILIES: dict[str, tuple[Callable[[], str], str]] = {
    "bytes": (lambda: byte_tokenizer().to_json(), "gigatoken"),
    "bpe": (lambda: train_bpe([TRAINING], 500).to_json(), "gigatoken"),
    "gpt2": (lambda: byte_level(None), "gigatoken"),
    "gpt_neox": (lambda: byte_level(None, normalizers.NFC(), spaces=25), "gigatoken"),
    "llama3": (lambda: byte_level(LLAMA3, ignore_merges=True), "gigatoken"),
    "qwen3": (lambda: byte_level(QWEN, normalizers.NFC()), "gigatoken"),
    "gpt4o": (lambda: byte_level(GPT4O), "gigatoken"),
    "sentencepiece": (sentence_piece, "gigatoken"),
    "wordpiece": (word_piece, "tokenizers"),
    "unigram": (unigram, "tokenizers"),
}
# A tokenizer.json given by `file` may be any of these.
CONFIGS = {file.stem for file in (ROOT / "conf/tokenizer").glob("*.yaml")} - {"file", "hub"}

PIECES = [
    *TRAINING[:3],
    *["<|endoftext|>", "<|im_start|>", "<|endoftext", "</s>", "<0x0A>", "[EOS]", "<unk>", "\u2581", "\u0120"],
    *["e\u0301", "\u00e9", "\u0327", "\u1100\u1161\u11a8", "\uac01", "\u212b", "\ufb01", "\u0130", "\u00df", "\u01c5"],
    *[
        "\U0001f469\u200d\U0001f4bb",
        "\U0001f1e9\U0001f1ea",
        "\ufe0f",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\u0085",
        "\u00a0",
        "\u3000",
    ],
    *[
        "\0",
        "\x1b[0m",
        "\x7f",
        "\x1c",
        "\v",
        "\f",
        "\r",
        "\r\n",
        "\n\n\n",
        "\t\t",
        " ",
        "  ",
        " " * 23,
        " " * 60,
        " \n ",
        "\t \t",
    ],
    *["'s", "'S", "'ll", "'\u017f", "\u2019s", "1", "12", "1234567", "\u0661\u0662", "\u00b2", "\u2167", "\U0001d7d8"],
    *[
        "a" * 70,
        "-" * 40,
        "()[]{};",
        "/*//",
        "//\n",
        "snake_case",
        "camelCase",
        "HTTPServer",
        "\ue000",
        "\uffff",
        "\U0010ffff",
    ],
]
# Characters of all ages: the engines come with tables of different versions of Unicode.
NEWEST = [
    "\u1acf",
    "\u0334",
    "\u0897",
    "\u1df6",
    "\u088f",
    "\ua7ce",
    "\U00010940",
    "\U00011db0",
    "\U000113c2",
    "\U000323b0",
]
PIECES += NEWEST
WORDS = [
    "ab",
    " ab",
    " ",
    "  ",
    "\n",
    "'s",
    " 's",
    "1",
    " 12",
    ".",
    " .",
    "\u0301",
    " \u0301",
    "\u00a0",
    "\u00e9",
    "\t",
    "  x",
]
mixed = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=14).map("".join)


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids, offsets = tokenizer.encode_batch(pa.array(texts, pa.large_string()))
    return [ids[low:high].tolist() for low, high in pairwise(offsets)]


def test_every_configuration_has_its_family():
    assert {*FAMILIES} >= CONFIGS


@pytest.fixture(scope="module", params=[*FAMILIES])
def engines(request: pytest.FixtureRequest) -> tuple[Tokenizer, Tokenizer]:
    make, engine = FAMILIES[request.param]
    fast = Tokenizer(make())
    assert fast.engine == engine
    return fast, Tokenizer(fast.to_json(), fast.eos_token, engine="tokenizers")


@examples(32)
@given(st.lists(mixed, min_size=1, max_size=6))
def test_the_ids_are_those_of_tokenizers(engines: tuple[Tokenizer, Tokenizer], texts: list[str]):
    """A difference would be a warning, too, since the build compares a sample itself: and warnings are errors here."""
    fast, reference = engines
    engine = fast.engine
    ids = encode(fast, texts)
    assert ids == encode(reference, texts)
    assert fast.engine == engine
    specials = {fast.id_of(token) for token in fast.special_tokens if token != "[UNK]"}  # what a model does not know
    assert not specials & {i for row in ids for i in row}


@examples(24)
@given(st.lists(st.lists(st.sampled_from([*NEWEST, *WORDS]), max_size=25).map("".join), min_size=1, max_size=4))
def test_words_near_newer_characters_have_the_ids_of_tokenizers(engines: tuple[Tokenizer, Tokenizer], texts: list[str]):
    fast, reference = engines
    assert encode(fast, texts) == encode(reference, texts)


def test_a_long_text_is_the_same_in_both_engines(engines: tuple[Tokenizer, Tokenizer]):
    """Longer than what a build compares, with no two lines alike, and one without spaces."""
    fast, reference = engines
    lines = "".join(f"{TRAINING[i % 3].strip()} {i * 7919}{' ' * (i % 30)}\n" for i in range(300))
    texts = [lines, "".join(lines.split())]
    assert encode(fast, texts) == encode(reference, texts)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gpt4o"])
def test_accents_and_letters_of_all_versions_of_unicode(family: str):
    """Each accent before one that sorts first, each letter among letters, digits and spaces."""
    fast = Tokenizer(FAMILIES[family][0]())
    reference = Tokenizer(fast.to_json(), engine="tokenizers")
    points = [point for point in range(0x80, 0x1F000) if unicodedata.combining(chr(point)) or point % 23 == 0]
    newer = [int(part, 16) for part in re.findall("[0-9A-F]+", NEWER)]
    characters = [chr(point) for point in [*points, *newer] if not 0xD800 <= point < 0xE000]
    texts = [f"a{c}\u0334 a{c}a {c}b 1{c}2.{c}  {c}\n{c}'s{c}{c}" for c in characters]
    assert encode(fast, texts) == encode(reference, texts)
    assert fast.engine == "gigatoken"
