"""Zephon: rows of whole windows in a Lance dataset, one of the formats that it reads; a `Pipeline` iterated by itself.

Its lanes own the chunks that its source deals out. One is enough for one process.
"""

import lance
import numpy as np
import pyarrow as pa
import torch
import zephon
from zephon.io import Dataset
from zephon.work import StaticMixtureWorkSource

NAME = f"Zephon {zephon.__version__}"


def written(windows, folder, per_file):
    """Write windows, (n, length), as rows, so many to a file, which is a shard."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(windows.reshape(-1)), windows.shape[1])
    lance.write_dataset(pa.table({"tokens": column}), folder / "windows.lance", max_rows_per_file=per_file)


def opened(folder):
    return Dataset.from_path("windows", str(folder / "windows.lance"))


def source(dataset, seed, chunk_size):
    """Give the windows in one random order over all shards, each once, then in another."""
    return StaticMixtureWorkSource(
        [dataset],
        {"windows": 1.0},
        chunk_size=chunk_size,
        seed=seed,
        shuffle_within_shard=True,
        shuffle_block_size="global",
        exhausted_policy="repeat",
    )


def stacked(batch):
    return torch.from_numpy(np.stack([record.payload["tokens"] for record in batch.records]))


def store(tokens, folder, context_length):
    length = context_length + 1
    written(tokens[: len(tokens) // length * length].reshape(-1, length), folder, 1 << 14)


def batches(folder, context_length, batch_size):
    work = source(opened(folder), 0, 64 * batch_size)
    pipeline = zephon.Pipeline(work).fetch(parallelism=2, max_batch=batch_size).batch(batch_size)
    # No worker processes, as for all; it has threads.
    pipeline = pipeline.options(shutdown_mode="hard", auto_validation="off")
    for batch in pipeline:
        tokens = stacked(batch).long()
        yield tokens[:, :-1], tokens[:, 1:]
