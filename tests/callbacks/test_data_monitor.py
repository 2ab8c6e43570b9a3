"""Speeds by a clock of the test's own: only what takes time in a run moves it, so each figure is exact."""

import csv
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_lance.callbacks import DataMonitor
from lightning_lance.callbacks.peak_flops import known_peak_flops
from lightning_lance.errors import ConfigError
from lightning_lance.serving.batches import Collator
from tests.support.training import TokenRecorder, make_data, make_trainer

BATCH_TOKENS = 8 * 32


class Clock:
    """Seconds that pass where the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    make = Collator.batch

    def slow(self: Collator, *given: Any) -> Any:
        clock.seconds += 0.5
        return make(self, *given)

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(Collator, "batch", slow)
    return clock


class Slow(TokenRecorder):
    """A step takes 2 s, the first one of a fit 50 s more, a validation 100 s a batch, a checkpoint 1,000 s."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.seconds += 2 if self.losses["train"] else 52
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.clock.seconds += 100
        return super().validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.clock.seconds += 1000


def fit(
    folder: Path, model: Any, data: Any, monitor: DataMonitor, ckpt_path: Any = None, **given: Any
) -> list[dict[str, float]]:
    """Train, and return what was logged of the data, each with its step."""
    options = {"max_steps": 12, "log_every_n_steps": 4, "limit_val_batches": 2, "val_check_interval": 5, **given}
    callbacks = [monitor, *options.pop("callbacks", [])]
    trainer = make_trainer(folder, callbacks=callbacks, logger=CSVLogger(folder, version=""), **options)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    with (folder / "lightning_logs" / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("data/tokens_per_second")]
    return [
        {name: float(value) for name, value in row.items() if value and name.startswith(("data/", "step"))}
        for row in rows
    ]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_validation_and_checkpoints_are_not_timed_and_a_resumed_run_is_right_at_once(
    tmp_path: Path, stores: Path, clock: Clock
):
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=3, save_last=True)
    given = {"accumulate_grad_batches": 2, "max_epochs": -1, "enable_checkpointing": True, "callbacks": [checkpoints]}
    monitor = DataMonitor(flops_per_token=1e6, peak_flops=1e9)
    rows = fit(tmp_path, Slow(clock), make_data(stores), monitor, **given)
    speed = BATCH_TOKENS / 2.5
    # An epoch is of 187 windows: 23 batches of 8, of which the last alone is a step.
    batches = [8, 16, 23]
    expected = [
        {
            "step": step,
            "data/tokens_per_second": pytest.approx(speed),
            "data/waiting": pytest.approx(0.2),
            "data/mfu": pytest.approx(speed * 1e6 / 1e9),
            "data/epoch": pytest.approx(8 * done / 187),
            "data/epoch_tokens": done * BATCH_TOKENS,
            "data/windows": 8 * done,
        }
        for step, done in zip((3, 7, 11), batches, strict=True)
    ]
    assert rows == expected
    # Another process goes on: its first step is slow again.
    last = checkpoints.last_model_path
    again = fit(tmp_path / "b", Slow(clock), make_data(stores), DataMonitor(), last, **{**given, "max_steps": 16})
    assert [row["step"] for row in again] == [15]
    assert again[0]["data/tokens_per_second"] == pytest.approx(speed)
    assert again[0]["data/waiting"] == pytest.approx(0.2)
    # With the windows that fill no batch.
    assert again[0]["data/windows"] == 187 + 8 * 8
    # There is no peak of a CPU.
    assert "data/mfu" not in again[0]


class Asks(lightning.Callback):
    """Asks for the metrics as Prometheus does, after the last step."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answer = ""

    def on_train_end(self, *_: object) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            self.answer = answer.read().decode()


def test_prometheus(tmp_path: Path, stores: Path, unused_port: int):
    file = tmp_path / "textfiles" / "run.prom"
    asks = Asks(unused_port)
    monitor = DataMonitor(prometheus=file, port=unused_port)
    [row] = fit(
        tmp_path, TokenRecorder(), make_data(stores, mix={"Python": 1.0}), monitor, max_steps=4, callbacks=[asks]
    )
    assert file.read_text() == asks.answer
    values = dict(line.rsplit(" ", 1) for line in asks.answer.splitlines() if not line.startswith("#"))
    assert float(values["lightning_lance_windows"]) == 32
    assert float(values["lightning_lance_step"]) == 4
    assert float(values['lightning_lance_component_windows{component="Python"}']) == 32
    assert float(values["lightning_lance_tokens_per_second"]) == pytest.approx(row["data/tokens_per_second"])
    # The port is free again.
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics", timeout=20)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_a_port_that_is_taken_and_a_file_that_cannot_be_written_end_no_run(
    tmp_path: Path, stores: Path, caplog: pytest.LogCaptureFixture
):
    import socket

    (tmp_path / "a").write_text("")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        monitor = DataMonitor(prometheus=tmp_path / "a" / "run.prom", port=taken.getsockname()[1])
        assert fit(tmp_path, TokenRecorder(), make_data(stores), monitor, max_steps=8)
    assert caplog.text.count("and the run goes on without") == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"flops_per_token": 0}, "flops_per_token is 0: expected a number above 0"),
        ({"peak_flops": "1e12"}, "peak_flops is '1e12': expected a number"),
        ({"peak_flops": float("inf")}, "peak_flops is inf: expected a number above 0"),
        ({"port": 70_000}, "port is 70000: expected a port, 1 to 65535"),
        ({"port": True}, "port is True: expected a whole number"),
        ({"prometheus": "run.txt"}, r"prometheus is 'run.txt': expected a file named \*.prom"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(given: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        DataMonitor(**given)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    DataMonitor()
    with pytest.raises(ConfigError, match="not installed: pip install 'lightning-lance\\[monitor\\]'"):
        DataMonitor(port=9100)


def test_parameters_that_are_not_trained_cost_nothing(tmp_path: Path, stores: Path, clock: Clock):
    model = Slow(clock)
    model.frozen = torch.nn.Linear(10, 10).requires_grad_(False)
    [row] = fit(tmp_path, model, make_data(stores), DataMonitor(peak_flops=1e9), max_steps=4)
    assert row["data/mfu"] == pytest.approx(BATCH_TOKENS / 2.5 * 6 * 257**2 / 1e9)


@pytest.mark.parametrize(
    ("gpu", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_known_gpus(gpu: str, tflops: float | None):
    assert known_peak_flops(gpu) == (None if tflops is None else tflops * 1e12)
