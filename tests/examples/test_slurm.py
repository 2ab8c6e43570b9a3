"""The scripts for Slurm, with stand-ins for its commands: what they start, how training stops, and how it goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from tests.support.paths import ROOT

SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"
BUILD = ROOT / "examples" / "slurm" / "build.sbatch"

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


def composed(overrides: list[str]) -> DictConfig:
    """Return the configuration of a command."""
    with initialize_config_module("lightning_lance.conf", version_base="1.3"):
        return compose("config", overrides=overrides)


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


def test_a_build_starts_ray_on_all_nodes_and_the_command_on_the_first(tmp_path: Path, slurm: dict[str, str]):
    commands = {
        "srun": 'shift\nexec "$@"',
        "scontrol": "printf '%s\\n' node-1 node-2 node-3 node-4",
        "ray": 'while [ "$1" != -- ]; do printf \'ray %s\\n\' "$1" >>"$LOG"; shift; done\nshift\nexec "$@"',
        "lightning-lance": 'printf \'%s\\n\' "$@" >>"$LOG"',
    }
    for name, code in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm["SLURM_JOB_NODELIST"] = "node-[1-4]"
    subprocess.run(["bash", str(BUILD)], cwd=tmp_path, env=slurm, timeout=60, check=True)
    said = (tmp_path / "log").read_text().splitlines()
    ray = [line.removeprefix("ray ") for line in said if line.startswith("ray ")]
    assert ray == ["symmetric-run", "--address", "node-1:6379", "--min-nodes", "2", "--num-cpus", "4"]
    command = said[len(ray) :]
    assert command[0] == "prepare"
    assert {"languages=[Python]", "engine=ray", "engine.address=auto"} < {*command}
    config = composed(command[1:])
    assert (config.engine.name, config.corpus.uri) == ("ray", "/shared/code.lance")


@pytest.mark.parametrize("script", [SCRIPT, BUILD])
def test_the_options_of_a_script_are_those_of_sbatch(script: Path):
    lines = script.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert ("--signal=B:USR1@300" in options) == (script == SCRIPT)
    assert "--requeue" in options
    # sbatch reads none after the first command.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
