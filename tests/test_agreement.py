import subprocess
import sys
from pathlib import Path

import pytest

from lightning_lance.agreement import agree, is_first, raise_together, told_by_first


def test_a_process_alone_agrees_with_itself():
    agree({"epoch": 1})
    assert told_by_first([5]) == [5]
    assert is_first()
    raise_together(None)
    with pytest.raises(KeyError, match="x"):
        raise_together(KeyError("x"))


# Two real ranks, which hold what their place in the list says.
SCRIPT = """
import sys
import torch.distributed as dist
from lightning_lance.agreement import agree, is_first, told_by_first
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
assert told_by_first([rank + 7]) == [7]
assert is_first() == (rank == 0)
agree({"epoch": 1, "cursor": 2})
try:
    agree({"epoch": 1, "cursor": 2 + rank, "len": 5 - rank})
except Exception as error:
    print(type(error).__name__, error)
dist.destroy_process_group()
"""


def test_ranks_that_disagree_all_get_the_table(tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "meeting")]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    told = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert told[0] == told[1]
    assert told[0].splitlines() == [
        "StoreError The ranks disagree about the data in cursor, len: start all of them with one configuration, on the same "
        "store.",
        "rank 0: cursor 2, len 5",
        "rank 1: cursor 3, len 4",
    ]
