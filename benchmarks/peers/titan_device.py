"""A CPU in the place of the GPU that torchtitan looks for, and nothing where it calls what torch 2.13 does not have.

To be imported before torchtitan.
"""

import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "recipes"))
# Asked when torchtitan is imported.
torch._utils._get_available_device_type = lambda: "cpu"
torch.distributed.set_timeout = lambda timeout, group: None

ONE_RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}


class _Device(types.SimpleNamespace):
    """What torch knows of its CPUs, and what torchtitan asks a GPU for."""

    def __getattr__(self, name):
        return getattr(torch.cpu, name)


DEVICE = _Device(
    current_device=lambda: 0,
    empty_cache=lambda: None,
    get_device_name=lambda device: "cpu",
    get_device_properties=lambda device: types.SimpleNamespace(total_memory=1 << 34),
    memory_stats=lambda device: {},
    reset_peak_memory_stats=lambda: None,
    set_device=lambda device: None,
)
torch._utils._get_device_module = lambda kind: DEVICE
