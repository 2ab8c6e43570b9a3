"""The tokenizer of a build: named at once, and loaded when texts are to be encoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lightning_lance.errors import ConfigError
from lightning_lance.sources.source import Source
from lightning_lance.tokenization.configs import TokenizerConfig
from lightning_lance.tokenization.identity import TokenizerIdentity
from lightning_lance.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChosenTokenizer:
    """A tokenizer whose identity is known, and which is loaded when first needed.

    Attributes:
        identity: What names it.
        config: Which tokenizer.
        source: What it is trained on, if it is.
        folder: Where trained tokenizers are kept.
    """

    identity: TokenizerIdentity
    config: TokenizerConfig
    source: Source
    folder: Path

    @classmethod
    def of(cls, config: TokenizerConfig, source: Source, folder: Path) -> ChosenTokenizer:
        """Return the tokenizer of a config; loaded, if nothing else tells its identity.

        Raises:
            ConfigError: If it cannot be had.
        """
        # Only `load` is asked of a config that somebody else has written.
        identify = getattr(config, "identify", None)
        known = None if identify is None else identify(source, folder)
        if known is not None:
            return cls(known, config, source, folder)
        loaded = config.load(source, folder)
        identity = TokenizerIdentity(loaded.digest, loaded.eos_token, loaded.eos_id, loaded.vocab_size)
        chosen = cls(identity, config, source, folder)
        chosen.__dict__["loaded"] = loaded
        return chosen

    @cached_property
    def loaded(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            ConfigError: If it cannot be had, or its file has changed since its identity was read.
        """
        loaded = self.config.load(self.source, self.folder)
        if loaded.digest != self.identity.digest:
            raise ConfigError(
                f"The file of the tokenizer {self.config!r} was changed while it was read: run it again when it stays as it is."
            )
        return loaded
