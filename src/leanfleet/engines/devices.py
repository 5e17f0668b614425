"""The devices of the federated family: what a worker process does with its share of a round."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfleet.data import Batches, eval_batches
from leanfleet.engines.job import FederatedJob
from leanfleet.errors import LeanfleetError, WireError
from leanfleet.federated import Method, Report
from leanfleet.fleet import Clock, Pacer, VirtualClock
from leanfleet.randomness import key, seed_global, torch_generator
from leanfleet.wire import Message, decode, encode
from leanfleet.workers import Tick

_CPU = torch.device("cpu")

RECALIBRATION_SAMPLES = 2048
"""Training images whose statistics evaluation B and exported models carry."""


@dataclass(frozen=True)
class Outcome:
    """What one device's round came to.

    Attributes:
        device: Number of the device.
        macs: Training MACs it spent.
        available_macs: Training MACs it could have spent.
        bytes_down: Bytes it received.
        bytes_up: Bytes it sent; 0 if it had nothing to send in time.
        late: Whether work remained undone at the deadline.
        finished_at: Virtual time at which it was done.
        rejected: Why its update was left out, or "".
    """

    device: int
    macs: float
    available_macs: float
    bytes_down: int
    bytes_up: int
    late: bool
    finished_at: float
    rejected: str = ""


class Devices:
    """The fleet's devices, as one worker simulates them."""

    def __init__(self, job: FederatedJob, device: str = "cpu") -> None:
        self.job, self.device = job, torch.device(device)

    def handle(self, asked: Message, tick: Tick) -> Message:
        """Answer a round or an evaluation."""
        s = asked.scalars
        if s["task"] == "round":
            turns = {int(device): turn for device, turn in json.loads(str(s["turns"])).items()}
            return self.round(asked.tensors, int(s["round"]), float(s["start"]), turns, tick)
        shift = int(s["worker"]), int(s["workers"])
        return self.evaluate(asked.tensors, shift, bool(s["recalibrate"]))

    def round(
        self, params: Mapping[str, Tensor], number: int, start: float, turns: Mapping[int, int], tick: Tick
    ) -> Message:
        """Let some devices take part in a round, each with its turn; their running sum and outcomes."""
        method = self.job.method
        params = {name: p.to(self.device) for name, p in params.items()}
        total = method.empty(params)
        outcomes = []
        for device, turn in turns.items():
            outcomes.append(asdict(self._take_part(total, params, number, start, device, turn)))
            tick()
        return Message(total.tensors(), {"outcomes": json.dumps(outcomes)})

    def _take_part(
        self, total: Any, params: Mapping[str, Tensor], number: int, start: float, device: int, turn: int
    ) -> Outcome:
        job, method, fleet = self.job, self.job.method, self.job.fleet
        stream = (job.experiment.experiment.seed, number, device)
        clock = VirtualClock(job.means(device), start)
        report = Report(job.samples(device), clock.rate(), turn)
        assigned = method.assign(params, report, number, torch_generator(*stream, "assign"))
        down = encode(assigned)
        pacer = make_pacer(job, clock, start, fleet.round_seconds, report.samples)
        up = take_part(job, device, number, down, pacer, self.device)
        rejected = add_update(method, total, assigned, report, up, self.device) if up else ""
        return Outcome(
            device,
            pacer.macs,
            pacer.available_macs,
            len(down),
            len(up),
            pacer.late,
            pacer.finished_at,
            rejected,
        )

    def evaluate(self, params: Mapping[str, Tensor], shift: tuple[int, int], recalibrate: bool) -> Message:
        """Count hits on this worker's test batches, with the whole network.

        Evaluation A takes each batch's own statistics; B those of training images, averaged and frozen
        (our decision; A is what later code of DISTREAL's authors does).
        """
        job, method = self.job, self.job.method
        params = {name: p.to(self.device) for name, p in method.deployed(params).items()}
        net = recalibrated(job, params, self.device) if recalibrate else None
        hits = count = 0
        loss = 0.0
        batches = eval_batches(
            job.data.test, mean=job.data.mean, std=job.data.std, seed=0, device=self.device
        )[shift[0] :: shift[1]]
        with torch.no_grad():
            for x, y in batches:
                logits = method.logits(params, x) if net is None else net(x)
                hits += int((logits.argmax(1) == y).sum())
                loss += float(F.cross_entropy(logits, y, reduction="sum"))
                count += len(y)
        if not math.isfinite(loss):
            raise LeanfleetError(
                "the whole network's loss on test data is not finite: training has diverged; "
                "lower [training] lr or set clip_norm"
            )
        return Message({}, {"hits": hits, "count": count, "loss": loss})


def make_pacer(
    job: FederatedJob,
    clock: Clock,
    start: float,
    seconds: float,
    samples: int,
    kind: Callable[..., Pacer] = Pacer,
) -> Pacer:
    """Return what paces a device through a round of so many seconds, as the experiment has it."""
    return kind(
        clock,
        round_start=start,
        round_seconds=seconds,
        samples=samples,
        margin=job.fleet.margin,
        rule=job.fleet.rule,
        deadline=job.method.deadline,
    )


def take_part(
    job: FederatedJob, device: int, round: int, down: bytes, pacer: Pacer, on: torch.device = _CPU
) -> bytes:
    """Train for a round on a device, wherever that is.

    Args:
        job: The run.
        device: Number of the device.
        round: The round, from 0.
        down: What the server assigned, as encoded.
        pacer: Knows the device's clock and deadline.
        on: Where torch computes.

    Returns:
        What the device sends, as encoded; empty if it has nothing to send in time.
    """
    stream = (job.experiment.experiment.seed, round, device)
    # Networks with dropout of their own draw from the global stream.
    seed_global(key(*stream, "torch"), on)
    batches, rng = _batches(job, device, stream, on), torch_generator(*stream, "masks")
    update = job.method.train(_moved(decode(down), on), batches, pacer, rng)
    lost = pacer.late and not (job.method.partial and job.fleet.late == "partial")
    return b"" if update is None or lost else encode(update)


def add_update(
    method: Method[Any, Any],
    total: Any,
    assigned: Message,
    report: Report,
    up: bytes,
    on: torch.device = _CPU,
) -> str:
    """Validate what a device sent before it is added to a running sum; return why it was left out, or ""."""
    try:
        update = decode(up, *method.expects(assigned))
        method.check(report, update)
    except WireError as error:
        return str(error)
    method.accumulate(total, assigned, _moved(update, on))
    return ""


def _moved(message: Message, on: torch.device) -> Message:
    return Message({name: t.to(on) for name, t in message.tensors.items()}, message.scalars)


def _batches(job: FederatedJob, device: int, stream: tuple[int, int, int], on: torch.device) -> Batches:
    return Batches(
        split=job.data.train,
        indices=job.parts[device],
        batch_size=job.training.batch_size,
        epochs=job.training.epochs,
        mean=job.data.mean,
        std=job.data.std,
        generator=torch_generator(*stream, "batches"),
        augment=job.experiment.data.augment,
        device=on,
    )


def recalibrated(job: FederatedJob, params: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """Return the network for inference, with batch-norm statistics of training images (evaluation B).

    Args:
        job: What was trained.
        params: As `Method.deployed` returns them.
        device: Where torch computes.
    """
    net = copy.deepcopy(job.net).to(device)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(params[name])
    for norm in net.modules():
        if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
            # They were trained on each image's own statistics, and running ones never changed.
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.running_mean is None:
            # Made without running averages; a network in use needs them all the same.
            norm.track_running_stats = True
            norm.running_mean = torch.zeros(norm.num_features, device=device)
            norm.running_var = torch.ones(norm.num_features, device=device)
            norm.num_batches_tracked = torch.tensor(0, device=device)
        norm.reset_running_stats()
        norm.momentum = None
    net.eval()
    if norms:
        for norm in norms:
            norm.train()
        samples = torch.randperm(len(job.data.train.labels), generator=torch_generator(0, "recalibration"))
        batches = eval_batches(
            job.data.train,
            mean=job.data.mean,
            std=job.data.std,
            seed=0,
            device=device,
            batch_size=256,
            indices=samples[:RECALIBRATION_SAMPLES],
        )
        with torch.no_grad():
            for x, _ in batches:
                net(x)
    return net.eval()
