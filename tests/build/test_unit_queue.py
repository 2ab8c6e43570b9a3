"""The units ahead of the ledger, without any workers; with them, see test_cluster.py."""

import numpy as np
import pyarrow as pa
import pytest

from lightning_lance.build.ledger import Ledger
from lightning_lance.build.plan import Budget
from lightning_lance.build.unit import UnitResult
from lightning_lance.build.unit_queue import UnitQueue, UnitState
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.readers.cuts import Cut

NONE = np.zeros(0, np.int64)


def queue_of(divisible: bool = False, max_lead: int | None = None, dedup: bool = False, shards: int = 5) -> UnitQueue:
    start = CommitMetadata("fingerprint", {}, {}, "shards", "", 0, 256, shard=1, row=7)
    ledger = Ledger(start, Budget(None, None), [*"abcdef"], hashes=[] if dedup else None)
    return UnitQueue(ledger, shards, divisible, max_lead)


def places(queue: UnitQueue) -> list[tuple[int, int, int | None]]:
    return [(queued.unit.shard, queued.unit.row, queued.unit.end) for queued in queue]


def scanned(shard: int, hashes: list[int], **ends: object) -> UnitResult:
    return UnitResult(shard, NONE, NONE, NONE, pa.table({}), hashes=np.array(hashes, np.uint64), **ends)  # type: ignore[arg-type]


def test_shards_from_the_cursor_on_are_queued_up_to_the_lead():
    queue = queue_of(max_lead=3)
    assert queue.known == 4
    assert queue.lengthen(slots=2)
    assert places(queue) == [(1, 7, None), (2, 0, None), (3, 0, None)]
    assert queue.known == 4
    queue.pop_first()
    assert queue.lengthen(slots=2)
    queue.pop_first()
    assert not queue.lengthen(slots=2)
    assert (places(queue), queue.folded, queue.known) == ([(3, 0, None), (4, 0, None)], 2, 4)


def test_units_behind_a_shard_that_is_not_cut_yet_wait_but_for_its_cut():
    queue = queue_of(divisible=True)
    queue.lengthen(slots=2)
    first, second, *_ = queue
    assert [queued.state for queued in queue.ready(slots=2)] == [UnitState.UNCUT] * 4
    queue.cut(second, [Cut(2, 20)])
    assert first in queue.ready(slots=2)
    assert second not in queue.ready(slots=2)
    # A unit that begins behind a cut knows it, and the last one has the rest of its shard.
    queue.cut(first, [Cut(5, 50), Cut(9, 90)])
    assert places(queue)[:4] == [(1, 7, 9), (1, 9, None), (2, 0, 2), (2, 2, None)]
    assert [queued.unit.cut for queued in queue][:4] == [Cut(5, 50), Cut(9, 90), None, Cut(2, 20)]
    assert [*queue.ready(slots=2)][:4] == [*queue][:4]


def test_a_scan_that_ends_early_leaves_the_rest_to_another_unit():
    queue = queue_of(dedup=True)
    queue.lengthen(slots=1)
    first = next(iter(queue))
    queue.scanned(first, scanned(1, [10, 11], next_row=9))
    assert places(queue)[:2] == [(1, 7, 9), (1, 9, None)]
    # No more than the lead, although the queue is longer now.
    assert [*queue.ready(slots=1)] == [*queue][1:4]


@pytest.mark.parametrize("read", [1, 2])
def test_copies_of_what_could_not_be_read_after_all_are_stored(read: int):
    queue = queue_of(dedup=True, shards=4)
    queue.lengthen(slots=1)
    first, second, third = queue
    queue.scanned(second, scanned(2, [11, 12], ends_shard=True))
    queue.decide()
    # In the order of the source: nothing before the first is known.
    assert second.decided is None
    queue.scanned(first, scanned(1, [10, 11], ends_shard=True))
    queue.scanned(third, scanned(3, [12], ends_shard=True))
    queue.decide()
    decided = [queued.decided.new.tolist() for queued in (first, second, third) if queued.decided]
    assert decided == [[True, True], [False, True], [False]]
    queue.pop_first()
    read_so_far = UnitResult(1, np.arange(read), NONE, NONE, pa.table({}), bad_shard={"row": 8})
    changed = queue.break_off(first, read_so_far)
    assert changed == ([second] if read == 1 else [])
    assert second.decided is not None
    assert second.decided.new.tolist() == [read == 1, True]


def test_the_rest_of_a_broken_shard_is_left_out():
    queue = queue_of(divisible=True)
    queue.lengthen(slots=1)
    first = next(iter(queue))
    queue.cut(first, [Cut(9, 9), Cut(12, 12)])
    _, middle, *_ = queue
    queue.scanned(middle, scanned(1, [], bad_shard={"row": 10}, next_row=10, ends_shard=True))
    assert places(queue)[:3] == [(1, 7, 9), (1, 9, 10), (2, 0, None)]
    assert middle.bad == {"row": 10}
