"""Workers of a cluster in this process: a law chooses which task ends next, and which dies where."""

import pickle
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from lightning_lance.build.builder import Build
from lightning_lance.build.cluster import ClusterBuild
from lightning_lance.build.tasks import Work
from lightning_lance.build.workers import Outcome
from lightning_lance.errors import StoreError
from lightning_lance.lance_names import UnitName
from lightning_lance.location import with_all_options
from lightning_lance.maintenance.removal import remove_unit_files


class DiedError(Exception):
    """A worker has died."""


class DriverDied(BaseException):
    """The driver has died: it cleans up nothing."""


@dataclass
class FakeWorkers:
    """Runs one task whenever the driver waits.

    Attributes:
        work: What all tasks have in common.
        random: Chooses the task, and its fate.
        slots: Tasks at a time.
        deaths: Share of the tasks that die.
        driver_dies: Tasks after which the driver dies; None for never.
        zombies: Tasks that count as lost, and end nevertheless, after they were done again or when the workers are closed.
    """

    work: Work
    random: Random
    slots: int = 2
    deaths: float = 0.0
    driver_dies: int | None = None
    waiting: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = field(default_factory=dict)
    count: int = 0
    done: list[str] = field(default_factory=list)
    zombies: list[Callable[[], Any]] = field(default_factory=list)

    def submit(self, function: Callable[..., Any], *arguments: Any, tries: int = 0) -> Hashable:
        self.count += 1
        # As between two processes.
        self.waiting[self.count] = function, pickle.loads(pickle.dumps(arguments))
        return self.count

    def ended(self, seconds: float) -> Sequence[tuple[Hashable, Outcome]]:
        if not self.waiting:
            return []
        if self.random.random() < self.deaths:
            self.end_zombies(1)
        task = self.random.choice(sorted(self.waiting))
        function, arguments = self.waiting.pop(task)
        if self.driver_dies is not None:
            self.driver_dies -= 1
        with with_all_options():
            work = pickle.loads(pickle.dumps(self.work))
        if self.random.random() < self.deaths:
            fate = self.random.choice(["at once", "before its result", "after its result", "later"])
            if fate == "later":
                self.zombies.append(partial(function, work, *arguments))
            elif fate != "at once":
                function(work, *arguments)
            if fate == "before its result":
                # Not all tasks write one.
                names = [each for each in arguments if isinstance(each, UnitName)]
                remove_unit_files(work.location, [name.result_path for name in names])
            return [(task, Outcome(error=DiedError(fate), lost=True))]
        if self.driver_dies is not None and self.driver_dies < 0:
            raise DriverDied
        self.done.append(function.__name__)
        try:
            return [(task, Outcome(function(work, *arguments)))]
        except Exception as error:
            return [(task, Outcome(error=error))]

    def cancel(self, tasks: Iterable[Hashable]) -> None:
        for task in tasks:
            self.waiting.pop(task, None)

    def end_zombies(self, count: int) -> None:
        """Let so many zombies end."""
        for zombie in self.zombies[:count]:
            # What it was to read may be gone by now.
            with suppress(StoreError):
                zombie()
        del self.zombies[:count]

    def close(self) -> None:
        self.waiting.clear()
        self.end_zombies(len(self.zombies))


@dataclass(frozen=True)
class FakeEngine:
    """Builds with `FakeWorkers`, a task at a time, in any order."""

    seed: int = 0
    slots: int = 2
    max_lead: int | None = None
    unit_bytes: int = 1 << 30
    deaths: float = 0.0
    driver_dies: int | None = None
    made: list[FakeWorkers] = field(default_factory=list)

    def begin(self, *given: Any, durable: bool) -> Build:
        def start(work: Work) -> FakeWorkers:
            self.made.append(FakeWorkers(work, Random(self.seed), self.slots, self.deaths, self.driver_dies))
            return self.made[-1]

        return ClusterBuild(
            start, *given, durable, max_lead=self.max_lead, unit_bytes=self.unit_bytes, max_retries=1000
        )
