"""The device's half of a Flower app: it measures itself, trains what it is sent, answers before its deadline.

Flower may start a process for every message, so all that must last is in the node's state.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from leanfleet.data import load
from leanfleet.engines.devices import make_pacer, take_part
from leanfleet.engines.flower.caps import Caps
from leanfleet.engines.flower.measuring import MeasuredClock, Profile, calibrate
from leanfleet.engines.flower.messages import REGISTER, Registration, Result, Task, payload_of
from leanfleet.engines.job import FederatedJob, Parts, federated_job
from leanfleet.errors import UserError
from leanfleet.experiment import Experiment
from leanfleet.fleet import VirtualClock
from leanfleet.workers import keep_kernels, keep_memory

_PROFILE = "leanfleet-profile"
_PROCESS = "flwr-clientapp"


def app(experiment: Experiment) -> ClientApp:
    """Return the ClientApp of an experiment.

    A node's configuration says which device it is (`partition-id`), where its own data are if it does not take a share
    of the experiment's (`data`), and what its owner allows (`cpu-share`, `memory-mb`, `only-charging`).
    """
    made = ClientApp()

    @made.query(REGISTER.partition(".")[2])
    def register(message: Message, context: Context) -> Message:
        node = _Node.of(experiment, context)
        rate = node.job.means(node.device).rate(0.0) if node.virtual else node.profile().whole_rate
        told = Registration(node.device, node.own, node.job.samples(node.device), rate, node.age())
        return Message(told.packed(), reply_to=message)

    @made.train()
    def train(message: Message, context: Context) -> Message:
        node = _Node.of(experiment, context)
        result, up = node.train(Task.read(message.content), payload_of(message.content))
        return Message(result.packed(up), reply_to=message)

    return made


@dataclass(frozen=True)
class _Node:
    """A device in the middle of one message."""

    context: Context
    job: FederatedJob
    device: int
    own: bool
    caps: Caps
    arrived: float

    @classmethod
    def of(cls, experiment: Experiment, context: Context) -> _Node:
        arrived = _arrival()
        config = context.node_config
        device = config.get("partition-id")
        if not isinstance(device, int) or device < 0:
            raise UserError("node configuration: say which device this is, such as partition-id=0")
        caps = Caps.of(config)
        caps.apply()
        keep_kernels()
        keep_memory()
        job = _job(experiment, device, config)
        return cls(context, job, device, "data" in config, caps, arrived)

    @property
    def virtual(self) -> bool:
        """Whether the device only pretends to be as slow as the experiment has it."""
        return self.context.run_config.get("clock") == "virtual"

    def age(self) -> float:
        """Return the seconds since the message arrived."""
        return time.monotonic() - self.arrived

    def profile(self) -> Profile:
        """Return what was measured before, or measure now."""
        if _PROFILE in self.context.state.config_records:
            return Profile(**self.context.state.config_records[_PROFILE])  # type: ignore[arg-type]
        found = calibrate(self.job)
        self._keep(found)
        return found

    def train(self, task: Task, down: bytes) -> tuple[Result, bytes]:
        if self.virtual:
            return self._train_virtually(task, down)
        clock = MeasuredClock(self.profile(), self.caps, self.arrived)
        end = task.seconds if self.job.method.deadline else math.inf
        while clock.rate() == 0.0 and clock.now() < end:
            clock.wait()
        if clock.now() >= end:
            return Result(0.0, 0.0, True, end, clock.profile.whole_rate, 0.0, self.age(), "no time left"), b""
        pacer = make_pacer(self.job, clock, 0.0, task.seconds, self.job.samples(self.device))
        up = take_part(self.job, self.device, task.round, down, pacer)
        self._keep(clock.profile)
        spent = pacer.macs, pacer.available_macs, pacer.late, pacer.finished_at
        return Result(*spent, clock.profile.whole_rate, clock.share, self.age(), "done"), up

    def _train_virtually(self, task: Task, down: bytes) -> tuple[Result, bytes]:
        clock = VirtualClock(self.job.means(self.device), task.start)
        rate = clock.rate()
        pacer = make_pacer(self.job, clock, task.start, task.seconds, self.job.samples(self.device))
        up = take_part(self.job, self.device, task.round, down, pacer)
        spent = pacer.macs, pacer.available_macs, pacer.late, pacer.finished_at
        return Result(*spent, rate, 0.0, self.age(), "done"), up

    def _keep(self, profile: Profile) -> None:
        self.context.state[_PROFILE] = ConfigRecord(profile.state())


def _arrival() -> float:
    """Return when this message arrived, as far as this process can know, in monotonic seconds.

    Of a process that Flower started for the message, that is its own start: importing torch takes its time too.
    """
    now = time.monotonic()
    if Path(sys.argv[0]).name != _PROCESS:
        return now
    import psutil

    return now - max(0.0, time.time() - float(psutil.Process().create_time()))


def _job(experiment: Experiment, device: int, config: Mapping[str, Any]) -> FederatedJob:
    if "data" not in config:
        job = federated_job(experiment)
        if device >= len(job.parts):
            raise UserError(f"node configuration: partition-id={device}: there are {len(job.parts)} devices")
        return job
    at = experiment.data
    data = load(str(config["data"]), image=at.image, label=at.label, seed=experiment.experiment.seed)
    count = max(experiment.fleet.devices or 0, device + 1)
    mine = torch.arange(len(data.train))
    parts = Parts.of([mine if number == device else mine[:0] for number in range(count)])
    return federated_job(experiment, data, parts)
