"""Each recipe runs as it stands, in a folder of its own, and trains."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_lance import Corpus, TokenStore
from lightning_lance.sources import FilesSource
from lightning_lance.tokenization import ByteTokenizer
from tests.support.paths import ROOT
from tests.support.warm import TRAINING, run_ranks, server

RECIPES = ROOT / "examples" / "recipes"


def run(name: str, folder: Path, *arguments: str) -> str:
    """Run a recipe in a folder, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(RECIPES), str(folder)])}
    done = server(TRAINING).run(
        RECIPES / name, *arguments, folder=folder, environment=environment, warnings=["ignore"], timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["own_module.py", "transformers_model.py"])
def test_a_module_of_ones_own(name: str, tmp_path: Path):
    assert "`Trainer.fit` stopped: `max_steps=20` reached" in run(name, tmp_path)


def test_the_trainer_of_transformers(tmp_path: Path):
    pytest.importorskip("accelerate")
    assert "train_loss" in run("transformers_trainer.py", tmp_path)


def test_a_loop_of_ones_own_goes_on(tmp_path: Path):
    first, second = run("plain_torch.py", tmp_path), run("plain_torch.py", tmp_path)
    assert "the last step was trained on" in first
    assert first != second


def test_a_loop_on_several_processes_goes_on_with_another_number(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    script = f"import os; os.chdir({str(tmp_path)!r})\n" + (RECIPES / "torch_ddp.py").read_text(encoding="utf-8")
    assert run_ranks(script, 2, timeout=250) == [0, 0]
    assert "320 windows, loss" in capfd.readouterr().out
    assert run_ranks(script, 1, timeout=250) == [0]
    assert "480 windows, loss" in capfd.readouterr().out


def test_fabric_goes_on_with_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "step 20, loss" in run("fabric.py", tmp_path, "1")
    (tmp_path / "last.ckpt").unlink()
    monkeypatch.chdir(tmp_path)
    script = f"import os; os.chdir({str(tmp_path)!r})\n" + (RECIPES / "fabric.py").read_text(encoding="utf-8")
    assert run_ranks(script, 2, "2", timeout=250) == [0, 0]
    assert (tmp_path / "last.ckpt").exists()


def test_lightning_cli_links_the_vocabulary(tmp_path: Path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "text.py").write_text("def f(x):\n    return x\n" * 400)
    Corpus(FilesSource(["*.py"], root=str(tmp_path)), ByteTokenizer(), tmp_path / "x.lance", val_fraction=0.0).prepare()
    arguments = [
        "fit",
        "--data.corpus=x.lance",
        "--data.context_length=16",
        "--data.batch_size=2",
        "--trainer.max_steps=3",
    ]
    arguments += ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.limit_val_batches=0"]
    assert "`Trainer.fit` stopped: `max_steps=3` reached" in run("lightning_cli.py", tmp_path, *arguments)


def test_a_hydra_project_of_ones_own(tmp_path: Path):
    shutil.copytree(RECIPES / "hydra_project", tmp_path, dirs_exist_ok=True)
    shutil.copy(RECIPES / "own_module.py", tmp_path / "model.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    overrides = ["context_length=32", "trainer.max_steps=3", "trainer.val_check_interval=3"]
    done = server(TRAINING).run(
        tmp_path / "train.py", *overrides, folder=tmp_path, environment=environment, warnings=["ignore"], timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "`Trainer.fit` stopped: `max_steps=3` reached" in done.stdout + done.stderr


def test_corpora_of_ones_own_files(tmp_path: Path):
    (tmp_path / "corpus").mkdir()
    texts = [f"text {i} " * 30 for i in range(40)]
    pq.write_table(pa.table({"content": texts, "lang": ["A", "B"] * 20}), tmp_path / "corpus" / "x.parquet")
    (tmp_path / "corpus" / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    printed = run("own_corpora.py", tmp_path)
    assert sum("text 0 text 0" in line for line in printed.splitlines()) == 2
    stores = [TokenStore.open(store) for store in (tmp_path / "data").glob("*.lance")]
    languages = sorted(sorted({stream.language for stream in store.streams()}) for store in stores)
    assert languages == [[""], ["A", "B"]]


def test_accelerate_goes_on(tmp_path: Path):
    pytest.importorskip("accelerate")
    assert "steps 0 to 19, loss " in run("with_accelerate.py", tmp_path)
    assert "steps 20 to 39, loss " in run("with_accelerate.py", tmp_path)


def test_torchdata_goes_on_with_its_own_state(tmp_path: Path):
    pytest.importorskip("torchdata")
    batches = []
    for _ in range(2):
        printed = run("stateful_dataloader.py", tmp_path).splitlines()
        batches.append(dict(line.split(" ", 1) for line in printed if line[0].isdigit()))
    first, second = batches
    assert [*first] == ["0", "1", "2", "3", "4"]
    assert [*second] == ["5", "6", "7", "8", "9"]
    assert not {*first.values()} & {*second.values()}
