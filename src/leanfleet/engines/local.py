"""The fleet on one machine: a virtual clock, devices spread over worker processes, a record on disk."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from leanfleet.data import DataSet
from leanfleet.engines.devices import Outcome, Staff
from leanfleet.engines.job import Job, make_job
from leanfleet.errors import ExperimentError, LeanfleetError
from leanfleet.experiment import Experiment, dumps, load, override
from leanfleet.federated import Report
from leanfleet.ledger import Ledger
from leanfleet.randomness import numpy_generator
from leanfleet.runs import Run
from leanfleet.subnet.lut import Lut
from leanfleet.wire import Message, Scalar, decode, encode
from leanfleet.workers import Workers

_LUT = "lut.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        run: Name of the record.
        round: Rounds done.
        rounds: Rounds to do.
        share: Share of the present round that is done, by devices.
        accuracy: Last evaluation, whole network; None before the first.
        seconds_virtual: Virtual time.
        late_share: Share of participations that were late.
    """

    run: str
    round: int
    rounds: int
    share: float
    accuracy: float | None
    seconds_virtual: float
    late_share: float


Watch = Callable[[Progress], None]


def run(
    experiment: Experiment,
    *,
    root: Path = Path("runs"),
    data: DataSet | None = None,
    workers: int | None = None,
    device: str = "cpu",
    watch: Watch = lambda progress: None,
    staff: Staff | None = None,
) -> Run:
    """Run an experiment on this machine and return its record.

    Args:
        experiment: What to run.
        root: Folder of all records.
        data: The data set, where it is not one that a file can name; `leanfleet.load_data` makes one.
        workers: Worker processes; one a core if None. The result depends on it within float tolerance only.
        device: Where torch computes, "cpu" or "cuda".
        watch: Is told about progress.
        staff: Workers to share with other runs; then `device` is theirs.

    Raises:
        UserError: The experiment cannot be run as it is.
        WorkerError: A worker died; the record can be resumed.
        StorageError: The disk refused; the record can be resumed.
    """
    if data is not None:
        # The record must not name data that were not used.
        own = experiment.data.model_copy(update={"source": f"python:{data.name}"})
        experiment = replace(experiment, data=own)
    job = make_job(experiment, data)
    with Run.create(experiment.experiment.name, dumps(experiment), root) as record:
        lut = getattr(job.method, "lut", None)
        if isinstance(lut, Lut):
            lut.save(record.folder / _LUT)
            # Only now: a record must never name a table that is not there.
            record.replace_experiment(dumps(override(experiment, [f"method.lut={_LUT}"])))
        server = _Server(record, job, workers or default_workers(), watch)
        with nullcontext(staff) if staff else Staff(device) as hands:
            server.go(hands)
        return record


def resume(
    folder: Path,
    *,
    data: DataSet | None = None,
    workers: int | None = None,
    device: str = "cpu",
    watch: Watch = lambda progress: None,
    staff: Staff | None = None,
) -> Run:
    """Go on with a run from its last checkpoint; a finished one is returned as it is.

    Args:
        folder: The record.
        data: The data set the run was started with, where it is not one that a file can name.
        workers: As many as before if None, so that the result is the same bit for bit.
        device: Where torch computes.
        watch: Is told about progress.
        staff: Workers to share with other runs; then `device` is theirs.

    Raises:
        RecordError: The record is missing, damaged or in use.
    """
    with Run.open(folder) as record:
        if record.finished:
            return record
        restored = record.restore()
        job = make_job(load(record.experiment_file), data)
        before = restored.state["workers"] if restored else None
        server = _Server(record, job, workers or before or default_workers(), watch)
        if restored is not None:
            server.restore(restored.round, restored.tensors, restored.state)
        with nullcontext(staff) if staff else Staff(device) as hands:
            server.go(hands)
        return record


def default_workers() -> int:
    """Return one worker a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Server:
    """The server of one run: its parameters and ledger, round by round."""

    def __init__(self, record: Run, job: Job, workers: int, watch: Watch) -> None:
        self.record, self.job, self.workers, self.watch = record, job, workers, watch
        self.experiment = job.experiment
        self.params = job.method.begin({name: p.detach().clone() for name, p in job.net.named_parameters()})
        self.ledger = Ledger.empty(len(job.parts))
        self.round = 0
        self.accuracy: float | None = None
        self.best: float | None = None
        self._clock = time.monotonic()

    def restore(self, round: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.round = round
        own = {kind: _named(tensors, f"{kind}/") for kind in ("params", "ledger")}
        self.params = own["params"]
        self.ledger = Ledger.from_state(state["ledger"], own["ledger"])
        self.accuracy, self.best = state["accuracy"], state["best_accuracy"]

    def go(self, staff: Staff) -> None:
        """Run all rounds that are left, evaluate, and finish the record."""
        self._show(0.0)
        pool = staff.for_job(self.job, self.workers)
        while not self._ended():
            self._play_round(pool)
        recalibrated, _ = self._evaluate(pool, recalibrate=True)
        self._pass_wall_time()
        self.record.finish(self._summary(recalibrated))

    def _ended(self) -> str | None:
        if self.round >= self.experiment.experiment.rounds:
            return "rounds"
        return self.experiment.budget.used_up(self.ledger)

    def _play_round(self, pool: Workers) -> None:
        begin, chosen = self.ledger.seconds_virtual, self._choose()
        done = iter(range(1, len(chosen) + 1))
        answers = pool.ask(self._requests(chosen, begin), lambda: self._show(next(done) / len(chosen)))
        outcomes = self._sum_up([decode(answer) for answer in answers])
        self._book(outcomes, begin)
        self.round += 1
        event: dict[str, Any] = {"round": self.round}
        every = self.experiment.experiment.eval_every
        if self.round % every == 0 or self._ended():
            self.accuracy, event["loss"] = self._evaluate(pool)
            self.best = max(self.accuracy, self.best or 0.0)
            event["accuracy"] = self.accuracy
        self._pass_wall_time()
        event |= self.ledger.totals()
        event["available_macs"] = sum(outcome.available_macs for outcome in outcomes)
        event["rejected"] = [f"device {o.device}: {o.rejected}" for o in outcomes if o.rejected]
        self.record.event(**event)
        self._checkpoint()
        self._show(0.0)

    def _choose(self) -> list[int]:
        """Choose devices uniformly without replacement (Algorithm 2); the same for every method of a seed."""
        seed, count = self.experiment.experiment.seed, self.experiment.fleet.per_round
        drawn = numpy_generator(seed, self.round, "devices").choice(len(self.job.parts), count, replace=False)
        return sorted(int(device) for device in drawn)

    def _requests(self, chosen: Sequence[int], begin: float) -> list[bytes]:
        before = self.round * len(chosen)
        reports = {
            d: Report(self.job.samples(d), self.job.means(d).rate(begin), before + place)
            for place, d in enumerate(chosen)
        }
        work = {d: self.job.method.work(report) for d, report in reports.items()}
        asked: dict[str, Scalar] = {"task": "round", "round": self.round, "start": begin}
        return [
            encode(Message(self.params, {**asked, "turns": json.dumps({d: reports[d].turn for d in shard})}))
            for shard in shards(work, self.workers)
        ]

    def _sum_up(self, answers: Sequence[Message]) -> list[Outcome]:
        total = self.job.method.empty(self.params)
        outcomes = []
        for answer in answers:
            total.merge(type(total).from_tensors(answer.tensors))
            outcomes += [Outcome(**fields) for fields in json.loads(str(answer.scalars["outcomes"]))]
        sent = [outcome for outcome in outcomes if outcome.bytes_up]
        if sent and all(outcome.rejected for outcome in sent):
            raise LeanfleetError(
                f"round {self.round + 1}: every update was left out (device {sent[0].device}: {sent[0].rejected}); "
                "training has diverged: lower [training] lr or set clip_norm"
            )
        self.params = self.job.method.finish(self.params, total)
        return sorted(outcomes, key=lambda outcome: outcome.device)

    def _book(self, outcomes: Sequence[Outcome], begin: float) -> None:
        for o in outcomes:
            if not math.isfinite(o.finished_at):
                raise ExperimentError(
                    f"round {self.round + 1}: device {o.device} is never done: its trace ends at rate 0, and "
                    f"'{self.experiment.method.name}' waits for every device"
                )
        for o in outcomes:
            self.ledger.record(
                o.device, macs=o.macs, bytes_up=o.bytes_up, bytes_down=o.bytes_down, late=o.late
            )
        end = begin + self.experiment.fleet.round_seconds
        latest = max(outcome.finished_at for outcome in outcomes)
        # Without a deadline the round lasts until its last device is done.
        overrun = not self.job.method.deadline and latest > end
        self.ledger.seconds_virtual = latest if overrun else end

    def _evaluate(self, pool: Workers, *, recalibrate: bool = False) -> tuple[float, float]:
        """Return accuracy and mean loss of the whole network on the test set."""
        return evaluate_on(pool, self.params, recalibrate=recalibrate)

    def _checkpoint(self) -> None:
        tensors = {f"params/{name}": p for name, p in self.params.items()}
        tensors |= {f"ledger/{name}": t for name, t in self.ledger.tensors().items()}
        state = {
            "ledger": self.ledger.state(),
            "accuracy": self.accuracy,
            "best_accuracy": self.best,
            "workers": self.workers,
        }
        self.record.checkpoint(self.round, tensors, state)

    def _pass_wall_time(self) -> None:
        now = time.monotonic()
        self.ledger.seconds_wall += now - self._clock
        self._clock = now

    def _show(self, share: float) -> None:
        rounds, ledger = self.experiment.experiment.rounds, self.ledger
        seconds, late = ledger.seconds_virtual, ledger.late_share
        self.watch(Progress(self.record.name, self.round, rounds, share, self.accuracy, seconds, late))

    def _summary(self, recalibrated: float) -> dict[str, Any]:
        lut = getattr(self.job.method, "lut", None)
        return {
            "method": self.experiment.method.name,
            "family": "federated",
            "seed": self.experiment.experiment.seed,
            "rounds": self.round,
            "ended_by": self._ended(),
            "accuracy": self.accuracy,
            "accuracy_recalibrated": recalibrated,
            "best_accuracy": self.best,
            **self.ledger.totals(),
            "late_share": self.ledger.late_share,
            "devices": len(self.job.parts),
            "workers": self.workers,
            "lut": lut.origin if isinstance(lut, Lut) else None,
        }


def evaluate_on(pool: Workers, params: Mapping[str, Tensor], *, recalibrate: bool) -> tuple[float, float]:
    """Return accuracy (evaluation A, or B if `recalibrate`) and mean loss, the batches spread over workers."""
    asked: dict[str, Scalar] = {"task": "evaluate", "workers": pool.count, "recalibrate": recalibrate}
    requests = [encode(Message(dict(params), {**asked, "worker": i})) for i in range(pool.count)]
    answers = [decode(answer).scalars for answer in pool.ask(requests)]
    count = sum(int(a["count"]) for a in answers)
    return sum(int(a["hits"]) for a in answers) / count, sum(float(a["loss"]) for a in answers) / count


def shards(work: Mapping[int, float], workers: int) -> list[list[int]]:
    """Spread devices over workers: the longest first, each to the worker with the least to do."""
    loads, found = np.zeros(workers), [[] for _ in range(workers)]  # type: tuple[Any, list[list[int]]]
    for device in sorted(work, key=lambda d: (-work[d], d)):
        least = int(loads.argmin())
        found[least].append(device)
        loads[least] += work[device]
    return found


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def saved_params(record: Run) -> dict[str, Tensor]:
    """Return the parameters of a record's last checkpoint.

    Raises:
        RecordError: There is none yet, or it is damaged.
    """
    latest = record.latest()
    return {} if latest is None else _named(latest.tensors, "params/")


__all__ = ["Progress", "Watch", "default_workers", "resume", "run", "saved_params", "shards"]
