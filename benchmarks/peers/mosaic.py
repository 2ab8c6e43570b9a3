"""MosaicML Streaming: MDS shards of whole windows, read by `StreamingDataset` in a torch `DataLoader`."""

import importlib.machinery
import importlib.util
import os
import sys
import types

import numpy as np
import torch

if importlib.util.find_spec("torchvision") is None:
    # The package imports torchvision for its image datasets. Windows of tokens do not need it, and it has no build for
    # every torch, so its two names are stood in for.
    for _name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__spec__ = importlib.machinery.ModuleSpec(_name, None)
    sys.modules["torchvision.datasets"].VisionDataset = object
    sys.modules["torchvision.transforms.functional"].to_tensor = None

import streaming

NAME = f"MosaicML Streaming {streaming.__version__}"


def store(tokens, folder, context_length):
    length = context_length + 1
    with streaming.MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{length}"}) as writer:
        for window in tokens[: len(tokens) // length * length].reshape(-1, length):
            writer.write({"tokens": window})


def _stack(samples):
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))


def batches(folder, context_length, batch_size):
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
    yield from _served(dataset, batch_size)


def remote_epochs(uri, cache, storage_options, context_length, batch_size):
    """Serve epochs out of a bucket, keeping the shards in a folder."""
    os.environ["S3_ENDPOINT_URL"] = storage_options["endpoint_url"]
    os.environ["AWS_ACCESS_KEY_ID"] = storage_options["aws_access_key_id"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = storage_options["aws_secret_access_key"]
    os.environ["AWS_DEFAULT_REGION"] = storage_options["region_name"]
    dataset = streaming.StreamingDataset(remote=uri, local=str(cache), shuffle=True, batch_size=batch_size)
    yield from _served(dataset, batch_size)


def _served(dataset, batch_size):
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, num_workers=0, collate_fn=_stack, drop_last=True
    )
    try:
        while True:
            for tokens in loader:
                yield tokens[:, :-1], tokens[:, 1:]
    finally:
        # Its threads would otherwise go on reading after the shards are gone.
        dataset._iterator.exit()
