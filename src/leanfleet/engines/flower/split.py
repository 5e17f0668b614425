"""The split family on real devices: the simulation's centre, whose clients are behind a Flower SuperLink.

Only methods whose gradient stops at the cut: a client is asked for all mini-batches of a selection window in one
message, and the server hears them afterwards, iteration by iteration, as if they had come one by one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from torch import Tensor

from leanfleet.engines.center import Show, named
from leanfleet.engines.flower.fleet import Answer, Fleet, Node, warn
from leanfleet.engines.flower.messages import LOST, TRAIN, Stint, Worked, payload_of
from leanfleet.engines.flower.split_time import AnsweredTime, RealTime
from leanfleet.engines.flower.split_window import Brought, Reader, Window
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.job import SplitJob
from leanfleet.engines.split import SplitCenter
from leanfleet.errors import WireError
from leanfleet.ledger import Ledger
from leanfleet.randomness import torch_generator
from leanfleet.wire import Message, decode, encode
from leanfleet.workers import Tick, Workers

_STATES = "bytes_states"


class _Hands(Workers):
    """Workers as the simulation's centre knows them; what clients do is done elsewhere."""

    def __init__(self, center: FlowerSplitCenter) -> None:
        self.count, self._center = 1, center

    def ask(self, requests: Sequence[bytes], tick: Tick = lambda: None) -> list[bytes]:
        """Answer from what has come."""
        asked, center = decode(requests[0]), self._center
        return [
            encode(
                Message(center.states) if asked.scalars["task"] == "states" else center.window.answer(asked)
            )
        ]


class FlowerSplitCenter(SplitCenter):
    """The server of one run on real devices; method, evaluation and books are those of the simulation.

    What the server trains on is what the simulation's clients would have sent. Clients' states come at the end of
    every round: evaluation needs them, and so does a restart, for Flower forgets what nodes keep when a run ends.
    """

    def __init__(self, job: SplitJob, grid: Grid, terms: Terms, folder: Path) -> None:
        super().__init__(job, 1)
        self.terms, self._limit = terms, job.fleet.iteration_seconds
        limited = (self._limit or 0.0) * min(job.iterations, self.method.selection_window)
        samples = {device: job.samples(device) for device in range(job.devices)}
        self.fleet = Fleet(grid, terms, folder, samples, 0, limited or job.fleet.round_seconds)
        self._time = AnsweredTime(job) if terms.virtual else RealTime(job)
        self._timeline = self._time
        self._reader, self.window = Reader(job), Window(0, 0, 0)
        start = job.method.client().tensors()
        self.states = {f"{i}/{name}": t for i in range(job.devices) for name, t in start.items()}
        self.totals[_STATES] = 0
        # Whom the orchestrator chose last, whether they are there or not.
        self._picked: list[int] = []
        # Nodes that are at their clients' state, as far as is known.
        self._holders: set[int] = set()
        # How often a client has sent rubbish, and the round from which on it may be heard again.
        self._offences: dict[int, int] = {}
        self._pardoned: dict[int, int] = {}
        self._begin_round()

    def _begin_round(self) -> None:
        # What was spent beside what the simulation's books hold.
        self._beside = Ledger.empty(self.job.devices)
        self._notes: dict[str, list[Any]] = {"rejected": [], "silent": [], "late": []}

    def play(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let clients train, window by window, and hear them."""
        self._begin_round()
        told = super().play(_Hands(self), round, ledger, show)
        self._ask(pool, "restore", tensors=[self._clients])
        ledger.macs += self._beside.macs
        ledger.bytes_up += self._beside.bytes_up
        ledger.bytes_down += self._beside.bytes_down
        self.fleet.tell(round)
        return {**told, **self._notes, "rejected": [*self._notes["rejected"], *told.get("rejected", [])]}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], pool: Workers) -> None:
        """Go back to a checkpoint."""
        super().restore(tensors, state, pool)
        self.states, self._picked = dict(self._clients), self.chosen

    def evaluate(self, pool: Workers) -> dict[str, Any]:
        """See `SplitCenter.evaluate`; the loss is None where a client's is beyond numbers."""
        found = super().evaluate(pool)
        return {**found, "loss": found["loss"] if math.isfinite(found["loss"]) else None}

    def _diverged(self, clients: Sequence[int], loss: float) -> None:
        """Go on unless all have: one client must not be able to end a run."""
        if len(clients) == self.job.devices:
            super()._diverged(clients, loss)
        for i in clients:
            warn(f"device {i}: its copy of its client is beyond numbers", device=i)

    def _alone(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let clients train for a round without the server: one message each."""
        self._exchange(Window(round, 0, self.job.iterations), hears=False)
        return super()._alone(pool, round, ledger, show)

    def _choose(self, round: int, iteration: int) -> None:
        """Choose anew, if it is time for that; where a window begins, ask for all of it."""
        before = self.chosen
        super()._choose(round, iteration)
        if self.chosen is not before:
            self._picked = self.chosen
        if iteration in (0, self.window.last):
            size = self.method.selection_window
            left = size - (self._since(round) + iteration) % size
            self._exchange(Window(round, iteration, min(iteration + left, self.job.iterations)), hears=True)

    def _exchange(self, window: Window, *, hears: bool) -> None:
        """Ask all free clients for some mini-batches, and take what comes in time."""
        self.window = window
        for answer in self.fleet.gather(1 if window.first else self.job.devices, window.round):
            self._take(answer)
        self._time.begin()
        window.began, free = time.monotonic(), self.fleet.free()
        if hears:
            self.chosen = self._able(window, free)
        for device, node in free.items():
            self._send(node, sends=hears and device in self.chosen)
        self.fleet.attend(window.round, self._take, self._over)
        for device in window.missing():
            told = f"round {window.round + 1}: device {device} has not reported"
            warn(told, device=device, round=window.round + 1)
        self._notes["silent"] = sorted({*self._notes["silent"], *window.missing()})
        self._time.take(window.done())

    def _able(self, window: Window, free: Mapping[int, Node]) -> list[int]:
        """Return whom the server hears: the next ones stand in for those who are away, or sent rubbish before."""
        able = {i for i in free if self._pardoned.get(i, 0) <= window.round}
        chosen = [i for i in self._picked if i in able]
        if len(chosen) < len(self._picked):
            seed = self.method.setting.seed
            generator = torch_generator(seed, window.round, window.first, "selection")
            others = [i for i in self.orchestrator.select(self.job.devices, generator) if i in able]
            chosen += [i for i in others if i not in chosen][: len(self._picked) - len(chosen)]
        return chosen

    def _send(self, node: Node, *, sends: bool) -> None:
        window, state = self.window, b""
        if node.id not in self._holders and (window.round or window.first):
            state = encode(Message(named(self.states, f"{node.device}/")))
        # It will say so if it never gets this, or forgets it.
        self._holders.add(node.id)
        whole = (self._limit or 0.0) * (window.last - window.first)
        seconds = node.seconds_of(whole, time.monotonic() - window.began)
        returns = window.last == self.job.iterations
        stint = Stint(window.round, window.first, window.last, sends, returns, seconds)
        window.asked[node.device], node.state = node, "training"
        self._beside.record(node.device, macs=0.0, bytes_down=len(state), times=0)
        self.totals[_STATES] += len(state)
        self.fleet.send(node.id, TRAIN, stint.packed(state), window.round + 1, (stint, len(state)))

    def _over(self) -> bool:
        window = self.window
        limit = self._limit and self._limit * (window.last - window.first)
        return not window.waiting() or (limit is not None and time.monotonic() - window.began >= limit)

    def _take(self, answer: Answer) -> None:
        """Take an answer, in time or not; what is wrong with it costs nothing but its own work."""
        node, sent, content = answer
        (stint, bytes_down), up = sent.about, b""
        late = (stint.round, stint.first) != (self.window.round, self.window.first)
        try:
            worked, up = Worked.read(content), payload_of(content)
            self.fleet.learn(node, sent, worked.seconds, worked.rate_macs_per_s)
            if worked.state == LOST and not bytes_down and (stint.round or stint.first):
                self._holders.discard(node.id)
                if not late:
                    self._send(node, sends=stint.sends)
                return
            brought = self._reader.read(stint, worked, up)
        except WireError as error:
            self._reject(node, stint, str(error))
            self._beside.record(node.device, macs=0.0, bytes_up=len(up), times=0)
            return
        macs = (
            self.method.client_macs(sends=stint.sends).training * self.job.training.batch_size * worked.steps
        )
        node.last = {"macs": macs, "bytes_up": len(up), "bytes_down": bytes_down}
        node.state = "late" if late else worked.state
        self._keep(node.device, brought, len(up), macs if late else 0.0, late=late)

    def _keep(self, device: int, brought: Brought, length: int, macs: float, *, late: bool) -> None:
        """Note what a client brought; of what comes too late only its state counts."""
        if brought.state:
            kept = {n: t for n, t in self.states.items() if not n.startswith(f"{device}/")}
            self.states = kept | {f"{device}/{name}": t for name, t in brought.state.items()}
            self.totals[_STATES] += brought.state_bytes
        if late:
            self._notes["late"].append(device)
        else:
            self.window.brought[device] = brought
        # The simulation's books hold what is heard.
        heard = 0 if late else sum(map(len, brought.ups.values()))
        self._beside.record(device, macs=macs, bytes_up=length - heard, times=0)

    def _reject(self, node: Node, stint: Stint, why: str) -> None:
        warn(
            f"device {node.device}: left out: {why}", device=node.device, round=stint.round + 1, rejected=why
        )
        self._notes["rejected"].append(f"client {node.device}: {why}")
        node.state = "rejected"
        self._shun(node.device)

    def _shun(self, device: int) -> None:
        """Hear a client no more in this round, nor in the next one; after more rubbish, in the next two, four, ..."""
        before = self._offences.get(device, 0)
        self.window.rubbish.add(device)
        self._pardoned[device], self._offences[device] = self.window.round + 1 + 2**before, before + 1

    def _serve(
        self, ups: Mapping[int, bytes], ledger: Ledger, tally: Any
    ) -> tuple[list[int], dict[int, bytes]]:
        """Let the server train on what came; who sent rubbish is left out for the rest of the window."""
        fit, before = {i: up for i, up in ups.items() if i not in self.window.rubbish}, len(tally.rejected)
        served, replies = super()._serve(fit, ledger, tally)
        for i in fit.keys() - set(served):
            self._shun(i)
        for why in tally.rejected[before:]:
            warn(f"left out: {why}", round=self.window.round + 1, rejected=why)
        return served, replies

    def _heard_nothing(self, round: int, why: str) -> None:
        """Go on: one client must not be able to end a run."""
        warn(f"round {round + 1}: nothing that devices sent could be used")
