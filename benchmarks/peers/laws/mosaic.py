"""MosaicML Streaming: MDS shards, `StreamingDataset(shuffle=True)` in its `StreamingDataLoader`."""

import numpy as np
import torch

from peers.laws import LENGTH, numbered, numbers
from peers.mosaic import streaming

NAME, PACKAGE = "MosaicML Streaming", "mosaicml-streaming"
WORKERS = (0, 1, 2, 3)
FORKS, WRAPS = True, True
REMARKS = {"once": "documented, so that all ranks have equally many"}


def store(folder, count, per_file):
    columns = {"tokens": f"ndarray:int32:{LENGTH}"}
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=per_file * (4 * LENGTH + 4)) as writer:
        for window in numbered(0, count):
            writer.write({"tokens": window})


def _stack(samples):
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    # Rank and world size come from the environment.
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=seed, batch_size=batch_size)
    loader = streaming.StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=workers, collate_fn=_stack, drop_last=True
    )
    if states:
        loader.load_state_dict(states[0])

    def epoch():
        yield from map(numbers, loader)

    return len(loader), epoch, loader.state_dict
