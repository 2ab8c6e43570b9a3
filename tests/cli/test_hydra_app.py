"""Messages of the command line, in this process; test_main.py and tests/examples run real commands."""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from lightning_lance.cli.config_errors import one_sentence
from lightning_lance.cli.hydra_app import _DICTS, _how_to_continue, command, help_of, make
from lightning_lance.errors import BuildInterrupted, ConfigError
from tests.support.paths import ROOT


@pytest.fixture
def config(tmp_path: Path) -> Iterator[DictConfig]:
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        yield compose("config", overrides=[f"output_dir={tmp_path}"])


@pytest.fixture
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield arguments for a command in this process, and restore its folder and loggers."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    monkeypatch.chdir(tmp_path)
    yield ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]
    root.handlers[:] = handlers
    root.setLevel(level)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sentence", "places"),
    [
        ("batch_size is 0: expected a whole number from 1 on.", "data.batch_size"),
        ("order is 'x': expected one of shuffle, random, sequential, fixed.", "data.order"),
        ("mix.Rust is 0: expected a weight above 0; remove components that you do not want.", "data.mix"),
        ("where has the column 'x': expected language.", "data.where"),
        ("x was built with other settings: give another uri, or set rebuild=true.", "build.rebuild, corpus.uri"),
        ("'a/fim': lower batch_size or context_length.", "data.batch_size"),
        # Root keys need no place; ordinary words and parts of paths are not keys.
        ("context_length is 0: expected a whole number from 1 on.", ""),
        ("max_tokens is -1: lower max_documents, in the order that is where the seed is.", ""),
        ("source.storage_options is 1: in 'batch_size', at x/batch_size/y.", ""),
    ],
)
def test_keys_are_told_with_their_place_on_the_command_line(config: DictConfig, sentence: str, places: str):
    told = one_sentence(ConfigError(sentence), config)
    hint = told.removeprefix(sentence.rstrip("."))
    assert sorted(hint.removeprefix("; on the command line: ").rstrip(".").split(", ")) == places.split(", ")
    assert one_sentence(ConfigError(sentence), None) == sentence


def test_an_option_that_is_not_there(config: DictConfig):
    error = MissingConfigException("many lines", "tokenizer/gtp2", ["bpe", "gpt2"])
    assert one_sentence(error, None) == "There is no tokenizer 'gtp2': did you mean 'gpt2'? expected one of bpe, gpt2."


def test_an_argument_that_cannot_be_read():
    told = one_sentence(OverrideParseException("foo", "no viable alternative"), None)
    assert told.startswith(
        "Got 'foo', which is not key=value: expected text such as context_length=512, 'languages=[Python,Rust]'"
    )
    told = one_sentence(OverrideParseException("data/x.lance", "no viable alternative"), None)
    assert told.endswith("not key=value: a store that is there is served by data.corpus=data/x.lance.")
    told = one_sentence(OverrideParseException("languages=[Python", "no viable alternative"), None)
    assert told.startswith(
        "The value of 'languages=[Python' cannot be parsed: expected text such as context_length=512, "
    )


@pytest.mark.parametrize(
    ("group", "key", "value", "sentence"),
    [
        ("trainer", "trainer.max_steps", "abc", "trainer.max_steps is 'abc': expected a whole number."),
        (
            "trainer",
            "context_length",
            "abc",
            "trainer cannot be made (no): check +trainer.x=1, trainer.y=2.",
        ),
        ("data", "source.text_filter.min_bytes", "a", "source.text_filter.min_bytes is 'a': expected a whole number."),
        ("data", "seed", "a", "seed is 'a': expected a whole number."),
        (
            "trainer.callbacks0",
            "trainer.callbacks.0.every_n_train_steps",
            "a",
            "trainer.callbacks.0.every_n_train_steps is 'a': expected a whole number or null.",
        ),
    ],
)
def test_what_a_constructor_stumbles_over_is_named(config: DictConfig, group: str, key: str, value: str, sentence: str):
    OmegaConf.update(config, key, value)
    place = "data.corpus.source.text_filter" if "filter" in key else group
    error = InstantiationException(f"Error in call to target 'x':\nValueError('no')\nfull_key: {place}")
    error.__cause__ = ValueError("no")
    given = ["data.seed=3", "+trainer.x=1", "trainer.y=2", "trainers=2"]
    assert one_sentence(error, config, given) == sentence


def test_what_a_constructor_only_keeps_is_refused_too(config: DictConfig):
    """Otherwise it would fail after hours of building."""
    for key, value in {"source.shard_seed": "x", "data.seed": "y"}.items():
        changed = config.copy()
        OmegaConf.update(changed, key, value)
        with pytest.raises(ConfigError) as refused:
            make(changed, "data")
        assert str(refused.value).startswith(f"{key.removeprefix('data.')} is {value!r}: expected a whole number")
    assert make(config, "data").serving.seed == 0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("corpora.code.val_fraction=2", r"val_fraction is 2: .*; on the command line: corpora\.code\.val_fraction\.$"),
        (
            "corpora.text.long_documents=x",
            r"long_documents is 'x': .*; on the command line: corpora\.text\.long_documents\.$",
        ),
        ("sources.code.max_retries=-1", r"^sources\.code\.max_retries is -1: expected"),
        ("sources.text.shard_seed=x", r"^sources\.text\.shard_seed is 'x': expected"),
    ],
)
def test_errors_of_several_corpora_name_the_keys_of_the_one(override: str, sentence: str):
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=["experiment=code_and_text", override])
    with pytest.raises((ConfigError, InstantiationException)) as refused:
        make(config, "data")
    assert re.search(sentence, one_sentence(refused.value, config))


def test_an_error_of_some_corpus_names_where_they_are():
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=["experiment=code_and_text"])
    told = one_sentence(ConfigError("x was built with other settings: give another uri."), config)
    assert told.endswith("; on the command line: corpora.NAME.uri.")


def test_how_an_interrupted_training_goes_on(config: DictConfig, tmp_path: Path):
    """From the last checkpoint only if there is one, of this run or of the run that it continues."""
    now, pressed = time.time(), KeyboardInterrupt()
    assert _how_to_continue(pressed, None, now) == "run it again to continue after the last commit."
    assert _how_to_continue(pressed, config, now).startswith("no checkpoint was saved yet: run it again to train from")
    (tmp_path / "checkpoints").mkdir()
    last = tmp_path / "checkpoints/last.ckpt"
    last.touch()
    os.utime(last, (now - 9, now - 9))
    assert _how_to_continue(pressed, config, now).startswith("no checkpoint was saved yet")
    os.utime(last, (now + 9, now + 9))
    goes_on = "run it again with ckpt_path=last to continue from the last checkpoint."
    assert _how_to_continue(pressed, config, now) == goes_on
    os.utime(last, (now - 9, now - 9))
    config.ckpt_path = "last"
    assert _how_to_continue(pressed, config, now) == goes_on
    ended = SystemExit(1)
    ended.__context__ = BuildInterrupted("nothing is lost.")  # Lightning's, of a build that was interrupted
    assert _how_to_continue(ended, config, now) == "nothing is lost."


@pytest.mark.parametrize("argument", ["trainer=null", "tokenizer=1"])
def test_what_is_no_name_of_an_option_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, argument: str):
    monkeypatch.setattr(sys, "argv", ["x", argument, "hydra.run.dir=."])
    with pytest.raises(SystemExit, match=f"^error: The configuration is not valid .*: check {argument}\\.$"):
        command(lambda config: None)()
    with pytest.raises(SystemExit, match=f": check {argument}\\.$"):
        help_of("x", [argument], [], [], [])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["source=null", "tokenizer=null"],
            "source=null is not the name of an option: leave it out, or, to train on an existing store",
        ),
        (["source.root=~/x"], "The value of 'source.root=~/x' cannot be parsed: .* characters such as , : = ~ "),
        (
            ["data_dir=${MINE}/x"],
            r"There is no key 'MINE' for \$\{MINE\}: write an environment variable as \$\{oc.env:",
        ),
        (["data_dir=${oc.env:NO_SUCH}"], "The environment variable 'NO_SUCH' is not set"),
        (
            ["data.corpus=x", "languages=[Python]"],
            r"languages is \['Python'\], but there is no source to select them from",
        ),
        (["data.corpus={a: x, b: y}", "max_tokens=5"], "max_tokens is 5, but data.corpus is an existing store"),
        (["data.uri=x.lance"], r"There is no key 'data\.uri': .* corpus\.uri, .* data\.corpus=PLACE"),
        (["data.source=null"], r"There is no key 'data\.source': source is chosen as source=.* data\.corpus=PLACE"),
        (["data.max_tokens=5"], r"There is no key 'data\.max_tokens': it is max_tokens\.$"),
        (["data.val_fraction=0.1"], r"There is no key 'data\.val_fraction': it is corpus\.val_fraction\.$"),
        (["data.min_tokens=5"], r"There is no key 'data\.min_tokens': it is build\.wait_for_tokens\.$"),
        (["data.rebuild=true"], r"There is no key 'data\.rebuild': it is build\.rebuild\.$"),
    ],
)
def test_what_a_user_may_write_and_mean_otherwise_has_its_cure(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    in_this_process: list[str],
    arguments: list[str],
    sentence: str,
):
    monkeypatch.setattr(sys, "argv", ["x", *arguments, *in_this_process])
    with pytest.raises(SystemExit, match=f"^error: {sentence}"):
        command(lambda config: make(config, "data", _target_="builtins.dict"))()
    assert capfd.readouterr().err == ""  # nothing of Hydra's own


def test_requests_are_no_lines_of_the_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], in_this_process: list[str]
):
    def task(config: DictConfig) -> None:
        logging.getLogger("httpx").info("HTTP Request: GET")
        logging.getLogger("lightning_lance").info("something is done")

    monkeypatch.setattr(sys, "argv", ["x", *in_this_process])
    command(task)()
    out = capfd.readouterr().out
    assert "something is done" in out
    assert "HTTP" not in out


@pytest.mark.parametrize("group", ["data", "corpus"])
def test_every_empty_mapping_can_be_filled_on_the_command_line(group: str):
    options = yaml.safe_load((ROOT / f"conf/{group}/default.yaml").read_text(encoding="utf-8"))
    for key, value in options.items():
        if value == {}:
            assert _DICTS.match(f"{group}.{key}={{a: 1}}"), key


def test_the_help_of_train_is_a_screen_and_true():
    """Its groups have all options, and its keys are there, with the defaults that it names."""
    text = OmegaConf.load(ROOT / "conf/config.yaml").hydra.help.template
    lines = text.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= 128
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config")
        files = compose("config", overrides=["source=files"])
        loader = GlobalHydra.instance().config_loader()
        for line in lines[lines.index("== Groups: group=option ==") + 2 : lines.index("== Keys: key=value ==") - 1]:
            group, _, options = line.partition(" ")
            there = [name for name in loader.get_group_options(group) if not name.startswith("_")]
            assert sorted(options.strip().split(", ")) == there
    examples = {
        "data.corpus",
        "corpus.uri",
        "ckpt_path",
        "languages",
        "max_documents",
        "max_tokens",
        "data.mix",
        "data.where",
    }
    examples |= {"data.document_ids", "source", "source.root", "source.patterns"}
    keys = dict(re.findall(r"(?<![\w/])([a-z_.]+)=(\S+)", "\n".join(lines[lines.index("== Keys: key=value ==") + 1 :])))
    assert examples < {*keys}
    for key, value in keys.items():
        node = files if key.startswith("source") else config
        *groups, name = key.split(".")
        for group in groups:
            node = node[group]
        assert name in [*node], key  # also where it has no value
        if key not in examples:
            assert str(node[name]) == value, key
