"""Every option of every group is composed and made; every comment that the documentation relies on is there."""

import inspect
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_lance import LanceDataModule
from lightning_lance.callbacks import DataMonitor, LossByDocument, SliceMetrics
from lightning_lance.documents.languages import CODE_EXTENSIONS
from lightning_lance.documents.text_filter import TextFilter
from lightning_lance.examples.gpt import Block, GPTModule
from lightning_lance.examples.run_folder import MetricsFile
from lightning_lance.sources.datasets import DatasetSource
from lightning_lance.sources.files import FilesSource
from lightning_lance.tokenization.configs import ByteTokenizer, PretrainedTokenizer, TokenizerFile, TrainedBPE
from tests.support.paths import ROOT

CONF = ROOT / "conf"
GROUPS = {
    group.name: sorted(file.stem for file in group.glob("[!_]*.yaml"))
    for group in CONF.iterdir()
    if any(group.glob("*.yaml"))
}
# What an option needs before it means anything.
NEEDS = {
    "files": ["source.patterns=['*.py']"],
    "parquet": ["source.data_files=['x/*.parquet']"],
    "jsonl": ["source.data_files=['x/*.jsonl.zst']"],
    "hub": ["source.path=own/name"],
}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        yield


@cache
def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


def make(*overrides: str) -> tuple[DictConfig, Any]:
    # A copy, since Hydra replaces references by what they refer to.
    config = deepcopy(composed(*overrides))
    return config, instantiate(config.data)


def test_the_groups_are_those_that_are_promised():
    promised = {
        "source": "files fineweb github_code github_code_clean hub jsonl parquet python_stdlib starcoder the_stack wikitext",
        "corpus": "default",
        "tokenizer": "bpe bytes file gpt2 gpt_neox hub llama3 qwen3",
        "engine": "local ray",
        "data": "default",
        "logger": "csv none tensorboard wandb",
        "model": "gpt_medium gpt_nano gpt_small",
        "trainer": "cpu ddp fsdp gpu",
        "experiment": "code_and_text github_code_python smoke",
        "watch": "all losses monitor none slices",
    }
    assert {group: " ".join(options) for group, options in GROUPS.items()} == promised


@pytest.mark.parametrize("option", GROUPS["source"])
def test_every_source(option: str):
    _, data = make(f"source={option}", *NEEDS.get(option, []))
    assert isinstance(data, LanceDataModule)
    assert data.corpus.source is not None
    assert data.corpus.source.name == option
    assert type(data.corpus.source) is (FilesSource if option in ("files", "python_stdlib") else DatasetSource)
    assert data.corpus.source.text_filter == TextFilter()


BASE = yaml.safe_load((CONF / "source" / "_base.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("option", sorted({*GROUPS["source"]} - {"files", "python_stdlib"}))
def test_every_source_of_datasets_has_what_the_base_says(option: str):
    source: Any = OmegaConf.to_container(composed(f"source={option}", *NEEDS.get(option, [])).source, resolve=False)
    own = yaml.safe_load((CONF / "source" / f"{option}.yaml").read_text(encoding="utf-8"))
    assert own["defaults"] == ["_base", "_self_"]
    # github-code is full of copies.
    expected = {**BASE, "dedup": "exact"} if option == "github_code" else BASE
    assert {key: source.get(key) for key in BASE} == expected
    assert source.keys() == BASE.keys() | own.keys() - {"defaults"}
    assert own.keys() & BASE.keys() <= {"dedup"}


def test_the_base_has_what_was_the_same_in_all_sources():
    assert {*BASE} == {
        "where", "languages", "text_filter", "shard_seed", "timeout_seconds", "max_retries", "on_bad_shard", "dedup"
    }  # fmt: skip


@pytest.mark.parametrize("option", GROUPS["tokenizer"])
def test_every_tokenizer(option: str):
    needs = {"file": "tokenizer.path=tokenizer.json", "hub": "tokenizer.model=own/name"}
    _, data = make(f"tokenizer={option}", *([needs[option]] if option in needs else []))
    kind = {"bpe": TrainedBPE, "bytes": ByteTokenizer, "file": TokenizerFile}.get(option, PretrainedTokenizer)
    assert type(data.corpus.tokenizer_config) is kind
    if isinstance(data.corpus.tokenizer_config, PretrainedTokenizer):
        assert not data.corpus.tokenizer_config.trust_remote_code


@pytest.mark.parametrize("option", GROUPS["model"])
def test_every_model(option: str):
    config = compose("config", overrides=[f"model={option}", "context_length=77"])
    model = instantiate(config.model)
    assert isinstance(model, GPTModule)
    assert model.hparams["context_length"] == 77


@pytest.mark.parametrize("option", GROUPS["trainer"])
def test_every_trainer(option: str):
    config = compose("config", overrides=[f"trainer={option}", "output_dir=out"])
    arguments = {key: value for key, value in config.trainer.items() if not str(key).startswith("_")}
    inspect.signature(lightning.Trainer).bind(**arguments)
    if option == "fsdp":
        assert instantiate(config.trainer.strategy, _convert_="all").kwargs["auto_wrap_policy"] is not None
        assert instantiate(config.trainer.strategy.auto_wrap_policy, _convert_="all") == {Block}
    # Here is no GPU; all the rest is as it would be.
    changes = {"accelerator": "cpu", "devices": 1, "precision": None}
    if option == "fsdp":
        changes["strategy"] = "auto"
    trainer = instantiate(config.trainer, **changes)
    assert isinstance(trainer, lightning.Trainer)
    assert [type(logger) for logger in trainer.loggers] == [MetricsFile]
    assert trainer.checkpoint_callback.dirpath == str(Path("out/checkpoints").resolve())  # type: ignore[union-attr]


@pytest.mark.parametrize("option", GROUPS["logger"])
def test_every_logger(option: str):
    config = compose("config", overrides=[f"logger={option}", "output_dir=out"])
    names = [] if option == "none" else ["csv"] if option == "csv" else ["csv", option]
    assert list(config.logger) == names
    for logger in config.logger.values():
        arguments = {key: value for key, value in logger.items() if not str(key).startswith("_")}
        inspect.signature(get_class(logger._target_)).bind(**arguments)


@pytest.mark.parametrize("option", ["none", "losses", "slices", "monitor", "all", "[monitor,losses]", "[]"])
def test_every_watch(option: str):
    config = compose("config", overrides=[f"watch={option}"])
    made = instantiate(config.watch)
    kinds = {"losses": LossByDocument, "slices": SliceMetrics, "monitor": DataMonitor}
    named = {"none": [], "all": [*kinds]}.get(option, option.strip("[]").split(",") if option != "[]" else [])
    assert {name: type(callback) for name, callback in made.items()} == {name: kinds[name] for name in named}


def test_the_tutorials_experiment():
    config, data = make("experiment=github_code_python")
    assert data.corpus.source.data_files == ["hf://datasets/codeparrot/github-code/data/train-*.parquet"]
    assert (data.corpus.source.wanted, data.corpus.source.extensions) == (["Python"], CODE_EXTENSIONS)
    assert data.corpus.source.columns == {"text": "content", "repo": "repo_name", "path": "path", "license": "license"}
    assert (data.corpus.tokenizer_config.model, data.context_length) == ("EleutherAI/gpt-neox-20b", 1024)
    assert data.corpus.budget.max_documents == 5_000_000
    assert config.model.n_layer == 12


def test_two_corpora_have_a_source_each():
    _, data = make("experiment=code_and_text")
    code, text = (data.corpora[name] for name in ("code", "text"))
    assert (code.source.name, list(code.source.wanted), code.budget.max_tokens) == (
        "github_code",
        ["Python"],
        3 * 10**9,
    )
    assert (text.source.name, list(text.source.wanted), text.budget.max_tokens) == ("fineweb", [], 10**9)
    assert (
        code.tokenizer_config
        == text.tokenizer_config
        == PretrainedTokenizer("EleutherAI/gpt-neox-20b", "<|endoftext|>")
    )
    assert data.serving.mix == {"code": 3.0, "text": 1.0}


@pytest.mark.parametrize(
    ("override", "places"),
    [
        ("data.corpus=x.lance", {"": "x.lance"}),
        ("data.corpus={a: x.lance, b: y.lance}", {"a": "x.lance", "b": "y.lance"}),
    ],
)
def test_stores_that_are_there_need_no_source_and_no_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, places: dict[str, str]
):
    monkeypatch.chdir(tmp_path)
    _, data = make(override)
    assert {name: corpus.uri for name, corpus in data.corpora.items()} == {
        name: str(tmp_path / place) for name, place in places.items()
    }
    assert not [*tmp_path.iterdir()]


def test_an_experiment_can_be_changed_on_the_command_line():
    _, data = make("experiment=github_code_python", "tokenizer=bytes", "languages=[Rust,C]", "max_documents=7")
    assert type(data.corpus.tokenizer_config) is ByteTokenizer
    assert (list(data.corpus.source.wanted), data.corpus.budget.max_documents) == (["C", "Rust"], 7)


def test_root_keys_reach_the_datamodule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["context_length=99", "languages=[Python]", "max_documents=5", "max_tokens=600", "seed=4", "data_dir=d"]
    _, data = make(*overrides)
    assert (data.context_length, list(data.corpus.source.languages), data.serving.seed, data.corpus.data_dir) == (
        99,
        ["Python"],
        4,
        str(tmp_path / "d"),
    )
    assert (data.corpus.budget.max_documents, data.corpus.budget.max_tokens) == (5, 600)


def test_the_datamodule_holds_plain_values():
    """OmegaConf's own containers would make checkpoints unreadable with weights_only=True."""
    _, data = make("source=github_code", "languages=[Python]", "+source.where.license=[mit]")
    for value in (
        data.corpus.source.languages,
        data.corpus.source.columns,
        data.corpus.source.where,
        data.corpus.source.data_files,
        data.corpus.storage_options,
        data.serving.where,
    ):
        assert not OmegaConf.is_config(value)
    assert type(data.corpus.source.where["license"]) is list


def test_every_option_says_what_it_is_and_converts():
    for file in CONF.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# "), f"{file} does not begin with what it is"
        content = yaml.safe_load(text)
        if "_target_" in content:
            assert content["_convert_"] == "all", file
