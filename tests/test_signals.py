import signal
import subprocess
import sys


def test_a_second_interruption_ends_it_at_once():
    """Even where the first one waits for something that does not come to its end."""
    script = """
import signal, threading, time
from lightning_lance.signals import Interruptible
with Interruptible() as signals:
    threading.Thread(target=time.sleep, args=(60,)).start()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning", flush=True)
        time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in ("ready\n", "cleaning\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "interrupted again: stopped at once; what was committed is safe.\n"
    assert process.returncode == 130
