"""The limit: one vectorised gather of windows of a mapped flat file, with the cast to int64, and nothing around it."""

import numpy as np
import torch

NAME = "the limit (bare gather)"


def store(tokens, folder, context_length):
    tokens.tofile(folder / "tokens.bin")


def batches(folder, context_length, batch_size):
    tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")
    windows = np.lib.stride_tricks.sliding_window_view(tokens, context_length + 1)
    rng = np.random.default_rng(0)
    while True:
        for starts in rng.integers(len(windows), size=(1024, batch_size)):
            both = torch.from_numpy(windows[starts].astype(np.int64))
            yield both[:, :-1], both[:, 1:]
