"""Stores in dataset repositories of the Hugging Face Hub: `hf://datasets/owner/name`, downloaded once and opened from there.

Such a repository has the store in the folder `store.lance`, and its tokenizer beside it. A download is of one commit, into a
folder of that commit, and has no links, so that it is a store like any other on a disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightning_lance.errors import ConfigError, LightningLanceError, StoreError, answered_status, causes
from lightning_lance.lance_names import VERSIONS
from lightning_lance.location import HUB_STORE
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.redaction import in_one_line, shown_cause
from lightning_lance.process.files import write_atomic

_log = logger(__name__)

#: The file of the tokenizer, beside the store.
TOKENIZER = "store.tokenizer.json"

_SCHEME = "hf://"
_PLACE = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")
# A folder of a repository, which Lance reads by itself.
_BELOW = re.compile(r"hf://datasets/[^/]+/[^/]+/[^/]")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Says that a download is whole.
_WHOLE = "lightning-lance.downloaded"
_LOGIN = "run 'hf auth login' or set HF_TOKEN"


class HubPlace(NamedTuple):
    """A dataset repository, `owner/name`, at a branch, a tag or a commit; None is its main branch."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo}{'' if self.revision is None else f'@{self.revision}'}"


def hub_place(uri: str) -> HubPlace | None:
    """Return the repository that a place names; None for a place that is not on the Hub, or in a folder of a repository.

    Raises:
        ConfigError: If it is on the Hub, and not in a dataset repository.
    """
    if not uri.lower().startswith(_SCHEME) or _BELOW.match(uri):
        return None
    match = _PLACE.fullmatch(uri.rstrip("/"))
    if match is None:
        raise ConfigError(
            f"The place {uri!r} is on the Hub, but names no dataset repository: expected hf://datasets/owner/name, with "
            "@revision behind it for a branch, a tag or a commit."
        )
    return HubPlace(match["repo"], match["revision"])


def commit_at(place: HubPlace, options: Mapping[str, str]) -> str:
    """Return the commit that a branch or a tag is now. A commit itself is returned without asking the Hub.

    Raises:
        ConfigError: If there is no such repository or revision.
        StoreError: If the Hub cannot be reached, or access is denied.
    """
    if place.revision is not None and _COMMIT.fullmatch(place.revision):
        return place.revision
    from huggingface_hub import HfApi

    with hub_errors(place):
        return str(HfApi(token=options.get("token")).dataset_info(place.repo, revision=place.revision).sha)


def downloaded(place: HubPlace, options: Mapping[str, str]) -> str:
    """Return the store of a repository on the disk of this machine. It is downloaded if it is not there yet.

    The folder is `lightning-lance` below `HF_HOME`. What an interrupted download has fetched is not fetched again.

    Raises:
        ConfigError: If there is no such repository, revision, or store in it.
        StoreError: If the Hub cannot be reached, access is denied, or the disk cannot be written.
    """
    from huggingface_hub import constants, snapshot_download

    commit = commit_at(place, options)
    folder = Path(constants.HF_HOME, "lightning-lance", place.repo.replace("/", "--"), commit)
    # The store may have been removed since, and what says that it is whole not.
    versions = folder / HUB_STORE / VERSIONS
    if not (folder / _WHOLE).is_file() or not versions.is_dir():
        _log.info("Downloading %s at commit %s to %s.", place, commit, folder)
        with hub_errors(place):
            snapshot_download(
                place.repo,
                repo_type="dataset",
                revision=commit,
                local_dir=folder,
                token=options.get("token"),
                allow_patterns=[f"{HUB_STORE}/**", TOKENIZER],
            )
            if not versions.is_dir():
                raise ConfigError(
                    f"The dataset repository {place.repo!r} has no token store at commit {commit} (no {HUB_STORE}/{VERSIONS}): "
                    "lightning-lance push writes one."
                )
            write_atomic(folder / _WHOLE, f"{place.repo} {commit}\n")
    return os.path.realpath(folder / HUB_STORE)


@contextmanager
def hub_errors(place: HubPlace) -> Iterator[None]:
    """Raise errors of the Hub's client as one of ours, with its cure and without secrets."""
    try:
        yield
    except LightningLanceError:
        raise
    except Exception as error:  # there are a dozen classes, from three libraries
        raise _explained(error, place) from shown_cause(error)


def _explained(error: Exception, place: HubPlace) -> LightningLanceError:
    from huggingface_hub import constants

    kinds: set[str] = set()
    for cause in causes(error):
        kinds.update(kind.__name__ for kind in type(cause).__mro__)
    status = answered_status(error)
    if "GatedRepoError" in kinds:
        page = f"{constants.ENDPOINT}/datasets/{place.repo}"
        return StoreError(f"The dataset {place.repo!r} is gated: accept its terms at {page}, then {_LOGIN}.")
    if "RevisionNotFoundError" in kinds:
        return ConfigError(
            f"The dataset {place.repo!r} has no revision {place.revision!r}: check what is behind the @."
        )
    if "RepositoryNotFoundError" in kinds:
        return ConfigError(
            f"There is no dataset {place.repo!r} on the Hub, or it is private: check the name; for a private one, {_LOGIN}."
        )
    if status in (401, 403) or "LocalTokenNotFoundError" in kinds:
        return StoreError(
            f"Access to the dataset {place.repo!r} is denied: {_LOGIN}, with a token that may write for a push."
        )
    if "OfflineModeIsEnabled" in kinds:
        return StoreError(
            f"{place} cannot be looked up in offline mode: unset HF_HUB_OFFLINE, or name the commit that was downloaded, as in "
            f"hf://datasets/{place.repo}@COMMIT."
        )
    said = in_one_line(error)
    if status is not None:
        return StoreError(f"The Hub answers HTTP {status} for the dataset {place.repo!r} ({said}): try again later.")
    if kinds & {"TransportError", "ConnectionError", "TimeoutException", "LocalEntryNotFoundError"}:
        return StoreError(
            f"The Hub at {constants.ENDPOINT} cannot be reached ({said}): check the network, then run it again."
        )
    return StoreError(f"{place} cannot be used: {type(error).__name__}: {said.rstrip('.')}; run it again to continue.")
