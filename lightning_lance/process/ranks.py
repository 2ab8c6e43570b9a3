"""Communication between the ranks of a run: comparing their data, sharing a value, failing together.

A forked process, such as a DataLoader worker, is not a rank and counts as alone.
"""

from __future__ import annotations

import os
import time
import weakref
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightning_lance.errors import StoreError
from lightning_lance.messages.formatting import agreed
from lightning_lance.messages.redaction import in_one_line

#: Seconds that ranks wait for each other during setup. They have just left a barrier together, so a late rank is dead.
SETTING_UP = 300.0

# Between two checks for ranks that have arrived, in seconds.
_LOOK = 0.05

# The process group of the parent of a forked process, which only the parent can use.
_inherited: Any = None
# The process group, and the number of its meetings. Weak, since a process group that outlives `destroy_process_group` has
# threads that can crash Python at exit.
_met_in: weakref.ReferenceType[Any] | None = None
_met: int = 0


def _note_fork() -> None:
    global _inherited
    _inherited = None
    if dist.is_available() and dist.is_initialized():
        _inherited = dist.group.WORLD


os.register_at_fork(after_in_child=_note_fork)


def _connected() -> bool:
    if not dist.is_available() or not dist.is_initialized() or dist.group.WORLD is _inherited:
        return False
    return dist.get_world_size() > 1


def _meet(seconds: float | None) -> None:
    """Wait until all ranks have arrived here, at most so long, or for the timeout of the process group.

    StoreError if one does not arrive. With gloo, a dead rank is noticed at once.
    """
    count = _count_meeting()
    store: Any = dist.distributed_c10d._get_default_store()
    limit = store.timeout.total_seconds()
    if seconds is not None:
        limit = min(seconds, limit)
    began = time.monotonic()
    cause = ""
    try:
        store.set(_place(count, dist.get_rank()), "here")
        if "gloo" in dist.get_backend_config():
            # Who has passed it knows that all are here; the store may hear of them later.
            _pass_barrier(limit)
            return
        missing = _missing(store, count)
        while missing and time.monotonic() - began < limit:
            time.sleep(_LOOK)
            missing = _missing(store, count)
    except RuntimeError as error:
        missing = _missing_or_none(store, count)
        cause = in_one_line(error, 200)
    if missing or cause:
        raise StoreError(_absent(missing, time.monotonic() - began, cause))


def _count_meeting() -> int:
    """Return the number of this meeting of the process group, starting at 1."""
    global _met_in, _met
    group: Any = dist.group.WORLD
    if _met_in is None or _met_in() is not group:
        _met_in = weakref.ref(group)
        _met = 0
    _met += 1
    return _met


def _place(meeting: int, rank: int) -> str:
    return f"lightning_lance/{meeting}/{rank}"


def _pass_barrier(seconds: float) -> None:
    """Wait for all ranks. Raises RuntimeError if one has died or does not arrive."""
    options = dist.BarrierOptions()
    # Instead of the group's longer timeout: a process cannot exit while it waits in a barrier.
    options.timeout = timedelta(seconds=seconds)
    group: Any = dist.group.WORLD
    waiting = group.barrier(options)
    # Polled, so that Ctrl-C works.
    while not waiting.is_completed():
        time.sleep(_LOOK / 10)
    waiting.wait()


def _missing(store: Any, meeting: int) -> list[int]:
    return [rank for rank in range(dist.get_world_size()) if not store.check([_place(meeting, rank)])]


def _missing_or_none(store: Any, meeting: int) -> list[int]:
    try:
        return _missing(store, meeting)
    except RuntimeError:
        return []  # the rank that hosts the store is gone too


def _absent(missing: list[int], seconds: float, cause: str) -> str:
    """Return the message about missing ranks, or about a rank that arrived and then ended."""
    who = "Another rank"
    if missing:
        who = f"{agreed(len(missing), 'Rank', 'Ranks')} {', '.join(map(str, missing))}"
    reason = f" ({cause})" if cause else ""
    return (
        f"{who} did not arrive within {seconds:.0f} s to compare the data, or ended before{reason}: look for the error in the "
        "output of that rank, and start all ranks again."
    )


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, or alone."""
    return not _connected() or dist.get_rank() == 0


def check_ranks_agree(mine: dict[str, Any]) -> None:
    """Check that all ranks hold the same values. If not, all of them raise, so that none waits forever.

    Raises:
        StoreError: If the ranks disagree, with a line per rank and its differing fields; or if a rank does not arrive.
    """
    if not _connected():
        return
    _meet(None)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    fields = []
    for name, value in mine.items():
        if any(other.get(name) != value for other in everyone):
            fields.append(name)
    if fields:
        lines = []
        for rank, values in enumerate(everyone):
            shown = [f"{name} {values.get(name)!r}" for name in fields]
            lines.append(f"rank {rank}: {', '.join(shown)}")
        raise StoreError(
            f"The ranks disagree about the data in {', '.join(fields)}: start all of them with the same configuration and the "
            "same store.",
            *lines,
        )


def broadcast_from_rank_zero(value: Any, seconds: float | None = None) -> Any:
    """Return the value of rank 0 on all ranks. Raises StoreError if a rank does not arrive; `seconds` as in `_meet`."""
    if not _connected():
        return value
    _meet(seconds)
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def raise_on_all_ranks(mine: Exception | None, seconds: float | None = None) -> None:
    """Raise on all ranks if one has failed: its own error on that rank, a StoreError with the cause on the others.

    StoreError also if a rank does not arrive; `seconds` as in `_meet`.
    """
    if not _connected():
        if mine is not None:
            raise mine
        return
    try:
        _meet(seconds)
    except StoreError as error:
        raise mine or error from None
    cause = None
    if mine is not None:
        cause = in_one_line(mine, 2000) or type(mine).__name__
    causes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(causes, cause)
    if mine is not None:
        raise mine
    for rank, cause in enumerate(causes):
        if cause is not None:
            raise StoreError(f"Rank {rank} could not prepare the data: {cause}")
