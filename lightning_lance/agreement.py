"""What the ranks of a run tell each other about the data: that they are at the same place of it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from lightning_lance.errors import StoreError
from lightning_lance.redaction import in_one_line


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this is rank 0, or alone."""
    return not _connected() or dist.get_rank() == 0


def agree(mine: dict[str, Any]) -> None:
    """Compare what all ranks hold; each gets to know the others' values, so all of them raise, and none waits for ever.

    Raises:
        StoreError: With a table, a line per rank and a column per field that differs.
    """
    if not _connected():
        return
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


def told_by_first(value: Any) -> Any:
    """Give the value that rank 0 passes, on all ranks."""
    if not _connected():
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def raise_together(mine: Exception | None) -> None:
    """Raise on all ranks if something failed on one: its own error there, and one that names the cause on the others.

    Raises:
        StoreError: If another rank failed.
    """
    told: list[Any] = [None if mine is None else in_one_line(mine, 2000) or type(mine).__name__]
    if _connected():
        told *= dist.get_world_size()
        dist.all_gather_object(told, told[0])
    if mine is not None:
        raise mine
    failed = [(rank, cause) for rank, cause in enumerate(told) if cause is not None]
    if failed:
        rank, cause = failed[0]
        raise StoreError(f"The data could not be prepared by rank {rank}: {cause}")
