"""LitData: chunks of tokens without headers, written by `optimize`, cut into windows by `TokensLoader` when read."""

import litdata
import numpy as np
import torch

NAME = f"LitData {litdata.__version__}"


class _Slices:
    """What `optimize` calls for each of its inputs, in processes of its own: here, reads one piece of a flat file."""

    def __init__(self, file):
        self.file = file

    def __call__(self, piece):
        low, high = piece
        yield torch.from_numpy(np.fromfile(self.file, np.uint16, high - low, offset=2 * low))


def store(tokens, folder, context_length):
    flat, length = folder / "flat.bin", context_length + 1
    tokens.tofile(flat)
    piece = 1000 * length
    pieces = [(low, min(low + piece, len(tokens))) for low in range(0, len(tokens), piece)]
    litdata.optimize(
        fn=_Slices(str(flat)),
        inputs=pieces,
        output_dir=str(folder / "optimized"),
        # 64 MB of uint16, whole windows.
        chunk_size=(1 << 25) // length * length,
        item_loader=litdata.TokensLoader(),
        num_workers=1,
        verbose=False,
    )
    flat.unlink()


def batches(folder, context_length, batch_size):
    dataset = litdata.StreamingDataset(
        str(folder / "optimized"),
        item_loader=litdata.TokensLoader(block_size=context_length + 1),
        shuffle=True,
        drop_last=True,
    )
    loader = litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0)
    while True:
        for tokens in loader:
            tokens = tokens.long()
            yield tokens[:, :-1], tokens[:, 1:]
