"""The fleet on one machine: a virtual clock, devices spread over worker processes, a record on disk."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from leanfleet.data import DataSet
from leanfleet.engines.center import Center, named
from leanfleet.engines.federated import FederatedCenter
from leanfleet.engines.gossip import GossipCenter
from leanfleet.engines.job import AnyJob, FederatedJob, GossipJob, SplitJob, make_job
from leanfleet.engines.loop import Loop, Progress, Watch, say_notes
from leanfleet.engines.split import SplitCenter
from leanfleet.engines.staff import Staff
from leanfleet.experiment import Experiment, dumps, load, override
from leanfleet.runs import Run
from leanfleet.subnet.lut import Lut

_LUT = "lut.safetensors"


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
    with nullcontext(staff) if staff else Staff(device) as hands, begin(job, root) as record:
        count = workers or default_workers()
        say_notes(job)
        loop = Loop(record, job, _center(job, count, hands.device), count, watch, hands.device)
        loop.go(hands.for_job(job, count))
        return record


def begin(job: AnyJob, root: Path) -> Run:
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
    device: str | None = None,
    watch: Watch = lambda progress: None,
    staff: Staff | None = None,
) -> Run:
    """Go on with a run from its last checkpoint; a finished one is returned as it is.

    Args:
        folder: The record.
        data: The data set the run was started with, where it is not one that a file can name.
        workers: As many as before if None, so that the result is the same bit for bit.
        device: Where torch computes; where it did before if None.
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
        before = restored.state if restored else {}
        count = workers or before.get("workers") or default_workers()
        with nullcontext(staff) if staff else Staff(device or before.get("device", "cpu")) as hands:
            say_notes(job)
            loop = Loop(record, job, _center(job, count, hands.device), count, watch, hands.device)
            loop.go(hands.for_job(job, count), restored)
        return record


def default_workers() -> int:
    """Return one worker a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _center(job: AnyJob, workers: int, device: str) -> Center:
    match job:
        case FederatedJob():
            return FederatedCenter(job, workers)
        case SplitJob():
            return SplitCenter(job, workers, device)
        case GossipJob():
            return GossipCenter(job, workers)


def saved_params(record: Run) -> dict[str, Tensor]:
    """Return the parameters of a record's last checkpoint.

    Raises:
        RecordError: There is none yet, or it is damaged.
    """
    latest = record.latest()
    return {} if latest is None else named(latest.tensors, "params/")


__all__ = ["Progress", "Watch", "default_workers", "resume", "run", "saved_params"]
