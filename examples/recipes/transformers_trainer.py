"""Train by the Trainer of transformers: `TokenWindows` is a dataset of items like its own."""

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lightning_lance import Corpus, TokenWindows
from lightning_lance.sources import python_stdlib
from lightning_lance.tokenization import ByteTokenizer

if __name__ == "__main__":
    store = Corpus(python_stdlib(), ByteTokenizer(), max_documents=100, val_fraction=0.1).prepare()
    windows = {split: TokenWindows(store, 64, split, batch_format="huggingface") for split in ("train", "val")}
    eos = store.commit.eos_id
    ids = {"vocab_size": store.commit.vocab_size, "bos_token_id": eos, "eos_token_id": eos}
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, **ids))
    arguments = TrainingArguments("outputs", max_steps=20, per_device_train_batch_size=8, report_to=[], use_cpu=True)
    Trainer(model, arguments, train_dataset=windows["train"], eval_dataset=windows["val"]).train()
