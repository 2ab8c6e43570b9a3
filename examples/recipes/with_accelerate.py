"""Train by Accelerate, and go on from a checkpoint.

accelerate launch --num_processes 2 with_accelerate.py
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from lightning_lance import Corpus, WindowLoader
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer

if __name__ == "__main__":
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    corpus = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100)
    store = corpus.prepare()  # one process builds; the others wait for it
    # Accelerate would cut its batches, so the loader is not prepared: it knows the processes itself.
    loader = WindowLoader(store, 64, 8, rank=accelerator.process_index, world_size=accelerator.num_processes)
    model = nn.Sequential(nn.Embedding(corpus.vocab_size, 32), nn.Linear(32, corpus.vocab_size))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    accelerator.register_for_checkpointing(loader)
    if Path("state").exists():
        accelerator.load_state("state")
    first = loader.step
    for _, batch in zip(range(20), loader, strict=False):
        logits = model(batch["input_ids"].to(accelerator.device))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].to(accelerator.device).flatten())
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state("state")
    accelerator.print(f"steps {first} to {loader.step - 1}, loss {loss.item():.3f}")
