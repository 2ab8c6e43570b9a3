"""Configs of tokenizers: small frozen dataclasses that `load` turns into a `Tokenizer`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow.compute as pc
import xxhash

from lightning_lance.errors import ConfigError, whole_number
from lightning_lance.location import ORIGIN, check_place
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.redaction import shown_cause
from lightning_lance.process.files import write_atomic
from lightning_lance.process.locks import exclusive
from lightning_lance.process.request_logs import quiet_requests
from lightning_lance.readers.retry import raise_own
from lightning_lance.sources.local_paths import is_denied, working_folder
from lightning_lance.sources.source import Source
from lightning_lance.tokenization.hub import cure_of, hub_silence, patience_with, silence_error
from lightning_lance.tokenization.identity import TokenizerIdentity, identity_of_text
from lightning_lance.tokenization.pretrained import (
    BESIDE,
    CONFIG,
    TOKENIZER,
    Beside,
    Reading,
    compared,
    fetched,
    in_cache,
    is_cached,
    named_eos,
    read_beside,
    read_object,
    remembered,
    with_eos,
)
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer, check_vocab_size, train_bpe
from lightning_lance.tokenization.tokenizer_json import differences_in_texts, typed
from lightning_lance.type_hints import as_text, check_arguments, check_no_loaded_tokenizer

# Longest name of a folder on nearly all file systems.
_LONGEST_NAME = 255

_log = logger(__name__)


class TokenizerConfig(Protocol):
    """A tokenizer that can be loaded."""

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """Load the tokenizer.

        Args:
            source: The source to tokenize, needed only to train a tokenizer on it.
            folder: Folder of trained and downloaded tokenizers.

        Raises:
            ConfigError: If it cannot be loaded, with the cause and the cure.
        """
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per byte. Needs no file; makes about four times as many tokens as a BPE."""

    @property
    def label(self) -> str:
        """What a person calls it."""
        return "bytes"

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerConfig.load`."""
        return byte_tokenizer()


@dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.json`, or a folder that has one.

    Attributes:
        path: The file or folder.
        eos_token: The token that ends a document; None looks for it in `tokenizer_config.json` and `special_tokens_map.json`
            beside the file, then among its usual spellings.
    """

    path: str
    eos_token: str | None = None
    # The folder that `path` is relative to, whatever folder the process changes to later.
    _base: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_base", working_folder())
        check_no_loaded_tokenizer("tokenizer.path", self.path)
        object.__setattr__(self, "path", check_place("tokenizer.path", self.path, "my/tokenizer.json"))
        check_arguments(TokenizerFile, vars(self), "tokenizer.")

    @property
    def label(self) -> str:
        """What a person calls it: the path as it was given."""
        return self.path

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerConfig.load`."""
        file = self._file
        if is_denied(file):
            raise ConfigError(f"The tokenizer {self.path!r} cannot be read (Permission denied): grant read access.")
        if not file.is_file():
            raise ConfigError(
                f"There is no tokenizer.json at {self.path!r}: set tokenizer.path to the file, or to its folder."
            )
        return _from_file(file, self.eos_token)[0]

    def identify(self, source: Source | None, folder: Path) -> TokenizerIdentity | None:
        """Return the identity of the tokenizer without loading it; None if it must be loaded."""
        return _identity_of_file(self._file, self.eos_token)[0]

    @property
    def _file(self) -> Path:
        return _tokenizer_at(Path(self._base, Path(self.path).expanduser()))


def _tokenizer_at(path: Path) -> Path:
    """Return the tokenizer.json that a path to the file or to its folder stands for."""
    if os.path.isdir(path):
        return path / TOKENIZER
    return path


def _identity_of_file(file: Path, eos_token: str | None) -> tuple[TokenizerIdentity | None, Beside]:
    """Return the identity of the tokenizer in a file, and the files beside it; None if loading it will raise an error."""
    spec = _text_of(file)
    try:
        beside = read_beside(file.parent)
        eos = _eos_of(eos_token, beside)
    except (OSError, UnicodeDecodeError, ConfigError):
        return None, {}
    return identity_of_text(with_eos(spec, eos, beside), eos), beside


def _from_file(file: Path, eos_token: str | None) -> tuple[Tokenizer, Beside]:
    """Load a tokenizer.json with the given EOS token, or the one named beside it. Returns the files beside it, too."""
    spec = _read_text(file)
    beside = read_beside(file.parent)
    try:
        return _from_text(spec, eos_token, beside), beside
    except ConfigError as error:
        raise ConfigError(f"{str(file)!r}: {error}") from error


def _is_there(file: Path) -> bool:
    """Return whether a file exists, without waiting for a pipe. ConfigError for a folder, a pipe or a broken link."""
    if file.is_file():
        return True
    if os.path.lexists(file):
        raise ConfigError(
            f"{str(file)!r} is not a regular file, and the tokenizer is to be stored at this path: move it elsewhere."
        )
    return False


def _text_of(file: Path) -> str:
    """Return the text of a file, without waiting for a pipe; "" if there is none, or no file."""
    with suppress(OSError, UnicodeDecodeError):
        if file.is_file():
            return file.read_bytes().decode()
    return ""


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} is not a tokenizer.json: it cannot be read as text ({error}).") from error


def _from_text(spec: str, eos_token: str | None, beside: Beside) -> Tokenizer:
    eos = _eos_of(eos_token, beside)
    return Tokenizer(with_eos(spec, eos, beside), eos)


def _eos_of(asked: str | None, beside: Beside) -> str | None:
    if asked is None:
        return named_eos(beside)
    return asked


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer of a model on the Hugging Face Hub or in a local folder: its tokenizer.json, as its authors shipped it.

    It is the same one that `TokenizerFile` loads. If a class of `transformers` would read it differently, a warning says so.
    If a repository has no tokenizer.json, `transformers` makes one from its other files.

    Files from the Hub are kept beside the trained tokenizers. Later builds use them without a request, even if the Hub has
    newer ones.

    Attributes:
        model: Name of the model, such as `gpt2`, or a local path.
        eos_token: The token that ends a document; None takes the model's own.
        revision: Branch, tag or commit.
        trust_remote_code: Whether code of the model's repository may run here, if it has no tokenizer.json.
    """

    model: str
    eos_token: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    # See `TokenizerFile`.
    _base: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_base", working_folder())
        check_no_loaded_tokenizer("tokenizer.model", self.model)
        object.__setattr__(self, "model", check_place("tokenizer.model", self.model, "gpt2"))
        object.__setattr__(self, "revision", as_text(self.revision))
        check_arguments(PretrainedTokenizer, vars(self), "tokenizer.")
        if len(self._kept_name) > _LONGEST_NAME:
            raise ConfigError(
                f"tokenizer.model and tokenizer.revision have {len(self._kept_name):,} characters: expected the name of a "
                f"model, such as gpt2, and at most {_LONGEST_NAME}."
            )

    @property
    def label(self) -> str:
        """What a person calls it: the name of the model, and the revision if one was given."""
        if self.revision:
            return f"{self.model}@{self.revision}"
        return self.model

    @property
    def _kept_name(self) -> str:
        return quote(f"{self.model}@{self.revision or 'main'}", safe="@")

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerConfig.load`."""
        file = self._local_file
        if file is not None and file.is_file():
            return self._shipped(file, folder)
        if file is not None:
            return self._converted()[0]
        kept = folder / self._kept_name
        if not (kept / TOKENIZER).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive(folder / f"{kept.name}.lock", "fetching the tokenizer"):
                if not (kept / TOKENIZER).is_file():
                    self._keep(kept)
        if self._is_shipped(kept):
            return self._shipped(kept / TOKENIZER, folder)
        return _from_file(kept / TOKENIZER, self.eos_token)[0]

    def identify(self, source: Source | None, folder: Path) -> TokenizerIdentity | None:
        """Return the identity of the tokenizer without loading it; None if it must be loaded."""
        file = self._local_file
        shipped = True
        if file is None:
            kept = folder / self._kept_name
            file = kept / TOKENIZER
            shipped = file.is_file() and self._is_shipped(kept)
        identity, beside = _identity_of_file(file, self.eos_token)
        if identity is not None and shipped:
            reading = remembered(identity.digest, beside, folder)
            if reading is None:
                return None
            self._warn_of(reading)
        return identity

    @property
    def _local_file(self) -> Path | None:
        """The tokenizer.json of a local model, which may be missing; None for a model on the Hub."""
        path = Path(self._base, Path(self.model).expanduser())
        if os.path.exists(path):
            return _tokenizer_at(path)
        return None

    def _shipped(self, file: Path, folder: Path) -> Tokenizer:
        """Load a repository's tokenizer.json. Warns if transformers would give other ids."""
        loaded, beside = _from_file(file, self.eos_token)
        reading = compared(loaded, beside, folder)
        self._warn_of(reading)
        return loaded.known_as(reading.digest)

    def _warn_of(self, reading: Reading) -> None:
        if reading.differs:
            _warn_once(
                f"The tokenizer {self.model!r} follows its tokenizer.json, but transformers reads it differently, because of "
                f"{reading.by} (other {' and '.join(reading.differs)}), and gives other ids for some texts: for the stored "
                "ids, load the file with PreTrainedTokenizerFast(tokenizer_file=...)."
            )

    def _is_shipped(self, kept: Path) -> bool:
        """Return whether the kept file is the repository's tokenizer.json. Warns if it is known to differ.

        Earlier versions kept the conversion by transformers. It stays in use, since stores were made with it.
        """
        if (kept / ORIGIN).is_file():
            origin = read_object(kept / ORIGIN)
        else:
            shipped = in_cache(self.model, self.revision or "main")
            if shipped is None:
                return False  # unknown
            differs = differences_in_texts(typed(read_object(shipped)), typed(read_object(kept / TOKENIZER)))
            origin = {"taken_from": "transformers", "differs": differs}
            with suppress(OSError):
                write_atomic(kept / ORIGIN, json.dumps(origin))
        if origin.get("differs"):
            _warn_once(
                f"The tokenizer {self.model!r} at {str(kept)!r} was converted by an earlier version with transformers, and "
                f"gives other ids than its tokenizer.json (other {' and '.join(origin['differs'])}). It stays in use, since "
                "stores were made with it: to use tokenizer.json, remove that folder and build new stores."
            )
        return bool(origin.get("taken_from") == TOKENIZER)

    def _keep(self, kept: Path) -> None:
        """Store the files of a repository on the Hub, or their conversion by transformers if it has no tokenizer.json."""
        patience = patience_with(self.model)
        silence = hub_silence(self.model, patience)
        try:
            with quiet_requests(), patience.active():
                files = fetched(self.model, self.revision or "main", local_only=silence is not None)
        except (OSError, ValueError) as error:
            raise_own(error)
            cure = cure_of(error, self.model)
            raise ConfigError(f"The tokenizer {self.model!r} cannot be loaded: {cure}.") from shown_cause(error)
        if silence is not None and files is None and not is_cached(self.model):
            # Importing transformers, which would say so too, takes several seconds.
            raise silence_error(silence)
        origin = TOKENIZER
        if not files:
            loaded, eos = self._converted(silence)
            if files is None:
                _warn_once(
                    f"The tokenizer {self.model!r} was converted by transformers from the cache of huggingface_hub, since the "
                    "Hub could not be asked whether its repository has a tokenizer.json, which may give other ids: if it has "
                    f"one, remove {str(kept)!r}."
                )
            files = {CONFIG: json.dumps({"eos_token": eos}), TOKENIZER: loaded.to_json()}
            origin = "transformers"
        kept.mkdir(parents=True, exist_ok=True)
        # The tokenizer.json is written last, and only if it is valid: its presence marks the folder as complete.
        for name in (*BESIDE, ORIGIN):
            (kept / name).unlink(missing_ok=True)
        for name in files.keys() & {*BESIDE}:
            write_atomic(kept / name, files[name])
        write_atomic(kept / ORIGIN, json.dumps({"taken_from": origin}))
        try:
            _from_text(files[TOKENIZER], self.eos_token, read_beside(kept))
        except ConfigError as error:
            raise ConfigError(f"The tokenizer {self.model!r} cannot be used: {error}") from error
        write_atomic(kept / TOKENIZER, files[TOKENIZER])

    def _converted(self, silence: str | None = None) -> tuple[Tokenizer, str | None]:
        """Return the conversion by transformers of a repository without a tokenizer.json, and its EOS token.

        Args:
            silence: The sentence for a Hub that gives nothing; None if it answers.
        """
        from transformers import AutoTokenizer

        try:
            with quiet_requests():
                made: Any = AutoTokenizer.from_pretrained(
                    self.model,
                    revision=self.revision or "main",
                    trust_remote_code=self.trust_remote_code,
                    # Its cache may have the files.
                    local_files_only=silence is not None,
                )
        # Several libraries raise many kinds, for instance if a conversion needs a missing package.
        except Exception as error:
            if silence is not None:
                raise silence_error(silence) from None
            raise_own(error)
            cure = cure_of(error, self.model)
            raise ConfigError(f"The tokenizer {self.model!r} cannot be loaded: {cure}.") from shown_cause(error)
        backend = getattr(made, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"The tokenizer {self.model!r} has no tokenizer.json: choose another one, or convert it and use tokenizer=file."
            )
        eos = None if made.eos_token is None else str(made.eos_token)
        return Tokenizer(backend.to_str(), self.eos_token or eos), eos


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


@dataclass(frozen=True)
class TrainedBPE:
    """A byte-level BPE tokenizer trained on the source itself, once, and kept beside the stores.

    Attributes:
        vocab_size: Number of ids, at least 257.
        train_bytes: Bytes of text to train on, from the first documents of the source.
    """

    vocab_size: int = 8192
    train_bytes: int = 64_000_000

    def __post_init__(self) -> None:
        check_vocab_size(self.vocab_size)
        object.__setattr__(self, "vocab_size", int(self.vocab_size))
        object.__setattr__(self, "train_bytes", whole_number("tokenizer.train_bytes", self.train_bytes))

    @property
    def label(self) -> str:
        """What a person calls it."""
        return f"bpe of {self.vocab_size:,} ids"

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerConfig.load`."""
        if source is None:
            raise ConfigError("A trained tokenizer needs a source to train on: pass a source.")
        file = self._file(source, folder)
        if not _is_there(file):
            with exclusive(file.with_suffix(".lock"), "training the tokenizer"):
                if not _is_there(file):
                    _log.info("Training a tokenizer with %d ids on source %r.", self.vocab_size, source.name)
                    tokenizer = train_bpe(self._texts(source), self.vocab_size)
                    write_atomic(file, tokenizer.to_json())
        try:
            return Tokenizer(_read_text(file))
        except ConfigError as error:
            raise ConfigError(
                f"The trained tokenizer {str(file)!r} is damaged: {error} Remove it to train it again."
            ) from error

    def identify(self, source: Source | None, folder: Path) -> TokenizerIdentity | None:
        """Return the identity of the tokenizer without loading it; None if it is not trained yet."""
        if source is None:
            return None
        return identity_of_text(_text_of(self._file(source, folder)), None)

    def _file(self, source: Source, folder: Path) -> Path:
        recipe = json.dumps([source.identity(), self.vocab_size, self.train_bytes], sort_keys=True)
        key = xxhash.xxh3_64_hexdigest(recipe.encode())
        return folder / f"{source.name}-bpe{self.vocab_size}-{key}.json"

    def _texts(self, source: Source) -> Iterator[list[str]]:
        opened = source.open()
        left = self.train_bytes
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
