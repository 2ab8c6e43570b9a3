import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_lance.locking import only_one

HOLD = """
import sys, time
from lightning_lance.locking import only_one
with only_one(sys.argv[1], "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_waits_and_a_killed_one_blocks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    lock = tmp_path / "folder" / "store.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({holder.pid}, 9)"])
        begin = time.monotonic()
        with only_one(lock, "building it"):
            waited = time.monotonic() - begin
        killer.wait()
    assert waited > 0.5
    assert f"Another process is building it; waiting for it (lock file {lock})." in caplog.messages
