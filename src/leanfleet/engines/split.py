"""The split family's centre: the server, who it hears, and how long an iteration takes."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from leanfleet.engines.center import Show, as_bytes, as_tensor, named, shards
from leanfleet.engines.held_out import held_out_accuracies
from leanfleet.engines.job import SplitJob
from leanfleet.engines.timeline import Timeline
from leanfleet.errors import LeanfleetError, WireError
from leanfleet.ledger import Ledger
from leanfleet.randomness import key, seed_global, torch_generator
from leanfleet.split.payload import receive_activation, send_gradient
from leanfleet.split.server import average
from leanfleet.wire import Message, Scalar, decode, encode
from leanfleet.workers import Tick, Workers

_TOTALS = ("bytes_authors", "forward_macs", "server_forward_macs")


class SplitCenter:
    """The server of one run.

    Args:
        job: What is run.
        workers: Worker processes; clients stay where they are.
        device: Where the server computes.
    """

    def __init__(self, job: SplitJob, workers: int, device: str = "cpu") -> None:
        self.job, self.method = job, job.method
        self.workers, self.device = workers, torch.device(device)
        self.server = job.method.server(self.device)
        self.orchestrator = job.method.orchestrator()
        clients = range(job.devices)
        # A half that is handed over has no copy: the clients that pass it on must be in one place.
        even = dict.fromkeys(clients, 1.0)
        self.homes = [list(clients), *[[]] * (workers - 1)] if job.method.handover else shards(even, workers)
        self.chosen: list[int] = []
        self.totals: dict[str, int] = dict.fromkeys(_TOTALS, 0)
        self._timeline = Timeline(job)
        self._clients: dict[str, Tensor] = {}

    def play(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let clients train alone, or with the server, for a round."""
        self._timeline.now = ledger.seconds_virtual
        if round < self.method.local_rounds() and not self.method.in_turn:
            told = self._alone(pool, round, ledger, show)
        else:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                told = self._iterations(pool, round, ledger, show)
        if self.method.averages:
            self._average(pool, ledger)
        ledger.seconds_virtual = self._timeline.now
        self._clients = self._merged(self._ask(pool, "states"))
        return told | self.totals

    def evaluate(self, pool: Workers) -> dict[str, Any]:
        """Return the mean over clients of accuracy and loss, each on test data like its own, and all accuracies.

        Raises:
            LeanfleetError: A loss is not finite.
        """
        found: dict[int, tuple[float, float]] = {}
        everyone = range(self.job.devices)
        # Where weights are personal one client a worker at a time: together they may be more than memory holds.
        turns = itertools.zip_longest(*self.homes) if self.method.personal else [everyone]
        for turn in turns:
            clients = [i for i in turn if i is not None]
            views = [self._view(home, clients) for home in self.homes]
            for answer in self._ask(pool, "evaluate", tensors=views, among=clients):
                found |= {int(i): pair for i, pair in json.loads(str(answer.scalars["found"])).items()}
        accuracies, losses = zip(*(found[i] for i in everyone), strict=True)
        if diverged := [i for i in everyone if not math.isfinite(losses[i])]:
            self._diverged(diverged, losses[diverged[0]])
        return {"accuracy": _mean(accuracies), "loss": _mean(losses), "accuracies": list(accuracies)}

    def _diverged(self, clients: Sequence[int], loss: float) -> None:
        """Give up where clients' losses are beyond numbers.

        Args:
            clients: Whose they are.
            loss: That of the first.
        """
        raise LeanfleetError(
            f"client {clients[0]}: its loss on test data is {loss}: training has diverged; lower [training] lr"
        )

    def finish(self, pool: Workers, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Return the totals in the authors' way of counting, what the server keeps, and what it is worth to others.

        `server_bytes` counts weights, masks and moments.
        """
        kept = sum(t.numel() * t.element_size() for t in self.server.tensors().values())
        others = held_out_accuracies(self.job, self.server, self._clients)
        return {**self.totals, "cut": self.method.options.cut, "server_bytes": kept, **others}

    def tensors(self) -> dict[str, Tensor]:
        """Return the server, the orchestrator, and all clients as they were at the end of the round."""
        return {
            **{f"server/{name}": t for name, t in self.server.tensors().items()},
            **{f"orchestrator/{name}": t for name, t in self.orchestrator.state().items()},
            **{f"clients/{name}": t for name, t in self._clients.items()},
        }

    def state(self) -> dict[str, Any]:
        """Return who is to be heard next, and the totals."""
        return {"chosen": self.chosen, "totals": self.totals}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], pool: Workers) -> None:
        """Go back to a checkpoint."""
        self.server.restore(named(tensors, "server/"))
        self.orchestrator.load(named(tensors, "orchestrator/"))
        self.chosen, self.totals = list(state["chosen"]), dict(state["totals"])
        self._clients = named(tensors, "clients/")
        self._ask(pool, "restore", tensors=[self._of(home, self._clients) for home in self.homes])

    def _alone(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let clients train for a round without the server, all at the same time."""
        count = self.job.iterations
        done = iter(range(1, count * self.workers + 1))
        finished = self._timeline.alone()
        steps = json.dumps({i: alone.steps for i, alone in finished.items()})
        tick = partial(_pass_on, show, done, count * self.workers)
        losses: dict[int, list[float]] = {}
        for answer in self._ask(pool, "alone", {"round": round, "steps": steps}, tick=tick):
            losses |= {int(i): found for i, found in json.loads(str(answer.scalars["losses"])).items()}
        forward = self.method.client_macs(sends=False).forward * self.job.training.batch_size
        for i, alone in finished.items():
            ledger.record(i, macs=alone.macs, late=count - alone.steps, times=count)
            self.totals["forward_macs"] += forward * alone.steps
        return {"local_loss": _mean([loss for i in sorted(losses) for loss in losses[i]])}

    def _iterations(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let clients train iteration by iteration; the server hears those who are chosen, if it is time for that."""
        count, heard_for = self.job.iterations, round - self.method.local_rounds()
        self.server.set_lr(self.method.lr_at(round))
        tally = _Tally(round)
        clients = list(range(self.job.devices))
        groups = [[i] for i in clients] if self.method.in_turn else [clients]
        for iteration in range(count):
            tally.iteration = iteration
            if heard_for >= 0:
                self._choose(round, iteration)
            for group in groups:
                sends = [i for i in group if heard_for >= 0 and i in self.chosen]
                self._iterate(pool, group, sends, ledger, tally)
            if heard_for >= 0:
                self.orchestrator.end_iteration()
            show((iteration + 1) / count)
        if heard_for < 0:
            return {"local_loss": _mean(tally.local_losses)}
        if tally.rejected and not tally.losses:
            self._heard_nothing(round, tally.rejected[0])
        told = tally.told(clients)
        self.server.end_round([float(len(self.job.parts[i])) for i in clients])
        return told

    def _choose(self, round: int, iteration: int) -> None:
        """Choose anew whom the server hears, if a window begins with this iteration."""
        if (self._since(round) + iteration) % self.method.selection_window == 0:
            generator = torch_generator(self.method.setting.seed, round, iteration, "selection")
            self.chosen = self.orchestrator.select(self.method.selected(), generator)

    def _since(self, round: int) -> int:
        """Return how many iterations there are between the end of the local phase and a round."""
        return (round - self.method.local_rounds()) * self.job.iterations

    def _heard_nothing(self, round: int, why: str) -> None:
        """Give up after a round in which nothing that clients sent could be used."""
        raise LeanfleetError(
            f"round {round + 1}: nothing that clients sent could be used ({why}); training has diverged: lower "
            "[training] lr"
        )

    def _iterate(
        self, pool: Workers, group: Sequence[int], sends: Sequence[int], ledger: Ledger, tally: _Tally
    ) -> None:
        """One mini-batch of each client of a group: step, upload, serve, reply."""
        absent = self._timeline.absent(group, sends)
        for i in absent:
            ledger.record(i, macs=self._timeline.spent(i), late=1)
        if self.method.handover and absent:
            # Untrained: what the others have learned must not end with who is slow.
            told = self._ask(pool, "pass", among=sorted(absent))
            tally.handed += sum(int(answer.scalars["handed"]) for answer in told)
        present = [i for i in group if i not in absent]
        sends = [i for i in sends if i not in absent]
        ups = self._step(pool, present, sends, tally) if present else {}
        late = self._timeline.late({i: len(data) for i, data in ups.items()})
        served, replies = self._serve({i: ups[i] for i in ups if i not in late}, ledger, tally)
        if self.method.listens and sends:
            self._reply(pool, sends, replies, tally)
        self._timeline.end(served, {i: len(data) for i, data in replies.items()})
        self._hand_over(tally, ledger)
        samples = self.job.training.batch_size
        for i in present:
            macs = self.method.client_macs(sends=i in sends, answered=i in replies)
            lengths = {"bytes_up": len(ups.get(i, b"")), "bytes_down": len(replies.get(i, b""))}
            ledger.record(i, macs=macs.training * samples, **lengths, late=int(i in late))
            self.totals["forward_macs"] += macs.forward * samples

    def _step(
        self, pool: Workers, present: Sequence[int], sends: Sequence[int], tally: _Tally
    ) -> dict[int, bytes]:
        """Let clients take a step; return what those send that are to."""
        asked: dict[str, Scalar] = {**tally.at, "sends": json.dumps(sends)}
        ups: dict[int, bytes] = {}
        losses: dict[int, float] = {}
        for answer in self._ask(pool, "step", asked, among=present):
            s = answer.scalars
            losses |= {int(i): loss for i, loss in json.loads(str(s["losses"])).items()}
            tally.rejected += [f"client {i}: {why}" for i, why in json.loads(str(s["unfit"])).items()]
            self.totals["bytes_authors"] += int(s["authors"])
            tally.handed += int(s["handed"])
            ups |= {int(i): as_bytes(t) for i, t in answer.tensors.items()}
        tally.local_losses += [losses[i] for i in sorted(losses)]
        return ups

    def _serve(
        self, ups: Mapping[int, bytes], ledger: Ledger, tally: _Tally
    ) -> tuple[list[int], dict[int, bytes]]:
        """Let the server train on what arrived; what it cannot use is left out, and it stays as it was."""
        seed = self.method.setting.seed
        served: list[int] = []
        replies: dict[int, bytes] = {}
        order = self.method.order(sorted(ups), torch_generator(seed, *tally.at.values(), "order"))
        for i in order:
            # Networks with dropout of their own draw from the global stream.
            seed_global(key(seed, *tally.at.values(), i, "server"), self.device)
            try:
                reply = self._hear(i, ups[i], tally)
            except WireError as error:
                tally.rejected.append(f"client {i}: {error}")
                continue
            served.append(i)
            if reply is not None:
                replies[i] = reply
        macs, samples = self.method.server_macs(), self.method.setting.batch_size * len(served)
        ledger.server_macs += macs.training * samples
        self.totals["server_forward_macs"] += macs.forward * samples
        return served, replies

    def _hear(self, i: int, data: bytes, tally: _Tally) -> bytes | None:
        """Let the server train on what one client sent; return what goes back, if anything does.

        Raises:
            WireError: It cannot be used; the server is as it was.
        """
        setting, values = self.method.setting, self.method.options.values
        up = receive_activation(data, setting.cut.shape, setting.classes, setting.batch_size)
        heard = self.server.step(i, up.activation.to(self.device), up.labels.to(self.device))
        tally.losses.append(heard.loss)
        tally.heard[i] += 1
        self.orchestrator.record(i, heard.loss)
        if heard.gradient is None:
            return None
        self.totals["bytes_authors"] += 4 * len(up.payload.values)
        return send_gradient(heard.gradient, up.payload, setting.cut.rectified, values)

    def _reply(
        self, pool: Workers, sends: Sequence[int], replies: Mapping[int, bytes], tally: _Tally
    ) -> None:
        """Let clients that waited end their step."""
        tensors = [{str(i): as_tensor(replies[i]) for i in home if i in replies} for home in self.homes]
        answers = self._ask(pool, "reply", tensors=tensors, among=sends)
        tally.handed += sum(int(answer.scalars["handed"]) for answer in answers)

    def _hand_over(self, tally: _Tally, ledger: Ledger) -> None:
        """Charge what clients hand over: it goes through the server, so it is sent once and received once."""
        ledger.bytes_up += tally.handed
        ledger.bytes_down += tally.handed
        if tally.handed:
            self._timeline.relay(tally.handed)
        tally.handed = 0

    def _average(self, pool: Workers, ledger: Ledger) -> None:
        """Average the clients' halves, weighted by samples; everyone sends, everyone receives."""
        nets = {int(i): as_bytes(t) for i, t in self._merged(self._ask(pool, "nets")).items()}
        clients = sorted(nets)
        weights = [float(len(self.job.parts[i])) for i in clients]
        mean = encode(Message(average([_decoded(nets[i]).tensors for i in clients], weights)))
        self._ask(pool, "load", tensors=[{"mean": as_tensor(mean)}] * len(self.homes))
        ledger.bytes_up += sum(map(len, nets.values()))
        ledger.bytes_down += len(clients) * len(mean)
        self._timeline.relay(len(mean))

    def _ask(
        self,
        pool: Workers,
        task: str,
        scalars: Mapping[str, Scalar] | None = None,
        *,
        tensors: Sequence[Mapping[str, Tensor]] | None = None,
        among: Sequence[int] | None = None,
        tick: Tick = lambda: None,
    ) -> list[Message]:
        """Ask every worker the same of its own clients, or of those of them that are among some."""
        requests = []
        wanted = None if among is None else set(among)
        for place, home in enumerate(self.homes):
            clients = json.dumps([i for i in home if wanted is None or i in wanted])
            told: dict[str, Scalar] = {"task": task, "clients": clients, **(scalars or {})}
            requests.append(encode(Message(dict(tensors[place]) if tensors else {}, told)))
        return [_decoded(answer) for answer in pool.ask(requests, tick)]

    @staticmethod
    def _merged(answers: Iterable[Message]) -> dict[str, Tensor]:
        return {name: t for answer in answers for name, t in answer.tensors.items()}

    def _view(self, home: Sequence[int], clients: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the server's half as the client of a worker is served with it, or as all are."""
        here = [i for i in clients if i in home]
        return self.server.view(here[0]) if here else {}

    @staticmethod
    def _of(home: Sequence[int], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t for name, t in tensors.items() if int(name.partition("/")[0]) in home}


@dataclass
class _Tally:
    """What a round, iteration by iteration, comes to."""

    round: int
    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    local_losses: list[float] = field(default_factory=list)
    heard: Counter[int] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)
    handed: int = 0

    @property
    def at(self) -> dict[str, int]:
        return {"round": self.round, "iteration": self.iteration}

    def told(self, clients: Sequence[int]) -> dict[str, Any]:
        return {
            "server_loss": _mean(self.losses),
            "local_loss": _mean(self.local_losses),
            "heard": [self.heard[i] for i in clients],
            "rejected": self.rejected,
        }


def _decoded(data: bytes) -> Message:
    """Return a message of a client's process: nothing is damaged on its way, but numbers may be without bounds."""
    try:
        return decode(data)
    except WireError as error:
        raise LeanfleetError(f"a client's {error}: training has diverged; lower [training] lr") from error


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pass_on(show: Show, done: Iterator[int], count: int) -> None:
    show(next(done) / count)
