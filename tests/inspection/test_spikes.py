import math
import os
from pathlib import Path

import pytest

from lightning_lance.errors import ConfigError
from lightning_lance.inspection import read_losses, read_step, steps_with_losses
from lightning_lance.inspection.spikes import DocumentLoss, StepLosses, write_step

STEP = StepLosses(7, 1, 3, 2.5, 1.25, True, [DocumentLoss(0, 0, 9, 20.5, 8), DocumentLoss(0, 9, 12, math.inf, 3)])


def test_what_is_written_is_read(tmp_path: Path):
    file = write_step(tmp_path, STEP)
    assert (file.parent.name, read_step(tmp_path, 7, 1)) == ("losses", STEP)
    assert read_losses(str(tmp_path), 7, rank=1) == STEP.documents
    # A run that goes on from an earlier checkpoint writes its steps again.
    again = StepLosses(7, 1, 3, math.nan, None, False, [DocumentLoss(0, 0, 12, math.nan, 11)])
    write_step(tmp_path, again)
    found = read_step(tmp_path, 7, 1)
    assert math.isnan(found.loss)
    assert math.isnan(found.documents[0].loss)
    assert found.median is None
    assert [*file.parent.iterdir()] == [file]
    # JSON of any reader: it has no NaN.
    assert "NaN" not in file.read_text()


def test_what_is_not_there_is_named(tmp_path: Path):
    assert steps_with_losses(tmp_path) == []
    with pytest.raises(ConfigError, match=r"There are no losses of documents in .*: expected the folder of a run"):
        read_losses(tmp_path, 7)
    file = write_step(tmp_path, STEP)
    assert steps_with_losses(tmp_path) == [(7, 1)]
    with pytest.raises(ConfigError, match="no losses of step 8 of rank 1: expected one of 7"):
        read_losses(tmp_path, 8, 1)
    with pytest.raises(ConfigError, match="no losses of rank 0: expected one of 1"):
        read_losses(tmp_path, 7)
    for damaged in ("", "{}\n", file.read_text().replace('"format": 1', '"format": 2'), '{"step": 1\n', "[1]\n"):
        file.write_text(damaged)
        with pytest.raises(ConfigError, match="damaged, or of another version"):
            read_losses(tmp_path, 7, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "3\n",
        "[]\n{}\n",
        '{"format": 1}\n',
        '{"format": 1, "step": 1e999, "rank": 0, "global_step": 0, "loss": 0, "median": null, "spike": 0}\n',
        '{"format": 1, "step": 7, "rank": 0, "global_step": 0, "loss": 0, "median": null, "spike": 0}\n{"window": []}\n',
        "\x00\n",
        "1" * 10_000 + "\n",
    ],
    ids=range(9),
)
def test_whatever_somebody_wrote_is_a_sentence(tmp_path: Path, text: str):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses/step-00000007-rank-0000.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="is damaged, or of another version of this package"):
        read_step(tmp_path, 7)


def test_a_pipe_is_not_waited_for_and_too_much_not_read(tmp_path: Path):
    (tmp_path / "losses").mkdir()
    file = tmp_path / "losses/step-00000007-rank-0000.jsonl"
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="There are no losses of documents in"):
        read_step(tmp_path, 7)
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(1 << 29)  # a hole
    with pytest.raises(ConfigError, match="more than 268,435,456 bytes"):
        read_step(tmp_path, 7)
