"""`DataMonitor`: how fast a run trains, what it waits for, and how far in the data it is."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from lightning_lance.callbacks.peak_flops import known_peak_flops
from lightning_lance.callbacks.prometheus import PrometheusMetrics, check_prometheus_client
from lightning_lance.callbacks.served import train_loader
from lightning_lance.datamodule import LanceDataModule
from lightning_lance.errors import ConfigError, described
from lightning_lance.location import check_place
from lightning_lance.serving.loader import WindowLoader
from lightning_lance.type_hints import check_arguments

_PORTS = 1 << 16


class _Clock:
    """Time that a run trains, without its pauses.

    Args:
        device: What it trains on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loader: WindowLoader | None = None
        self._waited_before = 0.0  # for loaders before this one
        self._paused: tuple[float, float] | None = None
        self.begin()

    def begin(self) -> None:
        """Begin an interval."""
        self._since = self._now()
        self._waited_since = self._waited()
        self._paused = None

    def follow(self, loader: WindowLoader | None) -> None:
        """Count the waiting for a loader, which may be another one in each epoch."""
        if loader is self._loader:
            return
        if self._loader is not None:
            self._waited_before += self._loader.waited
        elif loader is not None:
            # Of an earlier fit, and of the batch before the clock.
            self._waited_before -= loader.waited
        self._loader = loader

    def pause(self) -> None:
        """Stop, unless it has stopped."""
        if self._paused is None:
            self._paused = self._now(), self._waited()

    def go_on(self) -> None:
        """Go on after a pause. Waiting for the first batch after it is no part of the pause."""
        if self._paused is not None:
            stopped, waited = self._paused
            self._since += time.perf_counter() - stopped - (self._waited() - waited)
            self._paused = None

    def read(self) -> tuple[float, float]:
        """Return the seconds of the interval, and those of them spent waiting for data."""
        return self._now() - self._since, self._waited() - self._waited_since

    def _waited(self) -> float:
        return self._waited_before + (0.0 if self._loader is None else self._loader.waited)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class DataMonitor(Callback):
    """Logs the speed of a run, and where in the data it is, at the steps at which Lightning logs.

    | metric | |
    |---|---|
    | `data/tokens_per_second` | of all ranks, without the time of validation and of saving checkpoints |
    | `data/waiting` | share of the time in which the training loop waited for a batch of its loader |
    | `data/mfu` | share of the devices' peak FLOP/s that the model uses; only where the peak is known or given |
    | `data/epoch`, `data/epoch_tokens` | epochs so far, such as 1.25, and tokens of this epoch so far |
    | `data/windows` | windows so far, of all ranks |

    Of each component of a mixture, the datamodule logs windows and epochs. The clock stops for validation and for checkpoints
    with optimizer states; it waits for the device once per interval. The first batch of a fit, which compiles and warms up, is
    not timed.

    Args:
        flops_per_token: FLOPs to train on a token; None takes `flops_per_token` of the model if it has one, and otherwise 6
            for each parameter.
        peak_flops: FLOP/s of a device; None takes the bfloat16 figure of a known GPU.
        prometheus: A file named `*.prom` for the textfile collector of node_exporter, rewritten at each log.
        port: Port on which rank 0 serves the metrics to Prometheus.

    Raises:
        ConfigError: If an argument cannot be used, or prometheus_client is needed and missing.
    """

    def __init__(
        self,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        prometheus: str | os.PathLike[str] | None = None,
        port: int | None = None,
    ) -> None:
        numbers = {"flops_per_token": flops_per_token, "peak_flops": peak_flops}
        check_arguments(DataMonitor, {**numbers, "port": port})
        for name, value in numbers.items():
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {described(value)}: expected a number above 0, such as 1e9.")
        if port is not None and not 0 < port < _PORTS:
            raise ConfigError(f"port is {described(port)}: expected a port, 1 to {_PORTS - 1}.")
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.prometheus = None if prometheus is None else _textfile(prometheus)
        self.port = None if port is None else int(port)
        if self.prometheus is not None or self.port is not None:
            check_prometheus_client()
        self._clock: _Clock | None = None
        self._tokens = 0  # of this rank, in this interval
        self._global_step = 0  # before this batch
        self._flops: float | None = None  # for a token
        self._peak: float | None = None
        self._gauges: PrometheusMetrics | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out what a token costs, and begin without the clock of an earlier fit."""
        self._clock = None
        self._flops = self.flops_per_token or _flops_of(pl_module) or 6.0 * _parameters(trainer, pl_module)
        gpu = torch.cuda.get_device_name(pl_module.device) if pl_module.device.type == "cuda" else ""
        self._peak = self.peak_flops or known_peak_flops(gpu)
        wanted = self.prometheus is not None or self.port is not None
        if wanted and trainer.is_global_zero and self._gauges is None:
            self._gauges = PrometheusMetrics(self.prometheus, self.port)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the clock go on."""
        self._global_step = trainer.global_step
        if self._clock is not None:
            self._clock.follow(train_loader(trainer))
            self._clock.go_on()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens, and log."""
        if not trainer.is_global_zero:
            return
        if self._clock is None:
            self._clock = _Clock(pl_module.device)
            self._clock.follow(train_loader(trainer))
            self._begin()
            return
        self._tokens += _tokens_of(batch)
        every: int = getattr(trainer, "log_every_n_steps", 0)
        stepped = trainer.global_step > self._global_step
        if stepped and every > 0 and trainer.global_step % every == 0:
            self._log(trainer)
            self._begin()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if self._clock is not None:
            self._clock.pause()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop the clock."""
        if self._clock is not None:
            self._clock.pause()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the port."""
        self._clock = None
        if self._gauges is not None:
            self._gauges.close()
            self._gauges = None

    def _begin(self) -> None:
        self._tokens = 0
        if self._clock is not None:
            self._clock.begin()

    def _log(self, trainer: Trainer) -> None:
        if self._clock is None:
            return
        seconds, waited = self._clock.read()
        ranks = (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"]
        speed = self._tokens * ranks / max(seconds, 1e-9)
        metrics = {"tokens_per_second": speed, "waiting": min(1.0, waited / max(seconds, 1e-9))}
        if self._peak is not None and self._flops is not None:
            metrics["mfu"] = speed * self._flops / (self._peak * trainer.world_size)
        loader = train_loader(trainer)
        components: dict[str, dict[str, float]] = {}
        if loader is not None:
            components = loader.components()
            # Without a mixture, the only component has no name.
            components.pop("", None)
            metrics["epoch"] = loader.epoch
            metrics["epoch_tokens"] = float(loader.epoch_tokens)
            metrics["windows"] = loader.num_consumed
        logged = {f"data/{name}": value for name, value in metrics.items()}
        if not isinstance(getattr(trainer, "datamodule", None), LanceDataModule):
            # A LanceDataModule logs these itself.
            for name, part in components.items():
                for what, value in part.items():
                    logged[f"data/{name}/{what}"] = value
        for metrics_logger in trainer.loggers:
            metrics_logger.log_metrics(logged, step=trainer.global_step - 1)
        if self._gauges is not None:
            self._gauges.update({**metrics, "step": trainer.global_step}, components)


def _textfile(place: str | os.PathLike[str]) -> str:
    file = check_place("prometheus", place, "metrics.prom")
    if not file.endswith(".prom"):
        raise ConfigError(
            f"prometheus is {described(file)}: expected a file named *.prom, the only ones that node_exporter reads."
        )
    return file


def _tokens_of(batch: Any) -> int:
    """Return the tokens that a model is given in a batch."""
    try:
        tokens = batch["input_ids"]
    except (KeyError, IndexError, TypeError):
        return 0
    if isinstance(tokens, Tensor):
        return tokens.numel()
    return 0


def _flops_of(pl_module: LightningModule) -> float | None:
    """Return what a model says that it costs to train on a token."""
    flops = getattr(pl_module, "flops_per_token", None)
    if isinstance(flops, (int, float)) and flops > 0:
        return float(flops)
    return None


def _parameters(trainer: Trainer, pl_module: LightningModule) -> float:
    """Return the number of parameters that are trained, wherever they are."""
    mine = sum(weight.numel() for weight in pl_module.parameters() if weight.requires_grad)
    if not isinstance(trainer.strategy, FSDPStrategy):
        return float(mine)
    # Each rank holds a part of them.
    everyone = trainer.strategy.reduce(torch.tensor(float(mine), device=pl_module.device), reduce_op="sum")
    return float(everyone)
