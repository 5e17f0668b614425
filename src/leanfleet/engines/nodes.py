"""The nodes of the gossip family: what a worker process does with those that it simulates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanfleet.data import Stream, eval_batches
from leanfleet.engines.center import as_bytes, as_tensor
from leanfleet.engines.job import GossipJob
from leanfleet.errors import WireError
from leanfleet.gossip import GossipMethod, Node, broadcasts
from leanfleet.gossip.messages import TENSORS
from leanfleet.wire import Message, decode, encode
from leanfleet.workers import Tick

Model = Mapping[str, Tensor]
"""Parameters and statistics by name, as `Node.model` returns them."""

_EVALUATION_BATCH = 256
_REFRESHING_SAMPLES = 2048


class Nodes:
    """Some nodes of one run; each stays with its worker from the first step to the last."""

    def __init__(self, job: GossipJob, device: str = "cpu") -> None:
        self.job, self.device = job, torch.device(device)
        self.method = job.method if self.device.type == "cpu" else job.method.on(self.device)
        self._nodes: dict[int, Node] = {}
        self._streams: dict[int, Stream] = {}

    def handle(self, asked: Message, tick: Tick) -> Message:
        """Answer what the centre asks."""
        s = asked.scalars
        nodes = json.loads(str(s.get("nodes", "[]")))
        match s["task"]:
            case "step":
                return self.step(nodes, int(s["iteration"]), bool(s["trains"]))
            case "absorb":
                return self.absorb(nodes, json.loads(str(s["arrivals"])), asked.tensors)
            case "merge":
                for i in nodes:
                    self.method.begin_final(self.node(i))
                return Message()
            case "refresh":
                for i in nodes:
                    self.refresh(i)
                return Message()
            case "states":
                return Message({f"{i}/{n}": t for i in nodes for n, t in self.node(i).tensors().items()})
            case "restore":
                for i, state in by_node(asked.tensors).items():
                    self.node(i).restore(state)
                return Message()
            case _:
                return self.evaluate(nodes)

    def step(self, nodes: Sequence[int], iteration: int, trains: bool) -> Message:
        """Let nodes train and send; a message to several receivers is there once; `signs` hold nothing."""
        method = self.method
        messages: dict[str, Tensor] = {}
        losses: dict[int, float] = {}
        receivers: dict[str, list[int]] = {}
        signs: list[str] = []
        for i in nodes:
            node = self.node(i)
            if trains:
                losses[i] = node.step(*self._batch(i, iteration))
            if not method.exchanges(iteration):
                continue
            column = method.column(iteration, i)
            for number, (message, to) in enumerate(broadcasts(node.outbox(column))):
                messages[f"{i}/{number}"] = as_tensor(encode(message))
                receivers[f"{i}/{number}"] = to
            for j, message in node.signs(column).items():
                signs.append(f"{i}/sign-{j}")
                messages[signs[-1]], receivers[signs[-1]] = as_tensor(encode(message)), [j]
        told = {"losses": losses, "receivers": receivers, "signs": signs}
        return Message(messages, {name: json.dumps(value) for name, value in told.items()})

    def absorb(
        self, nodes: Sequence[int], arrivals: Mapping[str, list[str]], messages: Mapping[str, Tensor]
    ) -> Message:
        """Let nodes take what arrived, by the names of the messages; what cannot be used is left out."""
        rejected: list[str] = []
        for i in nodes:
            node = self.node(i)
            taken: list[tuple[int, Message]] = []
            for name in arrivals.get(str(i), []):
                sender = int(name.partition("/")[0])
                try:
                    taken.append((sender, decode(as_bytes(messages[name]), TENSORS, node.expects)))
                except WireError as error:
                    rejected.append(f"node {i}, from {sender}: {error}")
            try:
                node.absorb(taken)
            except WireError:
                # Nothing has changed yet: without those that it cannot take, it can take the others.
                node.absorb(_usable(node, taken, rejected))
        return Message({}, {"rejected": json.dumps(rejected)})

    def evaluate(self, nodes: Sequence[int]) -> Message:
        """Return hits and summed loss of each node's own model on all test samples."""
        models = {i: self.node(i).model() for i in nodes}
        return Message({}, {"found": json.dumps(judge(self.job, models, self.device, self.method))})

    def node(self, i: int) -> Node:
        """Return one of the nodes."""
        if i not in self._nodes:
            self._nodes[i] = self.method.node(i)
        return self._nodes[i]

    def refresh(self, i: int) -> None:
        """Take the statistics of a node's norms anew, over some of its own images."""
        count = -(-min(_REFRESHING_SAMPLES, len(self.job.parts[i])) // self.job.training.batch_size)
        self.node(i).refresh(self._batch(i, number)[0] for number in range(count))

    def _batch(self, i: int, iteration: int) -> tuple[Tensor, Tensor]:
        return self._stream(i).batch(iteration)

    def _stream(self, i: int) -> Stream:
        if i not in self._streams:
            job = self.job
            self._streams[i] = Stream(
                job.data.train,
                job.parts[i],
                batch_size=job.training.batch_size,
                mean=job.data.mean,
                std=job.data.std,
                stream=(job.experiment.experiment.seed, i, "batches"),
                augment=job.experiment.data.augment,
                device=self.device,
            )
        return self._streams[i]


def judge(
    job: GossipJob, models: Mapping[int, Model], device: torch.device, method: GossipMethod[Any] | None = None
) -> dict[int, tuple[float, float]]:
    """Return hits and summed loss of models on all test samples.

    Args:
        job: Whose data they are judged on.
        models: The models by node.
        device: Where they live.
        method: The job's on that device; None is the job's own.
    """
    data, found = job.data, dict.fromkeys(models, (0.0, 0.0))
    batches = eval_batches(
        data.test, mean=data.mean, std=data.std, seed=0, device=device, batch_size=_EVALUATION_BATCH
    )
    for x, y in batches:
        for i, model in models.items():
            logits = (method or job.method).logits(model, x)
            hits, loss = found[i]
            hits += float((logits.argmax(1) == y).sum())
            found[i] = hits, loss + float(F.cross_entropy(logits, y, reduction="sum"))
    return found


def by_node(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return tensors named `node/rest` by node, named by the rest."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        node, _, rest = name.partition("/")
        found.setdefault(int(node), {})[rest] = tensor
    return found


def _usable(
    node: Node, arrived: Iterable[tuple[int, Message]], rejected: list[str]
) -> list[tuple[int, Message]]:
    """Return the messages that a node can take, and say of the others why not."""
    usable = []
    for sender, message in arrived:
        try:
            node.check(sender, message)
            usable.append((sender, message))
        except WireError as error:
            rejected.append(str(error))
    return usable
