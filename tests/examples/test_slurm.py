"""The script for Slurm, with stand-ins for Slurm's commands: what it starts, how it stops, and how it goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"

COMMANDS = {
    # Runs one task. Its process is the one that scancel finds.
    "srun": 'shift\necho "srun $*" >>"$LOG"\necho $$ >"$LOG.pid"\nexec "$@"',
    "scancel": 'echo "scancel $*" >>"$LOG"\nkill -TERM "$(cat "$LOG.pid")"',
    "scontrol": 'echo "scontrol $*" >>"$LOG"',
    # Trains until it is told to stop, or with a checkpoint to its end.
    "lightning-lance": """
case "$*" in *ckpt_path=last) echo resumed >>"$LOG"; exit 0;; *fails=1*) exit 3;; esac
stop() { mkdir -p runs/a/checkpoints; sleep 0.3; touch runs/a/checkpoints/last.ckpt; echo saved >>"$LOG"; exit 143; }
trap stop TERM
echo training >>"$LOG"
for _ in $(seq 600); do sleep 0.05; done
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job."""
    (tmp_path / "bin").mkdir()
    for name, code in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_CPUS_PER_TASK": "4",
    }


def test_a_job_saves_is_queued_again_and_goes_on(tmp_path: Path, slurm: dict[str, str]):
    log = tmp_path / "log"
    arguments = ["bash", str(SCRIPT), "data.corpus=a b.lance", "output_dir=runs/a"]
    job = subprocess.Popen(arguments, cwd=tmp_path, env=slurm)
    end = time.monotonic() + 60
    while "training" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < end
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    begun = "srun lightning-lance train trainer=ddp trainer.num_nodes=2 trainer.devices=8 data.corpus=a b.lance"
    begun += " output_dir=runs/a"
    assert log.read_text().splitlines() == [
        begun, "training", "scancel --signal=TERM 77.0", "saved", "scontrol requeue 77"
    ]  # fmt: skip
    log.unlink()
    assert subprocess.run(arguments, cwd=tmp_path, env=slurm, timeout=60, check=False).returncode == 0
    assert log.read_text().splitlines() == [f"{begun} ckpt_path=last", "resumed"]


def test_a_job_that_fails_is_not_queued_again(tmp_path: Path, slurm: dict[str, str]):
    failed = subprocess.run(["bash", str(SCRIPT), "fails=1"], cwd=tmp_path, env=slurm, timeout=60, check=False)
    assert failed.returncode == 3
    assert "scontrol" not in (tmp_path / "log").read_text()


def test_the_options_of_the_script_are_those_of_sbatch():
    lines = SCRIPT.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert "--signal=B:USR1@300" in options
    assert "--requeue" in options
    # sbatch reads none after the first command.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
