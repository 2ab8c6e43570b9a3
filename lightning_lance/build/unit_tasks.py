"""The tasks of units: what a worker does next for each unit of the queue, and what it has found."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_lance.build.earlier_results import EarlierResults, remove_attempt
from lightning_lance.build.ledger import Ledger
from lightning_lance.build.tasks import Work, key_of, run_cuts, run_scan, run_unit
from lightning_lance.build.unit import Unit
from lightning_lance.build.unit_queue import QueuedUnit, UnitQueue, UnitState
from lightning_lance.build.unit_results import Written, read_result
from lightning_lance.build.workers import Outcome, RunningTasks
from lightning_lance.lance_names import UnitName
from lightning_lance.messages.escaping import logger

_log = logger(__name__)

# A unit is slow that takes so many times as long as most.
_SLOW = 3


class UnitTasks:
    """Has the units of a queue cut, scanned and run.

    Args:
        work: What all units have in common.
        source: Name of the source.
        queue: The units.
        ledger: Says how much the budget still needs.
        tasks: The tasks that run, of merges too.
        earlier: What needs not be done again.
        unit_bytes: Bytes of text in a part of a large shard.
    """

    def __init__(
        self,
        work: Work,
        source: str,
        queue: UnitQueue,
        ledger: Ledger,
        tasks: RunningTasks,
        earlier: EarlierResults,
        unit_bytes: int,
    ) -> None:
        self._work = work
        self._source = source
        self._queue = queue
        self._ledger = ledger
        self._tasks = tasks
        self._earlier = earlier
        self._unit_bytes = unit_bytes
        #: Seconds that the last units took.
        self._seconds: deque[float] = deque(maxlen=100)
        #: Warnings of the workers' readers that were logged.
        self._remarks: set[str] = set()

    @property
    def running(self) -> list[QueuedUnit]:
        """The units with a task."""
        return [job for job in self._tasks.jobs if isinstance(job, QueuedUnit)]

    @property
    def slow(self) -> list[QueuedUnit]:
        """The units whose task takes much longer than most, the slowest first."""
        if not self._seconds:
            return []
        longest = _SLOW * float(np.median(self._seconds))
        now = time.monotonic()
        slow: list[QueuedUnit] = []
        for queued in self.running:
            if now - queued.since > longest:
                slow.append(queued)
        return sorted(slow, key=lambda each: each.since)

    def named(self, unit: Unit) -> str:
        """Return the name of a unit for messages."""
        rows = f"from row {unit.row:,} on" if unit.end is None else f"rows {unit.row:,} to {unit.end - 1:,}"
        return f"Shard {self._work.opened.shards[unit.shard]!r} of source {self._source!r}, {rows}"

    def tell(self, written: Written) -> None:
        """Log what a worker's reader has warned of, each warning once."""
        for remark in written.remarks:
            if remark not in self._remarks:
                self._remarks.add(remark)
                _log.warning("%s", remark)

    # What is next.

    def submit(self) -> None:
        """Give tasks to free workers, the first units first."""
        for queued in self._queue.ready(self._tasks.slots):
            if self._tasks.full:
                return
            if queued.state is UnitState.UNCUT:
                self._submit(queued, UnitState.CUTTING, run_cuts, queued.unit.shard, self._unit_bytes)
            elif not self._work.dedup or queued.decided is not None:
                self._run(queued)
            elif queued.hashes is None:
                self._scan(queued)

    def _scan(self, queued: QueuedUnit) -> None:
        earlier = self._earlier.take("scan", queued.unit, key_of(self._work, queued.unit))
        if earlier is not None:
            queued.scan, written = earlier
            self._scanned(queued, written)
            return
        name = _new_name("scan", queued.unit)
        queued.scan = name
        self._submit(queued, UnitState.SCANNING, run_scan, self._bounded(queued.unit), name)

    def _run(self, queued: QueuedUnit) -> None:
        key = key_of(self._work, queued.unit, queued.decided)
        earlier = self._earlier.take("unit", queued.unit, key)
        if earlier is not None and earlier[1].whole:
            queued.done = earlier
            queued.state = UnitState.DONE
            return
        name = _new_name("unit", queued.unit)
        queued.name = name
        self._submit(queued, UnitState.RUNNING, run_unit, self._bounded(queued.unit), name, queued.decided)

    def _bounded(self, unit: Unit) -> Unit:
        """Return a unit that ends where the budget needs no more of it."""
        rest = self._ledger.next_unit()
        return replace(unit, max_documents=rest.max_documents, max_tokens=rest.max_tokens)

    def _submit(self, queued: QueuedUnit, state: UnitState, function: Callable[..., Any], *arguments: Any) -> None:
        queued.state = state
        queued.since = time.monotonic()
        self._tasks.submit(queued, function, *arguments)

    def begin_again(self, queued: QueuedUnit) -> None:
        """Have a unit run anew, whatever of it is running or done."""
        self._tasks.stop([queued])
        if queued.done is not None:
            remove_attempt(self._work.location, queued.done[0])
        queued.done = None
        queued.state = UnitState.NEW

    def stop(self) -> None:
        """Stop all units, of which no more is needed. Their files stay."""
        self._queue.clear()
        self._tasks.stop(self.running)

    # What has ended.

    def take(self, queued: QueuedUnit, outcome: Outcome) -> None:
        """Take what a task has done for a unit. One that was lost is done again.

        Raises:
            SourceError: If it was lost too often.
            StoreError: If its result cannot be read.
        """
        if outcome.error is not None:
            queued.state = UnitState.UNCUT if queued.state is UnitState.CUTTING else UnitState.NEW
            self._tasks.count_loss(queued, f"{self.named(queued.unit)},", outcome)
        elif queued.state is UnitState.CUTTING:
            self._queue.cut(queued, outcome.value)
        elif queued.state is UnitState.SCANNING and queued.scan is not None:
            self._scanned(queued, read_result(self._work.location, queued.scan))
        elif queued.name is not None:
            queued.done = queued.name, read_result(self._work.location, queued.name)
            queued.state = UnitState.DONE
            self._seconds.append(time.monotonic() - queued.since)

    def _scanned(self, queued: QueuedUnit, written: Written) -> None:
        self.tell(written)
        self._queue.scanned(queued, written.result)


def _new_name(what: str, unit: Unit) -> UnitName:
    return UnitName(what, unit.shard, unit.row, secrets.token_hex(8))
