"""tokbin: shards that are mapped, and `Source.sample_windows`, which copies a batch of random windows out of them."""

import numpy as np
import tokbin
import torch
from tokenizers import Tokenizer, models

NAME = f"tokbin {tokbin.__version__}"

# Characters that spell ids: above the surrogates, which are none.
_FIRST = 0x10000
_PIECE = 4096


def written(tokens, folder, vocabulary):
    """Write ids by its writer, which takes text and a tokenizer alone: one that knows a character for each id."""
    spelled = (tokens.astype("<u4") + _FIRST).tobytes()
    texts = (spelled[low : low + 4 * _PIECE].decode("utf-32-le") for low in range(0, len(spelled), 4 * _PIECE))
    characters = Tokenizer(models.BPE({chr(_FIRST + number): number for number in range(vocabulary)}, []))
    tokbin.Dataset(folder).write("windows", texts, characters, config=tokbin.WriterConfig(append_eos=False))


def opened(folder):
    return tokbin.read_source(folder / "windows")


def store(tokens, folder, context_length):
    written(tokens, folder, int(tokens.max()) + 1)


def batches(folder, context_length, batch_size):
    source, rng = opened(folder), np.random.default_rng(0)
    while True:
        both = torch.from_numpy(source.sample_windows(batch_size, context_length + 1, rng).astype(np.int64))
        yield both[:, :-1], both[:, 1:]
