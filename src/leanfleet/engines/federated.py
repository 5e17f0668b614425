"""The federated family's centre: a server that sends, sums up and averages, once a round."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from leanfleet.engines.center import Show, named, shards
from leanfleet.engines.devices import Outcome
from leanfleet.engines.job import FederatedJob
from leanfleet.errors import ExperimentError, LeanfleetError
from leanfleet.federated import Report
from leanfleet.ledger import Ledger
from leanfleet.randomness import numpy_generator
from leanfleet.subnet.lut import Lut
from leanfleet.wire import Message, Scalar, decode, encode
from leanfleet.workers import Workers


class FederatedCenter:
    """The server of one run.

    Args:
        job: What is run.
        workers: Worker processes.
    """

    def __init__(self, job: FederatedJob, workers: int) -> None:
        self.job, self.workers = job, workers
        self.params = job.method.begin({name: p.detach().clone() for name, p in job.net.named_parameters()})

    def play(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Let the chosen devices train, and average what they send."""
        begin, chosen = ledger.seconds_virtual, self._choose(round)
        done = iter(range(1, len(chosen) + 1))
        requests = self._requests(chosen, round, begin)
        answers = pool.ask(requests, lambda: show(next(done) / len(chosen)))
        outcomes = self._sum_up([decode(answer) for answer in answers], round)
        self._book(outcomes, round, ledger)
        return {
            "available_macs": sum(outcome.available_macs for outcome in outcomes),
            "rejected": [f"device {o.device}: {o.rejected}" for o in outcomes if o.rejected],
        }

    def evaluate(self, pool: Workers) -> dict[str, Any]:
        """Return accuracy and mean loss of the whole network on the test set (evaluation A)."""
        accuracy, loss = evaluate_on(pool, self.params, recalibrate=False)
        return {"accuracy": accuracy, "loss": loss}

    def finish(self, pool: Workers, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Return evaluation B, and which table was used."""
        lut = getattr(self.job.method, "lut", None)
        recalibrated, _ = evaluate_on(pool, self.params, recalibrate=True)
        return {"accuracy_recalibrated": recalibrated, "lut": lut.origin if isinstance(lut, Lut) else None}

    def tensors(self) -> dict[str, Tensor]:
        """Return the server's parameters."""
        return {f"params/{name}": p for name, p in self.params.items()}

    def state(self) -> dict[str, Any]:
        """Return nothing: all is in the tensors."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], pool: Workers) -> None:
        """Go back to a checkpoint."""
        self.params = named(tensors, "params/")

    def _choose(self, round: int) -> list[int]:
        """Choose devices uniformly without replacement (Algorithm 2); the same for every method of a seed."""
        seed, count = self.job.experiment.experiment.seed, self.job.fleet.per_round
        drawn = numpy_generator(seed, round, "devices").choice(len(self.job.parts), count, replace=False)
        return sorted(int(device) for device in drawn)

    def _requests(self, chosen: Sequence[int], round: int, begin: float) -> list[bytes]:
        before = round * len(chosen)
        reports = {
            d: Report(self.job.samples(d), self.job.means(d).rate(begin), before + place)
            for place, d in enumerate(chosen)
        }
        work = {d: self.job.method.work(report) for d, report in reports.items()}
        asked: dict[str, Scalar] = {"task": "round", "round": round, "start": begin}
        return [
            encode(Message(self.params, {**asked, "turns": json.dumps({d: reports[d].turn for d in shard})}))
            for shard in shards(work, self.workers)
        ]

    def _sum_up(self, answers: Sequence[Message], round: int) -> list[Outcome]:
        total = self.job.method.empty(self.params)
        outcomes = []
        for answer in answers:
            total.merge(type(total).from_tensors(answer.tensors))
            outcomes += [Outcome(**fields) for fields in json.loads(str(answer.scalars["outcomes"]))]
        sent = [outcome for outcome in outcomes if outcome.bytes_up]
        if sent and all(outcome.rejected for outcome in sent):
            raise LeanfleetError(
                f"round {round + 1}: every update was left out (device {sent[0].device}: {sent[0].rejected}); "
                "training has diverged: lower [training] lr or set clip_norm"
            )
        self.params = self.job.method.finish(self.params, total)
        return sorted(outcomes, key=lambda outcome: outcome.device)

    def _book(self, outcomes: Sequence[Outcome], round: int, ledger: Ledger) -> None:
        for o in outcomes:
            if not math.isfinite(o.finished_at):
                raise ExperimentError(
                    f"round {round + 1}: device {o.device} is never done: its trace ends at rate 0, and "
                    f"'{self.job.experiment.method.name}' waits for every device"
                )
        for o in outcomes:
            ledger.record(o.device, macs=o.macs, bytes_up=o.bytes_up, bytes_down=o.bytes_down, late=o.late)
        end = ledger.seconds_virtual + self.job.fleet.round_seconds
        latest = max(outcome.finished_at for outcome in outcomes)
        # Without a deadline the round lasts until its last device is done.
        overrun = not self.job.method.deadline and latest > end
        ledger.seconds_virtual = latest if overrun else end


def evaluate_on(pool: Workers, params: Mapping[str, Tensor], *, recalibrate: bool) -> tuple[float, float]:
    """Return accuracy (evaluation A, or B if `recalibrate`) and mean loss, the batches spread over workers."""
    asked: dict[str, Scalar] = {"task": "evaluate", "workers": pool.count, "recalibrate": recalibrate}
    requests = [encode(Message(dict(params), {**asked, "worker": i})) for i in range(pool.count)]
    answers = [decode(answer).scalars for answer in pool.ask(requests)]
    count = sum(int(a["count"]) for a in answers)
    return sum(int(a["hits"]) for a in answers) / count, sum(float(a["loss"]) for a in answers) / count
