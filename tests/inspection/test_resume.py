import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_lance import Corpus, LanceDataModule
from lightning_lance.errors import ConfigError, LightningLanceError, StoreError
from lightning_lance.inspection.checkpoints import find_loader_states
from lightning_lance.inspection.resume import verify_resume
from lightning_lance.tokenization import ByteTokenizer
from tests.support.stores import ListSource, documents
from tests.support.training import Recorder, make_data, make_trainer
from tests.support.warm import TRAINING, server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 27 steps, more than an epoch, and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, max_steps=27, limit_val_batches=0)
    trainer.fit(Recorder(), datamodule=make_data(folder, uri=str(folder / "x.lance")))
    trainer.save_checkpoint(folder / "x.ckpt")
    return folder


def test_a_checkpoint_is_worked_out_anew(folder: Path):
    said = verify_resume(str(folder / "x.ckpt"), {}).splitlines()
    state = next(find_loader_states(torch.load(folder / "x.ckpt", weights_only=True)))
    done = state["cursor"] - state["epoch_start"]
    assert state["epoch"] == 1
    assert said[0].startswith(f"{folder}/x.ckpt: epoch 1, {done} of its ")
    assert said[1].startswith(f"digest OK: {done} windows recomputed in ")
    # The next windows as text: those that a resumed loader serves.
    data = make_data(folder, uri=str(folder / "x.lance"))
    data.setup("fit")
    data.load_state_dict(state)
    batch = next(iter(data.train_dataloader()))["input_ids"]
    shown = [repr(data.tokenizer.decode(row[:24].tolist()))[:70] for row in batch[:4]]
    assert [line.partition(": ")[2] for line in said[3:]] == shown


def test_of_the_folder_of_a_run_the_newest_checkpoint_is_taken(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="There is no checkpoint in the folder "):
        verify_resume(str(tmp_path), {})
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(folder / "x.ckpt", tmp_path / "checkpoints/last-v1.ckpt")
    (tmp_path / "checkpoints/last.ckpt").write_text("older")
    os.utime(tmp_path / "checkpoints/last.ckpt", (1e9, 1e9))
    for place in (tmp_path, tmp_path / "checkpoints"):
        assert verify_resume(str(place), {}).startswith(f"{tmp_path}/checkpoints/last-v1.ckpt: epoch 1, ")


def test_a_checkpoint_in_shards_has_a_file_without_the_weights(folder: Path, tmp_path: Path):
    """Lightning's FSDP saves a folder."""
    shards = tmp_path / "checkpoints/last.ckpt"
    shards.mkdir(parents=True)
    shutil.copy(folder / "x.ckpt", shards / "meta.pt")
    for place in (tmp_path, shards):
        assert verify_resume(str(place), {}).startswith(f"{shards}/meta.pt: epoch 1, ")


def test_of_several_stores_the_one_of_each_window_is_named(tmp_path: Path):
    corpora = {
        name: Corpus(
            ListSource(documents(*[letter * 40] * 20)), ByteTokenizer(), tmp_path / f"{name}.lance", val_fraction=0.0
        )
        for name, letter in (("code", "a"), ("prose", "b"))
    }
    trainer = make_trainer(tmp_path, max_steps=3, limit_val_batches=0)
    trainer.fit(Recorder(), datamodule=LanceDataModule(corpora, 16, 4, mix={"code": 1, "prose": 1}))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    lines = verify_resume(str(tmp_path / "x.ckpt"), {}).splitlines()[3:]
    named = {"code": "aaa", "prose": "bbb"}
    assert {line.partition(" of ")[2].partition(":")[0] for line in lines} == {*named}
    for line in lines:
        assert named[line.partition(" of ")[2].partition(":")[0]] in line


def test_a_store_that_has_moved_is_told(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "x.lance", tmp_path / "y.lance")
    arguments = ("verify-resume", folder / "x.ckpt", f"uri={tmp_path}/y.lance")
    done = server(TRAINING).run("from lightning_lance.cli.main import main; main()", *arguments, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"in {tmp_path}/y.lance version 1" in done.stdout
    with pytest.raises(ConfigError, match="has no store 'code': expected uri=PLACE for its only store"):
        verify_resume(str(folder / "x.ckpt"), {"code": "elsewhere"})
    (folder / "x.lance").rename(folder / "z.lance")
    try:
        gone = r"There is no token store at '.*x\.lance', .*: if it has moved, give its new place with uri=PLACE"
        with pytest.raises(StoreError, match=gone):
            verify_resume(str(folder / "x.ckpt"), {})
    finally:
        (folder / "z.lance").rename(folder / "x.lance")


@pytest.mark.parametrize(
    "change",
    [
        {"cursor": "4"},
        {"cursor": True},
        {"cursor": 10**12},
        {"cursor": 10**30},
        {"cursor": -5},
        {"cursor": torch.ones(3)},
        {"digest_from": 10**9},
        {"num_windows": None},
        {"taken": {}},
        {"digest": "\x1b[2J"},
        {"stores": []},
        {"stores": ["x.lance"]},
        {"stores": [{"name": ""}]},
        {"split": ["train"]},
        {"context_length": 0},
        {"shuffle_block": "4"},
        {"where": []},
        {"mix": {"C": float("nan")}},
        {"ended": 1},
    ],
)
def test_an_odd_place_is_refused_at_once_in_one_sentence(folder: Path, tmp_path: Path, change: dict[str, Any]):
    state = next(find_loader_states(torch.load(folder / "x.ckpt", weights_only=True)))
    torch.save([{"state": {**state, **change}}], tmp_path / "y.ckpt")
    with pytest.raises(LightningLanceError, match=next(iter(change))) as refused:
        verify_resume(str(tmp_path / "y.ckpt"), {})
    assert not any(character in str(refused.value) for character in "\n\x1b")


@pytest.mark.parametrize(
    "change", [{"taken": []}, {"taken": [2**60, 3]}, {"num_windows": 10**15}, {"origin": 2**62}, {"seed": -(2**63)}]
)
def test_a_place_that_no_run_was_at_is_refused_at_once(folder: Path, tmp_path: Path, change: dict[str, Any]):
    state = next(find_loader_states(torch.load(folder / "x.ckpt", weights_only=True)))
    torch.save({**state, **change}, tmp_path / "y.ckpt")
    with pytest.raises(LightningLanceError) as refused:
        verify_resume(str(tmp_path / "y.ckpt"), {})
    assert "\n" not in str(refused.value)


def test_a_missing_field_is_named(folder: Path, tmp_path: Path):
    state = next(find_loader_states(torch.load(folder / "x.ckpt", weights_only=True)))
    del state["seed"]
    torch.save(state, tmp_path / "y.ckpt")
    with pytest.raises(StoreError, match="The state lacks seed"):
        verify_resume(str(tmp_path / "y.ckpt"), {})


def test_a_place_is_found_however_deep_it_lies():
    place = {"cursor": 0, "digest": "", "stores": []}
    deep: Any = place
    for i in range(20_000):
        deep = [None, deep] if i % 2 else {"a": 1, 2: deep}
    around: list[Any] = [deep]
    around.append(around)
    assert list(find_loader_states({"x": around, "y": deep})) == [place]
    assert list(find_loader_states([place, {"z": dict(place)}])) == [place, place]
