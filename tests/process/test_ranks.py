import re
from pathlib import Path

import pytest

from lightning_lance.process.ranks import broadcast_from_rank_zero, check_ranks_agree, is_rank_zero, raise_on_all_ranks
from tests.support.warm import TRAINING, server


def test_a_process_alone_agrees_with_itself():
    check_ranks_agree({"epoch": 1})
    assert broadcast_from_rank_zero([5]) == [5]
    assert is_rank_zero()
    raise_on_all_ranks(None)
    with pytest.raises(KeyError, match="x"):
        raise_on_all_ranks(KeyError("x"))


# Two real ranks; each holds the value at its index.
SCRIPT = """
import os
import sys
import torch.distributed as dist
from lightning_lance.process.ranks import check_ranks_agree, is_rank_zero, broadcast_from_rank_zero
threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 0
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
assert broadcast_from_rank_zero([rank + 7]) == [7]
assert is_rank_zero() == (rank == 0)
check_ranks_agree({"epoch": 1, "cursor": 2})
try:
    check_ranks_agree({"epoch": 1, "cursor": 2 + rank, "len": 5 - rank})
except Exception as error:
    print(type(error).__name__, error)
dist.destroy_process_group()
# A thread of gloo that is left can end the process as Python exits.
assert sys.platform != "linux" or len(os.listdir("/proc/self/task")) == threads
"""


def test_ranks_that_disagree_all_get_the_table(tmp_path: Path):
    ranks = [server(TRAINING).start(SCRIPT, tmp_path / "meeting", rank) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    told = [rank.output()[0] for rank in ranks]
    assert told[0] == told[1]
    assert told[0].splitlines() == [
        "StoreError The ranks disagree about the data in cursor, len: start all of them with the same configuration and the "
        "same store.",
        "rank 0: cursor 2, len 5",
        "rank 1: cursor 3, len 4",
    ]


# The error on the other rank if one fails alone, in one pair of processes: it cannot open the store, is late, is killed.
ALONE = """
import os, signal, sys, time
from datetime import timedelta
import torch.distributed as dist
from lightning_lance.process.ranks import check_ranks_agree, raise_on_all_ranks, broadcast_from_rank_zero
rank = int(sys.argv[2])

def connect(name, seconds):
    meeting = f"file://{sys.argv[1]}-{name}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=seconds))

def heard(name, work):
    began = time.monotonic()
    try:
        work()
        print(name, "nothing")
    except Exception as error:
        print(name, type(error).__name__, " ".join(str(error).split()), flush=True)
    assert time.monotonic() - began < 60

connect("a", 200)
heard("failed", lambda: raise_on_all_ranks(KeyError("no store") if rank else None))
if (child := os.fork()) == 0:
    check_ranks_agree({"fork": rank, "pid": os.getpid()})  # no rank, so it waits for none
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
dist.destroy_process_group()
connect("b", 60)
if rank == 0:
    heard("absent", lambda: broadcast_from_rank_zero([1], seconds=1))
else:
    time.sleep(2)
dist.destroy_process_group()
connect("c", 200)
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
heard("killed", lambda: check_ranks_agree({"epoch": 1}))
"""


def test_a_rank_that_fails_alone_is_named_to_the_others_at_once(tmp_path: Path):
    ranks = [server(TRAINING).start(ALONE, tmp_path / "meeting", rank, warnings=["ignore"]) for rank in range(2)]
    codes = [rank.wait(200) for rank in ranks]
    (first, errors), (second, _) = [rank.output() for rank in ranks]
    assert codes == [0, -9], errors
    failed, absent, killed = first.splitlines()
    assert failed == "failed StoreError Rank 1 could not prepare the data: 'no store'"
    assert second.splitlines() == ["failed KeyError 'no store'"]
    late = r"StoreError Rank 1 did not arrive within \d s to compare the data, or ended before \("
    assert re.match(f"absent {late}", absent)
    assert re.match(f"killed {late}", killed)
    assert killed.endswith("look for the error in the output of that rank, and start all ranks again.")
