"""What still needs a store: its versions that checkpoints are kept for, and the checkpoints of runs that are near."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from lightning_lance.errors import LightningLanceError
from lightning_lance.format.commit import last_commit
from lightning_lance.format.refs import read_refs
from lightning_lance.format.tags import is_of_a_checkpoint
from lightning_lance.location import StoreLocation, given_place, store_place

# The default folder of runs, and checkpoints that are read there: the newest ones.
_RUNS = "outputs"
_READ = 12


def needed_by(
    uri: str, storage_options: Mapping[str, str] | None = None, folder: str = _RUNS
) -> tuple[list[str], list[str]]:
    """Return what could not go on without a store: the tags of checkpoints that it has, and checkpoints of runs nearby.

    The tags are of all runs. Checkpoints are looked for in a folder of runs, and in the folders in it; only the newest ones are
    read, and only if there are tags. Nothing is changed.

    Args:
        uri: The store.
        storage_options: Credentials and other options of object stores.
        folder: The folder of a run, or of several.
    """
    location = StoreLocation(store_place(uri), storage_options)
    try:
        commit = last_commit(location)
        tags = sorted(filter(is_of_a_checkpoint, read_refs(location).tags))
    except LightningLanceError:
        return [], []
    if commit is None or not tags:
        return [], []
    files = sorted(_checkpoints_in(Path(folder)), key=lambda file: file.stat().st_mtime, reverse=True)
    checkpoints: list[str] = []
    for file in files[:_READ]:
        if _is_on(file, location.uri, commit.fingerprint):
            checkpoints.append(str(file))
    return tags, checkpoints


def _checkpoints_in(folder: Path) -> Iterator[Path]:
    """Yield the last checkpoint of each run."""
    for pattern in ("checkpoints/last*.ckpt", "*/checkpoints/last*.ckpt"):
        yield from islice(filter(Path.is_file, folder.glob(pattern)), 1000)


def _is_on(file: Path, uri: str, fingerprint: str) -> bool:
    """Return whether a checkpoint is of a store."""
    from lightning_lance.inspection.checkpoints import load_checkpoint, state_in

    with suppress(LightningLanceError):
        state = state_in(load_checkpoint(str(file)), str(file))
        for entry in state["stores"]:
            if entry["fingerprint"] == fingerprint and store_place(given_place(entry["uri"])) == uri:
                return True
    return False
