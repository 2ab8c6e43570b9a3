"""What the loader costs a GPU: steps of GPT-2's smallest size with it, against batches that lie on the device. See README.md.

`--tiny` runs the same on a CPU with a tiny model, to see that it runs.
"""

import argparse
import logging
import statistics
import tempfile
import time
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from report import bar, environment, publish

from lightning_lance import Corpus, WindowLoader
from lightning_lance.examples.gpt import GPT, known_peak_flops
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer

# Batches that lie on the device, in turn: as many masks of documents as the loader's, nearly.
_HELD = 16


def batches_of(store, length, size):
    """Yield batches of epoch after epoch, with the documents of each token."""
    loader = WindowLoader(store, length, size, document_ids=True, position_ids=True)
    while True:
        yield from loader


def held(store, length, size, device):
    """Yield batches that are on the device already."""
    batches = [dict(batch) for batch in islice(batches_of(store, length, size), _HELD)]
    return cycle([{name: value.to(device) for name, value in batch.items()} for batch in batches])


def copied(store, length, size, device):
    """Yield batches that are copied as they come."""
    for batch in batches_of(store, length, size):
        yield {name: value.to(device) for name, value in batch.items()}


def pinned(store, length, size, device):
    """Yield batches that are copied out of pinned memory while the device works."""
    for batch in batches_of(store, length, size):
        yield {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}


def widened(store, length, size, device):
    """Yield batches that are copied as int32, half the bytes, and widened on the device."""
    for batch in batches_of(store, length, size):
        narrow = {name: value.to(torch.int32).pin_memory() for name, value in batch.items()}
        yield {name: value.to(device, non_blocking=True).long() for name, value in narrow.items()}


class Training:
    """A model, its optimizer and its steps.

    Args:
        options: Of the command.
        device: Where it trains.
    """

    def __init__(self, options, device):
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_304}
        if options.tiny:
            shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 320}
        self.model = GPT(context_length=options.length, **shape).to(device)
        self._forward = self.model if options.tiny else torch.compile(self.model)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=6e-4, fused=not options.tiny)
        self._cast = nullcontext() if options.tiny else torch.autocast("cuda", torch.bfloat16)
        self._device = device

    def step(self, batch):
        """Train on a batch."""
        with self._cast:
            _, loss = self._forward(
                batch["input_ids"],
                batch["targets"],
                document_ids=batch["document_ids"],
                position_ids=batch["position_ids"],
            )
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def seconds(self, batches, steps):
        """Return the seconds of some steps, fetching their batches included."""
        self._wait()
        began = time.perf_counter()
        for batch in islice(batches, steps):
            self.step(batch)
        self._wait()
        return time.perf_counter() - began

    def _wait(self):
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, a tiny model")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="steps of a contender in a round")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    device = torch.device("cpu" if options.tiny else "cuda")
    ways = {"batches on the device": held, "loader, copied": copied}
    if not options.tiny:
        ways |= {"loader, pinned, non-blocking": pinned, "loader, int32, widened on the device": widened}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "x.lance")
        store = Corpus(python_stdlib(), ByteTokenizer(), place, val_fraction=0.0, max_tokens=20_000_000).prepare()
        training = Training(options, device)
        sources = {name: make(store, options.length, options.batch, device) for name, make in ways.items()}
        times = {name: [] for name in ways}
        for batches in sources.values():
            # The model is compiled, and the loader has read ahead.
            training.seconds(batches, 10)
        for _ in range(options.rounds):
            for name, batches in sources.items():
                times[name].append(training.seconds(batches, options.steps) / options.steps)
    tokens = options.batch * options.length
    peak = 0.0 if options.tiny else known_peak_flops(torch.cuda.get_device_name())
    alone = times["batches on the device"]
    rows = []
    shares = {}
    for name, found in times.items():
        middle = statistics.median(found)
        shares[name] = statistics.median(np.asarray(found) / np.asarray(alone)) - 1
        used = f"{training.model.flops_per_token * tokens / middle / peak:.1%}" if peak else None
        rows.append([name, f"{middle * 1e3:.2f}", f"{tokens / middle:,.0f}", f"{shares[name]:+.2%}", used])
    best = min(share for name, share in shares.items() if name != "batches on the device")
    bars = [bar("a step with batches on the device against one with the loader, at best", 1 / (1 + best), 0.99)]
    notes = [
        f"{training.model.num_parameters:,} parameters, batches of {options.batch} windows of {options.length} tokens; "
        "bfloat16, compiled, attention within documents by FlexAttention; medians of the rounds.",
        f"{_HELD} batches lie on the device, so their masks are made as often as those of the loader.",
        "Model FLOPs utilisation counts 6 N + 12 L C T for each token, against the peak of the data sheet.",
    ]
    header = ["batches", "ms a step", "tokens/s", "more than on the device", "MFU"]
    data = {"environment": environment(["lightning-lance", "torch", "numpy", "pylance"]), "seconds": times}
    if options.tiny:
        print(rows)
    else:
        publish("bench_gpu", f"Steps on {torch.cuda.get_device_name()}", header, rows, bars, notes, data)


if __name__ == "__main__":
    main()
