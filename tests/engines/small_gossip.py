"""The small gossip fleet that tests of the engines run, and the same by hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leanfleet.data import Stream
from leanfleet.engines.job import GossipJob, make_job
from leanfleet.engines.nodes import by_node
from leanfleet.experiment import Experiment, loads
from leanfleet.gossip import Node
from leanfleet.ledger import PHI
from leanfleet.runs import Run
from leanfleet.wire import Message, decode, encode

TOML = """
[experiment]
name = "small"
rounds = 3
eval_every = 3
[network]
name = "digits-cnn-small"
[fleet]
devices = 4
graph = "undirected-ring"
[training]
iterations = 3
batch_size = 8
[method]
name = "scsp"
density = 0.1
final_rounds = 4
"""
TROUBLE = (
    "fleet.loss_rate=0.1",
    "fleet.late_rate=0.3",
    "fleet.double_rate=0.3",
    "fleet.absences=[[2, 3, 5]]",
    "fleet.cuts=[[0, 1, 2, 4]]",
    'method.repair="repeat"',
)
STEP_MACS = PHI * 460_416 * 8


def experiment(*overrides: str) -> Experiment:
    return loads(TOML, overrides)


def job_of(*overrides: str) -> GossipJob:
    job = make_job(experiment(*overrides))
    assert isinstance(job, GossipJob)
    return job


def normed(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A network with batch norm."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes)
    )


def stream(job: GossipJob, node: int) -> Stream:
    mean, std, seed = job.data.mean, job.data.std, job.experiment.experiment.seed
    own, size = job.parts[node], job.training.batch_size
    return Stream(job.data.train, own, batch_size=size, mean=mean, std=std, stream=(seed, node, "batches"))


def by_hand(job: GossipJob) -> tuple[list[Node], int]:
    """Run a fleet without losses as anybody would write it down; return nodes and bytes sent, one by one."""
    method, bytes_up = job.method, 0
    nodes = [method.node(i) for i in range(len(job.parts))]
    streams = [stream(job, i) for i in range(len(nodes))]
    with torch.random.fork_rng(devices=[]):
        for iteration in range(method.setting.steps + method.final_rounds()):
            if iteration == method.setting.steps:
                for node in nodes:
                    method.begin_final(node)
            if iteration < method.setting.steps:
                for node, own in zip(nodes, streams, strict=True):
                    node.step(*own.batch(iteration))
            if not method.exchanges(iteration):
                continue
            boxes: dict[int, dict[int, bytes]] = {
                i: {j: encode(m) for j, m in node.outbox(method.column(iteration, i)).items()}
                for i, node in enumerate(nodes)
            }
            bytes_up += sum(len(data) for box in boxes.values() for data in box.values())
            for j, node in enumerate(nodes):
                node.absorb([(i, decode(box[j])) for i, box in boxes.items() if j in box])
    return nodes, bytes_up


def states(record: Run) -> dict[int, dict[str, Tensor]]:
    """Every node's state at the end of a run."""
    latest = record.latest()
    assert latest is not None
    prefix = "nodes/"
    return by_node({n.removeprefix(prefix): t for n, t in latest.tensors.items() if n.startswith(prefix)})


def restored(record: Run, job: GossipJob) -> dict[int, Node]:
    """Every node at the end of a run."""
    nodes = {i: job.method.node(i) for i in states(record)}
    for i, state in states(record).items():
        nodes[i].restore(state)
    return nodes


def weight_with_outstanding(nodes: Mapping[int, Node]) -> float:
    """Push-sum weight of all nodes, and of what is on its way between them."""
    total = sum(node.weight for node in nodes.values())
    for i, sender in nodes.items():
        for j, receiver in nodes.items():
            if sender.sums and receiver.sums and j in sender.sums.out:
                total += sender.sums.outstanding(j, receiver.sums, i)[1]
    return total


def lying(message: Message, **scalars: float) -> Message:
    return Message(message.tensors, {**message.scalars, **scalars})


def facts(record: Run) -> tuple[dict[str, object], list[dict[str, object]]]:
    """All that equal runs have in common beside tensors."""
    wall = {"seconds_wall", "workers"}
    events = [{k: v for k, v in event.items() if k not in wall} for event in record.events()]
    summary = record.summary()
    assert summary is not None
    return {k: v for k, v in summary.items() if k not in wall}, events


def assert_same(one: Run, other: Run) -> None:
    found = [record.latest() for record in (one, other)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].tensors.keys() == found[1].tensors.keys()
    assert all(torch.equal(t, found[1].tensors[name]) for name, t in found[0].tensors.items())
    assert facts(one) == facts(other)
