"""LanceDB: a table of windows, `lancedb.streaming.StreamingDataset` in its `StreamingDataLoader`."""

import lancedb
import numpy as np
import pyarrow as pa
import torch
from lancedb.streaming import StreamingDataLoader, StreamingDataset

NAME = f"LanceDB StreamingDataset {lancedb.__version__}"


def store(tokens, folder, context_length):
    length = context_length + 1
    rows = pa.FixedSizeListArray.from_arrays(pa.array(tokens[: len(tokens) // length * length]), length)
    lancedb.connect(folder).create_table("windows", pa.table({"tokens": rows}))


def _windows(rows):
    """Give a tensor for each row; without a transform each would be a dict with a list of Python's integers."""
    column = rows.column("tokens")
    tokens = column.flatten().to_numpy().reshape(len(column), -1)
    return list(torch.from_numpy(tokens.astype(np.int64)))


def batches(folder, context_length, batch_size):
    table, number = lancedb.connect(folder).open_table("windows"), 0
    while True:
        dataset = StreamingDataset(table, shuffle_seed=0, epoch=number, read_batch_size=512, transform=_windows)
        for tokens in StreamingDataLoader(dataset, batch_size=batch_size, collate_fn=torch.stack):
            if len(tokens) == batch_size:
                yield tokens[:, :-1], tokens[:, 1:]
        number += 1
