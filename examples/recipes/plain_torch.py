"""Train in a loop of one's own, and go on from a checkpoint: `state_dict` of the loader is all that there is to save."""

from pathlib import Path

import torch
from torch import nn

from lightning_lance import Corpus, WindowLoader
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer

if __name__ == "__main__":
    store = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100).prepare()
    loader = WindowLoader(store, context_length=64, batch_size=8)
    model = nn.Sequential(nn.Embedding(store.commit.vocab_size, 32), nn.Linear(32, store.commit.vocab_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if Path("last.pt").exists():
        saved = torch.load("last.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    for _, batch in zip(range(20), loader, strict=False):
        logits = model(batch["input_ids"])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    parts = {"model": model, "optimizer": optimizer, "loader": loader}
    torch.save({name: part.state_dict() for name, part in parts.items()}, "last.pt")
    print(f"loss {loss.item():.3f}; the last step was trained on {loader.windows(loader.step - 1).text[0][:40]!r}...")
