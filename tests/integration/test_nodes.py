"""Several nodes: process groups with a folder each, or one that they share. Real processes, over gloo."""

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.training import Recorder
from tests.support.warm import TRAINING, WarmProcess, server

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")

# What each rank runs: a fit, which writes down the windows, the store and the error of the rank.
RANK = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_lance.errors import SourceError
from lightning_lance.tokenization.configs import ByteTokenizer
from tests.support.corpora import data_of
from tests.support.stores import ListSource
from tests.support.training import SOURCE, Recorder, make_trainer

task = json.loads(sys.argv[2])
node = int(os.environ.get("GROUP_RANK", os.environ.get("NODE_RANK", 0)))
time.sleep(task.get("late", 0) * node)

class Counted(ListSource):
    def read(self, shard, row):
        if task.get("fails_on") == node:
            raise SourceError("the disk of this node is gone")
        with open(task["read"], "a") as file:
            file.write(f"{node} {shard}\\n")
        yield from super().read(shard, row)

class Parallel(Recorder):
    def configure_model(self):
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
        from torch.distributed.tensor import Replicate
        parallelize_module(self.embedding, self.device_mesh["tensor_parallel"], ColwiseParallel(output_layouts=Replicate()))

strategy = "ddp"
if task.get("tensor_parallel"):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2, process_group_backend="gloo")
model = Parallel() if task.get("tensor_parallel") else Recorder(counts_steps=True)
data = data_of(Counted(SOURCE.documents), ByteTokenizer(), 32, task["batch_size"], data_dir=task["folders"][node])
trainer = make_trainer(
    Path(task["folders"][node]), devices=task["devices"], num_nodes=task["nodes"], strategy=strategy,
    max_steps=task["steps"], limit_val_batches=0, use_distributed_sampler=False,
)
told = {"error": None}
try:
    trainer.fit(model, datamodule=data, ckpt_path=task.get("checkpoint"))
    told |= {"seen": model.seen["train"], "uri": data.store.uri, "replicas": trainer.distributed_sampler_kwargs}
except Exception as error:
    told["error"] = f"{type(error).__name__}: {error}"
if not told["error"] and task.get("save"):
    trainer.save_checkpoint(task["save"])
Path(task["told"] % trainer.global_rank).write_text(json.dumps(told))
"""


class Ranks:
    """The ranks of some nodes, as a cluster starts them: `srun`, or a `torchrun` on each node."""

    def __init__(self, folder: Path, nodes: int, devices: int, **task: Any) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._size = nodes * devices
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self._task = {
            "nodes": nodes,
            "devices": devices,
            "folders": [str(folder)] * nodes,
            "told": str(folder / "told-%d.json"),
            "read": str(folder / "read.txt"),
            **task,
        }
        self._processes: list[WarmProcess] = []
        for node in range(nodes):
            for local in range(devices):
                environment = {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "WORLD_SIZE": str(self._size),
                    "LOCAL_RANK": str(local),
                    "NODE_RANK": str(node),
                }
                self._processes.append(started(self._task, environment))

    def told(self) -> list[dict[str, Any]]:
        return results(self._processes, self._folder, self._size)


def started(task: dict[str, Any], environment: dict[str, str]) -> WarmProcess:
    import os

    return server(TRAINING).start(
        RANK, ROOT, json.dumps(task), environment={**os.environ, **environment}, warnings=["ignore"]
    )


def results(processes: Sequence[WarmProcess], folder: Path, size: int) -> list[dict[str, Any]]:
    """What each rank has told, by rank."""
    end = time.monotonic() + 200
    codes = [process.wait(max(1.0, end - time.monotonic())) for process in processes]
    assert codes == [0] * len(processes), [process.output() for process in processes]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(size)]


def steps_of(told: Sequence[dict[str, Any]]) -> list[Any]:
    """The windows of each step, over all ranks."""
    return [[window for part in step for window in part] for step in zip(*(rank["seen"] for rank in told), strict=True)]


def shards_read(file: Path) -> list[str]:
    return sorted(file.read_text().split("\n")[:-1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The steps of one process on one machine."""
    from lightning_lance.tokenization.configs import ByteTokenizer
    from tests.support.corpora import data_of
    from tests.support.training import SOURCE, make_trainer

    folder, model = tmp_path_factory.mktemp("alone"), Recorder()
    data = data_of(SOURCE, ByteTokenizer(), 32, 12, data_dir=str(folder))
    make_trainer(folder, max_steps=6, limit_val_batches=0).fit(model, datamodule=data)
    return model.seen["train"]


def test_two_nodes_prepare_once_each_and_any_other_nodes_go_on(tmp_path: Path, alone: list[Any]):
    """Of 2 x 2 ranks, each node with a disk of its own, on 1 x 2 and 1 x 3; the order is that of one process."""
    folders = [str(tmp_path / "node-0"), str(tmp_path / "node-1")]
    save = str(tmp_path / "2.ckpt")
    told = Ranks(tmp_path / "a", 2, 2, folders=folders, batch_size=3, steps=2, save=save).told()
    assert [rank["error"] for rank in told] == [None] * 4
    served = steps_of(told)
    assert served == alone[:2]
    windows = [tuple(window) for step in served for window in step]
    assert len(set(windows)) == len(windows) == 24
    # Each node has a store, of the same content, and has read each shard once.
    assert [Path(rank["uri"]).parent.name for rank in told] == ["node-0", "node-0", "node-1", "node-1"]
    shards = shards_read(tmp_path / "a" / "read.txt")
    assert len(set(shards)) == len(shards) == 20
    for devices, before, after in ((2, 2, 4), (3, 4, 6)):
        folder = tmp_path / f"of-{devices}"
        task = {
            "folders": folders[:1],
            "batch_size": 12 // devices,
            "steps": after,
            "save": str(tmp_path / f"{after}.ckpt"),
        }
        told = Ranks(folder, 1, devices, checkpoint=str(tmp_path / f"{before}.ckpt"), **task).told()
        assert steps_of(told) == alone[before:after]
        # Nothing is built again.
        assert not (folder / "read.txt").exists()


def test_nodes_that_share_a_disk_prepare_once_also_if_one_is_late(tmp_path: Path, alone: list[Any]):
    told = Ranks(tmp_path / "shared", 2, 2, batch_size=3, steps=2, late=1.5).told()
    assert [rank["error"] for rank in told] == [None] * 4
    assert len({rank["uri"] for rank in told}) == 1
    assert steps_of(told) == alone[:2]
    shards = [line.partition(" ")[2] for line in shards_read(tmp_path / "shared" / "read.txt")]
    assert len(set(shards)) == len(shards) == 10


def test_a_builder_that_fails_tells_every_node(tmp_path: Path):
    folders = [str(tmp_path / "node-0"), str(tmp_path / "node-1")]
    began = time.monotonic()
    told = Ranks(tmp_path / "fails", 2, 2, folders=folders, batch_size=3, steps=2, fails_on=1).told()
    assert time.monotonic() - began < 150
    others = "StoreError: Rank 2 could not prepare the data: the disk of this node is gone"
    assert [rank["error"] for rank in told] == [others, others, "SourceError: the disk of this node is gone", others]


def test_ranks_of_a_tensor_parallel_group_get_the_same_batches(tmp_path: Path, alone: list[Any]):
    """Two groups of two: the place in the data is that of the group, not of the process."""
    told = Ranks(tmp_path / "tensor", 2, 2, batch_size=6, steps=2, tensor_parallel=True).told()
    assert [rank["error"] for rank in told] == [None] * 4
    assert [rank["replicas"] for rank in told] == [{"num_replicas": 2, "rank": rank} for rank in (0, 0, 1, 1)]
    assert told[0]["seen"] == told[1]["seen"] != told[2]["seen"] == told[3]["seen"]
    assert steps_of([told[0], told[2]]) == alone[:2]


# A node's torchrun: its agent meets those of the other nodes, and starts the ranks, as forks of this process.
AGENT = """
import runpy, sys, json
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def rank(*arguments):
    sys.argv[:] = ["-c", *arguments]
    exec(compile(sys.argv.pop(), "<rank>", "exec"), {"__name__": "__main__"})

port, node, *arguments = sys.argv[1:]
config = LaunchConfig(
    min_nodes=2, max_nodes=2, nproc_per_node=2, run_id="x", rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{port}",
    rdzv_configs={"rank": int(node), "timeout": 100}, start_method="fork", monitor_interval=0.2, max_restarts=0,
    local_addr="127.0.0.1",
)
elastic_launch(config, rank)(*arguments)
"""


def test_torchrun_on_each_node(tmp_path: Path, alone: list[Any]):
    """Its own environment variables and meeting: `torchrun --nnodes 2 --nproc_per_node 2 --node_rank 0 --master_addr ...`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    task = {
        "nodes": 2,
        "devices": 2,
        "folders": [str(tmp_path / "node-0"), str(tmp_path / "node-1")],
        "told": str(tmp_path / "told-%d.json"),
        "read": str(tmp_path / "read.txt"),
        "batch_size": 3,
        "steps": 2,
    }
    agents = [
        server(TRAINING).start(AGENT, port, node, ROOT, json.dumps(task), RANK, warnings=["ignore"])
        for node in range(2)
    ]
    end = time.monotonic() + 200
    codes = [agent.wait(max(1.0, end - time.monotonic())) for agent in agents]
    assert codes == [0, 0], [agent.output() for agent in agents]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(4)]
    assert steps_of(told) == alone[:2]
    assert {Path(rank["uri"]).parent.name for rank in told} == {"node-0", "node-1"}
