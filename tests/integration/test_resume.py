"""A run that is interrupted, however, and continued, is the run that was not: the same batches, the same weights."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import data_of
from tests.support.paths import ROOT
from tests.support.stores import ListSource, documents
from tests.support.training import SOURCE as PYTHON
from tests.support.training import Recorder, make_trainer
from tests.support.warm import TRAINING, run_ranks, server

RUST = documents(*[f"fn main() {{ {i} }}\n" * 9 for i in range(12)], language="Rust")
SOURCE = ListSource((*PYTHON.documents, *RUST))

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def fit(folder: Path, data: dict[str, Any], callbacks: Any = (), ckpt_path: Any = None, **options: Any) -> Recorder:
    model = Recorder(counts_steps=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.embedding.weight)
    arguments = {"context_length": 32, "batch_size": 6, "val_fraction": 0.1, "data_dir": str(folder / "data"), **data}
    fixed = {"callbacks": [*callbacks], "enable_checkpointing": bool(callbacks), "num_sanity_val_steps": 0}
    trainer = make_trainer(folder, **{**fixed, **options})
    trainer.fit(model, datamodule=data_of(SOURCE, ByteTokenizer(), **arguments), ckpt_path=ckpt_path)
    return model


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "accumulating": ({}, {"accumulate_grad_batches": 3}),
    "short epochs": ({}, {"limit_train_batches": 4}),
    "validating within epochs": ({}, {"val_check_interval": 2, "limit_val_batches": 1}),
    "validating by steps": ({}, {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1}),
    "wrapping": ({"remainder": "wrap"}, {}),
    "drawing": ({"order": "random"}, {}),
    "in blocks": ({"shuffle_block": 8}, {}),
    "mixing": ({"mix": {"Python": 0.4, "Rust": 0.6}}, {}),
    "selecting": ({"where": {"language": ["Rust"]}, "order": "sequential", "batch_size": 3}, {}),
    "loading anew": ({"extend": "next_epoch"}, {"reload_dataloaders_every_n_epochs": 1}),
}
# Enough for more than one epoch of each.
STEPS = 21


@pytest.mark.parametrize("run", RUNS)
def test_three_resumes_change_nothing(tmp_path: Path, run: str):
    data, options = RUNS[run]
    whole = fit(tmp_path, data, max_steps=STEPS, **options)
    seen, checkpoint = [], None
    for step in (4, 11, 17, STEPS):
        save = ModelCheckpoint(tmp_path / str(step), filename="x", every_n_train_steps=step)
        part = fit(tmp_path, data, [save], checkpoint, max_steps=step, **options)
        seen += part.seen["train"]
        checkpoint = tmp_path / str(step) / "x.ckpt"
        torch.load(checkpoint, weights_only=True)
    assert seen == whole.seen["train"]
    assert torch.equal(part.embedding.weight, whole.embedding.weight)


def test_a_checkpoint_of_the_end_of_a_validation_is_exact(tmp_path: Path):
    options = {"val_check_interval": 3, "limit_val_batches": 1, "max_steps": 14}
    whole = fit(tmp_path, {}, **options)
    save = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_on_train_epoch_end=False, save_top_k=-1)
    fit(tmp_path, {}, [save], **options)
    steps = sorted(int(file.stem.removeprefix("step=")) for file in (tmp_path / "saved").iterdir())
    assert len(steps) > 2
    for step in steps[:-1]:
        resumed = fit(tmp_path, {}, ckpt_path=tmp_path / "saved" / f"step={step}.ckpt", **options)
        assert resumed.seen["train"] == whole.seen["train"][step:]
        assert torch.equal(resumed.embedding.weight, whole.embedding.weight)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_another_batch_size_goes_on_with_the_next_window(tmp_path: Path, batch_size: int):
    whole = fit(tmp_path, {}, max_steps=9)
    windows = [window for batch in whole.seen["train"] for window in batch]
    save = ModelCheckpoint(tmp_path / "saved", filename="x", every_n_train_steps=3)
    fit(tmp_path, {}, [save], max_steps=3)
    resumed = fit(tmp_path, {"batch_size": batch_size}, ckpt_path=tmp_path / "saved" / "x.ckpt", max_steps=6)
    served = [window for batch in resumed.seen["train"] for window in batch]
    assert served == windows[18:][: len(served)]
    assert len(served) == 3 * batch_size


class Killed(lightning.Callback):
    """A scheduler that takes the machine back during a step."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_between_two_steps(tmp_path: Path):
    whole = fit(tmp_path, {}, max_steps=9)
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from tests.integration.test_resume import *
from lightning_lance.callbacks import SaveOnTermination
fit(Path({str(tmp_path)!r}), {{}}, [Killed(), SaveOnTermination({str(tmp_path)!r})], max_steps=9)
print("not stopped")
"""
    stopped = server(TRAINING).run(script, timeout=200)
    assert "not stopped" not in stopped.stdout
    resumed = fit(tmp_path, {}, ckpt_path=tmp_path / "last.ckpt", max_steps=9)
    assert resumed.seen["train"] == whole.seen["train"][6:]
    assert torch.equal(resumed.embedding.weight, whole.embedding.weight)


RANKS = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from tests.integration.test_resume import *
folder, devices, batch_size, steps, checkpoint = Path(sys.argv[2]), *map(int, sys.argv[3:6]), sys.argv[6] or None
save = ModelCheckpoint(folder / str(devices), filename="x", every_n_train_steps=steps)
options = {"devices": devices, "strategy": "ddp", "max_steps": steps, "limit_val_batches": 0}
model = fit(folder, {"batch_size": batch_size}, [save], checkpoint, **options)
(folder / f"{devices}-{model.global_rank}.json").write_text(json.dumps(model.seen["train"]))
"""


def test_one_two_and_three_ranks_go_on_from_each_other(tmp_path: Path):
    """Real processes; the global batch stays, and with it every window's place."""
    whole = fit(tmp_path, {"batch_size": 6}, max_steps=9, limit_val_batches=0)
    save = ModelCheckpoint(tmp_path / "1", filename="x", every_n_train_steps=3)
    seen = fit(tmp_path, {"batch_size": 6}, [save], max_steps=3, limit_val_batches=0).seen["train"]
    for devices, steps in [(2, 6), (3, 9)]:
        checkpoint = tmp_path / str(devices - 1) / "x.ckpt"
        arguments = [ROOT, tmp_path, devices, 6 // devices, steps, checkpoint]
        assert run_ranks(RANKS, devices, *arguments, timeout=200) == [0] * devices
        ranks = [json.loads((tmp_path / f"{devices}-{rank}.json").read_text()) for rank in range(devices)]
        seen += [[window for part in step for window in part] for step in zip(*ranks, strict=True)]
    assert seen == whole.seen["train"]
