"""nanoGPT: one flat file of uint16, mapped anew for every batch; a window is one slice, a batch a stack of them."""

import numpy as np
import torch

NAME = "nanoGPT get_batch"


def store(tokens, folder, context_length):
    tokens.tofile(folder / "train.bin")


def batches(folder, context_length, batch_size):
    while True:
        data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - context_length, (batch_size,))
        x = [torch.from_numpy(data[i : i + context_length].astype(np.int64)) for i in starts]
        y = [torch.from_numpy(data[i + 1 : i + 1 + context_length].astype(np.int64)) for i in starts]
        yield torch.stack(x), torch.stack(y)
