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
from leanfleet.errors import RecordError, UserError
from leanfleet.experiment import Experiment, dumps, load, override
from leanfleet.runs import Checkpoint, Run
from leanfleet.subnet.lut import Lut
from leanfleet.workers import check_main

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
    check_main()
    if not isinstance(experiment, Experiment):
        raise UserError(f"run: {experiment!r} is no experiment; load it first: leanfleet.load(FILE)")
    if data is not None:
        # The record must not name data that were not used.
        own = experiment.data.model_copy(update={"source": f"python:{data.name}"})
        experiment = replace(experiment, data=own)
    job = make_job(experiment, data)
    # Before there is a record: where nothing makes nodes agree this raises.
    say_notes(job)
    with nullcontext(staff) if staff else Staff(device) as hands, begin(job, root) as record:
        count = workers or default_workers()
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
        workers: As many as before if None, so that the result is the same bit for bit; one a core where no round is
            done yet.
        device: Where torch computes; where it did before if None, or on the CPU where no round is done yet.
        watch: Is told about progress.
        staff: Workers to share with other runs; then `device` is theirs.

    Raises:
        RecordError: The record is missing, damaged or in use.
    """
    with Run.open(folder) as record:
        if record.finished:
            return record
        restored, job = record.restore(), make_job(load(record.experiment_file), data)
        return _go_on(record, job, restored, workers, device, watch, staff)


def merge(
    folder: Path,
    *,
    rounds: int | None = None,
    data: DataSet | None = None,
    workers: int | None = None,
    device: str | None = None,
    watch: Watch = lambda progress: None,
) -> Run:
    """Let the nodes of a gossip run agree by dense exchanges without training, as SCSP does.

    They go on from the last checkpoint of training, whatever the method, finished or not, in a record of its own beside
    the run's: `NAME-merged`. It is that of the same run with `[method] final_rounds`.

    Args:
        folder: The run's record; it stays as it is.
        rounds: How many exchanges; as many as the graph needs if None.
        data: As for `resume`.
        workers: As many as before if None.
        device: Where torch computes; where it did before if None.
        watch: Is told about progress.

    Raises:
        RecordError: The record is missing or damaged, has no checkpoint yet, or none of nodes of one machine.
        ExperimentError: No number of exchanges makes the nodes agree.
    """
    source = Run.open(folder)
    experiment, latest = load(source.experiment_file), source.latest()
    if experiment.method.family != "gossip":
        raise RecordError(f"{folder}: {experiment.method.name} is no gossip method: it has no nodes to merge")
    if latest is not None and latest.state["closed"]:
        # What came after training may have been final rounds.
        latest = source.latest(at=latest.round - 1)
    if latest is None:
        raise RecordError(f"{folder}: has no checkpoint yet; go on with: leanfleet resume {folder}")
    if "ranks" in latest.state["center"]:
        raise RecordError(
            f"{folder}: was made by real processes, and each has its own node: nothing here to merge"
        )
    final = '"auto"' if rounds is None else rounds
    merged = override(experiment, [f"experiment.rounds={latest.round}", f"method.final_rounds={final}"])
    job = make_job(merged, data)
    assert isinstance(job, GossipJob)
    # Before there is a record: where nothing makes nodes agree this raises.
    job.method.final_rounds()
    with Run.create(f"{source.name}-merged", dumps(merged), folder.parent) as record:
        for event in source.events()[: latest.round]:
            record.event(**event)
        record.checkpoint(latest.round, latest.tensors, latest.state)
        return _go_on(record, job, latest, workers, device, watch, None)


def _go_on(
    record: Run,
    job: AnyJob,
    restored: Checkpoint | None,
    workers: int | None,
    device: str | None,
    watch: Watch,
    staff: Staff | None,
) -> Run:
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


__all__ = ["Progress", "Watch", "default_workers", "merge", "resume", "run", "saved_params"]
