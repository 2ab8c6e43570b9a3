"""Local paths as users write them: URLs, home folders, names that are not UTF-8, and hints about misspelled names."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from glob import has_magic
from typing import Any
from urllib.parse import unquote

from lightning_lance.errors import ConfigError
from lightning_lance.location import check_no_host, local_folder
from lightning_lance.messages.escaping import logger

_log = logger(__name__)

_LOCAL_URLS = ("file://", "local://")
_VARIABLE = re.compile(r"\$\{?(\w+)")


def is_local(path: str) -> bool:
    """Return whether a path or pattern is local: not a URL, or one that begins with `file://`."""
    return "://" not in path or path.startswith(_LOCAL_URLS)


def names_along(path: str) -> list[str]:
    """Return the names of the folders and of the file in a path, without empty ones and dots."""
    return [name for name in path.split("/") if name not in ("", ".")]


def working_folder() -> str:
    """Return the folder that relative paths are relative to, or `/` if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def from_folder(folder: str, path: str) -> str:
    """Return a path, relative ones as seen from a folder."""
    return os.path.join(folder, path)


def readable(name: str) -> str:
    r"""Return a file name as valid Unicode, with escapes for bytes that are not UTF-8, as in `caf\xe9.py`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name


def local_path(text: str) -> str:
    """Return a path without `file://`, and with the home folder in place of `~` or `~user`.

    Escapes in a URL, such as `%20`, are decoded unless a file of that name exists. Variables such as `$HOME` are not expanded.
    """
    for scheme in _LOCAL_URLS:
        if text.startswith(scheme):
            plain = text.removeprefix(scheme)
            if plain.startswith("localhost/"):
                plain = plain.removeprefix("localhost")
            if os.path.lexists(plain):
                return plain
            return unquote(plain)
    if text.startswith("~"):
        return os.path.expanduser(text)
    return text


def path_list(key: str, given: Any, such: str) -> tuple[str, ...]:
    """Return an option's list of paths or patterns as strings.

    Args:
        key: Name of the option, for messages.
        given: A list of strings and `Path` objects, or a single one.
        such: An example of a path, for messages.

    Raises:
        ConfigError: If it is not a list, or an element is not a path.
    """
    if isinstance(given, (str, os.PathLike)):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise ConfigError(f"{key} is {given!r}: expected a list of paths, such as [{such!r}].")
    made = []
    for each in given:
        text = os.fspath(each) if isinstance(each, os.PathLike) else each
        if not isinstance(text, str):
            raise ConfigError(f"{key} has {each!r}: expected a path, such as {such!r}.")
        if not text:
            raise ConfigError(f"{key} has an empty string: expected a path, such as {such!r}.")
        if "\0" in local_path(text):
            raise ConfigError(f"{key} has {text!r}: a path cannot have a null character in it.")
        check_no_host(key, text)
        made.append(text)
    return tuple(made)


def what_is_there(path: str) -> str:
    """Return why a path is not a folder: `which is a file`."""
    if not os.path.lexists(path):
        return "which does not exist"
    if os.path.exists(path):
        return "which is a file"
    return "which is a broken link"


def is_denied(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is there, or may be, and must not be read."""
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError:
        return True
    except OSError:
        return False
    needed = os.R_OK | os.X_OK if is_folder else os.R_OK
    return not os.access(path, needed, effective_ids=os.access in os.supports_effective_ids)


def data_folder(data_dir: object) -> str:
    """Return the path of `data_dir`, the folder of stores.

    Raises:
        ConfigError: If it is not a possible local folder.
    """
    if not isinstance(data_dir, (str, os.PathLike)):
        raise ConfigError(f"data_dir is {data_dir!r}: expected the path of a folder, such as data.")
    given = os.fspath(data_dir)
    if not isinstance(given, str) or not given or "\0" in given:
        raise ConfigError(f"data_dir is {data_dir!r}: expected the path of a folder, such as data.")
    if not is_local(given):
        raise ConfigError(f"data_dir is {given!r}: expected a local folder; for a store in a bucket, set uri.")
    folder = local_path(given)
    if folder != given and os.path.isdir(given):
        _log.warning(
            "data_dir is %r, which stands for %r. The folder with the name %r is not used.", given, folder, given
        )
    if not os.path.lexists(folder):
        if folder.startswith("~"):
            raise ConfigError(f"data_dir is {given!r}: this home folder does not exist; write the whole path.")
        variable = _VARIABLE.match(folder)
        if variable and variable[1] in os.environ:
            raise ConfigError(
                f"data_dir is {given!r}, and variables are not expanded: write the path, or ${{oc.env:{variable[1]}}} on the "
                "command line."
            )
    above = folder
    while above and not os.path.lexists(above):
        above = os.path.dirname(above)
    if above and not os.path.isdir(above):
        raise ConfigError(
            f"data_dir is {given!r}, but {above!r} {what_is_there(above).removeprefix('which ')}: choose another folder."
        )
    return local_folder(folder, "data_dir")


def hint(pattern: str, base: str) -> str:
    """Return a hint about a pattern that matches nothing, as a clause; empty if there is none.

    Args:
        pattern: The pattern in the settings.
        base: The folder that it is relative to.
    """
    path = local_path(pattern)
    if path.startswith("~"):
        return "this home folder does not exist"
    if _VARIABLE.match(path):
        return "variables such as $HOME are not expanded, write their value"
    if "\\" in path and "/" not in path:
        return "write / between folders, not \\"
    at = "/" if path.startswith("/") else base
    for part in names_along(path):
        following = os.path.join(at, part)
        if not os.path.lexists(following):
            return _hint_of_part(part, at)
        at = following
    return ""


def _hint_of_part(part: str, folder: str) -> str:
    if "{" in part and "," in part and "}" in part:
        return "braces are not wildcards, write a pattern for each of them"
    if has_magic(part) or not os.path.isdir(folder):
        return ""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ""
    near = _nearest(part, names)
    if near:
        return f"the most similar name is {near!r}"
    return ""


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """Return the most similar name, regardless of case and Unicode form; None if there is none."""
    by_fold = {_folded(each): each for each in names}
    near = get_close_matches(_folded(name), by_fold, n=1, cutoff=0.6)
    if near:
        return by_fold[near[0]]
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
