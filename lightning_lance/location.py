"""Where stores and folders are: checked, in one spelling; the files beside a store; and the options of its file system."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from lightning_lance.errors import ConfigError, described
from lightning_lance.messages.redaction import has_secret, public_url, remember_options, remember_url

# Of a file's or a folder's name, on nearly all file systems; and of a whole path on Linux.
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
# `file:///data/x`, `file://localhost/data/x`, `file:/data/x`; with two slashes also a relative path.
_FILE_URI = re.compile(r"file:(?://(?:localhost(?=/))?|(?=/))(?P<path>.*)", re.IGNORECASE | re.DOTALL)
_LANCE = ".lance"
# Of places that are on no disk of this machine.
_URL = re.compile(
    r"(?P<scheme>s3a?|gc?s|az|azure|abfss?|hf|https?|oss|memory):(?P<slashes>/+)(?P<rest>.*)", re.IGNORECASE | re.DOTALL
)
# How files end that lie beside stores, and the name of a tokenizer that was trained, or of its lock.
_STATUS = ".building.json"
_OF_NO_OTHER = (".store-lock", ".store-building.json", ".store-tokenizer.json")
_OF_OTHERS_TOO = (".lock", ".tokenizer.json")
# In the folder of a tokenizer of the Hub, which is called `model@revision`: where its files are from.
ORIGIN = "origin.json"
_TRAINED = re.compile(r".+-bpe\d+-[0-9a-f]{16}\.(json|lock)", re.DOTALL)

Neighbour = Literal["lock", "building.json", "tokenizer.json"]


def check_place(name: str, place: Any, such: str = "data/mine.lance") -> str:
    """Give a place as a string.

    Args:
        name: Of the argument.
        place: What was given for it.
        such: An example.

    Raises:
        ConfigError: If it is no string or path, cannot be a path, or holds a secret.
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
            f"{name} is {public_url(text)!r} with a password, a key or a signature in it, which would be kept in checkpoints "
            "and logs: give those by environment variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by "
            "storage_options."
        )
    _check_text(name, text, such)
    return text


def _check_text(name: str, text: str, such: str) -> None:
    """Refuse what no path can be. ConfigError says why."""
    if "\0" in text:
        raise ConfigError(f"{name} is {text!r}: a path has no NUL characters; expected such as {such}.")
    if "://" not in text:
        try:
            encoded = os.fsencode(text)
        except UnicodeEncodeError as error:
            raise ConfigError(f"{name} is {text[:100]!r}: a path has no halves of surrogate pairs.") from error
        if len(encoded) >= _LONGEST_PATH or any(
            len(part) > _LONGEST_NAME for part in encoded.split(os.fsencode(os.sep))
        ):
            raise ConfigError(
                f"{name} is {len(encoded):,} bytes long ({text[:60]!r}...): a path has up to {_LONGEST_PATH - 1:,} bytes, and "
                f"each name in it up to {_LONGEST_NAME}; give a shorter one."
            )


def _check_url(name: str, text: str) -> None:
    """Refuse what was meant as a URL and would be taken for a folder here."""
    url = _URL.fullmatch(text)
    if url is None or os.path.lexists(text):
        return
    if not url["rest"]:
        raise ConfigError(
            f"{name} is {text!r}, which names nothing: expected such as {url['scheme']}://bucket/x.lance."
        )
    if len(url["slashes"]) == 1:
        raise ConfigError(
            f"{name} is {public_url(text)!r}, with one slash where a URL has two, as pathlib writes it: give a string, "
            f"{url['scheme']}://..."
        )


def checked_storage_options(name: str, options: Any) -> dict[str, str]:
    """Give the options of a file system as Lance takes them, all of them strings; their values are never shown.

    Raises:
        ConfigError: If they are no mapping of names to strings, numbers or true and false.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"{name} is of type {type(options).__name__}: expected a mapping, such as {{aws_region: us-east-1}}."
        )
    checked = {}
    for key, value in options.items():
        if not isinstance(key, str):
            raise ConfigError(f"{name} has a key of type {type(key).__name__}: expected the names of options.")
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
    """Whether a place is on a disk of this machine, and not in an object store."""
    return "://" not in uri


def store_place(uri: str | os.PathLike[str], name: str = "uri") -> str:
    """Return the place of a store in one spelling, which neither a change of folder nor a moved link changes.

    A local place becomes absolute, without `~`, `..`, `file://`, trailing slashes or links: so two spellings of one place
    share its lease, and two places share nothing. That of an object store only loses its trailing slashes.

    Args:
        uri: As a user gave it.
        name: Of the argument, for the error.

    Raises:
        ConfigError: If it is no place, or a link that leads nowhere.
    """
    given = given_place(uri, name)
    if not is_local(given):
        return given
    _check_links(given)
    return os.path.realpath(given)


def given_place(uri: str | os.PathLike[str], name: str = "uri") -> str:
    """Return the place of a store as `store_place`, but with its links.

    Raises:
        ConfigError: If it is no place.
    """
    uri = check_place(name, uri)
    file = _FILE_URI.fullmatch(uri)
    path = _decoded(file["path"]) if file else uri
    if file:
        _check_text(name, path, "data/mine.lance")
    if not is_local(path):
        return path.rstrip("/")
    # Not normalised: behind a link, `..` is another folder than in the text.
    return str(_absolute(path))


def local_folder(path: str | os.PathLike[str], name: str) -> str:
    """Return the path of a folder of stores in one spelling; see `store_place`.

    Raises:
        ConfigError: If it is no local path.
    """
    place = store_place(check_place(name, path, "the folder data"), name)
    if not is_local(place):
        raise ConfigError(f"{name} is {str(path)!r}: expected a local folder; give a store in a bucket by its uri.")
    return place


def beside(uri: str, what: Neighbour) -> Path | None:
    """Return the place of a file that lies beside a local store, however its place is spelled; None for an object store.

    `x.lance` has `x.lock`, and `x` has `x.store-lock`: no two stores share a file.
    """
    place = store_place(uri)
    return beside_place(place, what) if is_local(place) else None


def beside_place(place: str, what: Neighbour) -> Path:
    """Return the place of a file that lies beside a local store, whose place `store_place` gave."""
    folder, name = Path(place).parent, Path(place).name
    if name.endswith(_LANCE):
        return folder / f"{name.removesuffix(_LANCE)}.{what}"
    return folder / f"{name}.store-{what}"


def is_own_file(name: str, others: Collection[str]) -> bool:
    """Return whether a file lies beside a store, or is a tokenizer that was trained, by its name.

    Args:
        name: Of the file.
        others: Names of what is in the same folder. The lock of a store comes before the store, but not before its status.
    """
    if name.endswith((_STATUS, *_OF_NO_OTHER)) or _TRAINED.fullmatch(name):
        return True
    for ending in _OF_OTHERS_TOO:
        store = name.removesuffix(ending)
        if store != name and not {f"{store}{_LANCE}", f"{store}{_STATUS}"}.isdisjoint(others):
            return True
    return False


def is_own_folder(place: str, name: str) -> bool:
    """Return whether a folder is a store, finished or not, or any other Lance dataset, or holds a tokenizer of the Hub.

    Args:
        place: Its path.
        name: Its name.
    """
    if name.endswith(_LANCE) or Path(place, "_versions").is_dir():
        return True
    return "@" in name and Path(place, ORIGIN).is_file()


def tokenizer_file(place: str) -> Path:
    """Return where the tokenizer of a local store, whose place `store_place` gave, is written.

    That of `x` goes to the same place as that of `x.lance`, as it always did, as long as there is no `x.lance`.
    """
    other = f"{place}{_LANCE}"
    taken = os.path.lexists(other) or os.path.lexists(beside_place(other, "lock"))
    if place.endswith(_LANCE) or taken:
        return beside_place(place, "tokenizer.json")
    return beside_place(other, "tokenizer.json")


def tokenizer_files(given: str) -> list[Path]:
    """Return where the tokenizer of a local store may be kept, the likeliest first.

    It may be that of another store: of `x` or `x.lance`. Earlier versions wrote it beside a link to the store. So whoever reads
    one has to compare its digest.

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
        raise ConfigError(
            f"{path!r} begins with the home of somebody who is unknown here: give the whole path."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path!r} is relative to a folder that is gone: give the whole path, or change to another folder."
        ) from error


def _decoded(path: str) -> str:
    """Return what the path of a URI means; a file that has its very spelling is meant too."""
    with suppress(OSError, ValueError):  # it is too long, or has what no path has
        if Path(path).exists():
            return path
    # What is not UTF-8, as paths have it.
    return unquote(path, errors="surrogateescape")


def _check_links(given: str) -> None:
    """Refuse a link, on the way or at the end, that leads back to itself or into a folder that is not there."""
    path = Path(given)
    for place in (*reversed(path.parents), path):
        if not place.is_symlink() or place.exists():
            continue
        target = Path(os.path.realpath(place))
        if target.is_symlink():
            raise ConfigError(f"{str(place)!r} is a link that leads back to itself: remove it, or give another place.")
        if not target.parent.is_dir():
            raise ConfigError(
                f"{str(place)!r} is a link to {str(target)!r}, where nothing is: mount that disk, make its folder, or "
                "remove the link."
            )
