"""The device's half of a Flower app: it measures itself, trains what it is sent, answers before its deadline.

Flower may start a process for every message, so all that must last is in the node's state.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from leanfleet.data import load
from leanfleet.engines.devices import make_pacer, take_part
from leanfleet.engines.flower.here import Here, answering
from leanfleet.engines.flower.messages import Registration, Result, Task, payload_of
from leanfleet.engines.hardware.measuring import MeasuredClock, MeasuredPacer, Profile, calibrate
from leanfleet.engines.hardware.memory import fit_memory
from leanfleet.engines.job import FederatedJob, Parts, federated_job
from leanfleet.experiment import Experiment, FederatedFleet
from leanfleet.fleet import Pacer, VirtualClock

log = logging.getLogger("leanfleet.device")


def app(experiment: Experiment) -> ClientApp:
    """Return the ClientApp of an experiment.

    A node's configuration says which device it is (`partition-id`), where its own data are if it does not take a share
    of the experiment's (`data`), and what its owner allows (`cpu-share`, `memory-mb`, `only-charging`).
    """
    return answering(lambda context: _Node.of(experiment, context))


@dataclass(frozen=True)
class _Node:
    """A device in the middle of one message."""

    here: Here
    job: FederatedJob
    own: bool

    @classmethod
    def of(cls, experiment: Experiment, context: Context) -> _Node:
        here = Here.of(context)
        return cls(here, _job(experiment, here), "data" in context.node_config)

    def profile(self) -> Profile:
        """Return what was measured before, or measure now."""
        caps = self.here.caps
        return self.here.profile(lambda: calibrate(self.job, caps.room(), caps.duty))

    def rate(self) -> float:
        """Return the training MAC/s of the whole network; 0 where it cannot be measured now."""
        if self.here.caps.paused() and not self.here.measured:
            return 0.0
        try:
            return self.profile().whole_rate
        except MemoryError as error:
            log.warning("device %d: %s", self.here.device, error)
            return 0.0

    def registration(self) -> Registration:
        """See `Answering`."""
        here, job = self.here, self.job
        rate = job.means(here.device).rate(0.0) if here.virtual else self.rate()
        return Registration(here.device, self.own, job.samples(here.device), rate, here.age())

    def answer(self, content: RecordDict) -> tuple[Result, bytes]:
        """See `Answering`."""
        task, down = Task.read(content), payload_of(content)
        return self._train_virtually(task, down) if self.here.virtual else self._train(task, down)

    def _train(self, task: Task, down: bytes) -> tuple[Result, bytes]:
        here = self.here
        end = task.seconds if self.job.method.deadline else math.inf
        if not here.may_train(end):
            return Result(0.0, 0.0, True, end, self.rate(), b"", here.age(), "no time left"), b""
        try:
            job, profile = fit_memory(self.job, self.profile(), down, here.caps.room())
        except MemoryError as error:
            log.warning("device %d sits the round out: %s", here.device, error)
            return Result(0.0, 0.0, True, 0.0, 0.0, b"", here.age(), str(error)), b""
        clock = MeasuredClock(profile, here.caps, here.arrived)
        samples = job.samples(here.device)
        pacer = make_pacer(job, clock, 0.0, task.seconds, samples, MeasuredPacer)
        up = take_part(job, here.device, task.round, down, pacer)
        here.keep(clock.profile)
        spent = pacer.macs, pacer.available_macs, pacer.late, pacer.finished_at
        return Result(*spent, clock.profile.whole_rate, _counts(pacer), here.age(), "done"), up

    def _train_virtually(self, task: Task, down: bytes) -> tuple[Result, bytes]:
        device = self.here.device
        clock = VirtualClock(self.job.means(device), task.start)
        rate = clock.rate()
        pacer = make_pacer(self.job, clock, task.start, task.seconds, self.job.samples(device))
        up = take_part(self.job, device, task.round, down, pacer)
        spent = pacer.macs, pacer.available_macs, pacer.late, pacer.finished_at
        return Result(*spent, rate, _counts(pacer), self.here.age(), "done"), up


def _counts(pacer: Pacer) -> bytes:
    return np.array([len(ids) for ids in pacer.kept.values()], "<u2").tobytes()


def _job(experiment: Experiment, here: Here) -> FederatedJob:
    config = here.context.node_config
    if "data" not in config:
        job = federated_job(experiment)
        here.check_is_one_of(len(job.parts))
        return job
    at = experiment.data
    data = load(str(config["data"]), image=at.image, label=at.label, seed=experiment.experiment.seed)
    fleet = experiment.fleet
    assert isinstance(fleet, FederatedFleet)
    # Where writers are devices, only their data would tell how many there are.
    count = max(fleet.devices or fleet.per_round, here.device + 1)
    mine = torch.arange(len(data.train))
    parts = Parts.of([mine if number == here.device else mine[:0] for number in range(count)])
    return federated_job(experiment, data, parts)
