import signal
import subprocess
import sys

import pytest

DEADLOCK = """
mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        for _ in range(2):
            libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("waits", ["time.sleep(60)", DEADLOCK.strip()], ids=["sleep", "deadlock"])
def test_a_second_interruption_ends_it_at_once(waits: str):
    """Even where the first one waits for something that does not come to its end, in Python or below it."""
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
    assert process.communicate(timeout=20)[1] == "interrupted again: stopped at once; what was committed is safe.\n"
    assert process.returncode == 130
