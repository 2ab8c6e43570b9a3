"""LanceDB: a table of windows, `lancedb.streaming.StreamingDataset` in its `StreamingDataLoader`."""

import multiprocessing

import lancedb
import pyarrow as pa
import torch
from lancedb.streaming import StreamingDataLoader, StreamingDataset

from peers.laws import LENGTH, NotOfferedError, numbered, numbers

NAME, PACKAGE = "LanceDB StreamingDataset", "lancedb"
WORKERS = (0, 1, 2, 3)
# Lance is documented as unsafe to fork.
FORKS, WRAPS = False, False
REMARKS = {"resume": "documented, and told by an error"}
# Of the imports of a worker, those that leave no threads behind.
multiprocessing.set_forkserver_preload(["torch", "numpy", "pyarrow"])

# To be divided by every number of ranks and of workers, and to divide the global batch.
SPLITS = 36


def store(folder, count, per_file):
    windows = pa.FixedSizeListArray.from_arrays(pa.array(numbered(0, count).reshape(-1)), LENGTH)
    lancedb.connect(folder).create_table("windows", pa.table({"tokens": windows}))


def _stack(samples):
    return torch.tensor([sample["tokens"] for sample in samples])


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    table = lancedb.connect(folder).open_table("windows")
    state = StreamingDataset.merge_state_dicts(states) if states else None
    # An epoch is a dataset of its own; the trainer knows which, and its state too.
    dataset, number = None, state["epoch"] if state else 0

    def begin():
        nonlocal dataset, number, state
        dataset = StreamingDataset(
            table, num_splits=SPLITS, shuffle_seed=seed, epoch=number, rank=rank, world_size=world_size
        )
        if state:
            dataset.load_state_dict(state)
        state, number = None, number + 1
        return StreamingDataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
            collate_fn=_stack,
        )

    def epoch():
        yield from map(numbers, begin())

    def save():
        try:
            return dataset.state_dict()
        except RuntimeError as error:
            if "complete logical step" not in str(error):
                raise
            raise NotOfferedError("with several workers it saves only where all splits are equally far") from None

    return None, epoch, save
