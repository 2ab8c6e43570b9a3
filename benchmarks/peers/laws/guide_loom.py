"""GuideLoom: shards of a stream of tokens, `StatefulDataLoader(shuffle=True)`, whose workers are threads."""

import numpy as np
import torch

from peers.guide_loom import guideloom, opened, written
from peers.laws import LENGTH, numbered, numbers

NAME, PACKAGE = "GuideLoom", "guideloom"
WORKERS = (0, 1, 2, 3)
# Compiled once for all runs of a rank.
FORKS, WRAPS = False, False
REMARKS = {}


def store(folder, count, per_file):
    windows = numbered(0, count)
    written(folder, [windows[low : low + per_file].reshape(-1) for low in range(0, count, per_file)])


def _stack(samples):
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    loader = guideloom.StatefulDataLoader.from_storage(
        opened(folder, np.int32),
        _stack,
        sequence_length=LENGTH,
        local_batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        num_workers=workers,
        shuffle=True,
        shuffle_seed=seed,
        prefetch=2 if workers else 0,
    )
    loader.open()
    if states:
        # The state is the same on all ranks.
        loader.load_state_dict(states[0])

    def epoch():
        yield from map(numbers, loader)

    return len(loader), epoch, loader.state_dict
