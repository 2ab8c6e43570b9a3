"""The units ahead of the ledger: which there are, in the order of the source, and how far each has come.

A queue reads and writes nothing, and starts no task. It says which units may begin, and takes their results.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from lightning_lance.build.ledger import Ledger
from lightning_lance.build.tasks import Decided
from lightning_lance.build.unit import Unit, UnitResult
from lightning_lance.build.unit_results import Written
from lightning_lance.build.workers import Job
from lightning_lance.lance_names import UnitName
from lightning_lance.readers.cuts import Cut


class UnitState(Enum):
    """Where a unit is on its way."""

    UNCUT = "uncut"
    CUTTING = "cutting"
    NEW = "new"
    SCANNING = "scanning"
    SCANNED = "scanned"
    RUNNING = "running"
    DONE = "done"


@dataclass(eq=False)
class QueuedUnit(Job):
    """A unit on its way.

    Attributes:
        unit: The unit.
        state: Where it is.
        scan: The name of the attempt at its hashes.
        hashes: Hashes of its documents, once it was scanned.
        bad: Why the rest of its shard is skipped, if the scan has found that.
        decided: The decision on its copies, once it was made.
        name: The name of the attempt at its rows.
        done: What that attempt has written, once it is done.
        since: When its task began.
    """

    unit: Unit
    state: UnitState = UnitState.NEW
    scan: UnitName | None = None
    hashes: np.ndarray | None = None
    bad: Mapping[str, Any] | None = None
    decided: Decided | None = None
    name: UnitName | None = None
    done: tuple[UnitName, Written] | None = None
    since: float = 0.0

    def await_next_task(self) -> None:
        """Make it wait for its next task, which was not lost yet."""
        self.state = UnitState.NEW
        self.tries = self.starved = 0


class UnitQueue:
    """The units from the cursor on that were begun, or are next.

    Args:
        ledger: Says where the cursor is, and which texts are copies.
        num_shards: Shards of the source.
        divisible: Whether large shards are cut into several units.
        max_lead: Units ahead of the ledger; None for four times as many as tasks.
    """

    def __init__(self, ledger: Ledger, num_shards: int, divisible: bool, max_lead: int | None) -> None:
        self._ledger = ledger
        self._first = ledger.commit
        self._units: deque[QueuedUnit] = deque()
        self._num_shards = num_shards
        self._next_shard = self._first.shard
        self._state = UnitState.UNCUT if divisible else UnitState.NEW
        self._max_lead = max_lead
        # Shards whose rest is skipped, and the row where the unit begins that has found it.
        self._bad: dict[int, int] = {}
        #: Units that the ledger has folded.
        self.folded = 0

    def __len__(self) -> int:
        return len(self._units)

    def __iter__(self) -> Iterator[QueuedUnit]:
        return iter(self._units)

    def __contains__(self, queued: QueuedUnit) -> bool:
        return queued in self._units

    @property
    def done(self) -> int:
        """Units that are done, folded or not."""
        return self.folded + sum(queued.done is not None for queued in self._units)

    @property
    def known(self) -> int:
        """Units so far, with those that are folded; a shard that is not queued yet counts as one."""
        return self.folded + len(self._units) + self._num_shards - self._next_shard

    # The lead.

    def wanted(self, slots: int) -> int:
        """Return how many units ahead of the ledger to begin, for so many tasks at a time.

        That is up to the lead, and no more than the budget seems to need.
        """
        lead = self._max_lead or 4 * slots
        rest = self._ledger.next_unit()
        if rest.max_documents is None and rest.max_tokens is None:
            return lead
        if not self.folded:
            return min(lead, slots)
        documents = self._ledger.commit.documents - self._first.documents
        tokens = self._ledger.commit.tokens - self._first.tokens
        needed = lead
        for bound, done in ((rest.max_documents, documents), (rest.max_tokens, tokens)):
            if bound is not None and done:
                needed = min(needed, math.ceil(bound * self.folded / done))
        return max(needed, 1)

    def lengthen(self, slots: int) -> bool:
        """Queue shards as long as units are wanted. Return whether there may be more."""
        while len(self._units) < self.wanted(slots):
            if self._next_shard >= self._num_shards:
                return False
            shard = self._next_shard
            row = self._first.row if shard == self._first.shard else 0
            self._units.append(QueuedUnit(Unit(shard, row), self._state))
            self._next_shard += 1
        return True

    def ready(self, slots: int) -> Iterator[QueuedUnit]:
        """Yield the units whose next task may begin, the first ones first."""
        all_cut = True
        # A scan may add the rest of its unit, and a cut its parts.
        for queued in list(self._units)[: self.wanted(slots)]:
            # Units behind a shard that is not cut yet would lead by more than they may.
            all_cut = all_cut and queued.state not in (UnitState.UNCUT, UnitState.CUTTING)
            waits = queued.state is UnitState.UNCUT or (all_cut and queued.state is UnitState.NEW)
            # A scan that an earlier driver has made may show that the units behind are not needed.
            if waits and queued in self._units:
                yield queued

    # What was found of a unit.

    def cut(self, queued: QueuedUnit, cuts: Sequence[Cut]) -> None:
        """Put the parts of a shard into its place."""
        before: Cut | None = None
        behind: list[Cut] = []
        for cut in cuts:
            if cut.row > queued.unit.row:
                behind.append(cut)
            else:
                before = cut
        parts: list[Unit] = []
        end: int | None = None
        # From the last part on, since each ends where the next one begins.
        for cut in reversed(behind):
            parts.append(Unit(queued.unit.shard, cut.row, end, cut=cut))
            end = cut.row
        queued.unit = replace(queued.unit, end=end, cut=before)
        queued.await_next_task()
        self._insert_behind(queued, parts[::-1])

    def scanned(self, queued: QueuedUnit, result: UnitResult) -> None:
        """Take the hashes of a unit, which may end earlier than it was to."""
        queued.hashes = result.hashes
        queued.state = UnitState.SCANNED
        if result.bad_shard is not None:
            # Before the decision on copies, since those behind it are not stored.
            self._skip_rest(queued)
            # It ends here even if it can be read when it is run: the hashes of what follows are not known.
            queued.bad = result.bad_shard
            end = queued.bad["row"] if result.next_row is None else result.next_row
            queued.unit = replace(queued.unit, end=int(end))
        ended = result.ends_shard or (queued.unit.end is not None and result.next_row == queued.unit.end)
        if not ended and result.next_row is not None:
            # The scan has ended early, since it found as much as the budget needs.
            rest = replace(queued.unit, row=result.next_row)
            queued.unit = replace(queued.unit, end=result.next_row)
            self._insert_behind(queued, [rest])

    def _insert_behind(self, queued: QueuedUnit, units: Sequence[Unit]) -> None:
        place = self._units.index(queued) + 1
        for unit in reversed(units):
            self._units.insert(place, QueuedUnit(unit))

    def _skip_rest(self, queued: QueuedUnit) -> None:
        """Leave out the units of the same shard behind one that was not read to its end."""
        shard, row = queued.unit.shard, queued.unit.row
        self._bad[shard] = min(row, self._bad.get(shard, row))
        self._drop_skipped()

    def _drop_skipped(self) -> None:
        for queued in list(self._units):
            unit = queued.unit
            if unit.row > self._bad.get(unit.shard, unit.row):
                self._units.remove(queued)

    # Copies.

    def decide(self) -> None:
        """Decide which documents are copies, in the order of the source."""
        seen = self._ledger.seen
        if seen is None:
            return
        for queued in self._units:
            if queued.decided is not None:
                continue
            if queued.hashes is None:
                return
            queued.decided = Decided(queued.hashes, seen.add(queued.hashes), queued.bad)
            queued.await_next_task()

    def break_off(self, broken: QueuedUnit, result: UnitResult) -> list[QueuedUnit]:
        """Leave out the rest of a shard behind a unit that was not read to its end, so that copies of it are stored.

        Return the units that must begin again, since they have such copies.
        """
        seen = self._ledger.seen
        if seen is None or broken.decided is None:
            self._skip_rest(broken)
            return []
        read = len(result.rows) + len(result.skipped.get("duplicate", ()))
        lost = [broken.decided.hashes[read:][broken.decided.new[read:]]]
        behind: list[tuple[QueuedUnit, Decided]] = []
        for queued in self._units:
            if queued.decided is not None:
                behind.append((queued, queued.decided))
                lost.append(queued.decided.stored)
        seen.discard(np.concatenate(lost))
        self._skip_rest(broken)
        changed = []
        for queued, known in behind:
            if queued not in self._units:
                continue
            new = seen.add(known.hashes)
            if not np.array_equal(new, known.new):
                queued.decided = known._replace(new=new)
                changed.append(queued)
        return changed

    # The first unit.

    def first_done(self) -> QueuedUnit | None:
        """Return the first unit if it is done, and not yet folded."""
        if self._units and self._units[0].done is not None:
            return self._units[0]
        return None

    def pop_first(self) -> None:
        """Count the first unit as folded."""
        self._units.popleft()
        self.folded += 1

    def clear(self) -> None:
        """Leave out all units."""
        self._units.clear()
