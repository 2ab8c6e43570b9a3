import platform
import subprocess
import sys

import pytest

from lightning_lance.process.memory import give_back, resident

# What a thread leaves behind: most of it was freed, but not what came last.
GONE = """
import sys, threading
import numpy as np
from lightning_lance.process.memory import give_back, resident
def work():
    parts = [np.ones(12_500) for _ in range(2000)]
    kept.append(parts[-1])
kept, before = [], resident()
thread = threading.Thread(target=work)
thread.start()
thread.join()
after = resident()
give_back()
print(after - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_was_freed_goes_back():
    done = subprocess.run([sys.executable, "-c", GONE], capture_output=True, text=True, check=True)
    after, left = map(int, done.stdout.split())
    assert left < after - (100 << 20)


def test_memory_is_told_in_bytes_or_not_at_all():
    give_back()
    held = resident()
    assert held is None or held > 10 << 20
