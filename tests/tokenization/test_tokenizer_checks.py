"""A foreign tokenizer.json is either used as it is, or raises an error of one sentence."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import TokenizerFile
from lightning_lance.tokenization.gigatoken import Encoded
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer

SPEC = json.loads(byte_tokenizer().to_json())
EOS = SPEC["added_tokens"][0]
UNIGRAM = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["b", -1.0]], "byte_fallback": False}


def changed(**fields: Any) -> str:
    return json.dumps({**copy.deepcopy(SPEC), **fields})


def model(**fields: Any) -> str:
    return changed(model={**SPEC["model"], **fields})


def vocabulary(**ids: Any) -> str:
    return model(vocab={**SPEC["model"]["vocab"], **ids})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("[]", "expected an object with a model"),
        ("null", "expected an object with a model"),
        ("{", "is not a tokenizer.json"),
        ("[" * 100_000 + "]" * 100_000, "recursion"),
        ('{"model":' + '{"a":' * 900 + "1" + "}" * 901, "recursion"),
        (changed(model=None), "expected an object with a model"),
        (changed(model=[]), "expected an object with a model"),
        (json.dumps({**SPEC, "model": {**SPEC["model"], "type": 7}}), "expected an object with a model"),
        (changed(added_tokens=[7]), "added_tokens that are objects"),
        (changed(added_tokens=[{**EOS, "content": ""}]), "an added token that is empty"),
        (changed(normalizer=["nfc"]), "expected a normalizer that is an object with a type"),
        (changed(normalizer={"type": ["nfc"]}), "expected a normalizer that is an object with a type"),
        (changed(normalizer={"prepend": "a"}), "expected a normalizer that is an object with a type"),
        (changed(normalizer={"type": "Sequence", "normalizers": [["a"]]}), "expected a normalizer that is an object"),
        (changed(pre_tokenizer=["a"]), "expected a pre_tokenizer that is an object with a type"),
        (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": {}}), "expected pretokenizers to be a list"),
        (changed(decoder=["a"]), "expected a decoder that is an object"),
        (changed(added_tokens=[{**EOS, "id": 5}]), "has the id 5, but 256 in the tokenizers library"),
        (changed(added_tokens=[{**EOS, "id": 10**9}]), "has the id 1000000000, but 256 in the tokenizers"),
        (changed(added_tokens=[{**EOS, "id": -1}]), "is not a tokenizer.json"),
        (changed(added_tokens=[EOS, {**EOS, "content": "<x>"}]), "'<x>' has the id 256, but 257 in the tokenizers"),
        (vocabulary(zz=10**9), "258 tokens and an id of 1,000,000,000: expected ids below 66,052"),
        (vocabulary(zz=2**32 - 1), "an id of 4,294,967,295: expected ids below"),
        (vocabulary(zz="1"), "is not a tokenizer.json"),
        (vocabulary(a=98), "its tokens 'a' and 'b' share the id 98"),
        (changed(model=UNIGRAM, pre_tokenizer=None, decoder=None, added_tokens=[{**EOS, "id": 2}]), "cannot encode a text"),
    ],
)  # fmt: skip
def test_odd_files_are_refused_in_one_sentence(spec: str, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        Tokenizer(spec).encode_batch(pa.array(["zz"], pa.large_string()))
    assert "\n" not in str(error.value)


def test_gaps_as_real_tokenizers_have_them_are_allowed():
    ids = {**SPEC["model"]["vocab"], "zz": 400, EOS["content"]: 500}
    made = Tokenizer(changed(model={**SPEC["model"], "vocab": ids}, added_tokens=[{**EOS, "id": 500}]))
    assert (made.vocab_size, made.eos_id) == (501, 500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ('{"eos_token": 7}', "expected text"),
        ('{"eos_token": {"content": ["a"]}}', "expected text"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_an_odd_file_beside_it_is_refused_too(tmp_path: Path, text: str, message: str):
    (tmp_path / "tokenizer.json").write_text(changed())
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        TokenizerFile(str(tmp_path)).load(None, tmp_path)


def test_an_id_beyond_the_vocabulary_is_not_stored(byte_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """From any engine."""
    encode = Tokenizer.encode_batch

    def gives_more(self: Tokenizer, texts: pa.Array) -> Encoded:
        ids, offsets = encode(self, texts)
        return Encoded(np.where(ids == ord("z"), 257, ids).astype(ids.dtype), offsets)

    monkeypatch.setattr(Tokenizer, "encode_batch", gives_more)
    byte_store("a text")
    with pytest.raises(ConfigError, match="gave the id 257, but the tokenizer has 257 ids"):
        byte_store("another", "with a z")
