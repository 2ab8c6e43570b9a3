"""The configuration, composed once: Hydra has found its plugins then, and its parser has its tables.

Hydra reads YAML in C, and does not compose each configuration once more to ask it whether it is a sweep: that would be most of
the work of a short command.
"""

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[assignment, misc]
Hydra.get_mode = lambda *asked, **named: None  # type: ignore[method-assign]
with initialize_config_module("lightning_lance.conf", version_base="1.3"):
    _config = compose("config", overrides=["context_length=32", "languages=[Python]", "output_dir=out", "+x={a: b}"])
OmegaConf.to_container(_config.data, resolve=True)
# Nothing of it stays.
assert not GlobalHydra.instance().is_initialized()
