"""Train on several processes by torch's DistributedDataParallel, and go on with another number of them.

torchrun --nproc_per_node 2 torch_ddp.py
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from lightning_lance import Corpus, WindowLoader
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer

if __name__ == "__main__":
    dist.init_process_group("gloo")
    # One of the processes builds it, and the others wait.
    store = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100).prepare()
    loader = WindowLoader(
        store, context_length=64, batch_size=8, rank=dist.get_rank(), world_size=dist.get_world_size()
    )
    model = nn.Sequential(nn.Embedding(store.commit.vocab_size, 32), nn.Linear(32, store.commit.vocab_size))
    if Path("last.pt").exists():
        saved = torch.load("last.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2)
    for _, batch in zip(range(20), loader, strict=False):
        logits = parallel(batch["input_ids"])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if dist.get_rank() == 0:
        torch.save({"model": model.state_dict(), "loader": loader.state_dict()}, "last.pt")
        print(f"{loader.state_dict()['cursor']} windows, loss {loss.item():.3f}")
    dist.destroy_process_group()
