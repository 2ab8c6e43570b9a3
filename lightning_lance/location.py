"""The places of stores and folders, checked and normalized; the files beside a store; and the options of its file system."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from lightning_lance.errors import ConfigError, StoreError, described
from lightning_lance.lance_names import VERSIONS
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import did_you_mean, nearest
from lightning_lance.messages.redaction import (
    has_secret,
    is_harmless_option,
    public_url,
    remember_options,
    remember_url,
)

_log = logger(__name__)

# Bytes of a file name, on nearly all file systems.
_LONGEST_NAME = 255
# Bytes of a path on Linux, with the NUL at its end.
_LONGEST_PATH = 4096
# `file:///data/x`, `file://localhost/data/x`, `file:/data/x`; with two slashes also a relative path.
_FILE_URI = re.compile(r"file:(?://(?:localhost(?=/))?|(?=/))(?P<path>.*)", re.IGNORECASE | re.DOTALL)
_LANCE = ".lance"
# Places that are not on a disk of this machine.
_URL = re.compile(
    r"(?P<scheme>s3a?|gc?s|az|azure|abfss?|hf|https?|oss|memory):(?P<slashes>/+)(?P<rest>.*)", re.IGNORECASE | re.DOTALL
)
# The form of other tools: container, account and path in one URL.
_AZURE_HOST = re.compile(r"(?P<container>[a-z0-9-]+)@(?P<account>[a-z0-9]+)\.[a-z0-9.-]+/(?P<path>[^?#]*)")
#: The folder of the store in a dataset repository of the Hub, as `lightning-lance push` writes it.
HUB_STORE = "store.lance"
_HUB_REPOSITORY = re.compile(r"hf://datasets/[^/]+/[^/]+")
# Endings of files beside stores, first those that nothing else has.
_STATUS = ".building.json"
_UNIQUE_ENDINGS = (".store-lock", ".store-building.json", ".store-tokenizer.json")
_COMMON_ENDINGS = (".lock", ".tokenizer.json")
# Names the origin of the files in the folder of a Hub tokenizer, `model@revision`.
ORIGIN = "origin.json"
# A trained tokenizer, or its lock.
_TRAINED = re.compile(r".+-bpe\d+-[0-9a-f]{16}\.(json|lock)", re.DOTALL)


# Whether pickles that this thread makes are for its own workers; see `with_all_options`.
_for_workers: ContextVar[bool] = ContextVar("for_workers", default=False)


@contextmanager
def with_all_options() -> Iterator[None]:
    """Keep all storage options, secrets too, in pickles that are made inside this context for workers of this process."""
    token = _for_workers.set(True)
    try:
        yield
    finally:
        _for_workers.reset(token)


class StorageOptions(dict[str, Any]):
    """Options of a file system. A pickle, and so a checkpoint, holds none of them that may be a secret.

    Only processes that work for this one, such as a rank of `ddp_spawn` or a worker of a cluster, get all of them.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is not None or _for_workers.get():
            return StorageOptions, (dict(self),)
        kept = {name: value for name, value in self.items() if _may_be_kept(name, value)}
        return _restored, (kept, sorted(self.keys() - kept.keys()))

    def __copy__(self) -> StorageOptions:
        return StorageOptions(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> StorageOptions:
        return StorageOptions({name: deepcopy(value, memo) for name, value in self.items()})


def _may_be_kept(name: str, value: Any) -> bool:
    plain = isinstance(value, (str, int, float)) and not has_secret(str(value))
    return plain and is_harmless_option(str(name))


def _restored(kept: Mapping[str, Any], left_out: Sequence[str]) -> StorageOptions:
    """Return the options of a pickle."""
    if left_out:
        _log.warning(
            "%s of storage_options is not kept in pickles and checkpoints: give it by environment variables.",
            ", ".join(left_out),
        )
    return StorageOptions(kept)


@dataclass(frozen=True)
class StoreLocation:
    """Where a store is, and how to reach it.

    Attributes:
        uri: Its place, as `store_place` gives it.
        storage_options: Credentials and the like for an object store; None for a local store. Never shown.
    """

    uri: str
    storage_options: Mapping[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.storage_options is not None:
            object.__setattr__(self, "storage_options", StorageOptions(self.storage_options))

    @property
    def is_local(self) -> bool:
        """Whether the store is on a disk of this machine."""
        return is_local(self.uri)


Neighbour = Literal["lock", "building.json", "tokenizer.json"]


def check_place(name: str, place: Any, such: str = "data/mine.lance") -> str:
    """Return a place as a string.

    Args:
        name: Name of the argument.
        place: Its value.
        such: An example.

    Raises:
        ConfigError: If it is not a string or path, cannot be a path, or holds a secret.
    """
    if not isinstance(place, (str, Path)):
        raise ConfigError(f"{name} is {described(place)}: expected a place, such as {such}.")
    text = os.fspath(place)
    if not text.strip():
        raise ConfigError(f"{name} is empty: expected a place, such as {such}.")
    _check_url(name, text)
    if has_secret(text):
        remember_url(text)
        raise ConfigError(
            f"{name} is {public_url(text)!r} with a password, a key or a signature, which checkpoints and logs would keep: "
            "give it by environment variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by storage_options."
        )
    _check_text(name, text, such)
    return text


def _check_text(name: str, text: str, such: str) -> None:
    """Check that a text can be a path. ConfigError says why not."""
    if "\0" in text:
        raise ConfigError(f"{name} is {text!r}: a path cannot contain NUL characters; expected a place such as {such}.")
    if "://" in text:
        _check_object_path(name, text)
        return
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name} is {text[:100]!r}: a path cannot contain lone surrogates; correct it.") from error
    longest_name = max(map(len, encoded.split(os.fsencode(os.sep))))
    if len(encoded) >= _LONGEST_PATH or longest_name > _LONGEST_NAME:
        raise ConfigError(
            f"{name} is {len(encoded):,} bytes long ({text[:60]!r}...): a path has up to {_LONGEST_PATH - 1:,} bytes, and "
            f"each name in it up to {_LONGEST_NAME}; give a shorter one."
        )


def _check_object_path(name: str, text: str) -> None:
    """Check that all of a place in an object store is a path: half of its files would be elsewhere. ConfigError if not."""
    url = _URL.fullmatch(text.strip())
    if url is None or url["scheme"].lower() in ("http", "https"):
        return
    if text != text.strip():
        raise ConfigError(f"{name} is {text!r}, with white space around it: leave that out.")
    for sign in "?#":
        if sign in text:
            raise ConfigError(
                f"{name} is {public_url(text)!r} with a {sign!r}, which ends the path of a URL: give a place without it."
            )


def _check_url(name: str, text: str) -> None:
    """Check that a text is not a malformed URL, which would become the name of a folder."""
    url = _URL.fullmatch(text)
    if url is None or os.path.lexists(text):
        return
    if url["scheme"].lower() == "memory":
        raise ConfigError(
            f"{name} is {text!r}, which would be gone with the process: give a folder, such as /dev/shm/x.lance."
        )
    if not url["rest"] or len(url["slashes"]) > 2:
        raise ConfigError(
            f"{name} is {text!r}, which has no bucket: expected a place such as {url['scheme']}://bucket/x.lance."
        )
    azure = _AZURE_HOST.fullmatch(url["rest"])
    if azure and url["scheme"].lower().startswith("abfs"):
        raise ConfigError(
            f"{name} is an {url['scheme']}:// URL with the account {azure['account']!r}: give az://{azure['container']}/"
            f"{azure['path']}, and azure_storage_account_name={azure['account']} in storage_options."
        )
    if len(url["slashes"]) == 1:
        raise ConfigError(
            f"{name} is {public_url(text)!r}, with one slash where a URL has two, as pathlib writes it: give the string "
            f"{url['scheme']}://..."
        )


def checked_storage_options(name: str, options: Any) -> StorageOptions:
    """Return the options of a file system as strings, as Lance takes them. Errors never show their values.

    Raises:
        ConfigError: If they are not a mapping of names to strings, numbers, or true and false.
    """
    if options is None:
        return StorageOptions()
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{name} is of type {type(options).__name__}: expected a mapping, such as {{aws_region: us-east-1}}."
        )
    checked = StorageOptions()
    for key, value in options.items():
        if not isinstance(key, str):
            raise ConfigError(f"{name} has a key of type {type(key).__name__}: expected names, such as aws_region.")
        if isinstance(value, bool):
            checked[key] = str(value).lower()
        elif isinstance(value, (str, int, float, Path)):
            checked[key] = str(value)
        elif value is not None:
            raise ConfigError(
                f"{name}.{key} is of type {type(value).__name__}: expected text, a number, or true or false."
            )
    remember_options(checked)
    return checked


def is_local(uri: str) -> bool:
    """Return whether a place is on a disk of this machine, and not in an object store."""
    return "://" not in uri


def check_not_on_hub(uri: str, what: str) -> None:
    """Raise ConfigError if a store that is to be changed is on the Hub, where a change is a push."""
    if uri.lower().startswith("hf://"):
        raise ConfigError(
            f"{what} changes a store, and {uri!r} is on the Hub: do it to a store on a disk, and lightning-lance push that."
        )


def store_place(uri: str | os.PathLike[str], name: str = "uri") -> str:
    """Return the place of a store in one spelling, independent of the working folder and of links.

    A local place becomes absolute, without `~`, `..`, `file://`, trailing slashes or links: so two spellings of one place
    share its lease, and two places share nothing. The place of an object store only loses its trailing slashes.

    Args:
        uri: As a user gave it.
        name: Name of the argument, for the error.

    Raises:
        ConfigError: If it is not a place, or is a broken link.
    """
    given = given_place(uri, name)
    if not is_local(given):
        return given
    _check_links(given)
    return os.path.realpath(given)


def given_place(uri: str | os.PathLike[str], name: str = "uri") -> str:
    """Return the place of a store as `store_place`, but with its links; of a dataset repository of the Hub, its store.

    Raises:
        ConfigError: If it is not a place.
    """
    path = check_place(name, uri)
    file = _FILE_URI.fullmatch(path)
    if file:
        check_no_host(name, path)
        path = _decoded(file["path"])
        _check_text(name, path, "data/mine.lance")
    if not is_local(path):
        place = path.rstrip("/")
        if _HUB_REPOSITORY.fullmatch(place):
            return f"{place}/{HUB_STORE}"
        return place
    # Not normalized: behind a link, `..` is another folder than in the text.
    return str(_absolute(path))


def check_no_host(name: str, path: str) -> None:
    """Check that a URI of a file names no other machine: `file://` with two slashes is followed by a host, or a relative path.

    Raises:
        ConfigError: If it does, naming both ways to write a path.
    """
    file = _FILE_URI.fullmatch(path)
    host, slash, rest = file["path"].partition("/") if file else ("", "", "")
    if not host or not slash or host.startswith("~"):
        return
    if os.path.isdir(host) or os.path.isdir(unquote(host)):
        return
    raise ConfigError(
        f"{name} is {path!r}, which is on the host {host!r} or in a folder of that name, which does not exist here: write a "
        f"path of this machine with three slashes, as in file:///{rest}, or without file://."
    )


def local_folder(path: str | os.PathLike[str], name: str) -> str:
    """Return the path of a folder of stores in one spelling; see `store_place`.

    Raises:
        ConfigError: If it is not a local path.
    """
    place = store_place(check_place(name, path, "the folder data"), name)
    if not is_local(place):
        raise ConfigError(f"{name} is {str(path)!r}: expected a local folder; give a store in a bucket by its uri.")
    return place


def beside(uri: str, what: Neighbour) -> Path | None:
    """Return the place of a file beside a local store, given in any spelling; None for an object store.

    `x.lance` has `x.lock`, and `x` has `x.store-lock`: no two stores share a file.
    """
    place = store_place(uri)
    if is_local(place):
        return beside_place(place, what)
    return None


def beside_place(place: str, what: Neighbour) -> Path:
    """Return the place of a file beside a local store, whose place `store_place` returned."""
    path = Path(place)
    if path.name.endswith(_LANCE):
        return path.parent / f"{path.name.removesuffix(_LANCE)}.{what}"
    return path.parent / f"{path.name}.store-{what}"


def is_own_file(name: str, others: Collection[str]) -> bool:
    """Return whether a file belongs to a store beside it, or is a trained tokenizer, by its name.

    Args:
        name: Name of the file.
        others: All names in the same folder. A store's lock is made before the store, but not before its status.
    """
    if name.endswith((_STATUS, *_UNIQUE_ENDINGS)) or _TRAINED.fullmatch(name):
        return True
    for ending in _COMMON_ENDINGS:
        store = name.removesuffix(ending)
        if store != name and not {f"{store}{_LANCE}", f"{store}{_STATUS}"}.isdisjoint(others):
            return True
    return False


def is_own_folder(place: str, name: str) -> bool:
    """Return whether a folder is a store, finished or not, or another Lance dataset, or holds a Hub tokenizer.

    Args:
        place: Its path.
        name: Its name.
    """
    if name.endswith(_LANCE) or Path(place, VERSIONS).is_dir():
        return True
    return "@" in name and Path(place, ORIGIN).is_file()


def tokenizer_file(place: str) -> Path:
    """Return where the tokenizer of a local store is written; `store_place` returned its place.

    As in earlier versions, the tokenizer of `x` goes to the same place as that of `x.lance`, unless there is an `x.lance`.
    """
    other = f"{place}{_LANCE}"
    taken = os.path.lexists(other) or os.path.lexists(beside_place(other, "lock"))
    if place.endswith(_LANCE) or taken:
        return beside_place(place, "tokenizer.json")
    return beside_place(other, "tokenizer.json")


def tokenizer_files(given: str) -> list[Path]:
    """Return where the tokenizer of a local store may be, the likeliest place first.

    A file may belong to another store, `x` or `x.lance`, and earlier versions wrote it beside a link to the store. So
    readers must compare its digest.

    Args:
        given: The store, as `given_place` returns it.
    """
    if not is_local(given):
        return []
    place = store_place(given)
    earlier = [Path(f"{spelled.removesuffix(_LANCE)}.tokenizer.json") for spelled in (place, given)]
    return list(dict.fromkeys([beside_place(place, "tokenizer.json"), *earlier]))


def _absolute(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path!r} begins with the home folder of an unknown user: give the whole path.") from error
    except OSError as error:
        raise ConfigError(
            f"{path!r} is relative to a working folder that no longer exists: give the whole path, or change the folder."
        ) from error


def _decoded(path: str) -> str:
    """Return the path of a URI decoded, or as it is if such a file exists."""
    with suppress(OSError, ValueError):  # too long, or not a path
        if Path(path).exists():
            return path
    # Bytes that are not UTF-8 are kept, as in other paths.
    return unquote(path, errors="surrogateescape")


def _check_links(given: str) -> None:
    """Check that no link in a path leads back to itself, or into a folder that does not exist."""
    path = Path(given)
    for place in (*reversed(path.parents), path):
        try:
            is_whole = not place.is_symlink() or place.exists()
        except PermissionError as error:
            raise StoreError(
                f"{given!r} cannot be reached ({error.strerror}): grant access to {str(place.parent)!r}."
            ) from error
        if is_whole:
            continue
        target = Path(os.path.realpath(place))
        if target.is_symlink():
            raise ConfigError(f"{str(place)!r} is a link that leads back to itself: remove it, or give another place.")
        if not target.parent.is_dir():
            raise ConfigError(
                f"{str(place)!r} is a link to {str(target)!r}, which does not exist: mount that disk, create its folder, or "
                "remove the link."
            )


def no_store_at(uri: str, what: str = "token store") -> StoreError:
    """Return the error for a place without a store. All commands and functions say it in these words."""
    if has_stores(uri):
        return folder_of_stores(uri)
    hint = did_you_mean(_similar_store(uri))
    return StoreError(f"There is no committed {what} at {uri!r}: {hint}check the place, or build a store there first.")


def folder_of_stores(uri: str) -> StoreError:
    """Return the error for a folder of stores where a store is expected."""
    return StoreError(
        f"{uri!r} is a folder of token stores: lightning-lance list {uri} lists them; give the place of one of them."
    )


def has_stores(uri: str) -> bool:
    """Return whether a place is a local folder that has a store, or another Lance dataset."""
    with suppress(OSError, ValueError), os.scandir(uri) as entries:
        return any(Path(entry.path, VERSIONS).is_dir() for entry in entries)
    return False


def _similar_store(uri: str) -> str | None:
    """Return the store on a disk whose name is most similar, in the same folder; None if there is none."""
    place = Path(uri)
    try:
        stems = []
        for entry in place.parent.iterdir():
            if entry.suffix == ".lance" and entry.name != place.name:
                stems.append(entry.stem)
    except (OSError, ValueError):
        return None
    near = nearest(place.name.removesuffix(".lance"), sorted(stems))
    if near is None:
        return None
    return str(place.with_name(f"{near}.lance"))
