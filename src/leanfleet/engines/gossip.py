"""The gossip family's centre: no server, only who steps when in the simulation, and its books."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leanfleet.engines.center import named, shards
from leanfleet.engines.job import GossipJob
from leanfleet.engines.nodes import by_node
from leanfleet.engines.post import Letter, Post, sender_of
from leanfleet.engines.rounds import Found, Gossip
from leanfleet.errors import RecordError
from leanfleet.gossip import Node, memory_ratio
from leanfleet.gossip.membership import MassLedger, crash, leave
from leanfleet.ledger import PHI, Ledger
from leanfleet.wire import Message, Scalar, decode, encode
from leanfleet.workers import Workers


class GossipCenter(Gossip):
    """All nodes of one run.

    Args:
        job: What is run.
        workers: Worker processes; nodes stay where they are.
    """

    def __init__(self, job: GossipJob, workers: int) -> None:
        super().__init__(job)
        everyone = range(len(job.parts))
        self.homes = shards(dict.fromkeys(everyone, 1.0), workers)
        self._places = {i: place for place, home in enumerate(self.homes) for i in home}
        self.post = Post(job, self.links)
        # Those that have not left for good.
        self.nodes = list(everyone)
        self.mass = MassLedger(float(len(self.nodes)))
        self._states: dict[str, Tensor] = {}

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

    def overall(self) -> dict[str, int]:
        """See `Gossip.overall`."""
        return self.totals

    def tensors(self) -> dict[str, Tensor]:
        """Return all nodes as they were at the end of the round, and messages that are still on their way."""
        late = {f"late/{name}": t for name, t in self.post.tensors().items()}
        return {f"nodes/{name}": t for name, t in self._states.items()} | late

    def state(self) -> dict[str, Any]:
        """Return who is there, every node's clock, and the totals."""
        return {
            "nodes": list(self.nodes),
            "mass": [self.mass.total, self.mass.entries],
            "post": self.post.state(),
            "totals": dict(self.totals),
            "final": self._final,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], pool: Workers) -> None:
        """Go back to a checkpoint.

        Raises:
            RecordError: It was made by real processes.
        """
        if "ranks" in state:
            raise RecordError(
                f"the run was made by {state['ranks']} processes; go on with: torchrun --nproc-per-node "
                f"{state['ranks']} -m leanfleet resume RUN --engine peers"
            )
        self.nodes = list(state["nodes"])
        total, entries = state["mass"]
        self.mass = MassLedger(total, [tuple(entry) for entry in entries])
        self.totals, self._final = dict(state["totals"]), state["final"]
        self.post.restore(named(tensors, "late/"), state["post"])
        self._states = named(tensors, "nodes/")
        self._give(pool, self._states)

    def iterate(self, pool: Workers, iteration: int, ledger: Ledger, found: Found) -> None:
        """See `Gossip.iterate`."""
        trains, exchange = iteration < self.method.setting.steps, self.method.exchange(iteration)
        self._part(pool, exchange, ledger)
        there = [i for i in self.nodes if not self.links.away(i, exchange)]
        answers = self._ask(pool, "step", {"iteration": iteration, "trains": trains}, among=there)
        if trains:
            self._book_training(there, ledger)
        for answer in answers:
            found.losses += json.loads(str(answer.scalars["losses"])).values()
        if self.method.exchanges(iteration):
            messages = {name: t for answer in answers for name, t in answer.tensors.items()}
            receivers: dict[str, list[int]] = {}
            for answer in answers:
                receivers |= json.loads(str(answer.scalars["receivers"]))
            signs = {name for answer in answers for name in json.loads(str(answer.scalars["signs"]))}
            self._book_sending(messages, receivers, signs, ledger, final=not trains)
            letters, lost = self.post.deliver(exchange, messages, receivers)
            found.sent += sum(map(len, receivers.values()))
            found.lost += lost
            ledger.bytes_down += sum(len(letter.message) for letter in letters)
            self._absorb(pool, there, letters, found)
        ledger.seconds_virtual = self.post.now

    def told(self, pool: Workers, ledger: Ledger, found: Found) -> dict[str, Any]:
        """See `Gossip.told`."""
        # First the old ones go: states of a whole fleet are what takes the memory.
        self._states = {}
        self._states = {name: t for answer in self._ask(pool, "states") for name, t in answer.tensors.items()}
        weights = [self._weight(i) for i in self.nodes]
        return {
            "local_loss": math.fsum(found.losses) / len(found.losses) if found.losses else None,
            "bytes_authors": self.totals["bytes_authors"],
            "nodes": len(self.nodes),
            "weights": [min(weights), max(weights)],
            "mass": self.mass.total,
            "disagreement": self._disagreement(),
            "memory_ratio": max(map(memory_ratio, by_node(self._states).values())),
            "lost_share": found.lost / found.sent if found.sent else 0.0,
            "rejected": found.rejected,
        }

    def mean_model(self) -> dict[str, Tensor]:
        """See `Gossip.mean_model`."""
        first = self.nodes[0]
        others = [
            n.removeprefix(f"{first}/others/") for n in self._states if n.startswith(f"{first}/others/")
        ]
        means = {name: mean(self._states[f"{i}/others/{name}"] for i in self.nodes) for name in others}
        return {**self.method.training.layout.views(self._mean_z()), **means}

    def _mean_z(self) -> Tensor:
        return mean(self._z(i) for i in self.nodes)

    def _z(self, i: int) -> Tensor:
        return self._states[f"{i}/x"] / self._weight(i)

    def _weight(self, i: int) -> float:
        return float(self._states[f"{i}/weight"])

    def _disagreement(self) -> float:
        """Return the root mean square distance of nodes' models to their mean, as a share of that mean's length."""
        middle = self._mean_z()
        squares = [float((self._z(i) - middle).square().sum()) for i in self.nodes]
        return math.sqrt(math.fsum(squares) / len(squares)) / float(middle.norm())

    def _part(self, pool: Workers, exchange: int, ledger: Ledger) -> None:
        """Let nodes leave for good whose time has come."""
        for i, since in self.fleet.departures.items():
            if i in self.nodes and exchange >= since:
                self.nodes.remove(i)
                change = (
                    self._bury(pool, i)
                    if self.fleet.farewell == "crash"
                    else self._say_farewell(pool, i, exchange, ledger)
                )
                self.mass.book(exchange, f"node {i}: {self.fleet.farewell}", change)

    def _bury(self, pool: Workers, dead: int) -> float:
        """Return the change of the total weight when a node is gone at once."""
        self.post.drop(dead)
        neighbours = {i for some in self.method.neighbours(dead) for i in some if i in self.nodes}
        concerned = self._fetch(pool, {dead, *neighbours})
        return crash(concerned[dead], [concerned[i] for i in sorted(neighbours)])

    def _say_farewell(self, pool: Workers, leaver: int, exchange: int, ledger: Ledger) -> float:
        """Let a node leave in order: rarely done, so here, with all whom it concerns; return as `leave`."""
        assert self.fleet.farewell != "crash"
        found = self.method.neighbours(leaver)
        # Who is away takes part as well: it would otherwise come back to what is no link any more.
        senders, receivers = ([i for i in some if i in self.nodes] for some in found)
        receivers.sort(key=lambda i: (self.links.away(i, exchange), i))
        concerned = self._fetch(pool, {leaver, *senders, *receivers})

        def carry(sender: int, receiver: int, message: Message) -> Message:
            data = encode(message)
            ledger.bytes_up += len(data)
            ledger.bytes_down += len(data)
            return decode(data)

        change = leave(
            concerned[leaver],
            [concerned[i] for i in senders],
            [concerned[i] for i in receivers],
            self.fleet.farewell,
            carry,
        )
        del concerned[leaver]
        self._give(pool, {f"{i}/{n}": t for i, node in concerned.items() for n, t in node.tensors().items()})
        return change

    def _fetch(self, pool: Workers, nodes: Iterable[int]) -> dict[int, Node]:
        """Return some nodes as they are with their workers."""
        found: dict[int, Node] = {}
        for answer in self._ask(pool, "states", among=nodes):
            for i, state in by_node(answer.tensors).items():
                found[i] = self.method.node(i)
                found[i].restore(state)
        return found

    def _give(self, pool: Workers, states: Mapping[str, Tensor]) -> None:
        """Set nodes back to their states."""
        own: list[dict[str, Tensor]] = [{} for _ in self.homes]
        for name, tensor in states.items():
            own[self._places[sender_of(name)]][name] = tensor
        self._ask(pool, "restore", tensors=own)

    def _book_training(self, there: Iterable[int], ledger: Ledger) -> None:
        macs = PHI * self.job.macs[0] * self.job.training.batch_size
        self.post.compute(there, macs)
        for i in there:
            ledger.record(i, macs=macs)

    def _book_sending(
        self,
        messages: Mapping[str, Tensor],
        receivers: Mapping[str, Sequence[int]],
        signs: Collection[str],
        ledger: Ledger,
        *,
        final: bool,
    ) -> None:
        sent = self.post.send(messages, receivers)
        ledger.bytes_up += sum(sent)
        # Signs of life are bytes, but no models: nobody would send a dense one in their place.
        models = [to for name, to in receivers.items() if name not in signs]
        self.totals["transmissions"] += len(sent) - (len(receivers) - len(models))
        self.totals["bytes_authors"] += sum(map(len, models)) * self.method.authors_bytes(final)

    def _absorb(self, pool: Workers, there: Sequence[int], letters: Iterable[Letter], found: Found) -> None:
        tensors: list[dict[str, Tensor]] = [{} for _ in self.homes]
        arrivals: dict[int, list[str]] = {}
        for letter in letters:
            tensors[self._places[letter.receiver]][letter.name] = letter.message
            arrivals.setdefault(letter.receiver, []).append(letter.name)
        told: dict[str, Scalar] = {"arrivals": json.dumps(arrivals)}
        for answer in self._ask(pool, "absorb", told, tensors=tensors, among=there):
            found.rejected += json.loads(str(answer.scalars["rejected"]))

    def _ask(
        self,
        pool: Workers,
        task: str,
        scalars: Mapping[str, Scalar] | None = None,
        *,
        tensors: Sequence[Mapping[str, Tensor]] | None = None,
        among: Iterable[int] | None = None,
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
        return [decode(answer) for answer in pool.ask(requests)]


def mean(tensors: Iterable[Tensor]) -> Tensor:
    """Return the mean, summed up in float64 and in order; of whole numbers it is rounded down."""
    total, count = None, 0
    for tensor in tensors:
        total = tensor.to(torch.float64, copy=True) if total is None else total.add_(tensor)
        count, dtype = count + 1, tensor.dtype
    assert total is not None
    return total.div_(count).to(dtype)
