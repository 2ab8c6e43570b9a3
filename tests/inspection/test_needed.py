"""What is said before a store is removed that runs would miss."""

import io
import sys
from pathlib import Path

import pytest

from tests.support.commands import Run
from tests.support.training import Recorder, make_data, make_trainer


def test_a_removal_says_which_runs_would_miss_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    data = make_data(tmp_path, uri=str(tmp_path / "x.lance"))
    data.prepare_data()
    code, _, err = run("remove", "x.lance")
    assert (code, "checkpoints" in err) == (1, False)
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(Recorder(), datamodule=data)
    trainer.save_checkpoint("outputs/a/checkpoints/last.ckpt")
    Path("outputs/checkpoints").mkdir()
    Path("outputs/checkpoints/last.ckpt").write_text("nothing of ours")
    del data, trainer
    code, out, err = run("remove", "x.lance")
    assert (code, out) == (1, "")
    said, refused = err.splitlines()
    assert said == (
        "x.lance: runs were trained on it; their checkpoints, such as outputs/a/checkpoints/last.ckpt, do not go on without it."
    )
    assert refused.startswith("error: x.lance (40 documents, ")
    # Elsewhere, it is known that there were runs, and not whether they have checkpoints.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, _, err = run("remove", tmp_path / "x.lance")
    assert "runs were trained on it; checkpoints that they may have do not go on without it." in err
