"""Train by LightningCLI: the model gets its vocabulary from the data.

python lightning_cli.py fit --data.corpus=x.lance --data.context_length=64 --data.batch_size=8 --trainer.max_steps=20
"""

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from own_module import Model

from lightning_lance import LanceDataModule


class CLI(LightningCLI):
    """Links the model's vocabulary to the data's."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the model needs to know."""
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")


if __name__ == "__main__":
    CLI(Model, LanceDataModule, save_config_callback=None)
