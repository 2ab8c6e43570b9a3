"""GuideLoom: shards of a stream of tokens, cut into windows on a fixed grid, by `StatefulDataLoader`. Needs Python 3.13."""

import guideloom
import numpy as np
import torch

NAME = f"GuideLoom {guideloom.__version__}"


def opened(folder, dtype):
    """Give the storage of a folder, read through a mapped file: the fastest of its three readers here."""
    tokens = guideloom.StreamNumpyFormat(np.dtype([("tokens", dtype)]))
    return guideloom.StreamStorage(folder, tokens, guideloom.io.MmapIO())


def written(folder, shards):
    """Write flat arrays of tokens, one to a shard."""
    with opened(folder, shards[0].dtype).sync_writer() as writer:
        for number, tokens in enumerate(shards):
            writer.append(number, {"tokens": tokens})


def store(tokens, folder, context_length):
    # Whole windows in each shard.
    shard = (1 << 25) // (context_length + 1) * (context_length + 1)
    written(folder, [tokens[low : low + shard] for low in range(0, len(tokens), shard)])


def _stack(samples):
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))


def batches(folder, context_length, batch_size):
    loader = guideloom.StatefulDataLoader.from_storage(
        opened(folder, np.uint16),
        _stack,
        sequence_length=context_length + 1,
        local_batch_size=batch_size,
        shuffle=True,
        shuffle_seed=0,
    )
    with loader:
        while True:
            for tokens in loader:
                yield tokens[:, :-1], tokens[:, 1:]
