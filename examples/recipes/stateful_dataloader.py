"""torchdata's StatefulDataLoader over `TokenWindows`: worker processes of one's own, with a state that goes on."""

from pathlib import Path

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_lance import Corpus, TokenWindows
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer

if __name__ == "__main__":
    torch.manual_seed(0)  # of the shuffle
    store = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100).prepare()
    loader = StatefulDataLoader(TokenWindows(store, context_length=64), batch_size=8, shuffle=True)
    first = 0
    if Path("loader.pt").exists():
        saved = torch.load("loader.pt", weights_only=False)  # torchdata's state has the state of its generator
        loader.load_state_dict(saved["loader"])
        first = saved["step"]
    for step, batch in enumerate(loader, start=first):
        print(step, batch["input_ids"][0, :32].tolist())
        if step == first + 4:
            break
    torch.save({"loader": loader.state_dict(), "step": first + 5}, "loader.pt")
