"""The record of a run, `.hydra/` in its folder: written when the run begins, so that a refused one leaves the earlier one."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, flag_override

from lightning_lance.process.files import write_atomic


class RunRecord:
    """What Hydra would write into the folder of a run before anything is checked."""

    def __init__(self) -> None:
        self._subdir: str | None = None
        self._config: DictConfig | None = None

    def hold_back(self, composed: DictConfig) -> None:
        """Keep Hydra from writing, as soon as a configuration is composed."""
        if "hydra" not in composed:
            return
        self._subdir = composed.hydra.output_subdir
        with flag_override(composed, ["readonly", "struct"], [False, False]):
            composed.hydra.output_subdir = None

    def keep(self, config: DictConfig) -> None:
        """Take the configuration of the task, from before its secrets are put into it."""
        self._config = deepcopy(config)

    def write(self) -> None:
        """Write the record. Does nothing where it is not wanted (`hydra.output_subdir=null`), or Hydra does not run."""
        if self._subdir is None or self._config is None or not HydraConfig.initialized():
            return
        hydra = deepcopy(HydraConfig.get())
        with flag_override(hydra, ["readonly", "struct"], [False, False]):
            hydra.output_subdir = self._subdir
        folder = Path(hydra.runtime.output_dir, self._subdir)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {
            "config": self._config,
            "hydra": OmegaConf.create({"hydra": hydra}),
            "overrides": hydra.overrides.task,
        }
        for name, part in parts.items():
            write_atomic(folder / f"{name}.yaml", OmegaConf.to_yaml(part))


#: Of the run in this process.
RECORD = RunRecord()
