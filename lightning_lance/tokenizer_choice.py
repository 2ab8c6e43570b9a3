"""Which tokenizer: a small frozen description, as a config holds it, that `load` turns into a `Tokenizer`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow.compute as pc
import xxhash

from lightning_lance.arguments import as_text, check_arguments
from lightning_lance.errors import ConfigError, SourceError, whole_number
from lightning_lance.locking import only_one, write_whole
from lightning_lance.patience import Patience
from lightning_lance.places import check_place
from lightning_lance.redaction import in_one_line, shown_cause
from lightning_lance.request_logs import quiet_requests
from lightning_lance.sources import Source
from lightning_lance.tokenization import Tokenizer, byte_tokenizer, check_vocab_size, train_bpe

# Of a folder, on nearly all file systems.
_LONGEST_NAME = 255

# The requests of a tokenizer are few, and somebody waits for the first of them.
_TRIES, _TIMEOUT_SECONDS = 5, 30.0

_log = logging.getLogger(__name__)


class TokenizerChoice(Protocol):
    """A tokenizer that can be loaded."""

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """Load the tokenizer.

        Args:
            source: What will be tokenized; only a tokenizer that is trained on it needs it.
            folder: Where trained tokenizers are kept.

        Raises:
            ConfigError: If it cannot be had; says why, and what to do.
        """
        ...


@dataclass(frozen=True)
class ByteChoice:
    """One token per byte; needs no file, and makes about four times as many tokens as a BPE."""

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerChoice.load`."""
        return byte_tokenizer()


@dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.json`, or a folder that has one.

    Attributes:
        path: The file or folder.
        eos_token: The token that ends a document; None finds it (in `tokenizer_config.json` beside the file, else by
            its usual spellings).
    """

    path: str
    eos_token: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", check_place("tokenizer.path", self.path, "my/tokenizer.json"))
        check_arguments(TokenizerFile, vars(self), "tokenizer.")

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerChoice.load`."""
        file = Path(self.path).expanduser()
        if file.is_dir():
            file = file / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(f"There is no tokenizer.json at {self.path!r}: give the file, or the folder that has it.")
        try:
            spec = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{str(file)!r} is no tokenizer.json: it cannot be read as text ({error}).") from error
        eos = self.eos_token
        beside = file.with_name("tokenizer_config.json")
        if eos is None and beside.is_file():
            eos = json.loads(beside.read_text(encoding="utf-8")).get("eos_token")
            eos = eos["content"] if isinstance(eos, dict) else eos
        try:
            return Tokenizer(spec, eos)
        except ConfigError as error:
            raise ConfigError(f"{str(file)!r}: {error}") from error


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer of a model on the Hugging Face Hub, or in a local folder that transformers can read.

    What comes from the Hub is kept beside the trained tokenizers: later builds use that, whatever the Hub has by then, and
    ask nobody.

    Attributes:
        model: Such as `gpt2`.
        eos_token: The token that ends a document; None takes the model's own.
        revision: Branch, tag or commit.
        trust_remote_code: Whether code of the model's repository may run here.
    """

    model: str
    eos_token: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", check_place("tokenizer.model", self.model, "gpt2"))
        object.__setattr__(self, "revision", as_text(self.revision))
        check_arguments(PretrainedTokenizer, vars(self), "tokenizer.")
        if len(self._kept_name) > _LONGEST_NAME:
            raise ConfigError(
                f"tokenizer.model and tokenizer.revision have {len(self._kept_name):,} characters: expected the name of a "
                f"model, such as gpt2, and {_LONGEST_NAME} at most."
            )

    @property
    def _kept_name(self) -> str:
        return quote(f"{self.model}@{self.revision or 'main'}", safe="@")

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerChoice.load`."""
        kept = folder / self._kept_name
        if (kept / "tokenizer.json").is_file():
            return TokenizerFile(str(kept), self.eos_token).load(source, folder)
        from transformers import AutoTokenizer

        silence = None if Path(self.model).exists() else _hub_silence(self.model)
        try:
            with quiet_requests():
                tokenizer: Any = AutoTokenizer.from_pretrained(
                    self.model,
                    revision=self.revision or "main",
                    trust_remote_code=self.trust_remote_code,
                    # What it has of an earlier time may do.
                    local_files_only=silence is not None,
                )
        except (OSError, ValueError) as error:
            if silence is not None:
                raise SourceError(
                    f"The tokenizer {self.model!r} cannot be loaded, since there is no answer from the Hub ({silence}): check "
                    "the network and HF_ENDPOINT, then run again, or use tokenizer=file."
                ) from None
            cure = _cure(error, self.model)
            raise ConfigError(f"The tokenizer {self.model!r} cannot be loaded: {cure}.") from shown_cause(error)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"The tokenizer {self.model!r} has no tokenizer.json, which fast encoding needs: choose another, or convert "
                "it and use tokenizer=file."
            )
        loaded = Tokenizer(backend.to_str(), self.eos_token or tokenizer.eos_token)
        if not Path(self.model).exists():
            kept.mkdir(parents=True, exist_ok=True)
            config = json.dumps({"eos_token": tokenizer.eos_token})
            # The one that is looked for comes last.
            for name, text in {"tokenizer_config.json": config, "tokenizer.json": backend.to_str()}.items():
                write_whole(kept / name, text)
        return loaded


def _hub_silence(model: str) -> str | None:
    """Ask the Hub for a file of a model, and give why there is no answer; None if there is one, or none is wanted.

    Its client would try each of several files for half a minute.
    """
    from huggingface_hub import constants, get_session, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        with Patience(model, _TRIES, _TIMEOUT_SECONDS).active():
            get_session().head(hf_hub_url(model, "tokenizer.json"))
    except SourceError as error:
        return str(error).partition(" gave up on ")[2].partition(": all that")[0]
    except Exception as error:  # of its name, of the address, ...: the library says it better
        _log.debug("%s", error)
    return None


def _cure(error: Exception, model: str) -> str:
    text = in_one_line(error, 2000)
    if "gated" in text.lower() or "401" in text or "403" in text:
        return (
            f"its repository is gated; accept the terms at https://huggingface.co/{model}, then run 'hf auth login' or set "
            "HF_TOKEN"
        )
    if "trust_remote_code" in text:
        return "it needs code of its repository; read that code, then set tokenizer.trust_remote_code=true"
    return f"{text[:300].rstrip('.')}; check the name, and that the Hub can be reached, or use tokenizer=file"


@dataclass(frozen=True)
class TrainedBPE:
    """A byte-level BPE tokenizer trained on the source itself, once, and kept beside the stores.

    Attributes:
        vocab_size: Ids in all, 257 at least.
        train_bytes: How much text to train on, from the first documents that the source gives.
    """

    vocab_size: int = 8192
    train_bytes: int = 64_000_000

    def __post_init__(self) -> None:
        check_vocab_size(self.vocab_size)
        object.__setattr__(self, "vocab_size", int(self.vocab_size))
        object.__setattr__(self, "train_bytes", whole_number("tokenizer.train_bytes", self.train_bytes))

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerChoice.load`."""
        if source is None:
            raise ConfigError("A trained tokenizer needs the source that it is trained on: give a source.")
        recipe = json.dumps([source.identity(), self.vocab_size, self.train_bytes], sort_keys=True)
        key = xxhash.xxh3_64_hexdigest(recipe.encode())
        file = folder / f"{source.name}-bpe{self.vocab_size}-{key}.json"
        if not file.exists():
            with only_one(file.with_suffix(".lock"), "training the tokenizer"):
                if not file.exists():
                    _log.info("Training a tokenizer of %d ids on source %r.", self.vocab_size, source.name)
                    tokenizer = train_bpe(self._texts(source), self.vocab_size)
                    write_whole(file, tokenizer.to_json())
        return Tokenizer(file.read_text(encoding="utf-8"))

    def _texts(self, source: Source) -> Iterator[list[str]]:
        opened, left = source.open(), self.train_bytes
        for shard in range(len(opened.shards)):
            for batch in opened.read(shard, 0):
                if "split" in batch.column_names:
                    batch = batch.filter(pc.equal(batch.column("split"), "train"))
                texts = []
                for text in batch.column("text").drop_null().to_pylist():
                    texts.append(text[: max(left, 0)])
                    left -= len(text.encode())
                yield texts
                if left <= 0:
                    return
