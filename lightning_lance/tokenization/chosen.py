"""The tokenizer of a build: identified at once, loaded when texts are encoded."""

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
    """A tokenizer with known identity, loaded when first needed.

    Attributes:
        identity: Its identity in a store.
        config: Its config.
        source: The source, for a trained tokenizer.
        folder: Folder of trained and downloaded tokenizers.
    """

    identity: TokenizerIdentity
    config: TokenizerConfig
    source: Source
    folder: Path

    @classmethod
    def of(cls, config: TokenizerConfig, source: Source, folder: Path) -> ChosenTokenizer:
        """Return the tokenizer of a config. It is loaded only if its identity cannot be read from a file."""
        # A user's own config needs only `load`.
        identify = getattr(config, "identify", lambda source, folder: None)
        known = identify(source, folder)
        if known is not None:
            return cls(known, config, source, folder)
        loaded = config.load(source, folder)
        identity = TokenizerIdentity(loaded.digest, loaded.eos_token, loaded.eos_id, loaded.vocab_size)
        chosen = cls(identity, config, source, folder)
        chosen.__dict__["loaded"] = loaded
        return chosen

    @cached_property
    def loaded(self) -> Tokenizer:
        """The loaded tokenizer. ConfigError if it cannot be loaded, or its file has changed since its identity was read."""
        loaded = self.config.load(self.source, self.folder)
        if loaded.digest != self.identity.digest:
            raise ConfigError(
                f"The file of the tokenizer {self.config!r} changed while it was read: run it again once nothing writes to it."
            )
        return loaded
