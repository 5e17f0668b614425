"""The nodes of the gossip family: what a worker process does with those that it simulates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from leanfleet.data import Stream, eval_batches
from leanfleet.engines.center import as_bytes, as_tensor, named
from leanfleet.engines.job import GossipJob
from leanfleet.errors import WireError
from leanfleet.gossip import Node, broadcasts
from leanfleet.gossip.messages import TENSORS
from leanfleet.wire import Message, decode, encode
from leanfleet.workers import Tick

_EVALUATION_BATCH = 256
_REFRESHING_SAMPLES = 2048


class Nodes:
    """Some nodes of one run; each stays with its worker from the first step to the last."""

    def __init__(self, job: GossipJob, device: str = "cpu") -> None:
        self.job, self.device = job, torch.device(device)
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
                    self.job.method.begin_final(self.node(i))
                return Message()
            case "refresh":
                for i in nodes:
                    self.refresh(i)
                return Message()
            case "states":
                return Message({f"{i}/{n}": t for i in nodes for n, t in self.node(i).tensors().items()})
            case "restore":
                for i in nodes:
                    self.node(i).restore(named(asked.tensors, f"{i}/"))
                return Message()
            case _:
                return self.evaluate(nodes)

    def step(self, nodes: Sequence[int], iteration: int, trains: bool) -> Message:
        """Let nodes train and send; a message to several receivers is there once."""
        method = self.job.method
        messages: dict[str, Tensor] = {}
        losses: dict[int, float] = {}
        receivers: dict[str, list[int]] = {}
        for i in nodes:
            node = self.node(i)
            if trains:
                losses[i] = node.step(*self._batch(i, iteration))
            if not method.exchanges(iteration):
                continue
            for number, (message, to) in enumerate(broadcasts(node.outbox(method.column(iteration, i)))):
                messages[f"{i}/{number}"] = as_tensor(encode(message))
                receivers[f"{i}/{number}"] = to
        return Message(messages, {"losses": json.dumps(losses), "receivers": json.dumps(receivers)})

    def absorb(
        self, nodes: Sequence[int], arrivals: Mapping[str, list[str]], messages: Mapping[str, Tensor]
    ) -> Message:
        """Let nodes take what arrived, by the names of the messages; what cannot be used is left out."""
        rejected: list[str] = []
        weights: dict[int, float] = {}
        for i in nodes:
            node = self.node(i)
            taken: list[tuple[int, Message]] = []
            for name in arrivals.get(str(i), []):
                sender = int(name.partition("/")[0])
                try:
                    taken.append((sender, decode(as_bytes(messages[name]), TENSORS, node.expects)))
                except WireError as error:
                    rejected.append(f"node {i}, from {sender}: {error}")
            node.absorb(taken)
            weights[i] = node.weight
        return Message({}, {"rejected": json.dumps(rejected), "weights": json.dumps(weights)})

    def evaluate(self, nodes: Sequence[int]) -> Message:
        """Return hits and summed loss of each node's own model on all test samples, and the sum of all models."""
        job = self.job
        batches = eval_batches(
            job.data.test,
            mean=job.data.mean,
            std=job.data.std,
            seed=0,
            device=self.device,
            batch_size=_EVALUATION_BATCH,
        )
        models = {i: self.node(i).model() for i in nodes}
        found = {i: [0.0, 0.0] for i in nodes}
        for x, y in batches:
            for i, model in models.items():
                logits = job.method.logits(model, x)
                found[i][0] += float((logits.argmax(1) == y).sum())
                found[i][1] += float(F.cross_entropy(logits, y, reduction="sum"))
        return Message({}, {"found": json.dumps(found)})

    def node(self, i: int) -> Node:
        """Return one of the nodes."""
        if i not in self._nodes:
            self._nodes[i] = self.job.method.node(i)
        return self._nodes[i]

    def _batch(self, i: int, iteration: int) -> tuple[Tensor, Tensor]:
        return self._stream(i).batch(iteration)

    def refresh(self, i: int) -> None:
        """Take the statistics of a node's norms anew, over some of its own images."""
        count = -(-min(_REFRESHING_SAMPLES, len(self.job.parts[i])) // self.job.training.batch_size)
        self.node(i).refresh(self._batch(i, number)[0] for number in range(count))

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
