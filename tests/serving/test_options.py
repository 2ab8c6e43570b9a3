from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from lightning_lance import LanceDataModule, TokenStore, WindowLoader
from lightning_lance.build.options import BuildOptions
from lightning_lance.errors import ConfigError
from lightning_lance.serving.options import BatchOptions, ServingOptions, fill_in_the_middle
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer
from lightning_lance.type_hints import options_of
from tests.support.corpora import data_of, prepare
from tests.support.stores import ListSource, documents

# Option, wrong value, message. `WindowLoader` has the same message for its own options.
WRONG = [
    ("batch_size", 0, "batch_size is 0: expected a whole number from 1 on."),
    ("context_length", 1.5, "context_length is 1.5: expected a whole number from 1 on."),
    (
        "order",
        "shufle",
        "order is 'shufle': expected one of shuffle, random, sequential, fixed (did you mean 'shuffle'?).",
    ),
    ("shuffle_block", 0, "shuffle_block is 0: expected a whole number from 1 on."),
    ("where", {"repo": ["x"]}, "where has the column 'repo': expected language."),
    ("where", {"language": "Python"}, "where.language is 'Python': expected a list, such as [Python]."),
    ("mix", ["Python"], "mix is ['Python']: expected a mapping, such as {Python: 0.7, Rust: 0.3}."),
    ("mix", {"Python": 0}, "mix.Python is 0: expected a weight above 0; remove components that you do not want."),
    ("remainder", "keep", "remainder is 'keep': expected one of drop, wrap, short."),
    ("on_data_change", "ignore", "on_data_change is 'ignore': expected one of error, restart, continue."),
    ("extend", "always", "extend is 'always': expected one of never, next_epoch, now."),
    ("batch_format", "hf", "batch_format is 'hf': expected one of default, huggingface."),
]
OURS = [
    ("val_by", "each", "val_by is 'each': expected one of none, language, store."),
    ("document_ids", "yes", "document_ids is 'yes': expected true or false."),
    ("rebuild", 1, "rebuild is 1: expected true or false."),
    (
        "fim",
        {"prefix_token": "<p>"},
        "fim has prefix_token: expected prefix_token, middle_token, suffix_token, and optionally fim_rate, spm_rate.",
    ),
    (
        "fim",
        {"prefix_token": "a", "middle_token": "b", "suffix_token": "c", "fim_rate": 2},
        "fim_rate is 2: expected a number between 0 and 1.",
    ),
]


def test_a_rebuild_is_refused_where_nothing_is_built(store: TokenStore):
    with pytest.raises(
        ConfigError, match=r"^rebuild is True, but a store without a Corpus cannot be built: leave rebuild out"
    ):
        LanceDataModule(store.uri, 8, 2, build={"rebuild": True})


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The configuration of the command line without arguments."""
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        made: dict[str, Any] = instantiate(compose("config").data, _target_="builtins.dict")
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    source = ListSource((*documents("x" * 900), *documents("y" * 900, language="Rust")))
    return prepare(source, ByteTokenizer(), str(tmp_path_factory.mktemp("options") / "x.lance"), val_fraction=0.0)


def check_options(given: dict[str, Any]) -> None:
    """Make all groups of options."""
    BatchOptions(**{field.name: given[field.name] for field in fields(BatchOptions)})
    ServingOptions(**{field.name: given[field.name] for field in fields(ServingOptions)})
    build = {name: value for name, value in given.items() if name == "rebuild"}
    options_of(BuildOptions, "build", {**given["build"], **build})
    fill_in_the_middle(given["fim"])


def test_what_the_command_line_gives_by_itself_can_be(config: dict[str, Any]):
    check_options(config)
    check_options({**config, "fim": {"prefix_token": "a", "middle_token": "b", "suffix_token": "c", "spm_rate": 0}})
    check_options({**config, "where": None, "mix": {"Python": 1.5}, "shuffle_block": 64})


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG + OURS)
def test_what_cannot_be_is_refused_before_anything_is_built(
    config: dict[str, Any], name: str, value: Any, sentence: str
):
    with pytest.raises(ConfigError) as refused:
        check_options({**config, name: value})
    assert str(refused.value) == sentence
    options = {"context_length": 8, "batch_size": 2, name: value}
    with pytest.raises(ConfigError) as refused:
        data_of(ListSource(documents("x")), ByteTokenizer(), **options)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_the_loader_says_the_same(store: TokenStore, name: str, value: Any, sentence: str):
    with pytest.raises(ConfigError) as refused:
        WindowLoader(store, **{"context_length": 8, "batch_size": 2, name: value})
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        (
            {"mix": {"python": 1}},
            "The source, for mix, has no language 'python' (did you mean 'Python'?): it has Python, Rust.",
        ),
        ({"mix": {1: 1}}, "The source, for mix, has no language 1: it has Python, Rust."),
        ({"where": {"language": ["C"]}}, "The source, for where, has no language 'C': it has Python, Rust."),
    ],
)
def test_languages_that_the_source_will_not_give_are_refused_before_anything_is_built(
    tmp_path: Path, chosen: dict[str, Any], sentence: str
):
    source = FilesSource(["*"], root=tmp_path, languages=["Python", "Rust"])
    with pytest.raises(ConfigError) as refused:
        data_of(source, ByteTokenizer(), 8, 2, **chosen)
    assert str(refused.value) == sentence
    data_of(source, ByteTokenizer(), 8, 2, mix={"Rust": 1, "Python": 2}, where={"language": ["Rust"]})
    # Of all that a source may have, only its documents tell.
    data_of(FilesSource(["*"], root=tmp_path), ByteTokenizer(), 8, 2, **chosen)


@pytest.mark.parametrize("number", [0, "x", True, 1.5])
def test_tokens_to_wait_for_are_a_whole_number(number: Any):
    with pytest.raises(ConfigError, match=r"wait_for_tokens is .*: expected a whole number from 1 on"):
        LanceDataModule("x.lance", 8, 2, build={"wait_for_tokens": number})


def test_tokens_that_the_tokenizer_has_not_are_refused_before_anything_is_built(tmp_path: Path):
    tokens = {"prefix_token": "<p>", "middle_token": "<m>", "suffix_token": "<s>"}
    data = data_of(ListSource(documents("x")), ByteTokenizer(), 8, 2, data_dir=str(tmp_path), fim=tokens)
    with pytest.raises(ConfigError, match="The tokenizer has no token '<p>'"):
        data.prepare_data()
    assert not list(tmp_path.glob("*.lance"))


def test_what_a_mixture_leaves_out_is_told(store: TokenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    WindowLoader(store, 8, 2, mix={"Python": 1, "Rust": 2})
    WindowLoader(store, 8, 2, mix={"Python": 1}, where={"language": ["Python"]})
    assert caplog.messages == []
    WindowLoader(store, 8, 2, mix={"Python": 1})
    WindowLoader({"a": store, "b": store}, 8, 2, mix={"b": 1})
    assert caplog.messages == [
        "mix has no weight for 'Rust', so it is not served: add a weight, or exclude it with where.",
        "mix has no weight for 'a', so it is not served: add a weight, or exclude it with corpus.",
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"rebuilt": True},
            "build has the key 'rebuilt': did you mean 'rebuild'? expected some of engine, rebuild, commit_seconds",
        ),
        (["rebuild"], "build is ['rebuild']: expected a mapping of engine, rebuild, commit_seconds"),
        ({"commit_seconds": -1}, "commit_seconds is -1: expected a number of seconds, such as 60."),
        ({"commit_seconds": True}, "commit_seconds is True: expected a number of seconds, such as 60."),
        ({"commit_tokens": 0}, "commit_tokens is 0: expected a whole number from 1 on."),
        ({"durable": "no"}, "durable is 'no': expected true or false."),
    ],
)
def test_options_of_a_build_check_themselves(given: Any, sentence: str):
    with pytest.raises(ConfigError) as refused:
        LanceDataModule("x.lance", 8, 2, build=given)
    assert str(refused.value).startswith(sentence)
    assert LanceDataModule("x.lance", 8, 2, build=BuildOptions(commit_seconds=5)).build.commit_seconds == 5
