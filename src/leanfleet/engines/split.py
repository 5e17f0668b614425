"""The split family's centre: the server, who it hears, and how long an iteration takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from leanfleet.engines.center import Show, named, shards
from leanfleet.engines.clients import as_bytes, as_tensor
from leanfleet.engines.job import SplitJob
from leanfleet.engines.timeline import Timeline
from leanfleet.errors import LeanfleetError, WireError
from leanfleet.ledger import Ledger
from leanfleet.randomness import torch_generator
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
    """

    def __init__(self, job: SplitJob, workers: int) -> None:
        self.job, self.method = job, job.method
        self.workers = workers
        self.server = job.method.server()
        self.orchestrator = job.method.orchestrator()
        clients = range(len(job.parts))
        # A half that is handed over has no copy: the clients that pass it on must be in one place.
        even = dict.fromkeys(clients, 1.0)
        self.homes = [list(clients), *[[]] * (workers - 1)] if job.method.handover else shards(even, workers)
        self.chosen: list[int] = []
        self.totals: dict[str, int] = dict.fromkeys(_TOTALS, 0)
        self._clients: dict[str, Tensor] = {}

    def play(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let clients train alone, or with the server, for a round."""
        timeline = Timeline(self.job, ledger.seconds_virtual)
        if round < self.method.local_rounds():
            told = self._alone(pool, round, ledger, timeline, show)
        else:
            told = self._together(pool, round, ledger, timeline, show)
        if self.method.averages:
            self._average(pool, ledger, timeline)
        ledger.seconds_virtual = timeline.now
        self._clients = self._merged(self._ask(pool, "states"))
        return told | self.totals

    def evaluate(self, pool: Workers) -> dict[str, Any]:
        """Return the mean over clients of accuracy and loss, each on test data like its own, and all accuracies."""
        found: dict[int, tuple[float, float]] = {}
        for answer in self._ask(pool, "evaluate", tensors=[self._views(home) for home in self.homes]):
            found |= {int(i): pair for i, pair in json.loads(str(answer.scalars["found"])).items()}
        accuracies = [found[i][0] for i in sorted(found)]
        return {
            "accuracy": sum(accuracies) / len(found),
            "loss": sum(loss for _, loss in found.values()) / len(found),
            "accuracies": accuracies,
        }

    def finish(self, pool: Workers) -> dict[str, Any]:
        """Return the totals in the authors' way of counting, and what is kept for every client."""
        kept = sum(t.numel() * t.element_size() for t in self.server.tensors().values())
        return {**self.totals, "cut": self.method.options.cut, "server_bytes": kept}

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

    def _alone(
        self, pool: Workers, round: int, ledger: Ledger, timeline: Timeline, show: Show
    ) -> dict[str, Any]:
        count = self.job.iterations
        done = iter(range(1, count * self.workers + 1))
        finished = timeline.alone()
        steps = json.dumps(finished)
        tick = partial(_pass_on, show, done, count * self.workers)
        answers = self._ask(pool, "alone", {"round": round, "steps": steps}, tick=tick)
        self._book_handed(answers, ledger, timeline)
        macs = self.method.client_macs(sends=False)
        for i, n in finished.items():
            samples = n * self.job.training.batch_size
            ledger.record(i, macs=macs.training * samples, late=count - n, times=count)
            self.totals["forward_macs"] += macs.forward * samples
        return {"local_loss": _mean([loss for a in answers for loss in a.tensors["losses"].tolist()])}

    def _together(
        self, pool: Workers, round: int, ledger: Ledger, timeline: Timeline, show: Show
    ) -> dict[str, Any]:
        self.server.set_lr(self.method.lr_at(round))
        tally = _Tally()
        clients = list(range(len(self.job.parts)))
        groups = [[i] for i in clients] if self.method.in_turn else [clients]
        for iteration in range(self.job.iterations):
            if not self.chosen:
                # The first choice, when nothing has been heard yet.
                self._select(round, -1)
            for group in groups:
                self._iterate(pool, group, (round, iteration), ledger, timeline, tally)
            self.orchestrator.end_iteration()
            if (iteration + 1) % self.method.selection_window == 0:
                self._select(round, iteration)
            show((iteration + 1) / self.job.iterations)
        if tally.rejected and not tally.losses:
            raise LeanfleetError(
                f"round {round + 1}: nothing that clients sent could be used ({tally.rejected[0]}); training has "
                "diverged: lower [training] lr"
            )
        self.server.end_round([float(len(self.job.parts[i])) for i in clients])
        return {
            "server_loss": _mean(tally.losses),
            "local_loss": _mean(tally.local_losses),
            "heard": [tally.heard[i] for i in clients],
            "rejected": tally.rejected,
        }

    def _iterate(
        self,
        pool: Workers,
        group: Sequence[int],
        at: tuple[int, int],
        ledger: Ledger,
        timeline: Timeline,
        tally: _Tally,
    ) -> None:
        """One mini-batch of each client of a group: step, upload, serve, reply."""
        sends = [i for i in group if i in self.chosen]
        absent = timeline.absent(group, sends)
        for i in absent:
            ledger.record(i, macs=timeline.spent(i), late=1)
        present = [i for i in group if i not in absent]
        sends = [i for i in sends if i not in absent]
        ups = self._step(pool, present, sends, at, ledger, timeline, tally)
        late = timeline.late({i: len(data) for i, data in ups.items()})
        served, replies = self._serve({i: ups[i] for i in ups if i not in late}, at, tally)
        if self.method.listens:
            self._reply(pool, sends, replies, ledger, timeline)
        timeline.end(served, {i: len(data) for i, data in replies.items()}, bool(absent or late))
        for i in present:
            self._book(i, i in sends, len(ups.get(i, b"")), len(replies.get(i, b"")), i in late, ledger)

    def _step(
        self,
        pool: Workers,
        present: Sequence[int],
        sends: Sequence[int],
        at: tuple[int, int],
        ledger: Ledger,
        timeline: Timeline,
        tally: _Tally,
    ) -> dict[int, bytes]:
        asked: dict[str, Scalar] = {"round": at[0], "iteration": at[1], "sends": json.dumps(sends)}
        answers = self._ask(pool, "step", asked, among=present)
        self._book_handed(answers, ledger, timeline)
        ups: dict[int, bytes] = {}
        for answer in answers:
            tally.local_losses += answer.tensors.pop("losses").tolist()
            self.totals["bytes_authors"] += sum(json.loads(str(answer.scalars["authors"])).values())
            ups |= {int(i): as_bytes(t) for i, t in answer.tensors.items()}
        return ups

    def _serve(
        self, ups: Mapping[int, bytes], at: tuple[int, int], tally: _Tally
    ) -> tuple[list[int], dict[int, bytes]]:
        """Let the server train on what arrived; what it cannot use is left out, and it stays as it was."""
        setting, options = self.method.setting, self.method.options
        served: list[int] = []
        replies: dict[int, bytes] = {}
        order = self.method.order(list(ups), torch_generator(setting.seed, *at, "order"))
        for i in order:
            try:
                up = receive_activation(ups[i], setting.cut.shape, setting.classes, setting.batch_size)
                heard = self.server.step(i, up.activation, up.labels)
                if heard.gradient is not None:
                    rectified = setting.cut.rectified
                    replies[i] = send_gradient(heard.gradient, up.payload, rectified, options.values)
                    self.totals["bytes_authors"] += 4 * len(up.payload.values)
            except WireError as error:
                tally.rejected.append(f"client {i}: {error}")
                continue
            served.append(i)
            tally.losses.append(heard.loss)
            tally.heard[i] += 1
            self.orchestrator.record(i, heard.loss)
            self.totals["server_forward_macs"] += self.method.server_macs().forward * len(up.labels)
        return served, replies

    def _reply(
        self,
        pool: Workers,
        sends: Sequence[int],
        replies: Mapping[int, bytes],
        ledger: Ledger,
        timeline: Timeline,
    ) -> None:
        tensors = [{str(i): as_tensor(replies[i]) for i in home if i in replies} for home in self.homes]
        self._book_handed(self._ask(pool, "reply", tensors=tensors, among=sends), ledger, timeline)

    def _average(self, pool: Workers, ledger: Ledger, timeline: Timeline) -> None:
        """Average the clients' halves, weighted by samples; everyone sends, everyone receives."""
        nets = {int(i): as_bytes(t) for i, t in self._merged(self._ask(pool, "nets")).items()}
        clients = sorted(nets)
        weights = [float(len(self.job.parts[i])) for i in clients]
        mean = encode(Message(average([decode(nets[i]).tensors for i in clients], weights)))
        self._ask(pool, "load", tensors=[{"mean": as_tensor(mean)}] * len(self.homes))
        ledger.bytes_up += sum(map(len, nets.values()))
        ledger.bytes_down += len(clients) * len(mean)
        timeline.relay(len(mean))

    def _select(self, round: int, iteration: int) -> None:
        generator = torch_generator(self.method.setting.seed, round, iteration, "selection")
        self.chosen = self.orchestrator.select(self.method.selected(), generator)

    def _book(self, i: int, sent: bool, up: int, down: int, late: bool, ledger: Ledger) -> None:
        macs, samples = self.method.client_macs(sends=sent), self.job.training.batch_size
        ledger.record(i, macs=macs.training * samples, bytes_up=up, bytes_down=down, late=int(late))
        self.totals["forward_macs"] += macs.forward * samples

    def _book_handed(self, answers: Iterable[Message], ledger: Ledger, timeline: Timeline) -> None:
        """Charge hand-overs: through the server, so sent once and received once."""
        handed = sum(int(answer.scalars["handed"]) for answer in answers)
        ledger.bytes_up += handed
        ledger.bytes_down += handed
        if handed:
            timeline.relay(handed)

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
        for place, home in enumerate(self.homes):
            clients = json.dumps([i for i in home if among is None or i in among])
            told: dict[str, Scalar] = {"task": task, "clients": clients, **(scalars or {})}
            requests.append(encode(Message(dict(tensors[place]) if tensors else {}, told)))
        return [decode(answer) for answer in pool.ask(requests, tick)]

    @staticmethod
    def _merged(answers: Iterable[Message]) -> dict[str, Tensor]:
        return {name: t for answer in answers for name, t in answer.tensors.items()}

    def _views(self, home: Sequence[int]) -> dict[str, Tensor]:
        """Return the server's half as each client of a worker is served with it."""
        if not self.method.personal:
            return {f"all/{name}": t for name, t in self.server.view(0).items()}
        return {f"{i}/{name}": t for i in home for name, t in self.server.view(i).items()}

    @staticmethod
    def _of(home: Sequence[int], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t for name, t in tensors.items() if int(name.partition("/")[0]) in home}


@dataclass
class _Tally:
    """What a round with the server came to."""

    losses: list[float] = field(default_factory=list)
    local_losses: list[float] = field(default_factory=list)
    heard: Counter[int] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pass_on(show: Show, done: Iterator[int], count: int) -> None:
    show(next(done) / count)
