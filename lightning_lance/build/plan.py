"""What a store will hold, where it is, and when it counts as prepared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import xxhash

from lightning_lance.documents.screening import MAX_DOCUMENT_BYTES, LongDocuments
from lightning_lance.documents.splits import check_val_fraction
from lightning_lance.errors import ConfigError, StoreError, described, is_count
from lightning_lance.format.channels import ordered
from lightning_lance.format.commit import last_commit
from lightning_lance.format.metadata import FORMAT_VERSION, CommitMetadata
from lightning_lance.format.versions import first_version, open_with_retry
from lightning_lance.lance_names import VERSIONS
from lightning_lance.location import StoreLocation, is_local, store_place, tokenizer_file
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize
from lightning_lance.messages.redaction import redacted
from lightning_lance.process.build_status import read_status, status_file
from lightning_lance.sources.local_paths import data_folder
from lightning_lance.sources.source import Source
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.chosen import ChosenTokenizer
from lightning_lance.tokenization.configs import TokenizerConfig, TrainedBPE
from lightning_lance.tokenization.identity import TokenizerIdentity
from lightning_lance.tokenization.tokenizer import Tokenizer, token_dtype

_log = logger(__name__)


@dataclass(frozen=True)
class Budget:
    """How much of a source to store. The bound that is reached first ends the build.

    Attributes:
        max_documents: Documents; None for no bound.
        max_tokens: Tokens, EOS included. The document that reaches it is stored whole. None for no bound.
    """

    max_documents: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None:
                continue
            if not is_count(value):
                raise ConfigError(
                    f"{name} is {described(value)}: expected a positive whole number, or null for no bound."
                )
            object.__setattr__(self, name, int(value))

    def __str__(self) -> str:
        asked = [f"{name}={value:,}" for name, value in vars(self).items() if value is not None]
        return " and ".join(asked) or "all that the source has"

    def met(self, commit: CommitMetadata) -> bool:
        """Whether a store with this commit needs no more documents."""
        return (
            commit.exhausted
            or (self.max_documents is not None and commit.documents >= self.max_documents)
            or (self.max_tokens is not None and commit.tokens >= self.max_tokens)
        )

    def share(self, commit: CommitMetadata, num_shards: int) -> float:
        """Return the share that is done, 0 to 1: of the budget, or of the shards if there is no budget."""
        if commit.exhausted:
            return 1.0
        shares = [commit.shard / max(num_shards, 1)]
        if self.max_documents is not None:
            shares.append(commit.documents / self.max_documents)
        if self.max_tokens is not None:
            shares.append(commit.tokens / self.max_tokens)
        return max(shares)


@dataclass(frozen=True)
class Plan:
    """What a build will store, and where.

    Attributes:
        recipe: The settings that decide the stored tokens, and no others; JSON types.
        fingerprint: Hash of the recipe.
        location: Where the store is.
        chosen: The tokenizer, which is loaded on first use.
        labels: What the user wrote, for people who look at the store; see `CommitMetadata`.
    """

    recipe: dict[str, Any] = field(repr=False)
    fingerprint: str
    location: StoreLocation
    chosen: ChosenTokenizer
    labels: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded tokenizer. ConfigError if it cannot be loaded."""
        return self.chosen.loaded

    def older_recipes(self) -> list[dict[str, Any]]:
        """Return the recipes of earlier versions for the same store: their digests of the tokenizer differ."""
        return [{**self.recipe, "tokenizer": digest} for digest in self.tokenizer.other_digests]

    def made(self, commit: CommitMetadata) -> bool:
        """Return whether a store with this commit was built with the same settings."""
        if commit.fingerprint == self.fingerprint:
            return True
        return commit.fingerprint in map(_fingerprint, self.older_recipes())

    @property
    def long_documents(self) -> LongDocuments:
        """How long documents are treated."""
        return LongDocuments(self.recipe["max_document_bytes"], self.recipe["long_documents"])

    @property
    def uri(self) -> str:
        """The place of the store."""
        return self.location.uri

    @property
    def tokenizer_file(self) -> Path | None:
        """The file of the tokenizer beside a local store."""
        if self.location.is_local:
            return tokenizer_file(self.uri)
        return None


def make_plan(
    source: Source,
    tokenizer: TokenizerConfig,
    uri: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | Path = "data",
    val_fraction: float = 0.01,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    long_documents: Literal["split", "skip"] = "split",
    storage_options: Mapping[str, str] | None = None,
) -> Plan:
    """Return the plan of a store: its fingerprint, and its place. Reads no documents, but may train a tokenizer.

    Args: as for `Corpus`.

    Raises:
        ConfigError: If the source or the tokenizer cannot be used.
    """
    check_val_fraction(val_fraction)
    long = LongDocuments(max_document_bytes, long_documents)
    folder = Path(data_folder(data_dir))
    given = None if uri is None or (isinstance(uri, str) and not uri) else store_place(uri)
    # Before a tokenizer is trained, which would be kept there.
    _check_in_no_store(given or str(folder / "x.lance"), "uri" if given else "data_dir")
    chosen = ChosenTokenizer.of(tokenizer, source, folder / "tokenizers")
    identity = chosen.identity
    recipe = _recipe(source, identity, val_fraction, long)
    fingerprint = _fingerprint(recipe)
    labels = _labels(source, tokenizer)
    if given:
        return Plan(recipe, fingerprint, StoreLocation(given, storage_options), chosen, labels)

    def place(fingerprint: str) -> StoreLocation:
        return StoreLocation(store_place(folder / f"{source.name}-{fingerprint[:12]}.lance"))

    plan = Plan(recipe, fingerprint, place(fingerprint), chosen, labels)
    if not Path(plan.uri).exists():
        # A store that an earlier version built from the same settings keeps its name.
        for older in plan.older_recipes():
            found = place(_fingerprint(older))
            if Path(found.uri).exists():
                return replace(plan, recipe=older, fingerprint=_fingerprint(older), location=found)
    return plan


def _recipe(
    source: Source, identity: TokenizerIdentity | None, val_fraction: float, long: LongDocuments
) -> dict[str, Any]:
    """Return the settings that decide the stored tokens; without a tokenizer, those that it does not decide."""
    own = source.has_validation
    recipe: dict[str, Any] = {"format": FORMAT_VERSION, "source": source.identity()}
    if identity is not None:
        recipe |= {"tokenizer": identity.digest, "eos_token": identity.eos_token}
    recipe["eos"] = "after every document"
    if identity is not None:
        recipe["dtype"] = str(token_dtype(identity.vocab_size))
    recipe |= {
        "split": "the source's own" if own else "xxh3_64 of repo, else of the text without the white space around it",
        "val_fraction": 0.0 if own else float(val_fraction),
        "max_document_bytes": long.max_bytes,
        "long_documents": long.how,
    }
    # Only where there are some: without, the fingerprint is that of earlier versions.
    channels = channels_of_source(source)
    if channels:
        recipe["channels"] = [*channels]
    plain: dict[str, Any] = json.loads(json.dumps(recipe))
    return plain


def channels_of_source(source: Source) -> tuple[str, ...]:
    """Return the channels that a source has beside its tokens. Most have none, and do not say so."""
    return ordered(getattr(source, "channels", ()))


def check_before_training(
    source: Source,
    tokenizer: TokenizerConfig,
    location: StoreLocation,
    *,
    data_dir: str | Path,
    val_fraction: float,
    long_documents: LongDocuments,
) -> None:
    """Raise StoreError if another store is at the place of a new one, as far as that is known before a tokenizer is trained."""
    if not isinstance(tokenizer, TrainedBPE) or tokenizer.identify(source, Path(data_dir, "tokenizers")) is not None:
        return
    commit = last_commit(location)
    if commit is None:
        return
    asked = _recipe(source, None, val_fraction, long_documents)
    stored = {name: value for name, value in commit.recipe.items() if name in asked}
    if stored != asked:
        raise _other_store(location.uri, stored, asked)
    if commit.vocab_size > tokenizer.vocab_size:
        raise _other_store(location.uri, {"vocab_size": commit.vocab_size}, {"vocab_size": tokenizer.vocab_size})


def _labels(source: Source, tokenizer: TokenizerConfig) -> dict[str, Any]:
    """Return the words of the user about a source and a tokenizer, without secrets; JSON types.

    A user's own source or tokenizer needs none.
    """
    own = {"source": source.name, "tokenizer": getattr(tokenizer, "label", type(tokenizer).__name__)}
    labels: dict[str, Any] = {}
    for name, value in {**own, **getattr(source, "labels", {})}.items():
        labels[name] = _shown(value) if isinstance(value, str) else list(map(_shown, value))
    return labels


def _shown(text: str) -> str:
    """Return a text without secrets, as valid Unicode, which names of files need not be."""
    return redacted(text).encode("utf-8", "backslashreplace").decode()


def _check_in_no_store(place: str, name: str) -> None:
    """Refuse a new store in the folder of another one, whose clean-up would meet its files."""
    if not is_local(place) or (Path(place) / VERSIONS).exists():
        return
    for folder in Path(place).parents:
        if (folder / VERSIONS).is_dir():
            given = place if name == "uri" else str(Path(place).parent)
            raise ConfigError(
                f"{name} is {given!r}, in the folder of the store {str(folder)!r}: give a place outside of it."
            )


def _fingerprint(recipe: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(recipe, sort_keys=True).encode())


def open_prepared(plan: Plan, budget: Budget) -> TokenStore:
    """Open the store of a plan, at the first version that meets the budget.

    Raises:
        StoreError: If the store has no commit, is unfinished, or was built with other settings.
    """
    commit = last_commit(plan.location)
    if commit is None:
        raise StoreError(
            f"There is no committed token store at {plan.uri!r}{_last_failure(plan)}: run 'lightning-lance prepare' first."
        )
    check_same(commit, plan)
    if not budget.met(commit):
        raise StoreError(
            f"The token store {plan.uri!r} is unfinished ({pluralize(commit.documents, 'document')}, "
            f"{pluralize(commit.tokens, 'token')}; asked for {budget}){_last_failure(plan)}: "
            "run 'lightning-lance prepare' again to continue it."
        )
    # Versions from before the last removal of documents are kept for checkpoints only.
    rules = len(commit.forgotten)

    def serves(commit: CommitMetadata) -> bool:
        return len(commit.forgotten) >= rules and budget.met(commit)

    store = open_with_retry(
        lambda: first_version(plan.location, serves),
        lambda version: TokenStore.open(plan.uri, version, plan.location.storage_options),
    )
    if budget.max_documents is not None and store.commit.documents > budget.max_documents:
        _log.warning(
            "The token store %s has %s documents, but the budget is %s: it was built with a larger budget.",
            plan.uri,
            f"{store.commit.documents:,}",
            f"{budget.max_documents:,}",
        )
    return store


def _last_failure(plan: Plan) -> str:
    status = read_status(status_file(plan.uri))
    if status is None or not status.failure:
        return ""
    return f", since its build failed ({status.failure})"


# Settings that an error names.
_MOST_CHANGES = 6


def check_same(commit: CommitMetadata, plan: Plan) -> None:
    """Raise StoreError if a store was built with other settings than those of a plan, naming each, stored -> asked."""
    if not plan.made(commit):
        raise _other_store(plan.uri, commit.recipe, plan.recipe)


def _other_store(uri: str, recipe: Mapping[str, Any], wanted: Mapping[str, Any]) -> StoreError:
    stored = _flat(recipe)
    asked = _flat(wanted)
    changes: list[str] = []
    for key in sorted(stored.keys() | asked.keys()):
        before = stored.get(key)
        after = asked.get(key)
        if before != after:
            changes.append(f"{key}: {before!r} -> {after!r}")
    named = "; ".join(changes[:_MOST_CHANGES])
    if len(changes) > _MOST_CHANGES:
        named += f"; and {len(changes) - _MOST_CHANGES} more"
    return StoreError(
        f"The token store {uri!r} was built with other settings ({named}): give another uri, or none, to build another "
        "store, or set rebuild=true to replace this one."
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dict, with dots in its keys."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for name, part in value.items():
        flat |= _flat(part, f"{prefix}{name}.")
    return flat
