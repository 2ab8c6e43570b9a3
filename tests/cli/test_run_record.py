"""Looking at a run of somebody else runs none of their code, whatever its record says."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from lightning_lance import Corpus
from lightning_lance.cli.run_record import _KNOWN, RunRecord
from lightning_lance.errors import ConfigError
from lightning_lance.examples import train_gpt
from lightning_lance.inspection import needed
from lightning_lance.sources import FilesSource
from lightning_lance.tokenization import ByteTokenizer
from tests.support.commands import Run
from tests.support.paths import ROOT

SERVED: dict[str, Any] = {
    "_target_": "lightning_lance.LanceDataModule",
    "corpus": {
        "_target_": "lightning_lance.Corpus",
        "source": {"_target_": "lightning_lance.sources.FilesSource", "root": "texts", "patterns": ["*.txt"]},
        "tokenizer": {"_target_": "lightning_lance.tokenization.ByteTokenizer"},
        "val_fraction": 0.0,
    },
    "context_length": 16,
    "batch_size": 2,
}


def test_only_empty_folders_of_its_own_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["train"])
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "runs/of/today"
    composed = OmegaConf.create({"hydra": {"output_subdir": ".hydra", "run": {"dir": str(folder)}}})
    record, another = RunRecord(), RunRecord()
    # Hydra composes a configuration twice.
    record.hold_back(composed.copy())
    record.hold_back(composed.copy())
    another.hold_back(composed.copy())
    another.remove_folders()
    assert folder.is_dir()
    record.remove_folders()
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    record.hold_back(composed.copy())
    (tmp_path / "runs/of/another").touch()
    record.remove_folders()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "runs", tmp_path / "runs/of", tmp_path / "runs/of/another"]


def test_an_option_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["train", "--cfg", "job"])
    composed = OmegaConf.create({"hydra": {"output_subdir": ".hydra", "run": {"dir": str(tmp_path / "x")}}})
    RunRecord().hold_back(composed)
    assert list(tmp_path.iterdir()) == []


def write_record(folder: Path, text: str) -> Path:
    record = folder / "run/.hydra"
    record.mkdir(parents=True)
    (record / "config.yaml").write_text(text, encoding="utf-8")
    return folder / "run"


def changed(place: str, value: Any) -> str:
    config = OmegaConf.create({"data": SERVED, "elsewhere": {"_target_": "os.mkdir", "path": "made"}})
    OmegaConf.update(config, place, value, force_add=True)
    return OmegaConf.to_yaml(config)


MAKES = {"_target_": "os.mkdir", "path": "made"}
BOMB = (
    "a: &a [1, 1]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "data: {}\n"
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (changed("data._target_", "os.mkdir"), "makes 'os.mkdir', which is not of lightning-lance"),
        (changed("data.corpus.source", MAKES), "makes 'os.mkdir'"),
        (changed("data.corpus.source", "${elsewhere}"), "makes 'os.mkdir'"),
        (changed("data.mix", [{"x": [MAKES]}]), "makes 'os.mkdir'"),
        (
            changed("data.corpus._target_", "lightning_lance.cli.hydra_app.os.mkdir"),
            "makes 'lightning_lance.cli.hydra_app.os",
        ),
        (changed("data.corpus._target_", ["os.mkdir"]), "which is not of lightning-lance"),
        (changed("data.corpus.tokenizer.trust_remote_code", "yes"), "asks for code of a model's repository"),
        (
            changed(
                "data.corpus.tokenizer",
                {"_target_": "lightning_lance.tokenization.PretrainedTokenizer", "_args_": ["m", None, None, True]},
            ),
            "gives arguments without their names",
        ),
        ("data: !!python/object/apply:os.mkdir [made]\n", "is not the configuration of a run"),
        (BOMB, "it has anchors and aliases"),
        ("[" * 5000, "is not the configuration of a run"),
        ("data: 3\n", "it has no data"),
        ("data: {a: ${b}}\n", "is not the configuration of a run"),
        ("\0", "is not the configuration of a run"),
    ],
    ids=range(14),
)
def test_what_a_record_says_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, text: str, why: str):
    monkeypatch.chdir(tmp_path)
    folder = write_record(tmp_path, text)
    for arguments in (("show",), ("where", "id=1")):
        code, out, err = run(arguments[0], folder, *arguments[1:])
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert why in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_a_checkpoint_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / f"texts/{number}.txt").write_text(f"text {number} " * 5)
    folder = write_record(tmp_path, changed("data.seed", 3))
    code, _, err = run("show", folder)
    assert (code, "lightning-lance prepare" in err) == (1, True)
    trained = changed("data.corpus.tokenizer._target_", "lightning_lance.tokenization.TrainedBPE")
    code, _, err = run("show", write_record(tmp_path / "trained", trained))
    assert (code, "has no tokenizer yet, and no token store: it builds them first." in err) == (1, True)
    assert not (tmp_path / "data").exists()
    Corpus(FilesSource(["*.txt"], root="texts"), ByteTokenizer(), val_fraction=0.0).prepare()
    code, out, err = run("show", folder)
    assert (code, err) == (0, "")
    assert "2 windows of 16 + 1 tokens" in out


def test_every_group_that_is_served_can_be_shown():
    """A class of the package's own configuration that is not among those that may be made could never be shown."""
    named = set()
    for group in ("source", "tokenizer", "corpus", "data"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            for line in file.read_text().splitlines():
                if "_target_:" in line:
                    named.add(line.partition("_target_:")[2].strip(" }").partition(",")[0])
    assert named <= _KNOWN
    assert len(named) > 8


class Makes:
    """An object whose pickle makes a folder when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


def test_a_checkpoint_of_others_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    torch.save({"LanceDataModule": Makes(), "state_dict": {}}, "run/checkpoints/last.ckpt")
    for words in (["show", "run"], ["where", "run", "id=1"], ["verify-resume", "run"]):
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "weights_only=True" in err
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        config = compose("config", overrides=["ckpt_path=run", "tokenizer=bytes", "data_dir=none", "output_dir=out"])
    with pytest.raises(ConfigError, match="weights_only=True"):
        train_gpt.main.__wrapped__(config)
    # Nor where it is looked whether a store is still needed.
    assert needed._is_on(Path("run/checkpoints/last.ckpt"), "x", "y") is False
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
