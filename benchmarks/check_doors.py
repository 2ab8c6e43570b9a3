"""Whether LitGPT and torchtitan train on a token store by the recipes, and go on exactly: real runs of tiny models on the CPU.

Prints a line for each, and exits with 1 if one went wrong. See README.md.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zlib
from itertools import islice
from pathlib import Path

import torch

from lightning_lance import Corpus, TokenStore, WindowLoader
from lightning_lance.sources import FilesSource
from lightning_lance.tokenization import ByteTokenizer

HERE = Path(__file__).parent
RECIPES = HERE.parent / "examples" / "recipes"
CONTEXT_LENGTH, BATCH_SIZE = 64, 4


def lit_gpt(store, folder):
    """A run that was resumed has the weights of one that went through, and took the batches that would have come."""
    model = {"name": "tiny", "block_size": 64, "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 257}
    train = {
        "global_batch_size": 4,
        "micro_batch_size": 4,
        "max_seq_length": 64,
        "save_interval": 3,
        "lr_warmup_steps": 1,
    }
    train["max_tokens"] = 7 * BATCH_SIZE * CONTEXT_LENGTH
    command = [sys.executable, "-m", "litgpt", "pretrain", "pythia-14m", "--precision=32-true", "--logger_name=csv"]
    command += ["--devices=1", "--data=litgpt_data.TokenStoreData", f"--data.store={store}"]
    command += [f"--model_config.{name}={value}" for name, value in {**model, "padded_vocab_size": 320}.items()]
    command += [f"--train.{name}={value}" for name, value in train.items()]
    run([*command, f"--out_dir={folder}/whole"], folder)
    run([*command, f"--out_dir={folder}/resumed", f"--resume={folder}/whole/step-00000003/lit_model.pth"], folder)
    amid, whole, resumed = (
        torch.load(folder / place / "lit_model.pth", weights_only=True)
        for place in ("whole/step-00000003", "whole/final", "resumed/final")
    )
    if amid["train_dataloader"]["dataset_state"]["cursor"] != 3 * BATCH_SIZE:
        raise AssertionError("The checkpoint after three batches is at another place.")
    if not all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"]):
        raise AssertionError("The resumed run has other weights.")
    ahead = whole["train_dataloader"]["dataset_state"]["cursor"] // BATCH_SIZE - whole["iter_num"]
    return f"resumed amid the run: the same weights, bit for bit; its checkpoint `final` is {ahead} batch ahead"


def titan(store, folder):
    """Two runs, of which the second goes on from the checkpoint of the first, are served what the loader serves."""
    command = [sys.executable, str(HERE / "peers" / "titan_on_cpu.py"), store, str(folder)]
    served = []
    for steps in (3, 5):
        told = run([*command, str(steps)], folder)
        served += [int(line.split()[1]) for line in told.splitlines() if line.startswith("served ")]
    loader = WindowLoader(TokenStore.open(store), CONTEXT_LENGTH, BATCH_SIZE)
    expected = [zlib.crc32(batch["input_ids"].contiguous().numpy().tobytes()) for batch in islice(loader, 5)]
    if served != expected:
        raise AssertionError(f"Its batches are {served}, those of the loader {expected}.")
    return "resumed from its checkpoint: the batches that would have come"


def run(command, folder):
    # Compiled, so small a model would take longer.
    env = {**os.environ, "PYTHONPATH": str(RECIPES), "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def main():
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(20):
            (folder / f"{number}.txt").write_text(f"{number} is not {number + 1}. " * 200)
        corpus = Corpus(FilesSource(["*.txt"], root=name), ByteTokenizer(), str(folder / "x.lance"), val_fraction=0.2)
        store = corpus.prepare().uri
        for package, door in (("litgpt", lit_gpt), ("torchtitan", titan)):
            place = folder / package
            place.mkdir()
            try:
                print(f"{package} {importlib.metadata.version(package)}: {door(store, place)}")
            except importlib.metadata.PackageNotFoundError:
                print(f"{package}: not installed")
            except AssertionError as error:
                failed = True
                print(f"{package}: {error}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
