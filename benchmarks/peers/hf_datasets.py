"""Hugging Face datasets: rows of a fixed length on disk, read by lists of row numbers in the torch format."""

import datasets
import numpy as np
import pyarrow as pa

NAME = "HF datasets, torch format"


def store(tokens, folder, context_length):
    length = context_length + 1
    rows = tokens[: len(tokens) // length * length]
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows), length)
    # save_to_disk would print a progress bar.
    datasets.disable_progress_bars()
    datasets.Dataset(pa.table({"tokens": column})).save_to_disk(folder)


def batches(folder, context_length, batch_size):
    rows = datasets.load_from_disk(folder).with_format("torch")
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(rows))
        for first in range(0, len(rows) - batch_size + 1, batch_size):
            tokens = rows[order[first : first + batch_size].tolist()]["tokens"]
            yield tokens[:, :-1], tokens[:, 1:]
