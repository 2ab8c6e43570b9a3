"""The workers of a cluster, as the driver sees them, and the tasks that they are given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightning_lance.errors import SourceError
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.formatting import format_bytes, pluralize
from lightning_lance.messages.redaction import in_one_line

_log = logger(__name__)

# Between two looks at the workers, the lease and the clock.
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        value: What it returned.
        error: What it raised; None if it returned.
        lost: Whether it may succeed elsewhere: its worker or node is gone, or its memory was too small.
        memory: Bytes that were set aside for it, 0 for none, if it was stopped for want of memory; None if it was not.
    """

    value: Any = None
    error: BaseException | None = None
    lost: bool = False
    memory: int | None = None


class Workers(Protocol):
    """The workers of a cluster. The only thing that the driver knows of the engine."""

    @property
    def slots(self) -> int:
        """Tasks that run at the same time."""
        ...

    def submit(self, function: Callable[..., Any], *arguments: Any, tries: int = 0) -> Hashable:
        """Run `function(work, *arguments)` on some worker, and return the task.

        `tries` times it was lost before; each time it gets twice the memory, up to all of a node.
        """
        ...

    def ended(self, seconds: float) -> Sequence[tuple[Hashable, Outcome]]:
        """Wait so long for tasks to end, and return those that have."""
        ...

    def cancel(self, tasks: Iterable[Hashable]) -> None:
        """Stop tasks whose outcome is not needed."""
        ...

    def close(self) -> None:
        """Stop all tasks, and wait until none writes any more."""
        ...


@dataclass(eq=False, kw_only=True)
class Job:
    """What tasks are for: it gets another task if the worker of one is lost.

    Attributes:
        tries: How often its worker was lost.
        starved: How often of those it was stopped for want of memory.
    """

    tries: int = 0
    starved: int = 0


class RunningTasks:
    """The tasks that run, and the job of each.

    Args:
        workers: Where they run.
        max_retries: How often a job gets another task after its worker was lost.
    """

    def __init__(self, workers: Workers, max_retries: int) -> None:
        self._workers = workers
        self._max_retries = max_retries
        self._jobs: dict[Hashable, Job] = {}

    @property
    def slots(self) -> int:
        """Tasks that run at the same time."""
        return self._workers.slots

    @property
    def full(self) -> bool:
        """Whether no worker is free."""
        return len(self._jobs) >= self.slots

    @property
    def jobs(self) -> list[Job]:
        """The jobs with a task."""
        return [*self._jobs.values()]

    def submit(self, job: Job, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function of the work and these arguments for a job."""
        task = self._workers.submit(function, *arguments, tries=job.tries)
        self._jobs[task] = job

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait a moment, and yield the jobs whose tasks have ended, with the outcomes."""
        for task, outcome in self._workers.ended(_POLL_SECONDS):
            job = self._jobs.pop(task, None)
            if job is not None:  # it was not stopped meanwhile
                yield job, outcome

    def stop(self, jobs: Collection[Job]) -> None:
        """Stop the tasks of jobs."""
        tasks = [task for task, job in self._jobs.items() if job in jobs]
        self._workers.cancel(tasks)
        for task in tasks:
            del self._jobs[task]

    def count_loss(self, job: Job, named: str, outcome: Outcome) -> None:
        """Count that the worker of a job was lost, and log that it gets another task.

        Raises:
            SourceError: If it was lost too often.
        """
        job.tries += 1
        job.starved += outcome.memory is not None
        said = in_one_line(outcome.error, 200)
        if job.tries > self._max_retries:
            ended = f"has ended its worker {pluralize(job.tries, 'time')}"
            if job.starved:
                ended += f", {pluralize(job.starved, 'time')} for want of memory"
            if outcome.memory:
                ended += f", at last with {format_bytes(outcome.memory)} set aside for it"
            raise SourceError(
                f"{named} {ended} ({said}): committed documents are safe; give a worker more memory, or leave these rows out, "
                "then run it again."
            ) from outcome.error
        lost = "lost its worker"
        more = ""
        if outcome.memory is not None:
            lost = "ran out of memory"
            more = "with twice the memory "
        _log.warning("%s %s and is done again %s(%d of %d): %s", named, lost, more, job.tries, self._max_retries, said)
