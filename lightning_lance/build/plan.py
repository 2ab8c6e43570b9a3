"""What a store will hold, where it is, and when it counts as prepared."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import xxhash

from lightning_lance.documents.screening import MAX_DOCUMENT_BYTES, LongDocuments
from lightning_lance.documents.splits import check_val_fraction
from lightning_lance.errors import ConfigError, StoreError, described, is_count
from lightning_lance.format.commit import last_commit
from lightning_lance.format.metadata import FORMAT_VERSION, CommitMetadata
from lightning_lance.format.versions import first_version, open_with_retry
from lightning_lance.location import beside_place, is_local, store_place, tokenizer_file
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import pluralize
from lightning_lance.process.build_status import BuildStatus, failure_of, read_status, status_file
from lightning_lance.process.files import write_atomic
from lightning_lance.process.locks import LeaseWatch, content_of, lock_file
from lightning_lance.sources.local_paths import data_folder
from lightning_lance.sources.source import Source
from lightning_lance.store.token_store import TokenStore
from lightning_lance.tokenization.chosen import ChosenTokenizer
from lightning_lance.tokenization.configs import TokenizerConfig, TokenizerFile
from lightning_lance.tokenization.tokenizer import Tokenizer, is_kept_tokenizer, token_dtype

_log = logger(__name__)

# Between two looks at a store that another process builds.
_POLL_SECONDS = 1.0
# Between two lines that tell what is waited for, where nothing changes.
_TELL_SECONDS = 60.0
# Who starts a builder that failed again and a run that waits for it, may start the run first.
_BEGIN_SECONDS = 60.0


@dataclass(frozen=True)
class Budget:
    """How much of a source to store; whatever is reached first ends the reading.

    Attributes:
        max_documents: Documents; None for no bound.
        max_tokens: Tokens, EOS included. The document that reaches it is stored whole. None for no bound.
    """

    max_documents: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not is_count(value):
                raise ConfigError(
                    f"{name} is {described(value)}: expected a positive whole number, or null for no bound."
                )
            object.__setattr__(self, name, None if value is None else int(value))

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
        """Tell how much is done, 0 to 1: of the budget, or of the shards where there is none."""
        shares = [commit.shard / max(num_shards, 1)]
        if self.max_documents is not None:
            shares.append(commit.documents / self.max_documents)
        if self.max_tokens is not None:
            shares.append(commit.tokens / self.max_tokens)
        return 1.0 if commit.exhausted else max(shares)


@dataclass(frozen=True)
class Plan:
    """What a build will store, and where.

    Attributes:
        recipe: All that decides the stored tokens, and nothing else; JSON types.
        fingerprint: Hash of the recipe.
        uri: Place of the store.
        chosen: The tokenizer, which is loaded when first needed.
    """

    recipe: dict[str, Any] = field(repr=False)
    fingerprint: str
    uri: str
    chosen: ChosenTokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded tokenizer. ConfigError if it cannot be had."""
        return self.chosen.loaded

    def older_recipes(self) -> list[dict[str, Any]]:
        """Return the recipes of earlier versions for the same store: they spelled the tokenizer otherwise."""
        return [{**self.recipe, "tokenizer": digest} for digest in self.tokenizer.other_digests]

    def made(self, commit: CommitMetadata) -> bool:
        """Tell whether a store with this commit is of the same recipe."""
        if commit.fingerprint == self.fingerprint:
            return True
        return commit.fingerprint in map(_fingerprint, self.older_recipes())

    @property
    def long_documents(self) -> LongDocuments:
        """What becomes of documents with much text."""
        return LongDocuments(self.recipe["max_document_bytes"], self.recipe["long_documents"])

    @property
    def tokenizer_file(self) -> Path | None:
        """Where the tokenizer is kept beside a local store."""
        return tokenizer_file(self.uri) if is_local(self.uri) else None

    @property
    def lock_file(self) -> Path | None:
        """What keeps the builders of a local store apart, while one builds."""
        return lock_file(self.uri)

    @property
    def status_file(self) -> Path | None:
        """What the builder of a local store tells those who wait, while it builds, or after it failed."""
        return status_file(self.uri)


def make_plan(
    source: Source,
    tokenizer: TokenizerConfig,
    uri: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | Path = "data",
    val_fraction: float = 0.01,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    long_documents: Literal["split", "skip"] = "split",
) -> Plan:
    """Work out the fingerprint, and from it the place of the store. Reads no documents (but may train a tokenizer).

    Args: as for `prepare`.

    Raises:
        ConfigError: If source or tokenizer cannot be had.
    """
    check_val_fraction(val_fraction)
    long = LongDocuments(max_document_bytes, long_documents)
    folder = Path(data_folder(data_dir))
    given = None if uri is None or (isinstance(uri, str) and not uri) else store_place(uri)
    chosen = ChosenTokenizer.of(tokenizer, source, folder / "tokenizers")
    identity = chosen.identity
    own = source.has_validation
    recipe = {
        "format": FORMAT_VERSION,
        "source": source.identity(),
        "tokenizer": identity.digest,
        "eos_token": identity.eos_token,
        "eos": "after every document",
        "dtype": str(token_dtype(identity.vocab_size)),
        "split": "the source's own" if own else "xxh3_64 of repo, else of the text without the white space around it",
        "val_fraction": 0.0 if own else float(val_fraction),
        "max_document_bytes": long.max_bytes,
        "long_documents": long.how,
    }
    recipe = json.loads(json.dumps(recipe))
    fingerprint = _fingerprint(recipe)
    if given:
        return Plan(recipe, fingerprint, given, chosen)

    def place(fingerprint: str) -> str:
        return store_place(folder / f"{source.name}-{fingerprint[:12]}.lance")

    plan = Plan(recipe, fingerprint, place(fingerprint), chosen)
    if not Path(plan.uri).exists():
        # A store that an earlier version made of the same goes on under its own name.
        for older in plan.older_recipes():
            found = place(_fingerprint(older))
            if Path(found).exists():
                return replace(plan, recipe=older, fingerprint=_fingerprint(older), uri=found)
    return plan


def _fingerprint(recipe: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(recipe, sort_keys=True).encode())


def open_prepared(plan: Plan, budget: Budget, storage_options: Mapping[str, str] | None = None) -> TokenStore:
    """Open the store of a plan, at the first version that meets the budget.

    Raises:
        StoreError: If it is not committed, not complete, or another store.
    """
    commit = last_commit(plan.uri, storage_options=storage_options)
    if commit is None:
        raise StoreError(
            f"There is no committed token store at {plan.uri!r}{_last_failure(plan)}: run 'lightning-lance prepare' first."
        )
    check_same(commit, plan)
    if not budget.met(commit):
        raise StoreError(
            f"The token store {plan.uri!r} is unfinished ({pluralize(commit.documents, 'document')}, "
            f"{pluralize(commit.tokens, 'token')}; asked for {budget}){_last_failure(plan)}: "
            "run 'lightning-lance prepare' again, it continues."
        )
    # Versions from before something was forgotten are kept for checkpoints only.
    rules = len(commit.forgotten)

    def first() -> int:
        return first_version(
            plan.uri, lambda commit: len(commit.forgotten) >= rules and budget.met(commit), storage_options
        )

    store = open_with_retry(first, lambda version: TokenStore.open(plan.uri, version, storage_options))
    if budget.max_documents is not None and store.commit.documents > budget.max_documents:
        _log.warning(
            "The token store %s has %s documents where the budget is %s: it was built with a larger budget.",
            plan.uri,
            f"{store.commit.documents:,}",
            f"{budget.max_documents:,}",
        )
    return store


def _last_failure(plan: Plan) -> str:
    status = read_status(plan.status_file) if plan.status_file else None
    return f", since its build failed ({status.failure})" if status is not None and status.failure else ""


def wait_for(uri: str, tokens: int, storage_options: Mapping[str, str] | None = None) -> None:
    """Wait until a build that runs elsewhere has committed so many tokens, or all that its source has.

    What it waits for is told whenever that changes, and every minute.

    Args:
        uri: The store, as `store_place` gives it.
        tokens: How many.
        storage_options: Credentials and such for an object store.

    Raises:
        SourceError: If that build fails because of its source; or had failed before, and no other begins within a minute.
        StoreError: If it fails, or had failed, for another cause; or if its process is gone, and no other takes over.
    """
    uri = store_place(uri)
    file, began, waiting = status_file(uri), time.monotonic(), _Waiting(uri, tokens)
    before = status = read_status(file) if file else None
    while True:
        commit = last_commit(uri, storage_options=storage_options)
        if commit is not None and (commit.tokens >= tokens or commit.exhausted):
            return
        if status is not None and status.failure:
            known = before is not None and before.failure is not None and before.run == status.run
            if not known or time.monotonic() - began > _BEGIN_SECONDS:
                raise failure_of(status, uri)
        waiting.look(commit, status)
        time.sleep(_POLL_SECONDS)
        # Before the commits: those of a build that failed are all there then.
        status = read_status(file) if file else None


def check_tokenizer_file(plan: Plan) -> None:
    """Refuse to write the tokenizer of a store over a file of others; before anything else is written or removed.

    Raises:
        ConfigError: If such a file is there.
    """
    file = plan.tokenizer_file
    if file is None or not os.path.lexists(file):
        return
    found = _text_of(file)
    if found is None or (found != plan.tokenizer.to_json() and not is_kept_tokenizer(found)):
        raise ConfigError(
            f"The file {str(file)!r}, where the tokenizer of the store goes, is there already, and no build has written it: "
            "move it elsewhere, or give another uri."
        )


def keep_tokenizer(plan: Plan) -> None:
    """Write the tokenizer beside a local store, over none but another that a build has written there.

    Raises:
        ConfigError: If a file of others is there.
        OSError: If it cannot be written.
    """
    check_tokenizer_file(plan)
    file, text = plan.tokenizer_file, plan.tokenizer.to_json()
    if file is None:
        return
    found = _text_of(file)
    if found == text:
        return
    if found is not None:
        _keep_for_other_store(plan, file, found)
    write_atomic(file, text)


def _text_of(file: Path) -> str | None:
    """Read a file; None if there is none, or a link, or no text."""
    try:
        return None if file.is_symlink() else content_of(file).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _keep_for_other_store(plan: Plan, file: Path, text: str) -> None:
    """Copy the tokenizer of a store `x`, which may be built at this time, before that of `x.lance` takes its place."""
    other = plan.uri.removesuffix(".lance")
    mine = beside_place(other, "tokenizer.json")
    there = Path(other).is_dir() or os.path.lexists(beside_place(other, "lock"))
    if mine != file and there and not os.path.lexists(mine):
        write_atomic(mine, text)


class _Waiting:
    """Tells what a process waits for that builds nothing itself, and whether there is still somebody to wait for."""

    def __init__(self, uri: str, tokens: int) -> None:
        lock = lock_file(uri)
        self._uri, self._tokens = uri, tokens
        self._watch = None if lock is None else LeaseWatch(lock)
        self._committed = -1
        self._grown = self._told = time.monotonic()
        self._who: str | None = None

    def look(self, commit: CommitMetadata | None, status: BuildStatus | None) -> None:
        """Look at the store and its builder, and say what there is to say. StoreError if the builder is gone for good."""
        now = time.monotonic()
        committed = 0 if commit is None else commit.tokens
        silence = None if self._watch is None else self._watch.silence()
        patience = math.inf if self._watch is None else self._watch.patience
        gone = silence is not None and silence > patience
        if silence is not None and silence > 2 * patience:
            raise StoreError(
                f"The token store {self._uri!r} has {committed:,} of the {self._tokens:,} tokens that min_tokens asks for, and "
                f"its builder ({_builder(status)}) has shown no sign of life for {silence:.0f} seconds: run "
                "'lightning-lance prepare' again, it goes on after the last commit, and start this again."
            )
        if committed != self._committed:
            self._grown = now
        who = self._builder_told(status, silence, gone, now)
        due = now - self._told > _TELL_SECONDS
        if committed != self._committed or due or (gone and who != self._who):
            _log.warning(
                "Waiting for the store %s: %s of %s tokens are committed%s.",
                self._uri,
                f"{committed:,}",
                f"{self._tokens:,}",
                who,
            )
            self._committed, self._told, self._who = committed, now, who

    def _builder_told(self, status: BuildStatus | None, silence: float | None, gone: bool, now: float) -> str:
        if self._watch is None:
            minutes = int((now - self._grown) / 60)
            return f", the last of them {pluralize(minutes, 'minute')} ago or more" if minutes else ""
        if silence is None:
            return ", and no process builds it: run 'lightning-lance prepare' for it"
        return f", and its builder ({_builder(status)}) shows no sign of life" if gone else ""


def _builder(status: BuildStatus | None) -> str:
    return "which has not told who it is" if status is None else status.builder


def tokenizer_beside(store: TokenStore) -> Tokenizer:
    """Load the tokenizer that is kept beside a local store.

    Raises:
        ConfigError: If it is not there.
        StoreError: If it is another one.
    """
    files, made_by = store.tokenizer_files, store.commit.recipe.get("tokenizer")
    for file in files:
        if file.is_file():
            tokenizer = TokenizerFile(str(file), store.commit.eos_token).load(None, Path())
            if made_by == tokenizer.digest or made_by in tokenizer.other_digests:
                return tokenizer
    found = [str(file) for file in files if file.is_file()]
    if found:
        raise StoreError(f"The tokenizer {found[0]!r} is not the one that made {store.uri!r}: bring that one back.")
    where = str(files[0]) if files else store.uri
    raise ConfigError(f"There is no tokenizer.json at {where!r}: bring back the one that made {store.uri!r}.")


def check_same(commit: CommitMetadata, plan: Plan) -> None:
    """Refuse a store that another recipe made.

    Raises:
        StoreError: Naming each field that differs, stored -> asked.
    """
    if not plan.made(commit):
        stored, asked = _flat(commit.recipe), _flat(plan.recipe)
        fields = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
        changes = "; ".join(f"{key}: {stored.get(key)!r} -> {asked.get(key)!r}" for key in fields)
        raise StoreError(
            f"The token store {plan.uri!r} was made by another recipe ({changes}): give another uri, or none, to build "
            "another store, or set rebuild=true to replace this one."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}
