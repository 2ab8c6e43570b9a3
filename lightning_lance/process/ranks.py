"""What the ranks of a run tell each other about the data: that they are at the same place of it.

A forked process, such as a worker of a DataLoader, is no rank: it counts as alone.
"""

from __future__ import annotations

import os
import time
import weakref
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightning_lance.errors import StoreError
from lightning_lance.messages.redaction import in_one_line

#: Seconds that ranks wait for each other while a run is set up: they come out of one barrier, and are there or never will be.
SETTING_UP = 300.0

# Between two looks at which ranks have come, in seconds.
_LOOK = 0.05

# The group that this process was a member of before it was forked off: only the parent can talk to the others.
_inherited: Any = None
# The group, and how often its ranks have met. A group that is held here outlives `destroy_process_group`, with threads that can
# end the process as Python exits.
_met_in: weakref.ReferenceType[Any] | None = None
_met: int = 0


def _note_fork() -> None:
    global _inherited  # what a process is a fork of is of the process
    _inherited = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


os.register_at_fork(after_in_child=_note_fork)


def _connected() -> bool:
    if not dist.is_available() or not dist.is_initialized() or dist.group.WORLD is _inherited:
        return False
    return dist.get_world_size() > 1


def _meet(seconds: float | None) -> None:
    """Wait until all ranks have come here; one that has died is missed at once where gloo connects the ranks.

    Args:
        seconds: How long to wait for a rank that does not come; None for the timeout of the process group.

    Raises:
        StoreError: Naming the ranks that have not come.
    """
    count = _count_meeting()
    store: Any = dist.distributed_c10d._get_default_store()
    limit = store.timeout.total_seconds() if seconds is None else min(seconds, store.timeout.total_seconds())
    began = time.monotonic()
    try:
        store.set(_place(count, dist.get_rank()), "here")
        if "gloo" in dist.get_backend_config():
            # Who has passed it knows that all are here; the store may hear of them later.
            _pass_barrier(limit)
            return
        while (missing := _missing(store, count)) and time.monotonic() - began < limit:
            time.sleep(_LOOK)
        cause = ""
    except RuntimeError as error:
        missing, cause = _missing_or_none(store, count), in_one_line(error, 200)
    if missing or cause:
        raise StoreError(_absent(missing, time.monotonic() - began, cause))


def _count_meeting() -> int:
    """Return the number of this meeting, from 1 on for each process group."""
    global _met_in, _met  # the group is the process's
    group: Any = dist.group.WORLD
    if _met_in is None or _met_in() is not group:
        _met_in = weakref.ref(group)
        _met = 0
    _met += 1
    return _met


def _place(meeting: int, rank: int) -> str:
    return f"lightning_lance/{meeting}/{rank}"


def _pass_barrier(seconds: float) -> None:
    """Wait for all ranks; RuntimeError if one of them has died or does not come."""
    options = dist.BarrierOptions()
    # Not the group's: a process cannot end while a barrier of it is waited in.
    options.timeout = timedelta(seconds=seconds)
    group: Any = dist.group.WORLD
    waiting = group.barrier(options)
    # Looked at now and then, so that Ctrl-C is heard.
    while not waiting.is_completed():
        time.sleep(_LOOK / 10)
    waiting.wait()


def _missing(store: Any, meeting: int) -> list[int]:
    return [rank for rank in range(dist.get_world_size()) if not store.check([_place(meeting, rank)])]


def _missing_or_none(store: Any, meeting: int) -> list[int]:
    try:
        return _missing(store, meeting)
    except RuntimeError:
        return []  # the rank that keeps the store is gone too


def _absent(missing: list[int], seconds: float, cause: str) -> str:
    """Say who has not come, or that somebody is gone who had."""
    who = "Another rank"
    if missing:
        who = f"{'Ranks' if len(missing) > 1 else 'Rank'} {', '.join(map(str, missing))}"
    told = f" ({cause})" if cause else ""
    return (
        f"{who} did not come to compare the data within {seconds:.0f} s, or ended before{told}: look for the error in its own "
        "output, and start all ranks again."
    )


def is_rank_zero() -> bool:
    """Whether this is rank 0, or alone."""
    return not _connected() or dist.get_rank() == 0


def check_ranks_agree(mine: dict[str, Any]) -> None:
    """Compare what all ranks hold; each gets to know the others' values, so all of them raise, and none waits for ever.

    Raises:
        StoreError: With a table, a line per rank and a column per field that differs; or if a rank does not come.
    """
    if not _connected():
        return
    _meet(None)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    fields = [name for name in mine if any(other.get(name) != mine[name] for other in everyone)]
    if fields:
        lines = [
            f"rank {rank}: " + ", ".join(f"{name} {told.get(name)!r}" for name in fields)
            for rank, told in enumerate(everyone)
        ]
        raise StoreError(
            f"The ranks disagree about the data in {', '.join(fields)}: start all of them with one configuration, on the same "
            "store.",
            *lines,
        )


def broadcast_from_rank_zero(value: Any, seconds: float | None = None) -> Any:
    """Return the value that rank 0 passes, on all ranks. StoreError if a rank does not come; `seconds`: see `_meet`."""
    if not _connected():
        return value
    _meet(seconds)
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def raise_on_all_ranks(mine: Exception | None, seconds: float | None = None) -> None:
    """Raise on all ranks if something failed on one: its own error there, and one that names the cause on the others.

    Raises:
        StoreError: If another rank failed, or does not come; `seconds`: see `_meet`.
    """
    told: list[Any] = [None if mine is None else in_one_line(mine, 2000) or type(mine).__name__]
    if _connected():
        try:
            _meet(seconds)
        except StoreError as error:
            raise mine or error from None
        told *= dist.get_world_size()
        dist.all_gather_object(told, told[0])
    if mine is not None:
        raise mine
    failed = [(rank, cause) for rank, cause in enumerate(told) if cause is not None]
    if failed:
        rank, cause = failed[0]
        raise StoreError(f"The data could not be prepared by rank {rank}: {cause}")
