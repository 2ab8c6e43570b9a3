"""tokenizer.json is the tokenizer, however it is named, and stores of earlier versions are still found."""

import json
import logging
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lightning_lance.build.plan import make_plan
from lightning_lance.errors import ConfigError
from lightning_lance.location import ORIGIN
from lightning_lance.tokenization import configs
from lightning_lance.tokenization.configs import PretrainedTokenizer, TokenizerFile
from lightning_lance.tokenization.pretrained import as_transformers_reads, read_beside
from lightning_lance.tokenization.tokenizer import Tokenizer
from tests.support.corpora import prepare
from tests.support.hub import Hub
from tests.support.small_tokenizers import EOS, LLAMA3, repositories, token, tokenizer_json, write_repository
from tests.support.stores import ListSource, documents
from tests.support.warm import BUILDING, server

REPOSITORIES = repositories()
# The oldest that we allow imports torch where it need not, and wants protobuf for a tokenizer without tokenizer.json.
old_transformers = pytest.mark.skipif(version("transformers").startswith("5.0."), reason="of later releases")
# Digests by an earlier version: of a PretrainedTokenizer, which was what AutoTokenizer made, and of a TokenizerFile, where it
# could load one.
KNOWN = {
    "gpt2": ("7df62b4704530780b458042228031b27", None),
    "neox": ("005e975c3d7fdad09778b103257b81a9", "9e447acf0a8b50d72db7798a3e593c70"),
    "llama3": ("6ff6a9082f22ea3f56bc4551c7b2feb8", "302438cf76808dc077ebe6283b48e242"),
    "qwen3": ("47dec68c2eed474306d64632634133aa", "4593a282fa8e5339579e566669ad0471"),
}
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
# Like a repository without config.json that names a class with another pre-tokenizer.
MISNAMED = {
    "tokenizer.json": tokenizer_json(
        [EOS], pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, LEVEL]}, model={"type": "BPE"}
    ),
    "tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "eos_token": EOS},
}


@pytest.fixture(autouse=True)
def nothing_was_said():
    configs._warn_once.cache_clear()


@pytest.mark.parametrize("family", [*KNOWN])
def test_both_spellings_keep_the_digest_that_stores_are_named_by(family: str, tmp_path: Path, caplog: Any):
    folder = write_repository(tmp_path / family, REPOSITORIES[family])
    loaded = [choice(str(folder)).load(None, tmp_path) for choice in (TokenizerFile, PretrainedTokenizer)]
    loaded.append(TokenizerFile(str(folder / "tokenizer.json")).load(None, tmp_path))
    pretrained, file = KNOWN[family]
    assert [tokenizer.digest for tokenizer in loaded] == [pretrained] * 3
    assert all(file is None or file in tokenizer.other_digests for tokenizer in loaded)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_file_counts_and_not_the_class_that_transformers_would_take(tmp_path: Path, caplog: Any):
    folder = write_repository(tmp_path / "own", MISNAMED)
    loaded = PretrainedTokenizer(str(folder)).load(None, tmp_path)
    assert loaded.digest == TokenizerFile(str(folder)).load(None, tmp_path).digest
    (message,) = [record.getMessage() for record in caplog.records]
    assert "because of GPT2Tokenizer (other pre_tokenizer)" in message
    # Once in a process; the next one reads the stored result, without transformers.
    caplog.clear()
    PretrainedTokenizer(str(folder)).load(None, tmp_path)
    assert not caplog.records


@old_transformers
def test_torch_is_not_loaded_and_transformers_is_asked_once(tmp_path: Path):
    folder = write_repository(tmp_path / "own", MISNAMED)
    code = (
        "import sys; from pathlib import Path; from lightning_lance.tokenization.configs import PretrainedTokenizer\n"
        f"PretrainedTokenizer({str(folder)!r}).load(None, Path({str(tmp_path)!r}))\n"
        "print([name in sys.modules for name in ('torch', 'transformers')])"
    )
    printed = [server(BUILDING).run(code, timeout=100) for _ in range(2)]
    assert [run.stdout.strip() for run in printed] == ["[False, True]", "[False, False]"]
    assert all("transformers reads it differently" in run.stderr for run in printed)


@pytest.mark.parametrize("given", ["folder", "uri"])
@pytest.mark.parametrize("spelled", [0, 1])
def test_stores_that_earlier_versions_named_otherwise_are_found_and_grow(tmp_path: Path, given: str, spelled: int):
    """Build a store with the digest of an earlier version, and the tokenizer file of that version beside it."""
    folder = write_repository(tmp_path / "neox", REPOSITORIES["neox"])
    source = ListSource(documents(*[f"the thing {i}" for i in range(8)]))
    uri = str(tmp_path / "x.lance") if given == "uri" else None
    options: dict[str, Any] = {"data_dir": tmp_path / "data", "val_fraction": 0.0}
    digest = KNOWN["neox"][spelled]

    class Earlier:
        def load(self, source: object, folder_: Path) -> Tokenizer:
            loaded = TokenizerFile(str(folder)).load(None, folder_)
            loaded.digest = str(digest)
            return loaded

    earlier = prepare(source, Earlier(), uri, max_documents=3, **options)
    for choice in (PretrainedTokenizer(str(folder)), TokenizerFile(str(folder))):
        plan = make_plan(source, choice, uri, **options)
        assert plan.uri == earlier.uri
        assert prepare(source, choice, uri, max_documents=3, **options).version == earlier.version
    grown = prepare(source, PretrainedTokenizer(str(folder)), uri, **options)
    assert (grown.uri, grown.commit.documents, grown.fingerprint) == (earlier.uri, 8, earlier.fingerprint)
    assert len([*tmp_path.glob("*.lance"), *(tmp_path / "data").glob("*.lance")]) == 1
    assert grown.tokenizer.eos_token == EOS


def test_another_tokenizer_is_still_another_store(tmp_path: Path):
    source, options = ListSource(documents("the thing")), {"data_dir": tmp_path, "val_fraction": 0.0}
    places = set()
    for family in KNOWN:
        folder = write_repository(tmp_path / family, REPOSITORIES[family])
        places.add(prepare(source, TokenizerFile(str(folder)), **options).uri)  # type: ignore[arg-type]
    assert len(places) == len(KNOWN)


@pytest.mark.parametrize(
    ("beside", "eos"),
    [
        ({"tokenizer_config.json": {"eos_token": "<b>"}}, "<b>"),
        ({"tokenizer_config.json": {"eos_token": {"content": "<b>", "__type": "AddedToken"}}}, "<b>"),
        ({"special_tokens_map.json": {"eos_token": "<b>"}}, "<b>"),
        ({"tokenizer_config.json": {}, "special_tokens_map.json": {"eos_token": {"content": "<b>"}}}, "<b>"),
        ({"tokenizer_config.json": {"eos_token": "<b>"}, "special_tokens_map.json": {"eos_token": EOS}}, "<b>"),
        ({"tokenizer_config.json": {"eos_token": None}, "generation_config.json": {"eos_token_id": 262}}, EOS),
        ({}, EOS),
    ],
)
def test_which_token_ends_documents(tmp_path: Path, beside: dict[str, Any], eos: str):
    spec = tokenizer_json([EOS, "<b>"], model={"type": "BPE"})
    folder = write_repository(tmp_path / "own", {"tokenizer.json": spec, **beside})
    for choice in (TokenizerFile, PretrainedTokenizer):
        assert choice(str(folder)).load(None, tmp_path).eos_token == eos
        assert choice(str(folder), EOS).load(None, tmp_path).eos_token == EOS


def test_an_eos_token_that_only_the_configuration_adds(tmp_path: Path):
    added = {"261": token(261, "<end>"), "262": token(262, "<pad>")}
    for entry in added.values():
        entry.pop("id")
    config = {"eos_token": "<end>", "added_tokens_decoder": added}
    folder = write_repository(
        tmp_path / "own", {"tokenizer.json": tokenizer_json([], model={"type": "BPE"}), "tokenizer_config.json": config}
    )
    loaded = [choice(str(folder)).load(None, tmp_path) for choice in (TokenizerFile, PretrainedTokenizer)]
    assert {(made.eos_token, made.eos_id, made.vocab_size, made.digest) for made in loaded} == {
        ("<end>", 261, 262, loaded[0].digest)
    }
    assert Tokenizer(loaded[0].to_json(), "<end>").digest == loaded[0].digest


def test_words_that_only_the_configuration_adds_are_told_of(tmp_path: Path, caplog: Any):
    added = {"262": {"content": "the", "special": False}}
    files = {
        "tokenizer.json": tokenizer_json([EOS], model={"type": "BPE"}),
        "tokenizer_config.json": {"eos_token": EOS, "added_tokens_decoder": added},
    }
    PretrainedTokenizer(str(write_repository(tmp_path / "own", files))).load(None, tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "because of tokenizer_config.json (other added tokens)" in message


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token": ["<b>"]}', '{"eos_token": 3}', "\udcff"])
def test_odd_configurations_are_one_sentence(tmp_path: Path, name: str, text: str):
    folder = write_repository(tmp_path / "own", {"tokenizer.json": tokenizer_json([EOS], model={"type": "BPE"})})
    (folder / name).write_text(text, errors="surrogateescape")
    for choice in (TokenizerFile, PretrainedTokenizer):
        with pytest.raises(ConfigError, match=name) as caught:
            choice(str(folder)).load(None, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["NoSuchTokenizer", "AutoTokenizer", "BertTokenizer", "T5Tokenizer", 3])
def test_what_transformers_cannot_read_is_loaded_all_the_same(tmp_path: Path, name: object):
    files = {**MISNAMED, "tokenizer_config.json": {"tokenizer_class": name, "eos_token": EOS}}
    folder = write_repository(tmp_path / "own", files)
    loaded = PretrainedTokenizer(str(folder)).load(None, tmp_path)
    assert loaded.digest == TokenizerFile(str(folder)).load(None, tmp_path).digest


@old_transformers
def test_without_a_tokenizer_json_transformers_makes_one(tmp_path: Path):
    spec = REPOSITORIES["gpt2"]["tokenizer.json"]
    files = {
        "vocab.json": {**spec["model"]["vocab"], EOS: 261},
        "config.json": {"model_type": "gpt2"},
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"},
    }
    folder = write_repository(tmp_path / "slow", files)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(spec["model"]["merges"]) + "\n")
    made = PretrainedTokenizer(str(folder)).load(None, tmp_path)
    assert (made.eos_token, made.eos_id, made.vocab_size) == (EOS, 261, 262)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        PretrainedTokenizer(str(tmp_path / "empty")).load(None, tmp_path)
    assert "\n" not in str(caught.value)


LOAD = """
import sys
from pathlib import Path
from lightning_lance.errors import ConfigError
from lightning_lance.tokenization.configs import PretrainedTokenizer
for name in sys.argv[2:]:
    try:
        tokenizer = PretrainedTokenizer(*name.split("@")).load(None, Path(sys.argv[1]))
        print(tokenizer.digest, tokenizer.eos_token)
    except ConfigError as error:
        print(error)
"""


def test_the_hub_gives_the_same_tokenizer_as_a_folder_and_is_asked_once(tmp_path: Path):
    write_repository(tmp_path / "hub/models/own/misnamed", MISNAMED)
    digest = TokenizerFile(str(tmp_path / "hub/models/own/misnamed")).load(None, tmp_path).digest
    with Hub(tmp_path / "hub") as hub:

        def load(folder: str, *names: str, **variables: str) -> "subprocess.CompletedProcess[str]":
            environment = {**hub.environment(tmp_path / "home"), **variables}
            return server(BUILDING).run(LOAD, tmp_path / folder, *names, environment=environment, timeout=100)

        first = load("kept", "own/misnamed", "own/misnamed", "no/such", "own/misnamed@@nowhere")
        lines = first.stdout.splitlines()
        assert lines[:2] == [f"{digest} {EOS}"] * 2
        assert first.stderr.count("because of GPT2Tokenizer (other pre_tokenizer)") == 1
        assert "the Hub has no such model" in lines[2]
        assert "no such revision" in lines[3]
        files = [
            request.file for request in hub.requests if request.repo == "models/own/misnamed" and request.status == 200
        ]
        # One request to see whether the Hub answers, one for the revision, and the file.
        assert files.count("tokenizer.json") <= 4
        # Without a network, the cache of huggingface_hub is used.
        asked = len(hub.requests)
        offline = load("other", "own/misnamed", "no/such", HF_HUB_OFFLINE="1")
        assert offline.stdout.splitlines()[0] == f"{digest} {EOS}"
        assert "cannot be loaded, since offline mode is on" in offline.stdout.splitlines()[1]
        assert len(hub.requests) == asked


def test_what_an_earlier_version_kept_stays_in_use_and_is_told_of(tmp_path: Path, caplog: Any, monkeypatch: Any):
    """An earlier version kept the conversion by transformers; the cache of huggingface_hub still has tokenizer.json."""
    write_repository(tmp_path / "own", MISNAMED)
    kept = write_repository(
        tmp_path / "own%2Fmisnamed@main",
        {"tokenizer.json": tokenizer_json([EOS], model={"type": "BPE"}), "tokenizer_config.json": {"eos_token": EOS}},
    )
    before = TokenizerFile(str(kept)).load(None, tmp_path).digest
    monkeypatch.setattr(configs, "in_cache", lambda *_: None)
    assert PretrainedTokenizer("own/misnamed").load(None, tmp_path).digest == before
    assert not caplog.records
    monkeypatch.setattr(configs, "in_cache", lambda *_: tmp_path / "own/tokenizer.json")
    for _ in range(2):
        configs._warn_once.cache_clear()
        assert PretrainedTokenizer("own/misnamed").load(None, tmp_path).digest == before
        (message,) = [record.getMessage() for record in caplog.records]
        assert "(other pre_tokenizer). It stays in use" in message
        caplog.clear()
    assert json.loads((kept / ORIGIN).read_text())["differs"] == ["pre_tokenizer"]


def test_readings_of_transformers_are_those_of_its_loader(tmp_path: Path):
    """The stub that is compared gives the same result as the whole repository."""
    from transformers import AutoTokenizer

    for name, files in {**REPOSITORIES, "misnamed": MISNAMED}.items():
        folder = write_repository(tmp_path / name, files)
        made = AutoTokenizer.from_pretrained(str(folder))
        loaded = TokenizerFile(str(folder)).load(None, tmp_path)
        reading = as_transformers_reads(json.loads(loaded.to_json()), read_beside(folder), loaded.eos_id)
        digests = Tokenizer(made.backend_tokenizer.to_str(), made.eos_token).other_digests
        assert (reading.digest in digests) == (name != "misnamed")
        assert reading.differs == (["pre_tokenizer"] if name == "misnamed" else [])
