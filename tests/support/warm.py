"""Python processes that start at once: forks of one that has imported the slow libraries and used none of them."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock

from tests.support.paths import ROOT

# What a build needs. None of these reads the environment when it is imported, as the clients of the Hub do.
BUILDING = (
    "hydra.main", "hydra._internal.hydra", "lightning_lance.cli.hydra_app", "s3fs",
    "aiohttp", "awkward", "gigatoken", "hydra", "lance", "lightning_lance.build.runner",
    "lightning_lance.cli.main", "lightning_lance.inspection.summary", "lightning_lance.sources.local_files", "pandas",
    "pyarrow.dataset", "pyarrow.parquet", "tokenizers", "tests.support.compared", "tests.support.composed", "zipp",
)  # fmt: skip
# What training needs, on top. The clients of the Hub are among it, as the environment of the tests sets them up.
TRAINING = (
    "lightning.pytorch", "transformers", "lightning_lance.datamodule", "lightning_lance.examples.train_gpt",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "altair", "vl_convert", "lightning_lance.inspection.report.page",
    *BUILDING,
)  # fmt: skip


class WarmProcess:
    """A script in a process of its own."""

    def __init__(self, pid: int, result: Path) -> None:
        self.pid, self._result = pid, result

    def wait(self, timeout: float) -> int:
        """Return its exit status. A process that takes longer is killed.

        Raises:
            TimeoutError: It took longer than `timeout` seconds. The message has its output, and where its threads were.
        """
        if not self._ends_within(timeout):
            os.kill(self.pid, signal.SIGABRT)
            if not self._ends_within(5):
                os.kill(self.pid, signal.SIGKILL)
            raise TimeoutError(f"It took longer than {timeout} seconds:\n" + "\n".join(self.output()))
        return int(self._result.read_text())

    def _ends_within(self, seconds: float) -> bool:
        """Wait for its end. Return whether it came."""
        end = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def is_running(self) -> bool:
        """Return whether it has not ended yet."""
        return not self._result.exists()

    def wait_for_line(self, timeout: float, number: int = 1) -> str:
        """Return its standard output once that has some number of lines."""
        end = time.monotonic() + timeout
        while (said := self.output()[0]).count("\n") < number:
            assert time.monotonic() < end, f"it did not come: {self.output()}"
            assert self.is_running() or self.output()[0].count("\n") >= number, self.output()
            time.sleep(0.005)
        return said

    def output(self) -> tuple[str, str]:
        """Return what it has written to its standard output and its standard error."""
        return self._result.with_name("stdout").read_text(), self._result.with_name("stderr").read_text()


class WarmServer:
    """Starts the processes. One server serves all workers of pytest, and ends after the last of them.

    Args:
        modules: What it imports.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._results = tempfile.TemporaryDirectory()
        self._started = 0
        self._connection = connected(modules)
        self._answers = self._connection.makefile()
        atexit.register(self.close)

    def start(
        self,
        script: str | Path,
        *arguments: object,
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        warnings: Sequence[str] = (),
    ) -> WarmProcess:
        """Start a script: a file, or source.

        Args:
            script: As after `python`, or after `python -c`.
            arguments: Of the script.
            folder: Where it runs.
            environment: In place of this process's own.
            warnings: Actions of `-W`, for all warnings, such as "ignore".
        """
        self._started += 1
        place = Path(self._results.name) / str(self._started)
        place.mkdir()
        for name in ("stdout", "stderr"):
            (place / name).touch()
        request = {
            "code": script if isinstance(script, str) else script.read_text(encoding="utf-8"),
            "arguments": ["-c" if isinstance(script, str) else str(script), *map(str, arguments)],
            "folder": str(folder),
            "environment": {**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"},
            "warnings": list(warnings),
            "result": str(place / "result"),
            "stdout": str(place / "stdout"),
            "stderr": str(place / "stderr"),
        }
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        return WarmProcess(int(self._answers.readline()), place / "result")

    def run(
        self,
        script: str | Path,
        *arguments: object,
        timeout: float,
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        warnings: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Return what `subprocess.run` returns for a script, with its output."""
        process = self.start(script, *arguments, folder=folder, environment=environment, warnings=warnings)
        code = process.wait(timeout)
        return subprocess.CompletedProcess([str(script), *map(str, arguments)], code, *process.output())

    def close(self) -> None:
        """Disconnect, and forget what was written."""
        self._connection.close()
        self._results.cleanup()


def connected(modules: Sequence[str]) -> socket.socket:
    """Return a connection to the server that has imported these modules. Starts it if this is the first to ask."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    name = hashlib.sha256(" ".join(modules).encode()).hexdigest()[:8]
    place = Path(tempfile.gettempdir()) / f"warm-{run}-{name}"
    with FileLock(f"{place}.lock", timeout=100):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(place))
            return connection
        except OSError:
            place.unlink(missing_ok=True)
        start_server(place, modules)
        connection.connect(str(place))
        return connection


def start_server(place: Path, modules: Sequence[str]) -> None:
    """Start a server, and wait until it listens."""
    # More threads than one would be started by an import, and would be missing in the forks.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.warm_server", str(place), *modules]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment, check=True)


@cache
def server(modules: Sequence[str]) -> WarmServer:
    """Return the server of this process that has imported these modules."""
    return WarmServer(modules)


def run_ranks(script: str | Path, devices: int, *arguments: object, timeout: float) -> list[int]:
    """Return the exit statuses of the ranks of a script that trains, each a process of its own, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices)}
    ranks = [
        server(TRAINING).start(
            script,
            *arguments,
            environment={**common, "NODE_RANK": "0", "LOCAL_RANK": str(rank), "RANK": str(rank)},
            warnings=["ignore"],
        )
        for rank in range(devices)
    ]
    codes = [rank.wait(timeout) for rank in ranks]
    for code, rank in zip(codes, ranks, strict=True):
        # Of a test that fails, pytest shows it.
        print(code, *rank.output())
    return codes
