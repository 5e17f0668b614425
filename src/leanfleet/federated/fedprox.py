"""FedProx (Li et al. 2020): the whole network, fewer mini-batches where time is short, a proximal term."""

from __future__ import annotations

import torch
from pydantic import Field

from leanfleet.federated.fedavg import WholeNetwork
from leanfleet.federated.method import Batches, Options, Report, change
from leanfleet.federated.step import Local, Step
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.wire import Message


class FedProxOptions(Options):
    """FedProx's keys in `[method]`.

    Attributes:
        mu: Strength of the proximal term; the paper tries 0.001, 0.01, 0.1 and 1. At 0 a device just does fewer
            full mini-batches with the MACs it has: the control for every method that trains narrower networks.
    """

    mu: float = Field(0.01, ge=0)


class FedProx(WholeNetwork[FedProxOptions]):
    """Every device trains the whole network until the deadline; what it has done by then counts, by samples."""

    name = "fedprox"
    Options = FedProxOptions
    partial = True

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train mini-batches as long as the next can end in time."""
        lr = float(message.scalars["lr"])
        local = Local(Step(self.plan, self.setting.optimiser, lr, mu=self.options.mu), message.tensors)
        whole, done = self.plan.macs_of(self.plan.full), 0
        for batch in batches:
            if pacer.budget(len(batch[1]), whole) is None or not local.train(self.plan.full, batch, pacer):
                break
            done += len(batch[1])
        return Message(change(local.params, message.tensors), {"weight": float(done)}) if done else None

    def work(self, report: Report) -> float:
        """Return the whole network's training MACs over all samples, or what the device can spend."""
        whole = float(PHI * self.plan.macs_of(self.plan.full) * report.samples)
        return min(whole, report.rate_macs_per_s * self.setting.round_seconds)
