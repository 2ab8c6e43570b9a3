"""LitData: chunks of tokens without headers, written by `optimize`, cut into windows by `TokensLoader` when read."""

import litdata
import numpy as np
import torch
from litdata.streaming import downloader

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
    loader = _loader(str(folder / "optimized"), context_length, batch_size)
    while True:
        yield from _pairs(loader)


def remote_batches(uri, cache, storage_options, context_length, batch_size):
    """Serve one epoch out of a bucket, of a server without encryption."""
    # Its fast client, obstore, takes the options of a bucket from here only, and refuses http:// by itself.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    yield from _pairs(_loader(uri, context_length, batch_size, cache_dir=str(cache), storage_options=storage_options))


def remote_epochs(uri, cache, storage_options, context_length, batch_size):
    """Serve epochs as `remote_batches` serves one, keeping the chunks in a folder."""
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    loader = _loader(uri, context_length, batch_size, cache_dir=str(cache), storage_options=storage_options)
    while True:
        yield from _pairs(loader)


def _loader(place, context_length, batch_size, **options):
    dataset = litdata.StreamingDataset(
        place,
        item_loader=litdata.TokensLoader(block_size=context_length + 1),
        shuffle=True,
        drop_last=True,
        **options,
    )
    return litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0)


def _pairs(loader):
    for tokens in loader:
        tokens = tokens.long()
        yield tokens[:, :-1], tokens[:, 1:]
