"""The federated family on real devices: the simulation's centre, whose devices are behind a Flower SuperLink."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from leanfleet.engines.center import Show
from leanfleet.engines.devices import Outcome
from leanfleet.engines.federated import FederatedCenter
from leanfleet.engines.flower.fleet import Answer, Fleet, Node, warn
from leanfleet.engines.flower.messages import TRAIN, Result, Task, payload_of
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.job import FederatedJob
from leanfleet.engines.updates import Assigned, UsualNorms, accept, check_macs, fold_in
from leanfleet.errors import WireError
from leanfleet.federated import Report
from leanfleet.ledger import Ledger
from leanfleet.randomness import numpy_generator, torch_generator
from leanfleet.subnet import SubnetPlan
from leanfleet.wire import encode
from leanfleet.workers import Workers


class FlowerCenter(FederatedCenter):
    """The server of one run on real devices; method, evaluation and books are those of the simulation."""

    def __init__(self, job: FederatedJob, grid: Grid, terms: Terms, folder: Path) -> None:
        super().__init__(job, 1)
        self.terms, self.norms = terms, UsualNorms()
        samples = {device: job.samples(device) for device in range(len(job.parts))}
        most = terms.most_samples or max(samples.values())
        self.fleet = Fleet(grid, terms, folder, samples, most, job.fleet.round_seconds)

    def play(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Send tasks to free devices, take what comes until the deadline, and average it."""
        started_virtually = ledger.seconds_virtual
        tardy = self.fleet.gather(self.job.fleet.per_round, round)
        began, before = time.monotonic(), self.params
        open_ = _Round(self, round)
        for answer in tardy:
            open_.take(answer)
        for place, (device, node) in enumerate(self._chosen(round).items()):
            open_.assign(node, device, place, started_virtually)
        self.fleet.attend(round, open_.take, lambda: open_.over(time.monotonic() - began))
        self.params = self.job.method.finish(self.params, open_.total)
        if not all(bool(p.isfinite().all()) for p in self.params.values()):
            warn(f"round {round + 1}: what came makes a network beyond numbers; the old one is kept")
            self.params = before
        outcomes = open_.outcomes()
        self._book(outcomes, round, ledger)
        for late in open_.late:
            # They have taken part in an earlier round; what they spent since is in no book yet.
            ledger.record(late.device, macs=late.macs, bytes_up=late.bytes_up, times=0)
        if not self.terms.virtual:
            ledger.seconds_virtual = started_virtually + time.monotonic() - began
        self.fleet.tell(round)
        return {
            "available_macs": sum(outcome.available_macs for outcome in outcomes),
            "rejected": [f"device {o.device}: {o.rejected}" for o in outcomes if o.rejected],
            "silent": open_.silent(),
            "late": [late.device for late in open_.late],
        }

    def _chosen(self, round: int) -> dict[int, Node]:
        """Choose among free devices as the simulation does; the same ones if all are free."""
        free = self.fleet.free()
        devices, seed = list(free), self.job.experiment.experiment.seed
        count = min(self.job.fleet.per_round, len(devices))
        drawn = numpy_generator(seed, round, "devices").choice(len(devices), count, replace=False)
        return {devices[i]: free[devices[i]] for i in sorted(drawn.tolist())}


class _Round:
    """One round while it is open."""

    def __init__(self, center: FlowerCenter, round: int) -> None:
        self._center, self._round = center, round
        self._method, self._terms = center.job.method, center.terms
        self.total = self._method.empty(center.params)
        self.late: list[Outcome] = []
        self._tasks: dict[int, tuple[Node, Assigned]] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._began = time.monotonic()

    def assign(self, node: Node, device: int, place: int, start: float) -> None:
        """Send a device its task."""
        job, whole = self._center.job, self._center.job.fleet.round_seconds
        virtual = self._terms.virtual
        seconds = whole if virtual else node.seconds_of(whole, time.monotonic() - self._began)
        # Methods reckon with whole rounds, so a shorter one is a slower device to them.
        rate = job.means(device).rate(start) if virtual else node.rate_macs_per_s * seconds / whole
        report = Report(node.samples, rate, self._round * job.fleet.per_round + place)
        rng = torch_generator(job.experiment.experiment.seed, self._round, device, "assign")
        message = self._method.assign(self._center.params, report, self._round, rng)
        down = encode(message)
        task = Assigned(self._round, report, message, len(down))
        self._tasks[device] = node, task
        node.state = "training"
        asked = Task(self._round, start if virtual else 0.0, seconds)
        self._center.fleet.send(node.id, TRAIN, asked.packed(down), self._round + 1, task)

    def over(self, elapsed: float) -> bool:
        """Return whether the round has ended: all have answered, or its time is up and enough have."""
        if all(
            device in self._outcomes or node.state != "training" for device, (node, _) in self._tasks.items()
        ):
            return True
        waits = self._terms.virtual or not self._method.deadline
        reports = sum(outcome.bytes_up > 0 and not outcome.rejected for outcome in self._outcomes.values())
        return (
            elapsed >= self._center.job.fleet.round_seconds
            and not waits
            and reports >= self._terms.min_reports
        )

    def take(self, answer: Answer) -> None:
        """Take an answer, in time or not; what is wrong with it costs nothing but its own work."""
        node, sent, content = answer
        task: Assigned = sent.about
        late = task.round != self._round
        try:
            result, up = Result.read(content), payload_of(content)
            self._center.fleet.learn(node, sent, result.seconds, result.rate_macs_per_s)
            check_macs(self._method, task.report, result.macs)
            vector = _vector(self._method.plan, result.kept)
        except WireError as error:
            result, up, rejected = Result(0.0, 0.0, True, 0.0, 0.0, b"", 0.0, "garbage"), b"", str(error)
            vector = {}
        else:
            rejected = self._add(task, up, late) if up else ""
        if rejected:
            about = {"device": node.device, "round": task.round + 1, "rejected": rejected}
            warn(f"device {node.device}: left out: {rejected}", **about)
        node.last = {
            "macs": result.macs,
            **vector,
            "bytes_up": len(up),
            "bytes_down": task.bytes_down,
        }
        node.state = "late" if late else "rejected" if rejected else result.state
        outcome = Outcome(
            node.device, result.macs, result.available_macs, task.bytes_down, len(up),
            result.late, result.finished_at, rejected,
        )  # fmt: skip
        if late:
            self.late.append(outcome)
        else:
            self._outcomes[node.device] = outcome

    def _add(self, task: Assigned, up: bytes, late: bool) -> str:
        if late and not self._terms.stale_weight:
            return "its round is over"
        params, clip = self._center.params, self._terms.clip_norm
        if not late:
            return accept(self._method, params, self.total, task, up, clip, self._center.norms)
        own = self._method.empty(params)
        if rejected := accept(self._method, params, own, task, up, clip, self._center.norms):
            return rejected
        fold_in(self.total, own, self._terms.stale_weight ** (self._round - task.round))
        return ""

    def silent(self) -> list[int]:
        """Return the devices that have not answered."""
        return [device for device in self._tasks if device not in self._outcomes]

    def outcomes(self) -> list[Outcome]:
        """Return what every device's round came to; those that have not answered were late."""
        missing = {
            device: Outcome(device, 0.0, 0.0, self._tasks[device][1].bytes_down, 0, True, 0.0)
            for device in self.silent()
        }
        for device in missing:
            told = f"round {self._round + 1}: device {device} has not reported"
            warn(told, device=device, round=self._round + 1)
        return [found for _, found in sorted({**self._outcomes, **missing}.items())]


def _vector(plan: SubnetPlan, kept: bytes) -> dict[str, Any]:
    """Return every group's dropout rate and the share of the MACs, of counts as `Result.kept` has them."""
    if not kept:
        return {}
    channels = np.array([group.channels for group in plan.groups])
    counts = np.frombuffer(kept, "<u2") if len(kept) == 2 * len(channels) else np.zeros(len(channels))
    if not ((counts > 0) & (counts <= channels)).all():
        raise WireError("says that it kept what this network has not")
    rates = (1 - counts / channels).tolist()
    share = plan.macs(rates) / plan.macs(plan.uniform(0.0))
    return {"rates": [round(rate, 3) for rate in rates], "share": round(share, 3)}
