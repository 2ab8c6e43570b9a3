import platform
import subprocess
import sys

import pytest

from lightning_lance.process.memory import give_back, resident

# A thread leaves memory behind: most of it freed, the last block not.
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


# Like the batches of a loader, in a process that has not yet freed any block of this size.
AFTERWARDS = """
import resource
import numpy as np
from lightning_lance.process.memory import large_blocks_given_back
with large_blocks_given_back():
    pass
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(1 << 18)
before = faults()
for _ in range(50):
    np.ones(1 << 18)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_after_large_blocks_went_back_memory_is_used_again_as_before():
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, check=True, timeout=60)
    # If the block is not kept, each use faults in its pages: 512 pages of 4 KB per block of 2 MB.
    assert int(done.stdout) < 512
