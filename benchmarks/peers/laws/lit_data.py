"""LitData: token chunks by `optimize`, `StreamingDataset(shuffle=True, drop_last=True)` in a `StreamingDataLoader`."""

import litdata
import torch

from peers.laws import LENGTH, numbered, numbers

NAME, PACKAGE = "LitData", "litdata"
WORKERS = (0, 1, 2, 3)
FORKS, WRAPS = True, False
REMARKS = {
    "topology": "it is where a rank has served more of the epoch than falls to one of the new ranks",
    "batch": "documented are other ranks and workers, and a constant global batch for a matching loss",
    "shuffle": "it shuffles chunks, and windows within each; 64 MB chunks make four of these windows, and a thousand "
    "would leave less of a trace",
}


def _windows(piece):
    yield torch.from_numpy(numbered(*piece).reshape(-1))


def store(folder, count, per_file):
    litdata.optimize(
        fn=_windows,
        inputs=[(low, min(low + per_file, count)) for low in range(0, count, per_file)],
        output_dir=str(folder),
        chunk_size=per_file * LENGTH,
        item_loader=litdata.TokensLoader(),
        num_workers=1,
        keep_data_ordered=True,
        verbose=False,
    )


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    dataset = litdata.StreamingDataset(
        str(folder), item_loader=litdata.TokensLoader(block_size=LENGTH), shuffle=True, drop_last=True, seed=seed
    )
    loader = litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers)
    if states:
        loader.load_state_dict(states[rank] if len(states) == world_size else states[0])

    def epoch():
        yield from map(numbers, loader)

    return len(loader), epoch, loader.state_dict
