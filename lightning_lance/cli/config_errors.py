"""Checks of a composed configuration, and its errors as sentences that name the keys to set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from lightning_lance.cli.arguments import without_keys
from lightning_lance.cli.overrides import is_secret_key, shown_override
from lightning_lance.errors import ConfigError, LightningLanceError, causes
from lightning_lance.messages.formatting import did_you_mean, nearest
from lightning_lance.messages.moved_names import moved_key
from lightning_lance.type_hints import type_mismatch

CONF = "lightning_lance.conf"
# Overrides that only a build reads.
_OF_A_BUILD = re.compile(r"\+*((corpus|source|tokenizer|engine)[.=]|build\.(?!wait_for_tokens)\w+=)")
# Nodes of the configuration whose keys are named without the node in errors.
_NODES = ("corpus", "data", "build")
# Groups whose options each have a key of their own.
_CHOSEN = ("logger", "watch")
# Keys that are not English words, so that they mean the key anywhere in a sentence.
_NO_WORDS = ("uri", "fim")
# OmegaConf's error for a reference to a missing key.
_MISSED = re.compile(
    r"Interpolation key '(?P<key>[\w.]+)' not found|Environment variable '(?P<variable>\w+)' not found"
)


def one_sentence(error: BaseException, config: DictConfig | None, given: Sequence[str] = ()) -> str:
    """Return an error of a command as one sentence.

    Args:
        error: The error.
        config: The composed configuration; None if it could not be composed.
        given: The overrides of the command line.
    """
    for cause in causes(error):
        if isinstance(cause, LightningLanceError):
            return _with_places(cause, config)
        sentence = _explained(cause)
        if sentence:
            return sentence
    if isinstance(error, InstantiationException) and config is not None:
        return _cannot_be_made(error, config, given)
    return " ".join(str(error).split())


def check_added(config: DictConfig, given: Sequence[str]) -> None:
    """Refuse values that the command line adds to the root of the configuration: nothing would read them."""
    file = OmegaConf.load(str(files(CONF) / "config.yaml"))
    added: set[str] = set()
    for text in given:
        if text.startswith("+"):
            added.add(text.partition("=")[0].lstrip("+"))
    added.difference_update(map(str, file))
    known = without_keys(config, added)
    for name in sorted(added.intersection(map(str, config))):
        if not isinstance(config[name], DictConfig):
            raise ConfigError(_unknown_root_key(name, known))


def check_is_stored(config: DictConfig) -> None:
    """Refuse keys of a corpus or its build where none is built: they would be ignored without a word."""
    served = config.data.get("corpus")
    parts = [served]
    if isinstance(served, DictConfig):
        parts += served.values()
    if served is None or any(map(_is_made, parts)):
        return
    languages = config.get("languages")
    if languages:
        plain = languages
        if OmegaConf.is_config(languages):
            plain = OmegaConf.to_container(languages)
        raise ConfigError(
            f"languages is {plain}, but there is no source to select them from: select languages of a store by "
            "data.where={language: [...]}."
        )
    for key in ("max_documents", "max_tokens"):
        if config.get(key) is not None:
            raise ConfigError(
                f"{key} is {config[key]}, but data.corpus is an existing store, and nothing is built: leave {key} out."
            )
    given: list[str] = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for override in given:
        if _OF_A_BUILD.match(override):
            hint = ""
            if "storage_options" in override:
                hint = " (a store in a bucket takes data.storage_options)"
            raise ConfigError(
                f"{shown_override(override)} is given, but data.corpus is an existing store, and nothing is built: leave it "
                f"out{hint}."
            )


def _is_made(node: Any) -> bool:
    """Return whether a constructor is called for a node of the configuration."""
    return isinstance(node, DictConfig) and "_target_" in node


def misfits(node: DictConfig, place: str, target: str | None = None) -> Iterator[str]:
    """Yield a sentence for each value that a constructor's annotations exclude, with the key that the user sets."""
    target = target or node.get("_target_")
    takes = get_object(target) if target else None
    written: Any = OmegaConf.to_container(node, resolve=False)
    for name, text in written.items():
        if text == "???":
            continue
        # A value that refers to another key is set there.
        reference = re.fullmatch(r"\$\{([\w.]+)\}", str(text))
        key = reference[1] if reference else f"{place}.{name!s}"
        value = node[name]
        if _is_made(value):
            yield from misfits(value, key)
            continue
        if takes is None:
            continue
        plain = value
        if OmegaConf.is_config(value):
            plain = OmegaConf.to_container(value)
        expected = type_mismatch(takes, str(name), plain)
        if expected:
            shown = f"of type {type(plain).__name__}"
            if not is_secret_key(key):
                shown = repr(plain)
            yield f"{key} is {shown}: expected {expected}."


def no_option(error: ValueError, arguments: Sequence[str]) -> ConfigError:
    """Return the error for Hydra's ValueError if a group is set to something other than a name, such as null or a number."""
    for argument in arguments:
        if argument in ("source=null", "tokenizer=null"):
            return ConfigError(
                f"{argument} is not the name of an option: leave it out, or, to train on an existing store, give "
                "data.corpus=PLACE."
            )
    reason = " ".join(str(error).split()).rstrip(".")
    # Only a group has neither dots nor slashes in its name.
    given = _shown_overrides(arguments, r"[^=./]*(=|\Z)")
    return ConfigError(f"The configuration is not valid ({reason}): check {given or 'its groups'}.")


def _shown_overrides(arguments: Sequence[str], pattern: str) -> str:
    """Return the overrides that begin with a pattern, without their secrets, as a list for a sentence."""
    shown = [shown_override(argument) for argument in arguments if re.match(pattern, argument)]
    return ", ".join(shown)


def failed_at(error: InstantiationException) -> str:
    """Return the place in the configuration whose constructor has failed; empty if unknown."""
    match = re.search(r"full_key: (\S+)", str(error))
    # Hydra writes `callbacks0` for the key `callbacks.0`.
    if match:
        return re.sub(r"(?<=[a-z_])(\d+)(?=\.|$)", r".\1", match[1])
    return ""


def _explained(error: BaseException) -> str | None:
    """Return an error of Hydra or OmegaConf in one sentence; None for others."""
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return _unknown_key(error)
    if isinstance(error, (MissingMandatoryValue, InterpolationToMissingValueError)):
        key = re.sub(r"^(data\.)?(corpus\.)?(?=(source|tokenizer)\.)", "", str(error.full_key or error.key))
        return f"The key {key} has no value: give it one on the command line, as in {key}=..."
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return _unknown_option(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        return _not_understood(error.override)
    if isinstance(error, InterpolationResolutionError):
        return _missing_reference(str(error))
    return None


def _missing_reference(text: str) -> str | None:
    found = _MISSED.search(text)
    if found is None:
        return None
    variable, key = found.group("variable", "key")
    if variable:
        return f"The environment variable {variable!r} is not set, but the configuration refers to it: set it."
    return f"There is no key {key!r} for ${{{key}}}: write an environment variable as ${{oc.env:{key}}}."


def _with_places(error: LightningLanceError, config: DictConfig | None) -> str:
    """Return an error with its keys' places on the command line: it names arguments, which are mostly below a node."""
    sentence = str(error)
    if config is None:
        return sentence
    if error.place.endswith(".source"):
        # Each of several corpora has a source of its own.
        sentence = re.sub(r"\bsource\.(?=\w)", f"{_set_at(error.place, config)}.", sentence)
    places: dict[str, str] = {}
    for node in _NODES:
        keys = config.get(node)
        if not isinstance(keys, DictConfig):
            continue
        for key in public_names(map(str, keys)):
            if key not in config and _names(sentence, key):
                places.setdefault(key, f"{_place_of(node, error.place, config)}.{key}")
    if not places:
        return sentence
    return f"{sentence.rstrip('.')}; on the command line: {', '.join(places.values())}."


def _place_of(node: str, failed: str, config: DictConfig) -> str:
    """Return where users set the keys of a node. Of several corpora, each has a node of its own.

    Args:
        node: One of `_NODES`.
        failed: The place whose constructor has failed; empty if unknown.
        config: The whole configuration.
    """
    if node != "corpus":
        return node
    served = config.data.get("corpus")
    if not isinstance(served, DictConfig) or "_target_" in served:
        return node
    if not failed.startswith("data.corpus."):
        return f"{_set_at('data.corpus', config)}.NAME"
    name = failed.split(".")[2]
    return _set_at(f"data.corpus.{name}", config)


def _set_at(place: str, config: DictConfig) -> str:
    """Return the key by which users set a place of the configuration: one that refers to another is set there."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return _followed(place, plain)[0]


def _followed(place: str, plain: Any) -> tuple[str, Any]:
    """Return the key that a place refers to, and what is there; None if nothing is."""
    key, node = "", plain
    for part in place.split("."):
        key = f"{key}.{part}" if key else part
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.get(part) if isinstance(node, dict) else None
        reference = re.fullmatch(r"\$\{([\w.]+)\}", str(node))
        if reference:
            key, node = _followed(reference[1], plain)
    return key, node


def _names(sentence: str, key: str) -> bool:
    anywhere = "_" in key or key in _NO_WORDS
    pattern = rf"(?<![\w./'\"]){key}(?![\w/'\"])"
    if not anywhere:
        pattern = rf"^{key}\b|\b{key}="
    return re.search(pattern, sentence) is not None


def _not_understood(override: str) -> str:
    examples = "context_length=512, 'languages=[Python,Rust]' or 'data.mix={Python: 0.7, Rust: 0.3}'"
    override = shown_override(override)
    if override.endswith(".lance"):
        return f"Got {override!r}, which is not key=value: a store that is there is served by data.corpus={override}."
    if "=" not in override:
        return f"Got {override!r}, which is not key=value: expected text such as {examples}."
    return (
        f"The value of {override!r} cannot be parsed: expected text such as {examples}; close all brackets and quotes, and "
        f"quote text with characters such as , : = ~ ( [ {{ twice, as in 'key=\"a, b\"'."
    )


def _cannot_be_made(error: InstantiationException, config: DictConfig, given: Sequence[str]) -> str:
    """Return which value a constructor fails on: the one that its annotations exclude, else the ones from the user."""
    place = failed_at(error)
    group = _set_at(place, config) if place else ""
    node = OmegaConf.select(config, place) if place else None
    if isinstance(node, DictConfig):
        for sentence in misfits(node, group):
            return sentence
    cause = error.__cause__
    reason = " ".join(str(cause or error).split()).rstrip(".")
    if cause is not None and type(cause) is not ValueError:
        reason = f"{type(cause).__name__}: {reason}"
    mine = _shown_overrides(given, rf"\+*{re.escape(group)}[.=]")
    return f"{group or 'The configuration'} cannot be made ({reason}): check {mine or 'its keys'}."


def _unknown_option(file: str, options: Any) -> str:
    group, _, name = file.rpartition("/")
    if file.startswith(("source/", "tokenizer/", "data/")):
        # A path, where a name was expected.
        group, _, name = file.partition("/")
    if file.startswith("corpus/"):
        place = file.removeprefix("corpus/")
        return (
            f"There is no corpus {place!r}: a store that is there is served by data.corpus={place}, and one that is built goes "
            f"to corpus.uri={place}."
        )
    known = sorted(public_names(options))
    if group == "data":
        return (
            f"There is no data {name!r}: a store that is there is served by data.corpus={name}, and files to be tokenized are "
            "a source, as in source=jsonl 'source.data_files=[corpus/*.jsonl]'."
        )
    hint = _did_you_mean(name, known)
    if group == "source":
        hint = _of_a_file(name) or hint
    if group == "tokenizer":
        hint = _of_a_tokenizer(name) or hint
    return f"There is no {group} {name!r}: {hint}expected one of {', '.join(known)}."


def _of_a_file(name: str) -> str:
    """Return how files are given, where a source is named by one; empty for other names."""
    ending = name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if ending in ("jsonl", "json", "parquet") and "." in name:
        kind = "parquet" if ending == "parquet" else "jsonl"
        return f"a file is given as source={kind} 'source.data_files=[{name}]'; "
    if ending == "lance":
        return f"a store that is there is served by data.corpus={name}; "
    if "/" in name or "." in name or os.path.exists(name):
        return f"files and folders are given as source=files 'source.patterns=[{name}]'; "
    return ""


def _of_a_tokenizer(name: str) -> str:
    """Return how a tokenizer is given, where a file or a model of the Hub is named; empty for other names."""
    if name.endswith(".json") or os.path.exists(name):
        return f"a tokenizer.json is given as tokenizer=file tokenizer.path={name}; "
    if "/" in name:
        return f"a model of the Hub is given as tokenizer=hub tokenizer.model={name}; "
    return ""


def _unknown_key(error: OmegaConfBaseException) -> str:
    moved = moved_key(str(error.full_key))
    if moved:
        return moved
    parent = error.parent_node if isinstance(error.parent_node, DictConfig) else {}
    known = sorted({*map(str, parent)} - {"_target_", "_convert_", "hydra"})
    place = str(error.full_key).rpartition(".")[0]
    if not place:
        return _unknown_root_key(str(error.key), parent)
    if place in _CHOSEN and files(CONF).joinpath(place, f"{error.key}.yaml").is_file():
        return f"There is no key {error.full_key!r}, since {error.key} is not chosen: add {place}={error.key}."
    other = ""
    if place == "source":
        other = f"; another {place} may be chosen, as in {place}=files"
    return (
        f"There is no key {error.full_key!r}: {_did_you_mean(str(error.key), known)}{place} has "
        f"{', '.join(known)}{other} (to add a key that the constructor takes, write +{error.full_key}=...)."
    )


def _unknown_root_key(key: str, config: Mapping[Any, Any]) -> str:
    """Return a sentence for a key that the root of the configuration has not. One of a node is named with its node."""
    keys = []
    for name, node in config.items():
        if isinstance(node, DictConfig) and key in node:
            keys.append(f"{name}.{key}")
    known = sorted({*map(str, config)} - {"hydra"})
    meant = f"did you mean {' or '.join(keys)}? "
    if not keys:
        meant = _of_another_option(key) or _did_you_mean(key, known)
    return f"There is no key {key!r}: {meant}the configuration has {', '.join(known)}."


def _of_another_option(key: str) -> str:
    """Return the node of a key that other options of a group have than the chosen one; empty if none has it."""
    for group in ("source", "tokenizer"):
        for file in files(CONF).joinpath(group).iterdir():
            if file.name.endswith(".yaml") and key in OmegaConf.create(file.read_text(encoding="utf-8")):
                return f"did you mean {group}.{key}, which other {group}s have? "
    return ""


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    return did_you_mean(nearest(name, known))


def public_names(names: Iterable[str]) -> list[str]:
    """Return the names of options. Others, such as `_base`, are parts of several options."""
    return [name for name in names if not name.startswith("_")]
