"""Zephon: rows of a Lance dataset, a `Pipeline` iterated by itself, with lanes that suit all numbers of ranks here."""

import zephon

from peers.laws import numbered, numbers
from peers.zephon_rows import opened, source, stacked, written

NAME, PACKAGE = "Zephon", "zephon"
# Its workers are threads; it recommends to do without a DataLoader.
WORKERS = (0,)
# It begins threads when it is imported.
FORKS, WRAPS = False, False
REMARKS = {
    "equal": "its length is that of its source, in samples of all ranks",
    "memory": "told in its documentation: a shuffle over all shards has all numbers in memory",
}

# What one or two or three ranks have an equal share of, and every global batch here is a multiple of LANES * MICRO.
LANES, MICRO = 6, 2
# As few windows to a chunk as a lane takes at a time: what fills no round of chunks comes to some ranks only.
CHUNK = MICRO


def store(folder, count, per_file):
    written(numbered(0, count), folder, per_file)


def open_run(folder, batch_size, *, workers, seed, rank, world_size, states):
    dataset = opened(folder)
    pipeline = zephon.Pipeline(source(dataset, seed, CHUNK)).batch(MICRO)
    pipeline.options(
        shutdown_mode="hard",
        world_size=world_size,
        global_rank=rank,
        canonical_replicas=LANES,
        # Ranks put their parts of a checkpoint together in a folder that all see.
        aggregate_dir=str(folder / f"checkpoints of {world_size}"),
    )
    # The windows of the epoch that all ranks have served.
    served = states[0]["served"] if states else 0
    if states:
        pipeline.restore(states[0]["pipeline"])
    rows = iter(pipeline)

    def epoch():
        nonlocal served
        # It goes from one pass to the next without a sign.
        while served + world_size * batch_size <= len(dataset):
            batch = []
            while len(batch) < batch_size:
                batch += numbers(stacked(next(rows)))
            served += world_size * batch_size
            yield batch
        served = 0

    def save():
        return {"served": served, "pipeline": pipeline.checkpoint()}

    return None, epoch, save
