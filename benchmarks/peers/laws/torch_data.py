"""torchdata: a map-style dataset over a mapped file, `StatefulDistributedSampler`, `StatefulDataLoader`."""

import numpy as np
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from peers.laws import LENGTH, NotOfferedError, numbered, numbers

NAME, PACKAGE = "torchdata StatefulDataLoader", "torchdata"
WORKERS = (0, 1, 2, 3)
FORKS, WRAPS = True, False
REMARKS = {
    "topology": "documented: states are not aggregated across ranks",
    "shuffle": "the sampler adds seed and epoch, as that of torch does",
}


def store(folder, count, per_file):
    numbered(0, count).tofile(folder / "windows.bin")


class _Windows(torch.utils.data.Dataset):
    def __init__(self, file):
        self._windows = np.memmap(file, np.int32, "r").reshape(-1, LENGTH)

    def __len__(self):
        return len(self._windows)

    def __getitem__(self, index):
        return torch.from_numpy(np.array(self._windows[index]))


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    dataset = _Windows(folder / "windows.bin")
    sampler = StatefulDistributedSampler(dataset, world_size, rank, shuffle=True, seed=seed, drop_last=True)
    loader = StatefulDataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
    number = 0
    if states:
        if len(states) != world_size or states[rank]["workers"] != workers:
            raise NotOfferedError("a state is that of one rank, and of so many workers")
        number = states[rank]["epoch"]
        loader.load_state_dict(states[rank]["loader"])

    def epoch():
        nonlocal number
        # The trainer keeps the epoch: it is not in the state of the loader.
        sampler.set_epoch(number)
        number += 1
        yield from map(numbers, loader)

    def save():
        return {"epoch": number - 1, "workers": workers, "loader": loader.state_dict()}

    return len(loader), epoch, save
