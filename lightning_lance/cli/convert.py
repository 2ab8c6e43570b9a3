"""The commands from and to other token formats: import, export."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lance.cli.arguments import ending_in_a_sentence, expect, is_set, read_words, wants_json, with_keys
from lightning_lance.cli.tables import say_json
from lightning_lance.errors import ConfigError, LightningLanceError
from lightning_lance.messages.escaping import fail, say
from lightning_lance.messages.formatting import did_you_mean, nearest, pluralize

if TYPE_CHECKING:
    from lightning_lance.tokenization.configs import TokenizerConfig

# A command imports what it needs once its arguments are right: Lance and numpy take long.

_TEXTS = ("val", "documents", "empty", "language", "language_column", "dtype", "data_dir")
_NUMBERS: Mapping[str, Callable[[str], float]] = {
    "val_fraction": float,
    "max_documents": int,
    "max_tokens": int,
    "commit_seconds": float,
    "commit_tokens": int,
}
_OF_IMPORT = ("uri", "tokenizer", "eos_token", "rebuild", "format", *_TEXTS, *_NUMBERS)
_OF_EXPORT = ("split", "language", "overwrite", "format")
# Tokenizers of the configuration that need more than their name.
_NOT_MADE = ("bpe", "file", "hub")
# How errors of other commands name what this one calls otherwise.
_SPELLED = {
    "set tokenizer.path to the file": "set tokenizer to the file",
    "tokenizer.eos_token": "eos_token",
    "tokenizer=file (TokenizerFile)": "tokenizer=my/tokenizer.json",
    "use tokenizer=file": "use tokenizer=my/tokenizer.json",
    "give another uri, or none, to build": "give another uri to build",
}
# A word that is kept with each document.
_COLUMN = "columns."


def import_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance import`."""
    (kind, place), pairs, storage_options = read_words("import", arguments, 2)
    columns = {}
    for key in [*pairs]:
        if key.startswith(_COLUMN):
            columns[key.removeprefix(_COLUMN)] = pairs.pop(key)
        elif key not in _OF_IMPORT:
            meant = did_you_mean(nearest(key, [*_OF_IMPORT, "columns.tokens"]), quoted=False)
            fail(f"there is no key {key}: {meant}expected {', '.join(_OF_IMPORT)} or columns.WORD.")
    for key in ("uri", "tokenizer"):
        if not pairs.get(key):
            expect("import", f"no {key}")
    as_json = wants_json("import", pairs)
    rebuild = is_set("import", pairs, "rebuild")
    given: dict[str, Any] = {**with_keys(pairs, _TEXTS)}
    for key, value in with_keys(pairs, _NUMBERS).items():
        given[key] = _number(key, value)
    from lightning_lance.convert import import_tokens

    chosen = pairs["tokenizer"]
    with ending_in_a_sentence("run it again, it goes on after its last commit."), _told(as_json), _in_its_words(chosen):
        tokenizer = _tokenizer_of(chosen, pairs.get("eos_token"))
        store = import_tokens(
            kind,
            place,
            pairs["uri"],
            tokenizer,
            columns=columns or None,
            rebuild=rebuild,
            storage_options=storage_options,
            **given,
        )
    if as_json:
        say_json(
            {
                "uri": store.uri,
                "version": store.version,
                "documents": store.commit.stored_documents,
                "train_tokens": store.num_tokens("train"),
                "val_tokens": store.num_tokens("val"),
            }
        )


def _number(key: str, value: str) -> float:
    try:
        return _NUMBERS[key](value)
    except ValueError:
        fail(f"{key} is {value}: expected a number.")


@contextmanager
def _told(as_json: bool) -> Iterator[None]:
    """Print what is logged, as `prepare` does; beside JSON, on standard error."""
    handler = logging.StreamHandler(sys.stderr if as_json else sys.stdout)
    log = logging.getLogger("lightning_lance")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def _in_its_words(tokenizer: str) -> Iterator[None]:
    """Let errors name the keys of this command, where they name those of a configuration."""
    try:
        yield
    except LightningLanceError as error:
        sentence = str(error)
        for others, ours in _SPELLED.items():
            sentence = sentence.replace(others, ours)
        is_model = sentence.startswith(f"The tokenizer {tokenizer!r} cannot be") and not tokenizer.endswith(".json")
        if is_model and not os.path.lexists(tokenizer):
            sentence = f"{sentence.rstrip('.')}; {tokenizer!r} is no file or folder here."
        error.args = (sentence,)
        raise


def _tokenizer_of(name: str, eos_token: str | None) -> TokenizerConfig:
    """Return the tokenizer of a file, of a name of the configuration, or of a model on the Hub."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lightning_lance.tokenization.configs import ByteTokenizer, PretrainedTokenizer, TokenizerFile

    if os.path.exists(Path(name).expanduser()) or name.endswith(".json"):
        return TokenizerFile(name, eos_token)
    if name in _NOT_MADE:
        raise ConfigError(
            f"tokenizer is {name}: expected the one that made the tokens, as in tokenizer=my/tokenizer.json or tokenizer=gpt2."
        )
    if name == "bytes":
        if eos_token is not None:
            raise ConfigError(
                "eos_token is given, and the tokenizer bytes has one of its own, the id 256: leave it out."
            )
        return ByteTokenizer()
    ready = files("lightning_lance.conf") / "tokenizer" / f"{name}.yaml"
    if "/" in name or not ready.is_file():
        _check_not_misspelled(name)
        return PretrainedTokenizer(name, eos_token)
    config = OmegaConf.create(ready.read_text(encoding="utf-8"))
    made: TokenizerConfig = instantiate(config, **({} if eos_token is None else {"eos_token": eos_token}))
    return made


def _check_not_misspelled(name: str) -> None:
    """Refuse a name that is almost that of a tokenizer of the configuration: the Hub would be asked for a model of that name.

    A longer name of the same family, such as gpt2-xl, is one of a model.
    """
    options: set[str] = set()
    for file in (files("lightning_lance.conf") / "tokenizer").iterdir():
        if file.name.endswith(".yaml"):
            options.add(file.name.removesuffix(".yaml"))
    known = sorted(options - {*_NOT_MADE})
    near = nearest(name, known)
    if near is not None and "/" not in name and not name.startswith(near):
        raise ConfigError(
            f"There is no tokenizer {name!r}: did you mean {near}? expected a tokenizer.json, one of {', '.join(known)}, or a "
            "model of the Hub as owner/name."
        )


def export_command(arguments: Sequence[str]) -> None:
    """Run `lightning-lance export`."""
    (uri, kind, place), pairs, storage_options = read_words("export", arguments, 3, _OF_EXPORT)
    as_json = wants_json("export", pairs)
    overwrite = is_set("export", pairs, "overwrite")
    from lightning_lance.convert import export_tokens

    with ending_in_a_sentence("run it again, nothing was put in place that is not whole."):
        exported = export_tokens(
            uri,
            kind,
            place,
            split=pairs.get("split"),
            language=pairs.get("language"),
            overwrite=overwrite,
            storage_options=storage_options,
        )
    if as_json:
        say_json({"uri": uri, "exported": exported})
        return
    for one in exported:
        say(f"{' and '.join(one.files)}: {pluralize(one.documents, 'document')}, {pluralize(one.tokens, 'token')}.")
