"""Which tokenizer: a small frozen description, as a config holds it, that `load` turns into a `Tokenizer`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow.compute as pc
import xxhash

from lightning_lance.errors import ConfigError, SourceError, whole_number
from lightning_lance.location import ORIGIN, check_place
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.redaction import in_one_line, shown_cause
from lightning_lance.process.files import write_atomic
from lightning_lance.process.locks import exclusive
from lightning_lance.process.request_logs import quiet_requests
from lightning_lance.readers.retry import RetryPolicy, causes
from lightning_lance.sources.source import Source
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
    named_eos,
    read_beside,
    read_object,
    remembered,
    with_eos,
)
from lightning_lance.tokenization.tokenizer import Tokenizer, byte_tokenizer, check_vocab_size, train_bpe
from lightning_lance.tokenization.tokenizer_json import differences, typed
from lightning_lance.type_hints import as_text, check_arguments, check_no_loaded_tokenizer

# Of a folder, on nearly all file systems.
_LONGEST_NAME = 255

# The requests of a tokenizer are few, and somebody waits for the first of them.
_TRIES, _TIMEOUT_SECONDS = 5, 30.0

_log = logger(__name__)


class TokenizerConfig(Protocol):
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
class ByteTokenizer:
    """One token per byte; needs no file, and makes about four times as many tokens as a BPE."""

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerConfig.load`."""
        return byte_tokenizer()


@dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.json`, or a folder that has one.

    Attributes:
        path: The file or folder.
        eos_token: The token that ends a document; None finds it (in `tokenizer_config.json` or `special_tokens_map.json` beside
            the file, else by its usual spellings).
    """

    path: str
    eos_token: str | None = None

    def __post_init__(self) -> None:
        check_no_loaded_tokenizer("tokenizer.path", self.path)
        object.__setattr__(self, "path", check_place("tokenizer.path", self.path, "my/tokenizer.json"))
        check_arguments(TokenizerFile, vars(self), "tokenizer.")

    def load(self, source: Source | None, folder: Path) -> Tokenizer:
        """See `TokenizerConfig.load`."""
        file = self._file
        if not file.is_file():
            raise ConfigError(f"There is no tokenizer.json at {self.path!r}: give the file, or the folder that has it.")
        return _from_file(file, self.eos_token)[0]

    def identify(self, source: Source | None, folder: Path) -> TokenizerIdentity | None:
        """Return what names the tokenizer, without loading it; None if only loading can tell."""
        return _identity_of_file(self._file, self.eos_token)[0]

    @property
    def _file(self) -> Path:
        file = Path(self.path).expanduser()
        return file / TOKENIZER if file.is_dir() else file


def _identity_of_file(file: Path, eos_token: str | None) -> tuple[TokenizerIdentity | None, Beside]:
    """Read what names the tokenizer of a file, and what lies beside it; None where loading it will say what is wrong."""
    spec = _text_of(file)
    try:
        beside = read_beside(file.parent)
        eos = named_eos(beside) if eos_token is None else eos_token
    except (OSError, UnicodeDecodeError, ConfigError):
        return None, {}
    if spec is None:
        return None, {}
    return identity_of_text(with_eos(spec, eos, beside), eos), beside


def _from_file(file: Path, eos_token: str | None) -> tuple[Tokenizer, Beside]:
    """Load a tokenizer.json with the EOS token that was asked for, or is named beside it; return what lies beside it too."""
    spec = _read_text(file)
    beside = read_beside(file.parent)
    try:
        return _from_text(spec, eos_token, beside), beside
    except ConfigError as error:
        raise ConfigError(f"{str(file)!r}: {error}") from error


def _is_there(file: Path) -> bool:
    """Tell whether there is a file, without waiting for a pipe.

    Raises:
        ConfigError: If what is there is no file: a folder, a pipe, or a link that leads nowhere.
    """
    if file.is_file():
        return True
    if os.path.lexists(file):
        raise ConfigError(f"{str(file)!r} is no file, and stands where the tokenizer is kept: move it elsewhere.")
    return False


def _text_of(file: Path) -> str | None:
    """Return the text of a file, without waiting for a pipe; None if there is no such text."""
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} is no tokenizer.json: it cannot be read as text ({error}).") from error


def _from_text(spec: str, eos_token: str | None, beside: Beside) -> Tokenizer:
    eos = named_eos(beside) if eos_token is None else eos_token
    return Tokenizer(with_eos(spec, eos, beside), eos)


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer of a model on the Hugging Face Hub, or in a local folder: its tokenizer.json, as its authors shipped it.

    So it is the one that `TokenizerFile` gives. Where a class of `transformers` would read it otherwise, a warning says so.
    Only where a repository has no tokenizer.json, `transformers` makes one of its other files.

    What comes from the Hub is kept beside the trained tokenizers: later builds use that, whatever the Hub has by then, and
    ask nobody.

    Attributes:
        model: Such as `gpt2`.
        eos_token: The token that ends a document; None takes the model's own.
        revision: Branch, tag or commit.
        trust_remote_code: Whether code of the model's repository may run here, where it has no tokenizer.json.
    """

    model: str
    eos_token: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_no_loaded_tokenizer("tokenizer.model", self.model)
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
        """See `TokenizerConfig.load`."""
        given = Path(self.model).expanduser()
        if given.exists():
            file = given / TOKENIZER if given.is_dir() else given
            return self._shipped(file, folder) if file.is_file() else self._converted()[0]
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
        """Return what names the tokenizer, without loading it; None if only loading can tell."""
        given, kept = Path(self.model).expanduser(), folder / self._kept_name
        if given.exists():
            file = given / TOKENIZER if given.is_dir() else given
            shipped = True
        else:
            file = kept / TOKENIZER
            shipped = file.is_file() and self._is_shipped(kept)
        identity, beside = _identity_of_file(file, self.eos_token)
        if identity is not None and shipped:
            reading = remembered(identity.digest, beside, folder)
            if reading is None:
                return None
            self._warn_of(reading)
        return identity

    def _shipped(self, file: Path, folder: Path) -> Tokenizer:
        """Load a repository's tokenizer.json; a warning says where transformers would give other ids."""
        loaded, beside = _from_file(file, self.eos_token)
        reading = compared(loaded, beside, folder)
        self._warn_of(reading)
        return loaded.known_as([reading.digest] if reading.digest else [])

    def _warn_of(self, reading: Reading) -> None:
        if reading.differs:
            _warn_once(
                f"The tokenizer {self.model!r} is used as its tokenizer.json says; transformers reads it otherwise, because of "
                f"{reading.by} (other {' and '.join(reading.differs)}), and gives other ids for some texts: to have the "
                "stored ids there, load the file by PreTrainedTokenizerFast(tokenizer_file=...)."
            )

    def _is_shipped(self, kept: Path) -> bool:
        """Return whether what is kept is the repository's tokenizer.json; a warning says where it is known to be another one.

        Earlier versions kept what transformers made of it. That stays in use, since stores were made with it.
        """
        if (kept / ORIGIN).is_file():
            origin = read_object(kept / ORIGIN)
        else:
            shipped = in_cache(self.model, self.revision or "main")
            if shipped is None:
                return False  # nobody here knows
            found = differences(*(typed(read_object(file)) for file in (shipped, kept / TOKENIZER)))
            origin = {"taken_from": "transformers", "differs": [part for part in found if part != "special tokens"]}
            with suppress(OSError):
                write_atomic(kept / ORIGIN, json.dumps(origin))
        if origin.get("differs"):
            _warn_once(
                f"The tokenizer {self.model!r} was kept at {str(kept)!r} by an earlier version as transformers reads it, which "
                f"gives other ids than its tokenizer.json (other {' and '.join(origin['differs'])}); it stays in use, since "
                "stores were made with it: remove that folder to take tokenizer.json, and build new stores."
            )
        return bool(origin.get("taken_from") == TOKENIZER)

    def _keep(self, kept: Path) -> None:
        """Keep the files of a repository on the Hub, or what transformers makes of them where there is no tokenizer.json."""
        silence = _hub_silence(self.model)
        try:
            with quiet_requests():
                files = fetched(self.model, self.revision or "main", local_only=silence is not None)
        except (OSError, ValueError) as error:
            cure = _cure(error, self.model)
            raise ConfigError(f"The tokenizer {self.model!r} cannot be loaded: {cure}.") from shown_cause(error)
        origin = TOKENIZER
        if not files:
            loaded, eos = self._converted(silence)
            if files is None:
                _warn_once(
                    f"The tokenizer {self.model!r} was made by transformers of the files in the cache of huggingface_hub: "
                    "whether its repository has a tokenizer.json, which may give other ids, could not be asked; if it has, "
                    f"remove {str(kept)!r}."
                )
            files = {CONFIG: json.dumps({"eos_token": eos}), TOKENIZER: loaded.to_json()}
            origin = "transformers"
        kept.mkdir(parents=True, exist_ok=True)
        # The one that is looked for comes last, and only if it can be used.
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
        """Return what transformers makes of a repository without a tokenizer.json, and the EOS token that it names.

        Args:
            silence: Why the Hub gives no answer; None where it does, or is not asked.
        """
        from transformers import AutoTokenizer

        try:
            with quiet_requests():
                made: Any = AutoTokenizer.from_pretrained(
                    self.model,
                    revision=self.revision or "main",
                    trust_remote_code=self.trust_remote_code,
                    # What it has of an earlier time may do.
                    local_files_only=silence is not None,
                )
        # Of many kinds, from several libraries: what a conversion needs may not be installed.
        except Exception as error:
            if silence is not None:
                raise SourceError(
                    f"The tokenizer {self.model!r} cannot be loaded, since there is no answer from the Hub ({silence}): check "
                    "the network and HF_ENDPOINT, then run again, or use tokenizer=file."
                ) from None
            cure = _cure(error, self.model)
            raise ConfigError(f"The tokenizer {self.model!r} cannot be loaded: {cure}.") from shown_cause(error)
        backend = getattr(made, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"The tokenizer {self.model!r} has no tokenizer.json, which fast encoding needs: choose another, or convert "
                "it and use tokenizer=file."
            )
        eos = None if made.eos_token is None else str(made.eos_token)
        return Tokenizer(backend.to_str(), self.eos_token or eos), eos


# What a warning has said, so that it is said once.
_said: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning("%s", message)


def _hub_silence(model: str) -> str | None:
    """Ask the Hub for a file of a model, and give why there is no answer; None if there is one, or none is wanted.

    Its client would try each of several files for half a minute.
    """
    from huggingface_hub import constants, get_session, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        with RetryPolicy(model, _TRIES, _TIMEOUT_SECONDS).active():
            get_session().head(hf_hub_url(model, "tokenizer.json"))
    except SourceError as error:
        return str(error).partition(" gave up on ")[2].partition(": all that")[0]
    except Exception as error:  # of its name, of the address, ...: the library says it better
        _log.debug("%s", error)
    return None


def _cure(error: Exception, model: str) -> str:
    text = in_one_line(error, 2000)
    kinds = {type(cause).__name__ for cause in causes(error)}
    if "GatedRepoError" in kinds:
        return (
            f"its repository is gated; accept the terms at https://huggingface.co/{model}, then run 'hf auth login' or set "
            "HF_TOKEN"
        )
    if "RevisionNotFoundError" in kinds:
        return "there is no such revision of it on the Hub; check tokenizer.revision"
    if "RepositoryNotFoundError" in kinds:
        return (
            "there is no such model on the Hub, or it is private; check the name; for a private one run 'hf auth login' or set "
            "HF_TOKEN"
        )
    if "401" in text or "403" in text:
        return "the Hub denies access; run 'hf auth login' or set HF_TOKEN"
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
        """See `TokenizerConfig.load`."""
        if source is None:
            raise ConfigError("A trained tokenizer needs the source that it is trained on: give a source.")
        file = self._file(source, folder)
        if not _is_there(file):
            with exclusive(file.with_suffix(".lock"), "training the tokenizer"):
                if not _is_there(file):
                    _log.info("Training a tokenizer of %d ids on source %r.", self.vocab_size, source.name)
                    tokenizer = train_bpe(self._texts(source), self.vocab_size)
                    write_atomic(file, tokenizer.to_json())
        try:
            return Tokenizer(_read_text(file))
        except ConfigError as error:
            raise ConfigError(
                f"The trained tokenizer {str(file)!r} is damaged: {error} Remove it to train it anew."
            ) from error

    def identify(self, source: Source | None, folder: Path) -> TokenizerIdentity | None:
        """Return what names the tokenizer, without loading it; None if it is not trained yet."""
        spec = None if source is None else _text_of(self._file(source, folder))
        return None if spec is None else identity_of_text(spec, None)

    def _file(self, source: Source, folder: Path) -> Path:
        recipe = json.dumps([source.identity(), self.vocab_size, self.train_bytes], sort_keys=True)
        key = xxhash.xxh3_64_hexdigest(recipe.encode())
        return folder / f"{source.name}-bpe{self.vocab_size}-{key}.json"

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
