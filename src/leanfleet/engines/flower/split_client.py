"""The device's half of a Flower app for the split family: many mini-batches a message, for Flower polls.

Nothing comes back from the server, so a client may be any number of steps ahead of it. The steps are those of the
local engine (`Clients`). The client's half, head and moments stay in the node's state between messages, each of which
may be a cold process; a node that has lost them says so, and is sent what the server last saw.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass, field

import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from leanfleet.engines.center import as_tensor, named
from leanfleet.engines.clients import Clients
from leanfleet.engines.flower.here import Here, answering
from leanfleet.engines.flower.messages import (
    LOST,
    Registration,
    Stint,
    Worked,
    payload_of,
    put,
    take,
)
from leanfleet.engines.hardware.measuring import MeasuredClock, Profile
from leanfleet.engines.job import SplitJob, make_job
from leanfleet.errors import UserError
from leanfleet.experiment import Experiment
from leanfleet.randomness import torch_generator
from leanfleet.wire import Message as Wire
from leanfleet.wire import decode, encode

_STATE = "leanfleet-client"
_WARM_UP, _REPEATS = 2, 3


def app(experiment: Experiment) -> ClientApp:
    """Return the ClientApp of an experiment of the split family; a node is configured as for the others."""
    return answering(lambda context: _Node.of(experiment, context))


@dataclass
class _Sent:
    """What goes up after a stint."""

    ups: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    authors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Node:
    """A client in the middle of one message."""

    here: Here
    job: SplitJob
    clients: Clients

    @classmethod
    def of(cls, experiment: Experiment, context: Context) -> _Node:
        here = Here.of(context)
        if "data" in context.node_config:
            raise UserError(
                f"node configuration: data: with '{experiment.method.name}' a device trains its share of the "
                "experiment's data; take it out"
            )
        job = make_job(experiment)
        assert isinstance(job, SplitJob)
        here.check_is_one_of(job.devices)
        return cls(here, job, Clients(job))

    @property
    def device(self) -> int:
        """Which device of the experiment it is."""
        return self.here.device

    def rate(self) -> float:
        """Return the training MAC/s of a step, as pretended or as last measured."""
        if self.here.virtual:
            return self.job.means(self.device).rate(0.0)
        if self.here.caps.paused() and not self.here.measured:
            return 0.0
        return self._profile().whole_rate

    def _profile(self) -> Profile:
        return self.here.profile(lambda: calibrate(self.job, self.here.caps.duty))

    def registration(self) -> Registration:
        """See `Answering`."""
        return Registration(self.device, False, self.job.samples(self.device), self.rate(), self.here.age())

    def answer(self, content: RecordDict) -> tuple[Worked, bytes]:
        """Train for a stint, or as much of it as there is time for; see `Answering`."""
        stint, down = Stint.read(content), payload_of(content)
        data = down or take(self.here.context.state, _STATE)
        if not data and (stint.round or stint.first):
            return Worked(0, self.rate(), self.here.age(), LOST), b""
        if data:
            self._ask("restore", {f"{self.device}/{n}": t for n, t in decode(data).tensors.items()})
        sent = _Sent()
        self._train(stint, sent)
        kept = encode(Wire(named(self._ask("states").tensors, f"{self.device}/")))
        put(self.here.context.state, _STATE, kept)
        steps = len(sent.authors)
        state = "done" if steps == stint.last - stint.first else "no time left"
        up = self._up(sent, kept if stint.returns else b"")
        return Worked(steps, self.rate(), self.here.age(), state), up

    def _train(self, stint: Stint, sent: _Sent) -> None:
        method, batch = self.job.method, self.job.training.batch_size
        macs = float(method.client_macs(sends=stint.sends).training * batch)
        if self.here.virtual:
            for iteration in range(stint.first, stint.last):
                self._step(stint, iteration, sent)
            return
        end = stint.seconds or math.inf
        if not self.here.may_train(end):
            return
        clock = MeasuredClock(self._profile(), self.here.caps, self.here.arrived)
        for iteration in range(stint.first, stint.last):
            while clock.rate() == 0.0 and clock.now() < end:
                clock.wait()
            if clock.now() + clock.profile.seconds(macs) > end:
                break
            self._step(stint, iteration, sent)
            clock.spend(macs)
        self.here.keep(clock.profile)

    def _step(self, stint: Stint, iteration: int, sent: _Sent) -> None:
        sends = json.dumps([self.device] if stint.sends else [])
        answer = self._ask("step", round=stint.round, iteration=iteration, sends=sends)
        if stint.sends:
            # What is not fit to be sent is nothing, which the server turns down like anything else.
            sent.ups[str(iteration)] = answer.tensors.get(str(self.device), torch.empty(0, dtype=torch.uint8))
        sent.losses += json.loads(str(answer.scalars["losses"])).values()
        sent.authors.append(int(answer.scalars["authors"]))

    def _up(self, sent: _Sent, state: bytes) -> bytes:
        tensors = {
            **sent.ups,
            "losses": torch.tensor(sent.losses, dtype=torch.float64),
            "authors": torch.tensor(sent.authors, dtype=torch.int64),
            "state": as_tensor(state) if state else torch.empty(0, dtype=torch.uint8),
        }
        return encode(Wire(tensors))

    def _ask(self, task: str, tensors: dict[str, Tensor] | None = None, **scalars: int | str) -> Wire:
        asked = Wire(tensors or {}, {"task": task, "clients": json.dumps([self.device]), **scalars})
        return self.clients.handle(asked, lambda: None)


def calibrate(job: SplitJob, duty: float = 1.0) -> Profile:
    """Time steps of a client that is thrown away; a client's step has one size, so there is no line to fit.

    Args:
        job: What is trained.
        duty: Share of the time in which training may be busy; a calibration takes no rests.
    """
    method, training = job.method, job.training
    client, generator = method.client(), torch_generator("calibration")
    x = torch.randn(training.batch_size, *job.data.shape, generator=generator)
    y = torch.arange(len(x)) % len(job.data.classes)
    found = list[float]()
    with torch.random.fork_rng(devices=[]):
        for _ in range(_WARM_UP + _REPEATS):
            before = time.perf_counter()
            client.step(x, y, sends=True)
            found.append(time.perf_counter() - before)
    macs = float(method.client_macs(sends=True).training * len(x))
    return Profile([0.0, macs], [0.0, statistics.median(found[_WARM_UP:])], ratio=1 / duty)
