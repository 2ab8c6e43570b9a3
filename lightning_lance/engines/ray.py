"""The engine that builds a store on a Ray cluster, or on all cores of this machine. The only module that knows Ray.

Units are Ray's core tasks. Ray retries none of them: the driver does, a bounded number of times. Arguments of tasks show in
Ray's logs, so they are references; the work itself, with the options of its file systems, is an object.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lightning_lance.build.builder import Build
from lightning_lance.build.cluster import ClusterBuild
from lightning_lance.build.plan import Budget, Plan
from lightning_lance.build.tasks import Work
from lightning_lance.build.workers import Outcome
from lightning_lance.errors import ConfigError, LightningLanceError, described, is_count
from lightning_lance.format.metadata import CommitMetadata
from lightning_lance.location import with_all_options
from lightning_lance.maintenance.compaction import FULL_BYTES
from lightning_lance.messages.escaping import logger
from lightning_lance.messages.redaction import in_one_line
from lightning_lance.readers.retry import set_gate
from lightning_lance.sources.source import Source
from lightning_lance.type_hints import is_number

_log = logger(__name__)

# By name, since Ray is imported later: the worker, its node or what it had made is gone.
_LOST = {
    "WorkerCrashedError",
    "NodeDiedError",
    "ObjectLostError",
    "LocalRayletDiedError",
    "ActorDiedError",
    "TaskUnschedulableError",
}

_HOST_AND_PORT = re.compile(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d+)")
_CONNECT_SECONDS = 10
# After which a cluster is said to have no worker for this build.
_BEGIN_SECONDS = 60.0
_NO_MODULE = re.compile(r"No module named '(?P<package>\w+)")


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Builds on a Ray cluster.

    Attributes:
        address: Address of the cluster, such as `auto` or `ray://head:10001`; None for the one of `RAY_ADDRESS`, that of `ray
            start` on this machine, or else a new one.
        num_cpus: Cores of each task.
        max_in_flight: Tasks at a time; None for as many as the cluster has cores for.
        max_lead: Units ahead of the last commit, running and finished; None for four times as many as tasks.
        unit_bytes: Bytes of text after which a large shard is cut into another unit.
        max_retries: How often a unit is done again that has lost its worker.
        hub_requests_per_second: Requests to the Hub that all tasks together send in a second; None for no limit. With one, a
            task that the Hub asks to wait has all others wait too.

    Raises:
        ConfigError: If a value cannot be used.
    """

    name: ClassVar[str] = "ray"

    address: str | None = None
    num_cpus: int = 1
    max_in_flight: int | None = None
    max_lead: int | None = None
    unit_bytes: int = FULL_BYTES
    max_retries: int = 3
    hub_requests_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.address is not None and not isinstance(self.address, str):
            raise ConfigError(f"engine.address is {described(self.address)}: expected text, such as auto.")
        for name in ("num_cpus", "unit_bytes"):
            self._check(name, getattr(self, name))
        for name in ("max_in_flight", "max_lead"):
            if getattr(self, name) is not None:
                self._check(name, getattr(self, name))
        retries = self.max_retries
        if retries is False or (retries != 0 and not is_count(retries)):
            raise ConfigError(f"engine.max_retries is {described(retries)}: expected a whole number from 0 on.")
        rate = self.hub_requests_per_second
        if rate is not None and not (is_number(rate) and 0 < rate < math.inf):
            raise ConfigError(
                f"engine.hub_requests_per_second is {described(rate)}: expected a number above 0, or null for no limit."
            )

    def _check(self, name: str, value: Any) -> None:
        if not is_count(value):
            raise ConfigError(f"engine.{name} is {described(value)}: expected a positive whole number.")

    def begin(
        self, source: Source, plan: Plan, budget: Budget, version: int, commit: CommitMetadata | None, durable: bool
    ) -> Build:
        """Open the source, and return a build that continues from this version; see `Build`.

        Raises:
            ConfigError: If Ray is not installed.
        """
        _ray()
        return ClusterBuild(
            lambda work: RayWorkers(self, work),
            source,
            plan,
            budget,
            version,
            commit,
            durable,
            max_lead=self.max_lead,
            unit_bytes=self.unit_bytes,
            max_retries=self.max_retries,
        )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "The engine ray needs Ray, which is not installed: run pip install 'lightning-lance[ray]', or set engine=local."
        ) from error
    return ray


def _check_reachable(address: str | None) -> None:
    """Check that something listens at an address, for which Ray would wait minutes. ConfigError if not."""
    named = _HOST_AND_PORT.fullmatch(address or "")
    if named is None:
        return
    try:
        socket.create_connection((named["host"].strip("[]"), int(named["port"])), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _place(address: str | None) -> str:
    return "on this machine" if address is None else f"at {address!r}"


def _no_cluster(address: str | None, error: Exception, cure: str = "") -> ConfigError:
    if address is None:
        # Ray takes a cluster of this machine, whoever has started it, before it starts one.
        return ConfigError(
            f"Ray can neither use a cluster on this machine nor start one ({in_one_line(error, 200)}): {cure}set "
            "engine.address=local, which starts one of this build's own beside any other."
        )
    return ConfigError(
        f"There is no Ray cluster {_place(address)} ({in_one_line(error, 200)}): {cure}start one with 'ray start --head', or "
        "set engine.address=local for one of this build's own."
    )


class RayWorkers:
    """The workers of a Ray cluster; see `Workers`. Starts a cluster on this machine if there is none to connect to.

    Args:
        engine: The engine.
        work: What all tasks have in common.

    Raises:
        ConfigError: If there is no such cluster, or a worker lacks this package.
    """

    def __init__(self, engine: RayEngine, work: Work) -> None:
        self._ray = _ray()
        self._engine = engine
        # The tasks, and the memory that is set aside for each.
        self._running: dict[Any, int] = {}
        # Whether a task has run out of memory.
        self._starved = False
        self._first: _FirstWorker | None = None
        self._started = not self._ray.is_initialized()
        if self._started:
            self._start()
        try:
            with with_all_options():
                # As bytes, since a server of Ray Client would unpack an object, and pack it again without its secrets.
                packed = self._ray.cloudpickle.dumps(work)
            self._work = self._ray.put(packed)
            self._task = self._ray.remote(_run)
            self._gate = self._made_gate()
            self._first = _FirstWorker(self._ray, engine.num_cpus, self._common_options())
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Workers of a cluster on this machine would otherwise yield to every other process.
        os.environ.setdefault("RAY_worker_niceness", "0")
        address = self._engine.address or os.environ.get("RAY_ADDRESS")
        _check_reachable(address)
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            self._ray.init(
                address=self._engine.address,
                include_dashboard=None if self._engine.address else False,
                logging_level="error",
                log_to_driver=False,
                runtime_env=self._runtime_env(address),
            )
        except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
            if "ray[client]" in str(error):
                raise ConfigError(
                    f"The Ray cluster at {address!r} is reached by Ray Client, which is not installed: run pip install "
                    "'ray[client]', or run this command on a node of the cluster with engine.address=auto."
                ) from error
            wanted = "RAY_AUTH_TOKEN"
            if (address or "").startswith("ray://"):
                wanted = "RAY_AUTH_TOKEN and RAY_AUTH_MODE=token"
            raise _no_cluster(address, error, f"give its token by {wanted} if it wants one, ") from error
        except self._ray.exceptions.RayError as error:
            # Such as a missing token of the cluster; its text has the cure.
            raise ConfigError(f"The Ray cluster {_place(address)} cannot be used: {in_one_line(error, 700)}") from error
        finally:
            # Ray replaces it, and leaves it replaced.
            if main:
                signal.signal(signal.SIGTERM, before)

    def _runtime_env(self, address: str | None) -> dict[str, Any]:
        made: dict[str, Any] = {"env_vars": self._environment()}
        python = shlex.quote(sys.executable)
        if python != sys.executable and address in (None, "local"):
            # Ray gives its path to a shell, as it is. Elsewhere Python has another one.
            made["py_executable"] = python
        return made

    def _environment(self) -> dict[str, str]:
        """Return what keeps each task on its own cores: the libraries below take all of a machine."""
        cores = str(self._engine.num_cpus)
        return {
            "RAYON_NUM_THREADS": cores,
            "LANCE_CPU_THREADS": cores,
            "OMP_NUM_THREADS": cores,
            "LANCE_IO_THREADS": "8",
            "TOKENIZERS_PARALLELISM": "false",
        }

    @property
    def slots(self) -> int:
        """Tasks that run at the same time."""
        if self._engine.max_in_flight is not None:
            return self._engine.max_in_flight
        cores = self._ray.cluster_resources().get("CPU", 0)
        return max(int(cores // self._engine.num_cpus), 1)

    def submit(self, function: Callable[..., Any], *arguments: Any, tries: int = 0) -> Hashable:
        """Run `function(work, *arguments)` on some worker."""
        options: dict[str, Any] = {"num_cpus": self._engine.num_cpus, "max_retries": 0, "name": function.__name__}
        memory = self._memory(tries)
        if memory:
            options["memory"] = memory
        options |= self._common_options()
        if tries:
            # Elsewhere, since its node may be ill.
            options["scheduling_strategy"] = "SPREAD"
        # In a list, since Ray would unpack it for each task anew.
        common = [self._work, self._gate]
        task = self._task.options(**options).remote(common, function.__name__, _version(), arguments)
        self._running[task] = memory
        return _hashable(task)

    def _common_options(self) -> dict[str, Any]:
        """Return the options of all tasks, where the job is another's."""
        return {} if self._started else {"runtime_env": {"env_vars": self._environment()}}

    def _memory(self, tries: int) -> int:
        """Return the bytes to set aside for a task that was lost so often: twice as many each time, up to all of a node.

        Ray does not bound a task by them, but has fewer run beside it. So as soon as a task has run out of memory, each new one
        has its share set aside.
        """
        if not tries and not self._starved:
            return 0
        cores = self._engine.num_cpus
        shares: list[float] = []
        memories: list[float] = []
        for node in self._ray.nodes():
            if not node["Alive"]:
                continue
            cpus = node["Resources"].get("CPU", 0)
            memory = node["Resources"].get("memory", 0)
            if cpus >= cores and memory:
                shares.append(memory * cores / cpus)
                memories.append(memory)
        if not memories:
            return 0
        return int(min(min(shares) * 2.0**tries, max(memories)))

    def _made_gate(self) -> Any:
        rate = self._engine.hub_requests_per_second
        if rate is None:
            return None
        # Started anew, it knows of no earlier request, which is harmless.
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        return self._ray.remote(_Turns).options(**options).remote(rate)

    def ended(self, seconds: float) -> Sequence[tuple[Hashable, Outcome]]:
        """Wait so long for tasks to end, and return those that have."""
        if not self._running:
            threading.Event().wait(seconds)
            return []
        some, _ = self._ray.wait([*self._running], num_returns=1, timeout=seconds)
        if self._first is not None:
            self._first.look()
        if not some:
            return []
        done, _ = self._ray.wait([*self._running], num_returns=len(self._running), timeout=0)
        return [(_hashable(task), self._outcome(task)) for task in {*some, *done}]

    def _outcome(self, task: Any) -> Outcome:
        memory = self._running.pop(task)
        try:
            return Outcome(self._ray.get(task))
        except self._ray.exceptions.OutOfMemoryError as error:
            self._starved = True
            return Outcome(error=error, lost=True, memory=memory)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Outcome(error=_explained(cause))
        except self._ray.exceptions.RayError as error:
            lost = any(kind.__name__ in _LOST for kind in type(error).__mro__)
            return Outcome(error=error, lost=lost)

    def cancel(self, tasks: Iterable[Hashable]) -> None:
        """Stop tasks whose outcome is not needed."""
        for task in tasks:
            if self._running.pop(task, None) is not None:
                with suppress(Exception):  # it may have ended
                    self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Stop all tasks, and the cluster if it was started for them."""
        self.cancel([*self._running])
        if self._first is not None:
            self._first.close()
        self._gate = None  # which ends the actor
        if self._started:
            self._ray.shutdown()


class _FirstWorker:
    """Looks whether the cluster has a worker for this build, by a task that does nothing, and says so if it has none.

    Args:
        ray: Ray.
        num_cpus: Cores of each task of the build.
        options: Other options of all tasks.
    """

    def __init__(self, ray: Any, num_cpus: int, options: dict[str, Any]) -> None:
        self._ray = ray
        self._task: Any = ray.remote(_nothing).options(num_cpus=num_cpus, max_retries=0, **options).remote()
        self._since = time.monotonic()

    def look(self) -> None:
        """Warn, once, if no worker has begun for a minute."""
        if self._task is None:
            return
        begun, _ = self._ray.wait([self._task], timeout=0)
        waited = time.monotonic() - self._since
        if not begun and waited < _BEGIN_SECONDS:
            return
        if not begun:
            _log.warning(
                "No worker of the Ray cluster has begun for %.0f seconds, and the build waits on: 'ray status' says whether "
                "its cores are taken, and raylet.err in Ray's folder of logs why workers cannot start.",
                waited,
            )
        self._task = None

    def close(self) -> None:
        """Look no longer."""
        if self._task is not None:
            with suppress(Exception):  # it may have ended
                self._ray.cancel(self._task)
            self._task = None


def _nothing() -> None:
    """Show that a worker has begun."""


def _hashable(task: Any) -> Hashable:
    reference: Hashable = task
    return reference


def _version() -> str:
    from importlib.metadata import version

    return version("lightning-lance")


class _Turns:
    """Gives requests to the Hub their turns, evenly in time; an actor, so that it has all those of a cluster."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1 / per_second
        self._next = 0.0

    def take(self) -> float:
        """Return the seconds until the turn of one more request."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._gap
        return turn - now

    def hold(self, seconds: float) -> None:
        """Give no turn for so long."""
        self._next = max(self._next, time.monotonic() + seconds)


class _AtTurns:
    """The gate of a worker; see `Gate`."""

    def __init__(self, turns: Any) -> None:
        self._turns = turns

    def wait(self) -> None:
        import ray

        time.sleep(ray.get(self._turns.take.remote()))

    def hold(self, seconds: float) -> None:
        self._turns.hold.remote(seconds)


# The work of the last build, by its reference: it holds a tokenizer, which takes a moment to load. With it, its source as
# bytes.
_loaded: dict[str, tuple[Work, bytes]] = {}


def _run(common: Sequence[Any], name: str, version: str, arguments: Sequence[Any]) -> Any:
    """Run a task in a worker."""
    from lightning_lance.build import tasks

    if version != _version():
        raise ConfigError(
            f"A worker of the cluster has lightning-lance {_version()}, and the driver {version}: install the same version on "
            "all nodes."
        )
    set_gate(None if common[1] is None else _AtTurns(common[1]))
    return getattr(tasks, name)(_work_of(common[0]), *arguments)


def _work_of(reference: Any) -> Work:
    import pyarrow as pa
    import ray
    from ray import cloudpickle

    key = reference.hex()
    if key not in _loaded:
        _loaded.clear()
        pa.set_cpu_count(int(os.environ.get("OMP_NUM_THREADS", "1")))
        work = cloudpickle.loads(ray.get(reference))
        with with_all_options():
            _loaded[key] = work, cloudpickle.dumps(work.opened)
    work, opened = _loaded[key]
    # A source notes bad shards and retries as it is read: those of one task are none of the next.
    return replace(work, opened=cloudpickle.loads(opened))


def _explained(error: Exception) -> Exception:
    """Return an error of a worker, with its cure if it lacks this package or another module."""
    # Ray reports it as an error of its own if it cannot load the function or its arguments.
    missing = None if isinstance(error, LightningLanceError) else _NO_MODULE.search(str(error))
    if missing is None:
        return error
    if missing["package"] == "lightning_lance":
        return ConfigError(
            "A worker of the cluster lacks lightning-lance: install the same version on all nodes, or give it by Ray's "
            "runtime_env."
        )
    return ConfigError(
        f"A worker of the cluster lacks the module {missing['package']!r}: install it on all nodes, or give it by Ray's "
        "runtime_env."
    )
