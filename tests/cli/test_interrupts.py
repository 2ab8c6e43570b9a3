import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_lance.location import StoreLocation
from lightning_lance.maintenance.removal import find_orphans
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.builders import until
from tests.support.corpora import prepare
from tests.support.stores import ListSource, documents
from tests.support.warm import BUILDING, server

DEADLOCK = """
mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        for _ in range(2):
            libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("waits", ["time.sleep(60)", DEADLOCK.strip()], ids=["sleep", "deadlock"])
def test_a_second_interruption_ends_it_at_once(waits: str):
    """Even if the first one waits for something that never ends, in Python or below it."""
    script = """
import ctypes, signal, threading, time
from lightning_lance.cli.interrupts import InterruptHandler
with InterruptHandler() as signals:
    threading.Thread(target=time.sleep, args=(60,)).start()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning", flush=True)
        {waits}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script.format(waits=waits)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in ("ready\n", "cleaning\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "interrupted again: stopped at once; all commits are safe.\n"
    assert process.returncode == 130


BUILD = """
import sys, time
from tests.support.corpora import prepare
from lightning_lance.engines.local import LocalBuild as Build
from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.stores import ListSource, documents

class Stops(ListSource):
    def read(self, shard, row):
        if shard == 3:
            print("hangs", flush=True)
            time.sleep(100)
        yield from super().read(shard, row)

def close(build):
    print("closes", flush=True)
    time.sleep(100)

Build.close = close
with InterruptHandler():
    prepare(Stops(documents(*["0123456789" * 100_000] * 6), 1), ByteTokenizer(), sys.argv[1], val_fraction=0.0)
"""


def test_what_a_second_interruption_leaves_goes_with_the_next_build(tmp_path: Path):
    uri = str(tmp_path / "x.lance")
    process = server(BUILDING).start(BUILD, uri)
    assert process.wait_for_line(timeout=60) == "hangs\n"
    until(lambda: find_orphans(StoreLocation(uri)))  # half of a data file
    os.kill(process.pid, signal.SIGINT)
    assert process.wait_for_line(timeout=60, number=2) == "hangs\ncloses\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    assert process.output()[1].endswith("interrupted again: stopped at once; all commits are safe.\n")
    assert find_orphans(StoreLocation(uri))
    store = prepare(ListSource(documents(*["0123456789" * 100_000] * 6), 1), ByteTokenizer(), uri, val_fraction=0.0)
    assert store.commit.documents == 6
    assert find_orphans(StoreLocation(uri)) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"x.lance", "x.tokenizer.json"}
