"""Publish a store: upload its newest version, with its tokenizer and its card, to a dataset repository of the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_lance.errors import ConfigError, StoreError
from lightning_lance.format.checksums import SUMS, sums_of_version
from lightning_lance.format.commit import is_commit
from lightning_lance.format.lance_io import dataset_at, reading
from lightning_lance.format.own_files import check_no_links
from lightning_lance.inspection.card import CARD, CROISSANT, card_texts, check_repo
from lightning_lance.inspection.croissant import MARK
from lightning_lance.inspection.facts import StoreFacts, facts_of
from lightning_lance.lance_names import manifest_of
from lightning_lance.location import HUB_STORE, StoreLocation, given_place, is_local, store_place, tokenizer_files
from lightning_lance.maintenance.removal import files_of_versions
from lightning_lance.messages.formatting import format_list, pluralize
from lightning_lance.store.hub import TOKENIZER, HubPlace, hub_errors
from lightning_lance.store.token_store import TokenStore


class Pushed(NamedTuple):
    """What a push has made.

    Attributes:
        repo: The repository, `owner/name`.
        commit: Its commit with the store.
        files: Files of the commit.
        bytes: Their size.
        place: The store at that commit, as `TokenStore.open` and `data.corpus` take it.
        kept: Files of the repository that no card has written, and that were left as they are.
    """

    repo: str
    commit: str
    files: int
    bytes: int
    place: str
    kept: tuple[str, ...]


def push_store(
    uri: str | os.PathLike[str], repo: str, private: bool = False, rules: bool = False, token: str | None = None
) -> Pushed:
    """Upload the newest version of a store to a dataset repository of the Hub, with its tokenizer and its card.

    The repository is created if it does not exist. All is one commit: readers see the store that was there, or the new one.
    Files that an interrupted push has uploaded are not uploaded again.

    Args:
        uri: The store, on a disk.
        repo: The repository, `owner/name`.
        private: Whether the repository must be private. One that exists is not changed.
        rules: Whether the rules of removed documents, with their values, may be published: the store needs them to grow.
        token: The token of the Hub; None takes the one of `hf auth login` or `HF_TOKEN`.

    Raises:
        ConfigError: If the repository or an argument cannot be used.
        StoreError: If the store cannot be read or published, or the Hub cannot be reached.
    """
    check_repo(repo)
    if not is_local(given_place(uri)):
        raise ConfigError(f"The store {str(uri)!r} is not on a disk: copy its folder to one, and push that.")
    location = StoreLocation(store_place(uri))
    check_no_links(location.uri)
    facts = facts_of(uri)
    _check_fit(facts, rules)
    files: dict[str, Path | bytes] = {}
    for path in _files(location, facts):
        files[f"{HUB_STORE}/{path}"] = Path(location.uri, path)
    with reading(location.uri):
        files[f"{HUB_STORE}/{SUMS}"] = sums_of_version(location, facts.version).encode()
    tokenizer = _tokenizer_file(uri, facts)
    if tokenizer is not None:
        files[TOKENIZER] = tokenizer
    card, croissant = card_texts(facts, repo)
    cards = {CARD: card.encode(), CROISSANT: croissant.encode()}
    with hub_errors(HubPlace(repo, None)):
        return _uploaded(repo, private, token, files, cards)


def _check_fit(facts: StoreFacts, with_rules: bool) -> None:
    """Raise StoreError if a store is not to be published as it is."""
    summary = facts.info.summary
    if summary.state == "building":
        raise StoreError(f"The store {summary.uri!r} is being built: push it once the build has ended.")
    if facts.removed and not with_rules:
        rules = 0
        keys: set[str] = set()
        for one in facts.removed:
            rules += one.rules
            keys.update(one.keys)
        raise StoreError(
            f"The metadata of {summary.uri!r} has {pluralize(rules, 'rule')} of removed documents with their values of "
            f"{format_list(sorted(keys))}, which would be published with it: give rules=true if they may be, or build the "
            "store again from a source without them."
        )


def _files(location: StoreLocation, facts: StoreFacts) -> list[str]:
    """Return the paths of the files of the newest version."""
    with reading(location.uri):
        dataset = dataset_at(location, facts.version)
        if dataset is None or not is_commit(dataset):
            raise StoreError(
                f"The newest version of {location.uri!r} was made by another program, or is gone: only a version that "
                "lightning-lance has committed can be pushed."
            )
        return sorted({manifest_of(facts.version), *files_of_versions(location, [facts.version])})


def _tokenizer_file(uri: str | os.PathLike[str], facts: StoreFacts) -> bytes | None:
    """Return the tokenizer beside a store, checked; None if there is none."""
    if not any(map(Path.is_file, tokenizer_files(given_place(uri)))):
        return None
    return TokenStore.open(os.fspath(uri), facts.version).tokenizer.to_json().encode()


def _uploaded(
    repo: str, private: bool, token: str | None, files: Mapping[str, Path | bytes], cards: Mapping[str, bytes]
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    api.create_repo(repo, repo_type="dataset", private=True if private else None, exist_ok=True)
    info = api.dataset_info(repo)
    if private and not info.private:
        raise ConfigError(
            f"The dataset repository {repo!r} exists already, and is public: make it private on its page, or push to another."
        )
    there = {file.rfilename for file in info.siblings or ()}
    wanted: dict[str, Path | bytes] = dict(files)
    kept = []
    for name, text in cards.items():
        if name in there and not _is_ours(api, repo, name, str(info.sha)):
            kept.append(name)
        else:
            wanted[name] = text
    operations: list[Any] = []
    size = 0
    for name, content in wanted.items():
        if isinstance(content, bytes):
            operations.append(CommitOperationAdd(name, content))
            size += len(content)
        else:
            operations.append(CommitOperationAdd(name, str(content)))
            size += content.stat().st_size
    for name in sorted(there):
        # What is left of an earlier push, such as an older version.
        is_pushed = name == TOKENIZER or name.startswith(f"{HUB_STORE}/")
        if is_pushed and name not in wanted:
            operations.append(CommitOperationDelete(name))
    commit = api.create_commit(
        repo,
        operations,
        commit_message="Add the token store",
        repo_type="dataset",
        # Another push meanwhile would leave files of both.
        parent_commit=info.sha,
    )
    _check_whole(api, repo, str(commit.oid), files)
    return Pushed(repo, str(commit.oid), len(wanted), size, f"hf://datasets/{repo}@{commit.oid}", tuple(kept))


def _is_ours(api: Any, repo: str, name: str, revision: str) -> bool:
    """Return whether a card has written a file of a repository."""
    file = api.hf_hub_download(repo, name, repo_type="dataset", revision=revision)
    return MARK.encode() in Path(file).read_bytes()


def _check_whole(api: Any, repo: str, commit: str, files: Mapping[str, Path | bytes]) -> None:
    """Check that a commit has the store and nothing else in its folder: a .gitignore leaves files out without a word."""
    entries = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
    missing = {*files}
    more: set[str] = set()
    for entry in entries:
        is_file = hasattr(entry, "size")
        if is_file and entry.path in files:
            missing.discard(entry.path)
        elif is_file and entry.path.startswith(f"{HUB_STORE}/"):
            more.add(entry.path)
    if missing or more:
        what = f"has {format_list(sorted(more))} besides"
        if missing:
            what = f"lacks {format_list(sorted(missing))}"
        raise StoreError(
            f"The dataset repository {repo!r} {what} at commit {commit}: check its .gitignore, and push again."
        )
