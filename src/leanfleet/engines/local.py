"""The fleet on one machine: a virtual clock, devices spread over worker processes, a record on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from leanfleet.data import DataSet
from leanfleet.engines.center import Center, named
from leanfleet.engines.federated import FederatedCenter
from leanfleet.engines.job import FederatedJob, SplitJob, make_job
from leanfleet.engines.split import SplitCenter
from leanfleet.engines.staff import Staff
from leanfleet.experiment import Experiment, dumps, load, override
from leanfleet.ledger import Ledger
from leanfleet.runs import Checkpoint, Run
from leanfleet.subnet.lut import Lut
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
    with begin(job, root) as record:
        loop = Loop(record, job, workers or default_workers(), watch)
        with nullcontext(staff) if staff else Staff(device) as hands:
            loop.go(hands)
        return record


def begin(job: FederatedJob | SplitJob, root: Path) -> Run:
    """Begin the record of a run, with the table it uses.

    Raises:
        StorageError: The disk refused.
    """
    experiment = job.experiment
    record = Run.create(experiment.experiment.name, dumps(experiment), root)
    lut = getattr(job.method, "lut", None)
    if isinstance(lut, Lut):
        lut.save(record.folder / _LUT)
        # Only now: a record must never name a table that is not there.
        record.replace_experiment(dumps(override(experiment, [f"method.lut={_LUT}"])))
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
        loop = Loop(record, job, workers or before or default_workers(), watch)
        with nullcontext(staff) if staff else Staff(device) as hands:
            loop.go(hands, restored)
        return record


def default_workers() -> int:
    """Return one worker a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Loop:
    """The rounds of one run: what is the same for every family."""

    def __init__(
        self,
        record: Run,
        job: FederatedJob | SplitJob,
        workers: int,
        watch: Watch,
        center: Center | None = None,
    ) -> None:
        self.record, self.job, self.workers, self.watch = record, job, workers, watch
        self.experiment = job.experiment
        self.center = center or _center(job, workers)
        self.ledger = Ledger.empty(len(job.parts))
        self.round = 0
        self.accuracy: float | None = None
        self.best: float | None = None
        self._clock = time.monotonic()

    def go(self, staff: Staff, restored: Checkpoint | None = None) -> None:
        """Run all rounds that are left, evaluate, and finish the record."""
        self._show(0.0)
        pool = staff.for_job(self.job, self.workers)
        if restored is not None:
            self._restore(restored, pool)
            self._show(0.0)
        while not self._ended():
            self._play_round(pool)
        added = self.center.finish(pool)
        self._pass_wall_time()
        self.record.finish(self._summary() | added)

    def _restore(self, checkpoint: Checkpoint, pool: Workers) -> None:
        state = checkpoint.state
        self.round = checkpoint.round
        self.ledger = Ledger.from_state(state["ledger"], named(checkpoint.tensors, "ledger/"))
        self.accuracy, self.best = state["accuracy"], state["best_accuracy"]
        self.center.restore(checkpoint.tensors, state["center"], pool)

    def _ended(self) -> str | None:
        if self.round >= self.experiment.experiment.rounds:
            return "rounds"
        return self.experiment.budget.used_up(self.ledger)

    def _play_round(self, pool: Workers) -> None:
        told = self.center.play(pool, self.round, self.ledger, self._show)
        self.round += 1
        event: dict[str, Any] = {"round": self.round}
        every = self.experiment.experiment.eval_every
        if self.round % every == 0 or self._ended():
            found = self.center.evaluate(pool)
            self.accuracy = float(found["accuracy"])
            self.best = max(self.accuracy, self.best or 0.0)
            event |= found
        self._pass_wall_time()
        self.record.event(**event, **self.ledger.totals(), **told)
        self._checkpoint()
        self._show(0.0)

    def _checkpoint(self) -> None:
        tensors = self.center.tensors() | {f"ledger/{name}": t for name, t in self.ledger.tensors().items()}
        state = {
            "ledger": self.ledger.state(),
            "accuracy": self.accuracy,
            "best_accuracy": self.best,
            "workers": self.workers,
            "center": self.center.state(),
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

    def _summary(self) -> dict[str, Any]:
        return {
            "method": self.experiment.method.name,
            "family": self.experiment.method.family,
            "seed": self.experiment.experiment.seed,
            "rounds": self.round,
            "ended_by": self._ended(),
            "accuracy": self.accuracy,
            "best_accuracy": self.best,
            **self.ledger.totals(),
            "devices": len(self.job.parts),
            "workers": self.workers,
        }


def _center(job: FederatedJob | SplitJob, workers: int) -> Center:
    return FederatedCenter(job, workers) if isinstance(job, FederatedJob) else SplitCenter(job, workers)


def saved_params(record: Run) -> dict[str, Tensor]:
    """Return the parameters of a record's last checkpoint.

    Raises:
        RecordError: There is none yet, or it is damaged.
    """
    latest = record.latest()
    return {} if latest is None else named(latest.tensors, "params/")


__all__ = ["Progress", "Watch", "default_workers", "resume", "run", "saved_params"]
