"""A process that must end at once takes back what nobody can use, and nothing that is anybody's."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_lance.format.commit import last_version
from lightning_lance.maintenance.compaction import find_orphans
from tests.support.builders import until
from tests.support.paths import ROOT

BUILD = """
import sys, time
sys.path[:0] = [sys.argv[1]]
from tests.support.stores import ListSource, documents
from lightning_lance import prepare
from lightning_lance.format import lance_io
from lightning_lance.maintenance import repacking
from lightning_lance.build.builder import Build
from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.tokenization.configs import ByteTokenizer

def hang(*arguments):
    print("hangs", flush=True)
    time.sleep(100)

class Stops(ListSource):
    def read(self, shard, row):
        if shard == {stops}:
            hang()
        yield from super().read(shard, row)

made = documents(*["0123456789" * 100_000] * 6)
close = Build.close
Build.close = lambda build: (print("closes", flush=True), {closes}(build))
{hangs}
with InterruptHandler():
    prepare(Stops(made, 1), ByteTokenizer(), sys.argv[2], val_fraction=0.0, commit_tokens={commit_tokens})
"""


@pytest.mark.parametrize(
    ("hangs", "closes", "stops", "commit_tokens", "half"),
    [
        ("", "hang", 3, 10_000_000, True),  # half of a data file is written, and the clean-up comes to no end
        ("lance_io.hash_local = hang", "close", 9, 1, False),  # a data file is there, and its commit takes its time
        (
            "repacking._ROWS_WRITTEN = 1; repacking._Repacking.rest = hang",
            "close",
            9,
            2_000_000,
            True,
        ),  # so does a merge
    ],
)
def test_a_second_interruption_leaves_neither_data_files_nor_a_lease(
    tmp_path: Path, hangs: str, closes: str, stops: int, commit_tokens: int, half: bool
):
    uri = tmp_path / "x.lance"
    script = BUILD.format(hangs=hangs, closes=closes, stops=stops, commit_tokens=commit_tokens)
    command = [sys.executable, "-c", script, str(ROOT), str(uri)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "hangs\n"
    until(lambda: find_orphans(str(uri)))
    assert bool(list(uri.glob("data/.tmp*"))) == half
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "closes\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1].endswith(
        "interrupted again: stopped at once; what was committed is safe.\n"
    )
    assert process.returncode == 130
    assert find_orphans(str(uri)) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"x.lance", "x.tokenizer.json"}


WRITE = """
import os, signal, sys, time
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from lightning_lance.build import row_writer
from tests.support.commits import rows_of
from tests.support.commits import writer_of
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background does not have
writer = writer_of(sys.argv[2])
for _ in range(8):
    writer.put(rows_of(1, 100 * 2048).to_batches()[0])
while not list(Path(sys.argv[2]).glob("data/.tmp*")):
    time.sleep(0.01)
{ends}
"""


@pytest.mark.parametrize(
    "ends",
    [
        "",  # nobody closes it
        "row_writer.wait = lambda _: os.kill(os.getpid(), signal.SIGINT)\nwriter.abandon()",  # Ctrl-C in the clean-up
    ],
)
def test_a_process_that_ends_leaves_no_half_of_a_data_file(tmp_path: Path, ends: str):
    command = [sys.executable, "-c", WRITE.format(ends=ends), str(ROOT), str(tmp_path / "x.lance")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == "" or done.stderr.endswith("\nKeyboardInterrupt\n")
    assert (done.returncode == 0) == (not ends)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert last_version(str(tmp_path / "x.lance")) == (0, None)


def test_what_is_settled_stays(tmp_path: Path):
    script = """
import os, sys
from pathlib import Path
from lightning_lance.process import exit_cleanup
a, b, half, other = (Path(sys.argv[1], name) for name in ("a", "b", ".tmp1", ".tmp2"))
for file in (a, b, half, other):
    file.touch()
exit_cleanup.begun([a, b])
exit_cleanup.settled([b])
exit_cleanup.at_the_end(print)
exit_cleanup.no_longer(print)
exit_cleanup.at_the_end(lambda: print("undone"))
exit_cleanup.at_the_end(lambda: 1 / 0)
with exit_cleanup.writing_in(Path(sys.argv[1])), half.open("w"):
    exit_cleanup.take_back_all(10)
    print(sorted(file.name for file in Path(sys.argv[1]).iterdir()), flush=True)
    os._exit(0)  # whoever would commit now waits for ever
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "undone\n['.tmp2', 'b']\n"


def test_a_forked_process_takes_nothing_back_of_its_parents(tmp_path: Path):
    script = """
import os, sys
from pathlib import Path
from lightning_lance.process import exit_cleanup
file, half = (Path(sys.argv[1], name) for name in ("a", ".tmp1"))
file.touch()
exit_cleanup.begun([file])
exit_cleanup.at_the_end(lambda: print("undone", flush=True))
with exit_cleanup.writing_in(Path(sys.argv[1])), half.open("w"):
    exit_cleanup._lock.acquire()  # as another thread may
    if not (child := os.fork()):
        with exit_cleanup.writing_in(Path(sys.argv[1])):
            pass
        exit_cleanup.take_back_all(10)
        os._exit(0)
    exit_cleanup._lock.release()
    assert os.waitpid(child, 0)[1] == 0
    print(sorted(file.name for file in Path(sys.argv[1]).iterdir()), flush=True)
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "['.tmp1', 'a']\n"
