"""LitData's `optimize`, a file to a worker, with the `tokenizers` library."""

import json
import os
from pathlib import Path

import litdata
import numpy as np
import tokenizers
import torch

NAME = f"LitData {litdata.__version__} optimize"
# Documents that the tokenizer gets at a time.
_AT_ONCE = 1000


class _Encode:
    def __init__(self, tokenizer_file, eos_token):
        self.tokenizer_file, self.eos_token = tokenizer_file, eos_token

    def __call__(self, file):
        tokenizer = tokenizers.Tokenizer.from_file(self.tokenizer_file)
        eos = tokenizer.token_to_id(self.eos_token)
        with Path(file).open(encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        for low in range(0, len(texts), _AT_ONCE):
            for encoding in tokenizer.encode_batch_fast(texts[low : low + _AT_ONCE], add_special_tokens=False):
                yield torch.tensor([*encoding.ids, eos], dtype=torch.uint16)


def build(files, folder, tokenizer_file, eos_token):
    litdata.optimize(
        fn=_Encode(tokenizer_file, eos_token),
        inputs=files,
        output_dir=str(folder / "optimized"),
        chunk_size=1 << 25,
        item_loader=litdata.TokensLoader(),
        num_workers=len(os.sched_getaffinity(0)),
        verbose=False,
    )


def tokens(folder):
    index = json.loads((folder / "optimized" / "index.json").read_text())
    parts = []
    for chunk in index["chunks"]:
        # A chunk: how many items, where each begins, then the items.
        raw = np.fromfile(folder / "optimized" / chunk["filename"], np.uint8)
        count = int(raw[:4].view(np.uint32)[0])
        parts.append(raw[4 * (count + 2) :].view(np.uint16))
    return np.concatenate(parts)
