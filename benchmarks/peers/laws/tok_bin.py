"""tokbin: its torch adapter `WindowDataset`, in a `DataLoader` with torch's `DistributedSampler`."""

from tokbin.adapters.torch import WindowDataset
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from peers.laws import LENGTH, NotOfferedError, numbered, numbers
from peers.tok_bin import opened, written

NAME, PACKAGE = "tokbin", "tokbin"
WORKERS = (0, 1, 2, 3)
FORKS, WRAPS = True, False
REMARKS = {
    "resume": "it gives windows by their numbers, and leaves order and place to the sampler",
    "shuffle": "the sampler of torch adds seed and epoch",
    "memory": "the sampler of torch has a list of all numbers",
}


def store(folder, count, per_file):
    written(numbered(0, count).reshape(-1), folder, count)


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    windows = WindowDataset(opened(folder), LENGTH)
    sampler = DistributedSampler(windows, world_size, rank, seed=seed, drop_last=True)
    loader = DataLoader(windows, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
    number = 0

    def epoch():
        nonlocal number
        sampler.set_epoch(number)
        number += 1
        yield from map(numbers, loader)

    def save():
        raise NotOfferedError("it has no state")

    return len(loader), epoch, save
