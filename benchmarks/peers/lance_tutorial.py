"""The Lance documentation's guide to LLM training: one Lance row per token, one batch per document, one `take` per window.

It streams a dataset, filters it in Python, encodes one document at a time and yields one record batch of int64 ids for each;
its loader takes the rows of a window, turns them to a Python list, and that to a tensor.
"""

import lance
import numpy as np
import pyarrow as pa
import torch

NAME = "Lance tutorial's loader"

_SCHEMA = pa.schema([("input_ids", pa.int64())])


def store(tokens, folder, context_length):
    # In large batches, unlike the tutorial's own documents: pages then are large, and reads fewer.
    ids = tokens.astype(np.int64)
    lance.write_dataset(pa.table({"input_ids": ids}, schema=_SCHEMA), folder / "tokens.lance")


class _Windows(torch.utils.data.Dataset):
    def __init__(self, uri, length):
        self._rows, self._length = lance.dataset(uri), length
        self._count = self._rows.count_rows()

    def __len__(self):
        return self._count - self._length + 1

    def __getitem__(self, start):
        ids = self._rows.take(range(start, start + self._length)).to_pylist()
        return torch.tensor([row["input_ids"] for row in ids])


def batches(folder, context_length, batch_size):
    windows = _Windows(folder / "tokens.lance", context_length + 1)
    rng = np.random.default_rng(0)
    while True:
        starts = rng.permutation(np.arange(0, len(windows), context_length + 1)).tolist()
        for tokens in torch.utils.data.DataLoader(windows, batch_size, sampler=starts, drop_last=True):
            yield tokens[:, :-1], tokens[:, 1:]


def prepare(files, uri, tokenizer, keep):
    """Build: stream the parquet files, keep the rows that pass, encode one by one, write as they come."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True).filter(keep)

    def encoded():
        for row in rows:
            ids = tokenizer(row["content"])["input_ids"]
            yield pa.RecordBatch.from_arrays([pa.array(ids, pa.int64())], schema=_SCHEMA)

    lance.write_dataset(pa.RecordBatchReader.from_batches(_SCHEMA, encoded()), uri)
