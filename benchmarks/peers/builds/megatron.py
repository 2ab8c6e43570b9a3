"""What Megatron-LM's tools/preprocess_data_fast.py does: gigatoken reads and encodes the files whole, one builder writes.

Of its repository, as the package that registries have does not hold the builder's fast path: MEGATRON names a checkout.
"""

import json
import os
import sys
import types
from pathlib import Path

import gigatoken
import numpy as np

NAME = "Megatron preprocess_data_fast (main)"

_ROOT = Path(os.environ["MEGATRON"])
for _name in ("megatron", "megatron.core", "megatron.core.datasets"):
    # Without its __init__, which imports what needs a GPU.
    _module = types.ModuleType(_name)
    _module.__path__ = [str(_ROOT / _name.replace(".", "/"))]
    sys.modules[_name] = _module
import megatron.core.parallel_state  # noqa: E402, F401  (first: it and what follows import each other)
from megatron.core.datasets import indexed_dataset  # noqa: E402


def build(files, folder, tokenizer_file, eos_token):
    spec = json.loads(Path(tokenizer_file).read_text(encoding="utf-8"))
    eos = next(token["id"] for token in spec["added_tokens"] if token["content"] == eos_token)
    tokenizer = gigatoken.Tokenizer.from_json(json.dumps({**spec, "post_processor": None}))
    encoded = tokenizer.encode_files(gigatoken.JsonlFileSource(files, field="text"), parallel=True)
    builder = indexed_dataset.IndexedDatasetBuilder(
        str(folder / "text_document.bin"), dtype=indexed_dataset.DType.optimal_dtype(tokenizer.vocab_size)
    )
    builder.add_documents(encoded, eod_token=eos)
    builder.finalize(str(folder / "text_document.idx"))


def tokens(folder):
    return np.fromfile(folder / "text_document.bin", np.uint16)
