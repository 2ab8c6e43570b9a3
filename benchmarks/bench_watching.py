"""What the callbacks that watch a run cost, on the sample GPT of conf/model/gpt_nano.yaml. See README.md.

The time in each callback's hooks is held against that of the whole steps of the same run. What the model does more for the
losses of tokens is measured apart, step by step in turns with a step without them.
"""

import argparse
import statistics
import tempfile
import time
import warnings

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from report import environment

from lightning_lance import Corpus, LanceDataModule
from lightning_lance.callbacks import DataMonitor, LossByDocument, SliceMetrics
from lightning_lance.examples.gpt import GPT, GPTModule
from lightning_lance.sources import DatasetSource
from lightning_lance.tokenization import ByteTokenizer

LANGUAGES, REPOS, LICENSES = 30, 500, 12
HOOKS = ("on_train_batch_start", "on_train_batch_end")
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 8192}


def build(folder: str) -> Corpus:
    """Return a corpus of short documents, about two in a window."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "text": "".join(map(chr, rng.integers(32, 127, rng.integers(20, 500)))),
            "lang": f"L{i % LANGUAGES}",
            "repo_name": f"owner/name{i % REPOS}",
            "license": f"license-{i % LICENSES}",
        }
        for i in range(20_000)
    ]
    pq.write_table(pa.Table.from_pylist(rows), f"{folder}/a.parquet")
    columns = {"text": "text", "repo": "repo_name", "license": "license"}
    source = DatasetSource.parquet([f"{folder}/a.parquet"], columns=columns, language_column="lang")
    return Corpus(source, ByteTokenizer(), f"{folder}/a.lance")


class Times(lightning.Callback):
    """Times of whole steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.perf_counter())


def timed(callback: lightning.Callback) -> list[float]:
    """Make a callback note the seconds of its hooks."""
    spent: list[float] = []

    def timing(hook):
        def timed_hook(*given):
            began = time.perf_counter()
            hook(*given)
            spent.append(time.perf_counter() - began)

        return timed_hook

    for name in HOOKS:
        setattr(callback, name, timing(getattr(callback, name)))
    return spent


def measure(folder: str, corpus: Corpus, name: str, callback: lightning.Callback, given) -> None:
    data = LanceDataModule(corpus, given.context_length, given.batch_size)
    times, spent = Times(), timed(callback)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=given.steps,
        log_every_n_steps=given.log_every,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=lightning.pytorch.loggers.CSVLogger(folder),
        default_root_dir=folder,
        callbacks=[callback, times],
    )
    trainer.fit(GPTModule(context_length=given.context_length, **SHAPE), datamodule=data)
    # The first steps warm up.
    skipped = given.log_every
    whole = times.ends[-1] - times.ends[skipped - 1]
    mine = sum(spent[2 * skipped :])
    step = whole / (given.steps - skipped)
    print(f"{name:28} {1e3 * mine / (given.steps - skipped):7.3f} ms a step of {1e3 * step:.1f} ms: {mine / whole:.2%}")


def measure_token_losses(given) -> None:
    """A forward and backward pass with and without the losses of the tokens, in turns."""
    model = GPT(context_length=given.context_length, **SHAPE)
    tokens = torch.randint(0, 256, (given.batch_size, given.context_length))
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(given.turns):
        # The first of a pair is not always the same one.
        for by_token in (turn % 2 == 0, turn % 2 == 1):
            began = time.perf_counter()
            loss = model(tokens, tokens, by_token=by_token)[1]
            (loss[0] if by_token else loss).backward()
            times[by_token].append(time.perf_counter() - began)
    plain, by_token = (statistics.median(times[which]) for which in (False, True))
    print(f"{'losses of tokens, in the model':28} {1e3 * (by_token - plain):+.2f} ms of {1e3 * plain:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--turns", type=int, default=20)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(environment(["torch", "lightning"]))
    with tempfile.TemporaryDirectory() as folder:
        corpus = build(folder)
        for by in ("language", "corpus", "license", "repo"):
            measure(folder, corpus, f"SliceMetrics(by={by!r})", SliceMetrics(by), given)
        measure(folder, corpus, "LossByDocument()", LossByDocument(folder=folder), given)
        measure(folder, corpus, "DataMonitor()", DataMonitor(peak_flops=1e12), given)
    measure_token_losses(given)


if __name__ == "__main__":
    main()
