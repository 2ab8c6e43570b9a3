"""Train by Fabric, on any number of processes, and go on from a checkpoint.

python fabric.py 2
"""

import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_lance import Corpus, WindowLoader
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer


def main(devices: int) -> None:
    """Train for 20 steps."""
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    corpus = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100)
    store = corpus.prepare()  # one process builds; the others wait for it
    loader = WindowLoader(store, 64, 8, rank=fabric.global_rank, world_size=fabric.world_size)
    model = nn.Sequential(nn.Embedding(corpus.vocab_size, 32), nn.Linear(32, corpus.vocab_size))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    state = {"model": model, "optimizer": optimizer, "loader": loader, "step": 0}
    if Path("last.ckpt").exists():
        fabric.load("last.ckpt", state)
    while state["step"] < 20:
        for batch in loader:  # goes on where it stopped, then with the next epoch
            logits = model(batch["input_ids"].to(fabric.device))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].to(fabric.device).flatten())
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            state["step"] += 1
            if state["step"] == 20:
                break
    fabric.save("last.ckpt", state)
    fabric.print(f"step {state['step']}, loss {loss.item():.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
