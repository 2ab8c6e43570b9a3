"""A Hydra project of one's own: its own configuration and model, with the groups of lightning-lance.

python train.py source=python_stdlib tokenizer=bytes context_length=128 trainer.max_steps=50
"""

import hydra
from hydra.utils import instantiate
from model import Model
from omegaconf import DictConfig


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """Train."""
    data = instantiate(config.data)
    instantiate(config.trainer).fit(Model(data.vocab_size), data)


if __name__ == "__main__":
    main()
