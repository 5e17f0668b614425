"""The clients of the split family: what a worker process does with those that it simulates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leanfleet.data import Stream
from leanfleet.engines.center import as_bytes, as_tensor, named
from leanfleet.engines.client_data import accuracy_and_loss, stream
from leanfleet.engines.job import SplitJob
from leanfleet.errors import LeanfleetError, WireError
from leanfleet.randomness import key, seed_global
from leanfleet.split.client import Client
from leanfleet.split.payload import Sent, receive_gradient, send_activation
from leanfleet.wire import Message, Payload, Scalar, decode, encode
from leanfleet.workers import Tick


class Clients:
    """Some clients of one run; each stays with its worker from the first round to the last."""

    def __init__(self, job: SplitJob, device: str = "cpu") -> None:
        self.job, self.device = job, torch.device(device)
        self._clients: dict[int, Client] = {}
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[int, Payload] = {}

    def handle(self, asked: Message, tick: Tick) -> Message:
        """Answer what the centre asks."""
        s = asked.scalars
        clients = json.loads(str(s.get("clients", "[]")))
        match s["task"]:
            case "alone":
                return self._alone(json.loads(str(s["steps"])), clients, int(s["round"]), tick)
            case "step":
                sends = set(json.loads(str(s["sends"])))
                return self._step(clients, int(s["round"]), int(s["iteration"]), sends)
            case "pass":
                return Message({}, {"handed": sum(map(self._hand_over, clients))})
            case "reply":
                return self._reply(clients, asked.tensors)
            case "nets":
                return Message({str(i): as_tensor(self._net(i)) for i in clients})
            case "load":
                mean = decode(as_bytes(asked.tensors["mean"])).tensors
                for i in clients:
                    self._client(i).load(mean)
                return Message()
            case "states":
                return Message({f"{i}/{n}": t for i in clients for n, t in self._client(i).tensors().items()})
            case "restore":
                for i in clients:
                    self._client(i).restore(named(asked.tensors, f"{i}/"))
                return Message()
            case _:
                return self._evaluate(clients, asked.tensors)

    def _alone(self, steps: Mapping[str, int], clients: Sequence[int], round: int, tick: Tick) -> Message:
        """Let clients train for a round without the server, each as many steps as it has time for."""
        losses: dict[int, list[float]] = {i: [] for i in clients}
        for iteration in range(self.job.iterations):
            for i in clients:
                if iteration < steps[str(i)]:
                    _, _, loss = self._train(i, round, iteration, sends=False)
                    losses[i] += [] if loss is None else [loss]
            tick()
        return Message({}, {"losses": json.dumps(losses)})

    def _step(self, clients: Sequence[int], round: int, iteration: int, sends: set[int]) -> Message:
        """Let clients take one step each; those that send, send their activations."""
        messages: dict[str, Tensor] = {}
        losses: dict[int, float] = {}
        authors, handed = 0, 0
        unfit: dict[int, str] = {}
        for i in clients:
            activation, labels, loss = self._train(i, round, iteration, sends=i in sends)
            if loss is not None:
                losses[i] = loss
            if activation is not None:
                try:
                    sent = self._send(i, activation, labels)
                    messages[str(i)] = as_tensor(sent.data)
                    authors += sent.authors_bytes
                except WireError as error:
                    unfit[i] = str(error)
            if not (self.job.method.listens and i in sends):
                handed += self._hand_over(i)
        told: dict[str, Scalar] = {"handed": handed, "authors": authors, "unfit": json.dumps(unfit)}
        return Message(messages, {**told, "losses": json.dumps(losses)})

    def _send(self, i: int, activation: Tensor, labels: Tensor) -> Sent:
        setting = self.job.method.setting
        sent = send_activation(activation, labels, setting.classes, self.job.method.options.values)
        if self.job.method.listens:
            self._waiting[i] = sent.activation
        return sent

    def _reply(self, clients: Sequence[int], replies: Mapping[str, Tensor]) -> Message:
        """Let clients that wait end their step, with the server's gradient or without."""
        handed = 0
        rectified = self.job.method.setting.cut.rectified
        for i in clients:
            up, reply = self._waiting.pop(i, None), replies.get(str(i))
            gradient = None
            if up is not None and reply is not None:
                gradient = receive_gradient(as_bytes(reply), up, rectified).to(self.device)
            self._client(i).reply(gradient)
            handed += self._hand_over(i)
        return Message({}, {"handed": handed})

    def _train(
        self, i: int, round: int, iteration: int, *, sends: bool
    ) -> tuple[Tensor | None, Tensor, float | None]:
        """Take one step; return activations where they are wanted, the labels, and the local loss, if any."""
        client, method = self._client(i), self.job.method
        if not (method.learns_alone or sends):
            return None, torch.empty(0), None
        x, y = self._batch(i, round, iteration)
        client.set_lr(method.lr_at(round))
        # Networks with dropout of their own draw from the global stream.
        seed_global(key(method.setting.seed, round, iteration, i, "torch"), self.device)
        try:
            activation, loss = client.step(x, y, sends=sends)
        except LeanfleetError as error:
            raise LeanfleetError(f"round {round + 1}, client {i}: {error}") from error
        return activation, y, loss

    def _hand_over(self, i: int) -> int:
        """Give a client's half to the next one, if the method says so; return the bytes that takes."""
        if not self.job.method.handover:
            return 0
        data = encode(Message(self._client(i).own()))
        self._client((i + 1) % self.job.devices).load(decode(data).tensors)
        return len(data)

    def _net(self, i: int) -> bytes:
        return encode(Message(self._client(i).own_net()))

    def _client(self, i: int) -> Client:
        if i not in self._clients:
            self._clients[i] = self.job.method.client().to(self.device)
        return self._clients[i]

    def _batch(self, i: int, round: int, iteration: int) -> tuple[Tensor, Tensor]:
        if i not in self._streams:
            self._streams[i] = stream(self.job, i, self.device)
        return self._streams[i].batch(round * self.job.iterations + iteration)

    def _evaluate(self, clients: Sequence[int], view: Mapping[str, Tensor]) -> Message:
        """Return each client's accuracy and mean loss on test data like its own, all with the same server's half."""
        half = {name: t.to(self.device) for name, t in view.items()}
        return Message({}, {"found": json.dumps({i: self._evaluate_one(i, half) for i in clients})})

    def _evaluate_one(self, i: int, view: dict[str, Tensor]) -> tuple[float, float]:
        client, method = self._client(i), self.job.method
        return accuracy_and_loss(
            self.job, i, lambda x: method.logits(view, client.activations(x)), self.device
        )
