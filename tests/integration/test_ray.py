"""Builds on real Ray clusters: workers and nodes that die, drivers that are killed, and what they leave."""

import json
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_lance import Corpus, TokenStore
from lightning_lance.engines import RayEngine
from lightning_lance.engines import ray as engine
from lightning_lance.errors import ConfigError, SourceError
from lightning_lance.lance_names import UNITS, unit_of
from lightning_lance.maintenance import verify_store
from lightning_lance.sources import DatasetSource, FilesSource
from lightning_lance.tokenization import ByteTokenizer
from tests.support.bucket import serving
from tests.support.commands import run
from tests.support.hub import Faults, Hub
from tests.support.paths import ROOT
from tests.support.streams import streams
from tests.support.warm import BUILDING, server
from tests.support.watched import WatchedSource, readings

pytest.importorskip("ray")
if shlex.quote(sys.executable) != sys.executable:
    # Builds with a cluster of their own do: one of test_datasets.py.
    pytest.skip("Ray's own clusters start no worker by a Python in a folder with a space", allow_module_level=True)
import ray
from ray.cluster_utils import Cluster

# Ray starts its processes by forks of this one, which do not use Lance.
pytestmark = pytest.mark.filterwarnings(
    "ignore:lance is not fork-safe",
    "ignore:.*__warn_on_fork.*",
    # Files of Ray's that it leaves open.
    "ignore:.*ray_client_server",
    "ignore:(?s).*unclosed file .*/dev/null",
    # Of Ray 2.50, in each process once.
    "ignore:Tip. In future versions of Ray",
)


@dataclass(frozen=True)
class Shared:
    """What tasks have in common, of which only the source matters here."""

    opened: Any


FILES = 60
# The third unit of 200,000 bytes begins here.
THIRD = 23


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(FILES):
        folder.joinpath(f"{i:02}.py").write_text(f"# {i}\n" + f"x{i} = {i}\n" * 2000)
    return folder


@pytest.fixture(scope="module", autouse=True)
def units(texts: Path) -> None:
    assert FilesSource("*.py", texts).open().cuts(0, 200_000)[1].row == THIRD


@pytest.fixture(scope="module")
def local(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return streams(
        Corpus(FilesSource("*.py", texts), ByteTokenizer(), tmp_path_factory.mktemp("local") / "x.lance").prepare()
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and another node with one core each; the workers see this package and the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        # Workers start with the environment of their tasks, not before.
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        head = {
            "num_cpus": 1,
            "object_store_memory": 80 << 20,
            "include_dashboard": False,
            "include_log_monitor": False,
            # Of what starts nodes for a cluster that grows.
            "no_monitor": True,
            "ray_client_server_port": port,
        }
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1, object_store_memory=80 << 20)
        made.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def job(cluster: Cluster) -> Cluster:
    """The cluster, with one job for the builds of all tests: the workers of another one would import for seconds."""
    if not ray.is_initialized():
        ray.init(cluster.address, logging_level="error", log_to_driver=False)
    return cluster


def build(source: Any, place: Any, **options: Any) -> TokenStore:
    engine = RayEngine(unit_bytes=200_000, **options.pop("engine", {}))
    return Corpus(source, ByteTokenizer(), place, **options).prepare(engine=engine)


def finished(store: Path) -> set[int]:
    """Return the first rows of the units whose results are there."""
    units = [unit_of(f"{UNITS}/{path.name}") for path in (store / UNITS).iterdir()]
    return {unit.row for unit in units if unit is not None}


def test_the_store_is_that_of_the_local_engine_though_a_worker_is_killed(
    job: Cluster, texts: Path, local: Any, tmp_path: Path
) -> None:
    source = WatchedSource(FilesSource("*.py", texts), tmp_path, at=THIRD, fate="die once")
    store = build(source, tmp_path / "x.lance")
    assert (tmp_path / "met").exists()
    assert streams(store) == local
    assert verify_store(store.uri) == []
    assert not (tmp_path / "x.lance/_units").exists()
    # Files of more than one unit went into one fragment.
    assert len(set(readings(tmp_path))) > 4
    assert len(list((tmp_path / "x.lance/data").iterdir())) == 1


def test_workers_make_the_masks_of_the_local_engine(job: Cluster, tmp_path: Path) -> None:
    lines = []
    for number in range(FILES):
        text = f"User: é{number}? Assistant: {number} " * 300
        spans = [[begin, begin + 11 + number % 5] for begin in range(number % 7, len(text) - 40, 31)]
        lines.append(json.dumps({"text": text, "spans": spans if number % 4 else None}))
    tmp_path.joinpath("chats.jsonl").write_text("\n".join(lines))
    source = DatasetSource.jsonl(tmp_path / "chats.jsonl", loss_mask_column="spans")
    masks = []
    for name, kind in [("ray", RayEngine(unit_bytes=200_000)), ("local", "local")]:
        corpus = Corpus(source, ByteTokenizer(), tmp_path / f"{name}.lance", val_fraction=0.0)
        store = corpus.prepare(engine=kind)
        assert verify_store(store.uri) == []
        masks.append(store.read_channel("loss_mask", np.zeros(1, np.int64), store.num_tokens())[0])
    assert np.array_equal(*masks)
    assert 0 < masks[0].sum() < masks[0].size


def test_a_node_that_goes_is_replaced_by_the_others(job: Cluster, texts: Path, local: Any, tmp_path: Path) -> None:
    node = job.add_node(num_cpus=1, object_store_memory=80 << 20)
    job.wait_for_nodes()
    source = WatchedSource(FilesSource("*.py", texts), tmp_path, at=THIRD, fate="wait")

    def take_away() -> None:
        end = time.monotonic() + 60
        while not (tmp_path / "met").exists() and time.monotonic() < end:
            time.sleep(0.05)
        job.remove_node(node, allow_graceful=False)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=take_away)
    thread.start()
    store = build(source, tmp_path / "x.lance")
    thread.join()
    assert streams(store) == local


def test_rows_that_end_every_worker_are_named(job: Cluster, texts: Path, tmp_path: Path) -> None:
    source = WatchedSource(FilesSource("*.py", texts), tmp_path, at=THIRD, fate="die")
    with pytest.raises(SourceError, match=r"rows 23 to \d+, has ended its worker 2 times .* leave these rows out"):
        build(source, tmp_path / "x.lance", engine={"max_retries": 1})
    # What was done stays, and another build goes on from it.
    done = finished(tmp_path / "x.lance")
    assert done
    read = readings(tmp_path)
    store = build(replace(source, fate=""), tmp_path / "x.lance")
    assert store.commit.documents == FILES
    again = {int(reading.split()[1]) for reading in readings(tmp_path)[len(read) :]}
    assert again.isdisjoint(done)


def test_rows_that_run_out_of_memory_are_done_again_with_more_and_named(
    job: Cluster, texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Whatever is used of this node is too much, so Ray stops each task that it sees. Only here is room for two cores.
    full = {"RAY_memory_usage_threshold": "0.0", "RAY_memory_monitor_refresh_ms": "50"}
    node = job.add_node(num_cpus=4, memory=400 << 20, object_store_memory=80 << 20, env_vars=full)
    job.wait_for_nodes()
    try:
        with pytest.raises(SourceError) as refused:
            build(FilesSource("*.py", texts), tmp_path / "x.lance", engine={"num_cpus": 2, "max_retries": 1})
    finally:
        job.remove_node(node)
    assert "has ended its worker 2 times, 2 times for want of memory, at last with 419 MB set aside" in str(
        refused.value
    )
    assert "running low on memory" in str(refused.value)
    assert "ran out of memory and is done again with twice the memory (1 of 1)" in caplog.text


DRIVER = """
import signal
import sys
import traceback
# A shell has the processes of its background ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from lightning_lance import Corpus
from lightning_lance.cli.interrupts import InterruptHandler
from lightning_lance.engines import RayEngine
from lightning_lance.sources import FilesSource
from lightning_lance.tokenization import ByteTokenizer
from pathlib import Path
from tests.support.watched import WatchedSource

texts, notes = map(Path, sys.argv[1:])
source = WatchedSource(FilesSource("*.py", texts), notes, fate="slow")
# As a command does.
with InterruptHandler() as handler:
    try:
        Corpus(source, ByteTokenizer(), notes / "x.lance").prepare(engine=RayEngine(unit_bytes=200_000), commit_seconds=0.5)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.exit(handler.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_stopped_goes_on_where_it_was(
    job: Cluster, texts: Path, local: Any, tmp_path: Path, number: int
) -> None:
    driver = server(BUILDING).start(DRIVER, texts, tmp_path)
    end = time.monotonic() + 90
    while not any((tmp_path / "x.lance/data").glob("unit-*.lance")) and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(driver.pid, number)
    code = driver.wait(60)
    if number != signal.SIGKILL:
        # Ray takes SIGTERM for itself, which is given back.
        assert code == 128 + number
        # Units may be finished before the first of them is committed.
        assert re.search(r"run it again to (continue from there|start from the beginning)", driver.output()[1])
    source = WatchedSource(FilesSource("*.py", texts), tmp_path)
    store = build(source, tmp_path / "x.lance")
    assert streams(store) == local
    assert not (tmp_path / "x.lance/_units").exists()
    # What was finished is not done again: only the units that were running are read twice.
    assert len(readings(tmp_path)) - len(set(readings(tmp_path))) <= 2


@pytest.mark.parametrize("way", ["driver", "client"])
def test_a_bucket_gets_the_same_store_and_no_log_a_key(
    job: Cluster, texts: Path, local: Any, tmp_path: Path, way: str
) -> None:
    address = None
    if way == "client":
        # In place of the job of the other tests.
        ray.shutdown()
        address = f"ray://127.0.0.1:{job.head_node._ray_params.ray_client_server_port}"
    with serving() as bucket:
        options = {**bucket.lance_options, "aws_secret_access_key": "hush-hush-secret"}
        source = FilesSource("*.py", texts)
        build_in_bucket = partial(
            build, source, "s3://bucket/x.lance", storage_options=options, engine={"address": address}
        )
        try:
            store = build_in_bucket()
        except ConfigError as error:
            # Ray's proxy forks while its threads are in gRPC, and now and then that fork dies before it becomes a server.
            if way != "client" or "Starting Ray client server failed" not in str(error.__cause__):
                raise
            store = build_in_bucket()
        assert streams(store) == local
        left = [entry["Key"] for entry in bucket.client.list_objects_v2(Bucket="bucket")["Contents"]]
        assert len([key for key in left if "/data/" in key]) == 1
        assert not [key for key in left if "/_units/" in key]
    logs = Path(job.head_node.get_session_dir_path())
    files = [file for file in logs.rglob("*") if file.is_file()]
    assert len(files) > 5
    for file in files:
        assert b"hush-hush-secret" not in file.read_bytes(), file


def test_the_entry_point_of_the_job_for_kubernetes_builds(
    cluster: Cluster, texts: Path, local: Any, tmp_path: Path
) -> None:
    job = yaml.safe_load((ROOT / "examples/kubernetes/build.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert len(images) == 1
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "lightning-lance"
    # What is to be filled in.
    filled = {"source": "files", "tokenizer": "bytes", "corpus.uri": str(tmp_path / "x.lance"), "languages": "[]"}
    # Otherwise refused where the disk has no room for so many.
    filled["max_tokens"] = "100_000_000"
    named = [argument.partition("=") for argument in arguments]
    command = [f"{key}{equals}{filled.get(key, value)}" for key, equals, value in named]
    command += [f"source.root={texts}", "source.patterns=[*.py]", f"output_dir={tmp_path}"]
    code, _, errors = run(tmp_path, *command)
    assert code == 0, errors
    assert streams(TokenStore.open(tmp_path / "x.lance")) == local


FROM_HUB = """
import os
import ray
from lightning_lance import Corpus
from lightning_lance.engines import RayEngine
from lightning_lance.sources import DatasetSource
from lightning_lance.tokenization import ByteTokenizer

names = [name for name in os.environ if name.startswith(("HF_", "NO_PROXY", "HTTP"))]
ray.init(runtime_env={"env_vars": {name: os.environ[name] for name in names}}, logging_level="error", log_to_driver=False)
source = DatasetSource("json", data_files=["hf://datasets/own/many/*.jsonl"], name="many")
corpus = Corpus(source, ByteTokenizer(), "x.lance")
print(corpus.prepare(engine=RayEngine(hub_requests_per_second=5)).commit.documents)
"""


def test_all_tasks_share_one_limit_of_requests_to_the_hub(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "hub/datasets/own/many"
    folder.mkdir(parents=True)
    for i in range(10):
        (folder / f"{i}.jsonl").write_text(f'{{"text": "text {i}"}}\n')
    with Hub(tmp_path / "hub") as hub:
        # The driver asks for one file. The next ones are asked for by workers.
        hub.faults = Faults(limited_at=4, retry_after="1", files="*.jsonl")
        done = hub.run(FROM_HUB, tmp_path / "home", timeout=240)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
    times = [request.time for request in hub.requests]
    # The driver has listed and opened the files; then it has started its workers, which takes a while.
    first = int(np.diff(times[:12]).argmax()) + 1
    workers = np.array(times[first:])
    assert len(workers) >= 12
    # Four turns take 0.6 s, but a request may be late for its own.
    assert (workers[3:] - workers[:-3]).min() > 0.3
    [asked] = [request.time for request in hub.requests if request.status == 429]
    # Others that have their turn already.
    assert ((workers > asked) & (workers < asked + 0.8)).sum() <= 2
    assert (workers > asked).sum() > 4


def test_a_build_that_no_worker_begins_says_so_once(
    job: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "_BEGIN_SECONDS", 0.3)
    work: Any = Shared(None)
    # No node has so many cores.
    workers = engine.RayWorkers(RayEngine(num_cpus=3), work)
    try:
        workers.submit(print)
        for _ in range(4):
            assert not workers.ended(0.2)
    finally:
        workers.close()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1, told
    assert told[0].startswith("No worker of the Ray cluster has begun for 0 seconds, and the build waits on")

    caplog.clear()
    monkeypatch.setattr(engine, "_BEGIN_SECONDS", 60.0)
    workers = engine.RayWorkers(RayEngine(), work)
    try:
        task = workers.submit(print)
        while not (ended := workers.ended(0.2)):
            pass
    finally:
        workers.close()
    assert [each for each, _ in ended] == [task]
    assert not caplog.records


def test_workers_that_lack_this_package_are_told(cluster: Cluster, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['lightning_lance'] = None\n")
    ray.shutdown()
    ray.init(cluster.address, runtime_env={"env_vars": {"PYTHONPATH": str(tmp_path)}}, logging_level="error")
    try:
        with pytest.raises(
            ConfigError, match=r"A worker of the cluster lacks lightning-lance: install the same version"
        ):
            build(FilesSource("*.py", texts), tmp_path / "x.lance")
        # It was not started by the build.
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_cluster_that_is_not_there_is_told(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no Ray cluster at '127\.0\.0\.1:1'"):
        Corpus(FilesSource("*.py", texts), ByteTokenizer(), tmp_path / "x.lance").prepare(
            engine={"name": "ray", "address": "127.0.0.1:1"}
        )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Ray Client requires pip package `ray[client]`",
            r"run pip install 'ray\[client\]', or run this command on a node",
        ),
        ("ray client connection timeout", "give its token by RAY_AUTH_TOKEN and RAY_AUTH_MODE=token if it wants one"),
    ],
)
def test_a_client_that_cannot_reach_its_cluster_is_told(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    def refuses(**_: Any) -> None:
        raise ConnectionError(said)

    ray.shutdown()
    monkeypatch.setattr(ray, "init", refuses)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        engine = {"address": f"ray://127.0.0.1:{listening.getsockname()[1]}"}
        with pytest.raises(ConfigError, match=told):
            build(FilesSource("*.py", texts), tmp_path / "x.lance", engine=engine)


def test_a_cluster_of_others_on_this_machine_is_told(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**_: Any) -> None:
        raise RuntimeError("Version mismatch: the cluster was started with Python 3.9")

    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", refuses)
    told = r"neither use a cluster on this machine nor start one \(Version mismatch: .* set engine\.address=local, which starts"
    with pytest.raises(ConfigError, match=told):
        build(FilesSource("*.py", texts), tmp_path / "x.lance", engine={})


def test_turns_at_the_hub_are_even_in_time_and_none_is_given_while_it_asks_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: now))
    turns = engine._Turns(4)
    assert [turns.take() for _ in range(3)] == [0, 0.25, 0.5]
    now = 110.0
    assert turns.take() == 0
    turns.hold(30)
    assert [turns.take() for _ in range(2)] == [30, 30.25]
    for retries in (-1, False, "3", None):
        with pytest.raises(ConfigError, match=r"engine\.max_retries is .*: expected a whole number from 0 on\."):
            RayEngine(max_retries=retries)  # type: ignore[arg-type]
    for rate in (0, -1, True, "5", float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"engine\.hub_requests_per_second is .*: expected a number above 0"):
            RayEngine(hub_requests_per_second=rate)


def test_what_one_task_notes_of_its_source_is_none_of_the_next(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Shared(FilesSource("*.py", texts).open())
    packed = ray.cloudpickle.dumps(work)
    monkeypatch.setattr(ray, "get", lambda reference: packed)
    monkeypatch.setattr(engine, "_loaded", {})
    reference = SimpleNamespace(hex=lambda: "ab")
    first = engine._work_of(reference).opened
    first.trouble.bad_shards[0] = {"shard": "x", "row": 2, "error": "broken"}
    first.trouble.incidents["timeout"] += 1
    second = engine._work_of(reference).opened
    assert second.shards == first.shards
    assert not second.trouble.bad_shards
    assert not second.trouble.incidents
