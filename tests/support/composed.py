"""The configuration, composed once, for warm servers: Hydra has found its plugins then, and its parser has its tables."""

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

with initialize_config_module("lightning_lance.conf", version_base="1.3"):
    _config = compose("config", overrides=["context_length=32", "languages=[Python]", "output_dir=out", "+x={a: b}"])
OmegaConf.to_container(_config.data, resolve=True)
# Nothing of it stays.
assert not GlobalHydra.instance().is_initialized()
