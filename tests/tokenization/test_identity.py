import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import PretrainedTokenizer, TokenizerFile, TrainedBPE
from lightning_lance.tokenization.identity import TokenizerIdentity, identity_of_text
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer, train_bpe
from lightning_lance.tokenization.tokenizer_json import split_merges
from tests.support.small_tokenizers import EOS, token, tokenizer_json
from tests.support.stores import ListSource, documents


def identity_of(loaded: Tokenizer) -> TokenizerIdentity:
    return TokenizerIdentity(loaded.digest, loaded.eos_token, loaded.eos_id, loaded.vocab_size)


@given(
    special=st.lists(st.sampled_from([EOS, "</s>", "<pad>", "<\u00fc>"]), unique=True),
    model=st.fixed_dictionaries({}, optional={"dropout": st.sampled_from([None, 0.1]), "ignore_merges": st.booleans()}),
    pairs=st.booleans(),
    typed=st.booleans(),
    asked=st.sampled_from([None, EOS, "</s>", "th"]),
)
def test_the_identity_is_that_of_the_loaded_tokenizer(
    special: list[str], model: dict[str, Any], pairs: bool, typed: bool, asked: str | None
):
    fields = tokenizer_json(special, model={**model, **({"type": "BPE"} if typed else {})})
    if pairs:
        fields["model"]["merges"] = [merge.split(" ") for merge in fields["model"]["merges"]]
    spec = json.dumps(fields)
    try:
        loaded = Tokenizer(spec, asked)
    except ConfigError:
        return  # a file with a false identity is still loaded and checked before a build
    assert identity_of_text(spec, asked) == identity_of(loaded)


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0, "[UNK]": 7}, unk_token="[UNK]"),
        models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"),
        models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.5)], unk_id=0),
    ],
)
def test_models_of_every_kind_have_one(model: Any):
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens([EOS])
    assert identity_of_text(made.to_str(), None) == identity_of(Tokenizer(made.to_str()))


@pytest.mark.parametrize("merges", [[], {}, "", ["a b c", "d"], [["a", "b"]], [["a", "b"], "c d"], {"a b": 0}])
def test_merges_are_a_new_list_of_pairs_however_they_are_written(merges: Any):
    made = split_merges({"merges": merges})
    assert made == [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    assert made is not merges


def test_what_only_loading_can_judge_has_none():
    fields = json.loads(byte_tokenizer().to_json())
    assert identity_of_text(json.dumps(fields), None) is not None
    assert identity_of_text(json.dumps(fields), "<none>") is None
    assert identity_of_text("[]", None) is None
    assert identity_of_text("{", None) is None
    added = {**fields, "added_tokens": [*fields["added_tokens"], token(300, "a")]}
    assert identity_of_text(json.dumps(added), None) is None
    twice = {**fields, "model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0], ["a", 0.0]]}}
    assert identity_of_text(json.dumps(twice), None) is None


def test_configs_tell_the_identity_of_what_they_load(tmp_path: Path):
    folder, source = tmp_path / "model", ListSource(documents("some text", "other text"))
    folder.mkdir()
    (folder / "tokenizer.json").write_text(train_bpe([["some text"] * 9], 270).to_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}))
    for config in (TokenizerFile(str(folder)), PretrainedTokenizer(str(folder)), TrainedBPE(270)):
        loaded = config.load(source, tmp_path)
        assert config.identify(source, tmp_path) == identity_of(loaded)


def test_what_is_not_there_has_no_identity(tmp_path: Path):
    source = ListSource(documents("some text"))
    for config in (TokenizerFile("nowhere"), PretrainedTokenizer("no/where"), TrainedBPE(270)):
        assert config.identify(source, tmp_path) is None
    # The comparison with transformers needs one load.
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer().to_json())
    config = PretrainedTokenizer(str(tmp_path))
    assert config.identify(source, tmp_path) is None
    config.load(source, tmp_path)
    assert config.identify(source, tmp_path) is not None
