import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization import tokenizer as tokenizer_module
from lightning_lance.tokenization.gigatoken import Encoded, GigatokenEngine
from lightning_lance.tokenization.tokenizer import EOS_SPELLINGS, Tokenizer, byte_tokenizer, token_dtype, train_bpe
from tests.support.laws import examples

TEXTS = [
    "def main():\n    return 'x' * 17\n\n\n",
    "for i in range(10):\n\tprint(i)  # naïve café 東京 🙂\n",
    "class A(B):\n    '''doc'''\n    def f(self, x: int = 3) -> None: ...\n",
] * 5


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([TEXTS], 400)


def encode(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    ids, offsets = tokenizer.encode_batch(pa.array(texts, pa.large_string()))
    return [ids[low:high].tolist() for low, high in pairwise(offsets)]


def changed(tokenizer: Tokenizer, **fields: object) -> str:
    return json.dumps({**json.loads(tokenizer.to_json()), **fields})


ATOMS = [
    "<|endoftext|>",
    "<|endoftext",
    "def ",
    "    ",
    "\n\n",
    "\r\n",
    "é",
    "🙂",
    "\u200d",
    "a",
    " b",
    "'s",
    "123",
    "\0",
]
text = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(ATOMS), max_size=12).map("".join))


@examples(80)
@given(st.lists(text, max_size=6))
def test_gigatoken_gives_the_ids_of_tokenizers(bpe: Tokenizer, texts: list[str]):
    reference = Tokenizer(bpe.to_json(), engine="tokenizers")
    assert (bpe.engine, reference.engine) == ("gigatoken", "tokenizers")
    assert encode(bpe, *texts) == encode(reference, *texts)
    assert bpe.engine == "gigatoken"


@given(text)
def test_text_comes_back_and_holds_no_special_id(bpe: Tokenizer, text: str):
    (ids,) = encode(bpe, text)
    assert bpe.decode(ids) == text
    assert bpe.eos_id not in ids


@given(st.lists(text, max_size=4))
def test_bytes_are_bytes(texts: list[str]):
    tokenizer = byte_tokenizer()
    assert encode(tokenizer, *texts) == [list(text.encode()) for text in texts]
    assert (tokenizer.eos_id, tokenizer.vocab_size, tokenizer.engine) == (256, 257, "gigatoken")
    assert tokenizer.decode([*"aé".encode(), 256]) == "aé<|endoftext|>"


def test_slices_of_arrow_arrays_are_encoded_as_they_are(bpe: Tokenizer):
    texts = pa.array(["x", *TEXTS], pa.large_string()).slice(1, 3)
    ids, offsets = bpe.encode_batch(texts)
    whole, borders = bpe.encode_batch(pa.array(TEXTS[:3], pa.large_string()))
    assert (ids.tolist(), offsets.tolist()) == (whole.tolist(), borders.tolist())
    assert (ids.dtype, offsets.dtype) == (np.uint16, np.int64)


def test_nothing_is_added_and_nothing_cut(bpe: Tokenizer):
    """A build ignores a template that adds EOS on both sides, truncation to 4 tokens, and padding."""
    template = tokenizers.Tokenizer.from_str(bpe.to_json())
    template.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A <|endoftext|>", None, [("<|endoftext|>", 0)]
    )
    template.enable_truncation(4)
    template.enable_padding(length=64)
    loaded = Tokenizer(template.to_str())
    assert encode(loaded, *TEXTS) == encode(bpe, *TEXTS)
    assert loaded.digest == bpe.digest
    assert encode(Tokenizer(template.to_str(), engine="tokenizers"), *TEXTS) == encode(bpe, *TEXTS)


@pytest.mark.parametrize(("ids", "dtype"), [(1, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (151_669, "uint32")])
def test_the_dtype_holds_every_id(ids: int, dtype: str):
    assert token_dtype(ids) == dtype


def test_added_tokens_count(bpe: Tokenizer):
    """As in Llama 3, the vocabulary fits into uint16, and an added token does not."""
    added = {"content": "<|pad|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    fields = json.loads(bpe.to_json())
    added_tokens = [*fields["added_tokens"], {**added, "id": 65_536, "special": True}]
    model = {**fields["model"], "vocab": {**fields["model"]["vocab"], "<|pad|>": 65_536}}
    tokenizer = Tokenizer(json.dumps({**fields, "added_tokens": added_tokens, "model": model}))
    assert tokenizer.vocab_size == 65_537
    assert token_dtype(tokenizer.vocab_size) == np.uint32


def test_the_digest_is_of_the_content(bpe: Tokenizer):
    again = train_bpe([TEXTS], 400)
    assert again.digest == bpe.digest == Tokenizer(bpe.to_json()).digest
    encode(again, *TEXTS)
    assert again.digest == bpe.digest
    assert train_bpe([TEXTS], 280).digest != bpe.digest
    added = {**json.loads(bpe.to_json())["added_tokens"][0], "content": "</s>", "id": bpe.vocab_size}
    other_eos = changed(bpe, added_tokens=[added])
    assert Tokenizer(other_eos, "</s>").digest != bpe.digest


def test_the_eos_token_is_found_or_asked_for(bpe: Tokenizer):
    assert (bpe.eos_token, bpe.eos_id) == (EOS_SPELLINGS[0], 0)
    with pytest.raises(ConfigError, match=r"has no EOS token '</s>'.*one of its special tokens \(<\|endoftext\|>\)"):
        Tokenizer(bpe.to_json(), "</s>")
    with pytest.raises(ConfigError, match=r"This is not a tokenizer\.json"):
        Tokenizer("{}")


def test_a_tokenizer_that_gigatoken_does_not_know_falls_back():
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.decoder = decoders.WordPiece()
    model.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[EOS]"]))
    tokenizer = Tokenizer(model.to_str())
    assert (tokenizer.engine, tokenizer.eos_token) == ("tokenizers", "[EOS]")
    model.encode_special_tokens = True
    assert encode(tokenizer, *TEXTS, "a [EOS] b") == [model.encode(text).ids for text in [*TEXTS, "a [EOS] b"]]


@pytest.mark.parametrize("wrong", ["ids", "error"])
def test_an_engine_that_differs_is_left_with_a_warning(bpe: Tokenizer, wrong: str, monkeypatch: pytest.MonkeyPatch):
    """Like a bug of gigatoken: one id of one short document is wrong, from the third batch on."""
    size = sum(map(len, map(str.encode, TEXTS)))
    monkeypatch.setattr(tokenizer_module, "_COMPARE_EVERY", 2 * size)
    tokenizer = Tokenizer(bpe.to_json())
    expected = encode(bpe, *TEXTS)
    assert encode(tokenizer, *TEXTS) == encode(tokenizer, *TEXTS) == expected
    honest = GigatokenEngine.encode

    def broken(fast: GigatokenEngine, texts: pa.Array) -> Encoded | None:
        encoded = honest(fast, texts)
        assert encoded is not None
        ids, offsets = encoded
        ids = ids.copy()
        ids[offsets[:-1]] += 1
        return Encoded(ids, offsets) if wrong == "ids" else None

    monkeypatch.setattr(GigatokenEngine, "encode", broken)
    with pytest.warns(UserWarning, match="the tokenizers library encodes from now on"):
        assert encode(tokenizer, *TEXTS) == expected
    assert tokenizer.engine == "tokenizers"


def test_no_thread_goes_on_before_the_engines_were_compared(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    expected, honest = encode(bpe, *TEXTS), GigatokenEngine.encode

    def broken(fast: GigatokenEngine, texts: pa.Array) -> Encoded | None:
        encoded = honest(fast, texts)
        assert encoded is not None
        return Encoded(encoded.ids + 1, encoded.offsets)

    monkeypatch.setattr(GigatokenEngine, "encode", broken)
    tokenizer = Tokenizer(bpe.to_json())
    with ThreadPoolExecutor(4) as threads, pytest.warns(UserWarning, match="gave other ids"):
        found = list(threads.map(lambda _: encode(tokenizer, *TEXTS), range(12)))
    assert found == [expected] * 12


def test_threads_may_encode_at_once_and_slices_are_encoded_as_they_are(bpe: Tokenizer):
    texts = pa.array([f"{text} {i}" for i in range(400) for text in TEXTS], pa.large_string())
    whole = bpe.encode_batch(texts)
    starts = range(0, len(texts), 100)
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda start: bpe.encode_batch(texts.slice(start, 100)), starts))
    assert np.array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    assert np.array_equal(np.concatenate([np.diff(part.offsets) for part in parts]), np.diff(whole.offsets))


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(ConfigError, match="at least 257"):
        train_bpe([TEXTS], 256)


def test_a_special_token_that_is_a_piece_of_the_model_is_refused():
    model = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("a", -1.0)], unk_id=0))
    model.add_special_tokens(["</s>"])
    with pytest.raises(ConfigError, match="encodes the text '</s>' to its special token"):
        Tokenizer(model.to_str())


def test_options_that_gigatoken_takes_no_notice_of_are_left_to_tokenizers(bpe: Tokenizer):
    reference = tokenizers.Tokenizer.from_str(bpe.to_json())
    reference.add_tokens([tokenizers.AddedToken("TODO", single_word=True)])
    tokenizer = Tokenizer(reference.to_str())
    assert tokenizer.engine == "tokenizers"
    assert encode(tokenizer, "TODOLIST TODO") == [reference.encode("TODOLIST TODO").ids]


def test_a_tokenizer_travels(bpe: Tokenizer):
    copy = pickle.loads(pickle.dumps(bpe))
    assert (copy.digest, copy.eos_token) == (bpe.digest, bpe.eos_token)


def test_a_difference_in_long_texts_is_seen_too(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    """Of a long text, a piece is compared."""
    monkeypatch.setattr(tokenizer_module, "_COMPARE_EVERY", 1)
    tokenizer = Tokenizer(bpe.to_json())
    long = "def main(): return 17\n" * 1000
    honest = GigatokenEngine.encode
    assert encode(tokenizer, long, long) == encode(bpe, long, long)

    def broken(fast: GigatokenEngine, texts: pa.Array) -> Encoded | None:
        encoded = honest(fast, texts)
        assert encoded is not None
        ids, offsets = encoded
        return Encoded(np.where(ids == ids[-1], 5, ids), offsets)

    monkeypatch.setattr(GigatokenEngine, "encode", broken)
    with pytest.warns(UserWarning, match="gave other ids for the text"):
        assert encode(tokenizer, long) == encode(Tokenizer(bpe.to_json(), engine="tokenizers"), long)


def test_the_reference_takes_texts_in_groups(monkeypatch: pytest.MonkeyPatch):
    """The library gets texts in groups, to save memory; the ids do not depend on the groups."""
    tokenizer = Tokenizer(byte_tokenizer().to_json(), engine="tokenizers")
    texts = ["", "abc", "d" * 30, "", "ef", ""]
    for limit in (1, 4, 1000):
        monkeypatch.setattr(tokenizer_module, "_REFERENCE_BYTES", limit)
        assert encode(tokenizer, *texts) == [list(text.encode()) for text in texts]
    assert encode(tokenizer) == []
