"""The gossip family's centre: no server, only the simulation's post office, its clock and its books."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leanfleet.engines.center import Show, named, shards
from leanfleet.engines.job import GossipJob
from leanfleet.engines.links import Links
from leanfleet.errors import ExperimentError
from leanfleet.fleet import VirtualClock
from leanfleet.ledger import PHI, Ledger
from leanfleet.wire import Message, Scalar, decode, encode
from leanfleet.workers import Workers


@dataclass
class Found:
    """What a round came to."""

    losses: list[float] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    sent: int = 0
    lost: int = 0


class Gossip(ABC):
    """What the simulation and real processes have in common: rounds of iterations, and an end with final rounds.

    Args:
        job: What is run.
    """

    def __init__(self, job: GossipJob) -> None:
        self.job, self.method, self.fleet = job, job.method, job.fleet
        self.links = Links(job.fleet, job.experiment.experiment.seed)
        self.bytes_authors = 0
        # What the final rounds came to, once they are over.
        self._final: dict[str, Any] | None = None

    @abstractmethod
    def iterate(self, pool: Any, iteration: int, ledger: Ledger, found: Found) -> None:
        """Let nodes train, if it is a step of training, and exchange."""

    @abstractmethod
    def judged(self, pool: Any) -> list[tuple[float, float]]:
        """Return every node's hits and summed loss on all test samples."""

    @abstractmethod
    def end_training(self, pool: Any) -> None:
        """Prepare all nodes for the final rounds."""

    @abstractmethod
    def refresh(self, pool: Any) -> None:
        """Take the statistics of all nodes' norms anew."""

    @abstractmethod
    def told(self, pool: Any, ledger: Ledger, found: Found) -> dict[str, Any]:
        """End a round: gather states, book what is left, return what its event tells."""

    def play(self, pool: Any, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let all nodes train and exchange for a round."""
        found = Found()
        for iteration in range(self.job.iterations):
            self.iterate(pool, round * self.job.iterations + iteration, ledger, found)
            show((iteration + 1) / self.job.iterations)
        return self.told(pool, ledger, found)

    def evaluate(self, pool: Any) -> dict[str, Any]:
        """Return the mean over nodes of accuracy and loss on all test samples, and all nodes' accuracies."""
        count, found = len(self.job.data.test), self.judged(pool)
        accuracies = [hits / count for hits, _ in found]
        return {
            "accuracy": math.fsum(accuracies) / len(found),
            "loss": math.fsum(loss for _, loss in found) / count / len(found),
            "worst_accuracy": min(accuracies),
            "accuracies": accuracies,
        }

    def finish(self, pool: Any, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Play the final rounds, if the method has any, and take the norms' statistics anew."""
        if self._final is None:
            self._final = self._finish(pool, ledger, show)
        return self._final

    def _finish(self, pool: Any, ledger: Ledger, show: Show) -> dict[str, Any]:
        before, sparse = self.evaluate(pool)["accuracy"], ledger.bytes_up
        rounds, found = self.method.final_rounds(), Found()
        if rounds:
            self.end_training(pool)
            for number in range(rounds):
                self.iterate(pool, self.method.setting.steps + number, ledger, found)
                show((number + 1) / rounds)
        self.refresh(pool)
        return {
            **self.told(pool, ledger, found),
            **self.evaluate(pool),
            "accuracy_before_final": before,
            "final_rounds": rounds,
            "bytes_up_before_final": sparse,
            "eta": self.method.eta,
        }


class GossipCenter(Gossip):
    """All nodes of one run.

    A node waits for what its in-neighbours send and for nothing else: each has a clock of its own, and virtual time is
    that of the last of them. A lost message is waited for like any other.

    Args:
        job: What is run.
        workers: Worker processes; nodes stay where they are.
    """

    def __init__(self, job: GossipJob, workers: int) -> None:
        super().__init__(job)
        self.nodes = list(range(len(job.parts)))
        self.homes = shards(dict.fromkeys(self.nodes, 1.0), workers)
        self.times = [0.0] * len(self.nodes)
        self.weights = [1.0] * len(self.nodes)
        self._states: dict[str, Tensor] = {}
        # Messages that arrive an exchange later, by exchange and receiver.
        self._late: dict[int, list[tuple[int, str, Tensor]]] = {}

    def judged(self, pool: Workers) -> list[tuple[float, float]]:
        """See `Gossip.judged`."""
        found: dict[int, tuple[float, float]] = {}
        for answer in self._ask(pool, "evaluate"):
            found |= {int(i): tuple(pair) for i, pair in json.loads(str(answer.scalars["found"])).items()}
        return [found[i] for i in self.nodes]

    def end_training(self, pool: Workers) -> None:
        """See `Gossip.end_training`."""
        self._ask(pool, "merge")

    def refresh(self, pool: Workers) -> None:
        """See `Gossip.refresh`."""
        self._ask(pool, "refresh")

    def tensors(self) -> dict[str, Tensor]:
        """Return all nodes as they were at the end of the round, and messages that are still on their way."""
        late = {
            f"late/{exchange}/{receiver}/{name}": t
            for exchange, messages in self._late.items()
            for receiver, name, t in messages
        }
        return {f"nodes/{name}": t for name, t in self._states.items()} | late

    def state(self) -> dict[str, Any]:
        """Return every node's clock and weight, and the totals."""
        return {
            "times": self.times,
            "weights": self.weights,
            "bytes_authors": self.bytes_authors,
            "final": self._final,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], pool: Workers) -> None:
        """Go back to a checkpoint."""
        self.times, self.weights = list(state["times"]), list(state["weights"])
        self.bytes_authors, self._final = state["bytes_authors"], state["final"]
        self._states = named(tensors, "nodes/")
        for name, t in named(tensors, "late/").items():
            exchange, receiver, message = name.split("/", 2)
            self._late.setdefault(int(exchange), []).append((int(receiver), message, t))
        own = [
            {n: t for n, t in self._states.items() if int(n.partition("/")[0]) in home} for home in self.homes
        ]
        self._ask(pool, "restore", tensors=own)

    def iterate(self, pool: Workers, iteration: int, ledger: Ledger, found: Found) -> None:
        """See `Gossip.iterate`."""
        trains = iteration < self.method.setting.steps
        there = [i for i in self.nodes if not self.links.away(i, iteration)]
        answers = self._ask(pool, "step", {"iteration": iteration, "trains": trains}, among=there)
        if trains:
            self._pass_compute(there, ledger)
        for answer in answers:
            found.losses += json.loads(str(answer.scalars["losses"])).values()
        if not self.method.exchanges(iteration):
            return
        messages = {name: t for answer in answers for name, t in answer.tensors.items()}
        receivers: dict[str, list[int]] = {}
        for answer in answers:
            receivers |= json.loads(str(answer.scalars["receivers"]))
        self._send(messages, receivers, ledger, final=not trains)
        inbox = self._deliver(iteration, messages, receivers, ledger, found)
        for answer in self._ask(pool, "absorb", **inbox, among=there):
            found.rejected += json.loads(str(answer.scalars["rejected"]))
            for i, weight in json.loads(str(answer.scalars["weights"])).items():
                self.weights[int(i)] = weight

    def _pass_compute(self, there: Iterable[int], ledger: Ledger) -> None:
        macs = PHI * self.job.macs[0] * self.job.training.batch_size
        for i in there:
            clock = VirtualClock(self.job.means(i), self.times[i])
            clock.spend(macs)
            if not math.isfinite(clock.now()):
                raise ExperimentError(
                    f"node {i} is never done: its trace ends at rate 0, and its neighbours wait for it; "
                    "[fleet] absences lets a node be away"
                )
            self.times[i] = clock.now()
            ledger.record(i, macs=macs)

    def _send(
        self,
        messages: Mapping[str, Tensor],
        receivers: Mapping[str, Sequence[int]],
        ledger: Ledger,
        *,
        final: bool,
    ) -> None:
        """Charge what is sent, and let every node wait for its in-neighbours."""
        arrives = list(self.times)
        for name, message in messages.items():
            sender = int(name.partition("/")[0])
            times = 1 if self.fleet.broadcast else len(receivers[name])
            ledger.bytes_up += times * len(message)
            self.bytes_authors += len(receivers[name]) * self.method.authors_bytes(final)
            # What one node sends to several goes out one after the other, on one link.
            arrival = (
                self.times[sender]
                + times * len(message) / self.fleet.uplink_bytes_per_s
                + self.fleet.latency_seconds
            )
            for receiver in receivers[name]:
                arrives[receiver] = max(arrives[receiver], arrival)
        self.times = arrives
        ledger.seconds_virtual = max(self.times)

    def _deliver(
        self,
        exchange: int,
        messages: Mapping[str, Tensor],
        receivers: Mapping[str, Sequence[int]],
        ledger: Ledger,
        found: Found,
    ) -> dict[str, Any]:
        """Return what arrives now, for each worker."""
        inbox: list[tuple[int, str, Tensor]] = self._late.pop(exchange, [])
        for name, to in receivers.items():
            sender = int(name.partition("/")[0])
            arrivals = self.links.arrivals(exchange, [(sender, receiver) for receiver in to])
            found.sent += len(to)
            found.lost += len(to) - len({a.receiver for a in arrivals})
            for arrival in arrivals:
                one = arrival.receiver, name, messages[name]
                if arrival.exchange == exchange:
                    inbox.append(one)
                else:
                    late = arrival.receiver, f"{name}/{exchange}", messages[name]
                    self._late.setdefault(arrival.exchange, []).append(late)
        ledger.bytes_down += sum(len(t) for _, _, t in inbox)
        return self._sorted(inbox)

    def _sorted(self, inbox: Sequence[tuple[int, str, Tensor]]) -> dict[str, Any]:
        """Return messages by the workers of their receivers."""
        tensors: list[dict[str, Tensor]] = []
        arrivals: dict[int, list[str]] = {}
        for receiver, name, _ in inbox:
            arrivals.setdefault(receiver, []).append(name)
        for home in self.homes:
            own = set(home)
            tensors.append({name: t for receiver, name, t in inbox if receiver in own})
        return {"tensors": tensors, "scalars": {"arrivals": json.dumps(arrivals)}}

    def told(self, pool: Workers, ledger: Ledger, found: Found) -> dict[str, Any]:
        """See `Gossip.told`."""
        self._states = {name: t for answer in self._ask(pool, "states") for name, t in answer.tensors.items()}
        ledger.seconds_virtual = max(self.times)
        return {
            "local_loss": math.fsum(found.losses) / len(found.losses) if found.losses else None,
            "bytes_authors": self.bytes_authors,
            "weights": [min(self.weights), max(self.weights)],
            "disagreement": self._disagreement(),
            "lost_share": found.lost / found.sent if found.sent else 0.0,
            "rejected": found.rejected,
        }

    def _disagreement(self) -> float:
        """Return the root mean square distance of nodes' models to their mean, as a share of that mean's length."""
        models = torch.stack([self._states[f"{i}/x"] / w for i, w in enumerate(self.weights)])
        mean = models.mean(0)
        return float((models - mean).norm() / len(models) ** 0.5 / mean.norm())

    def _ask(
        self,
        pool: Workers,
        task: str,
        scalars: Mapping[str, Scalar] | None = None,
        *,
        tensors: Sequence[Mapping[str, Tensor]] | None = None,
        among: Sequence[int] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> list[Message]:
        """Ask every worker the same of its own nodes, or of those of them that are among some."""
        some = set(self.nodes if among is None else among)
        requests = []
        for place, home in enumerate(self.homes):
            told: dict[str, Scalar] = {
                "task": task,
                "nodes": json.dumps([i for i in home if i in some]),
                **(scalars or {}),
            }
            requests.append(encode(Message(dict(tensors[place]) if tensors else {}, told)))
        return [decode(answer) for answer in pool.ask(requests, tick)]
