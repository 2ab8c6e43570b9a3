"""torchtitan's own Trainer on a CPU: python titan_on_cpu.py STORE FOLDER STEPS. Prints a digest of each batch.

torchtitan trains on GPUs alone. Trainer, loop, loss, optimizer and checkpoints here are torchtitan's; the device is not (see
titan_device.py), and attention is torch's, since the kernels that torchtitan takes for language models have no gradient
on CPUs.
"""

import dataclasses
import os
import sys
import zlib

import torch
from titan_device import ONE_RANK
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan_loader import TokenStoreLoader


class Telling(TokenStoreLoader):
    """The loader of the recipe, which tells what it serves."""

    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(TokenStoreLoader.Config):
        pass

    def __iter__(self):
        for inputs, labels in super().__iter__():
            print("served", zlib.crc32(inputs["input"].numpy().tobytes()), flush=True)
            yield inputs, labels


class NoTokenizer(BaseTokenizer):
    """Stands where a run has one: the store has tokens."""

    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config, **rest):
        super().__init__()

    def encode(self, *args, **options):
        raise NotImplementedError

    def decode(self, *args, **options):
        raise NotImplementedError

    def get_vocab_size(self):
        return 257


def main(store, folder, steps):
    config = llama3_debugmodel()
    model = config.model_spec.model
    model.layers = model.layers[:1]
    model.layers[0].attention.inner_attention = ScaledDotProductAttention.Config()
    config.training = dataclasses.replace(
        config.training, local_batch_size=4, seq_len=64, steps=int(steps), disable_cuda_graphs=True
    )
    config.dataloader = Telling.Config(dataset_path=store)
    config.tokenizer = NoTokenizer.Config()
    config.validator = dataclasses.replace(config.validator, enable=False)
    config.checkpoint = CheckpointManager.Config(enable=True, interval=2, last_save_model_only=False)
    config.activation_checkpoint = None
    config.dump_folder = folder
    trainer = config.build()
    trainer.train()
    trainer.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.update({**ONE_RANK, "MASTER_PORT": os.environ.get("MASTER_PORT", "29500")})
    main(*sys.argv[1:])
