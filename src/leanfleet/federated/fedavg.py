"""FedAvg (McMahan et al. 2017): the whole network on every device; with full resources, the upper bound."""

from __future__ import annotations

import torch

from leanfleet.federated.method import Batches, DeltaMethod, O, Report, change
from leanfleet.federated.step import Local, Step
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.wire import Message


class WholeNetwork(DeltaMethod[O]):
    """Devices train their whole network on all their mini-batches; updates weigh by samples."""

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train all mini-batches; stop at the first that is late."""
        local = Local(self.step(message), message.tensors)
        done = 0
        for batch in batches:
            if not local.train(self.plan.full, batch, pacer):
                break
            done += len(batch[1])
        return Message(change(local.params, message.tensors), {"weight": float(done)}) if done else None

    def step(self, message: Message) -> Step:
        """Return how the device takes its steps."""
        return Step(self.plan, self.setting.optimiser, float(message.scalars["lr"]))

    def most_weight(self, report: Report) -> float:
        """Return the device's samples."""
        return float(report.samples)

    def work(self, report: Report) -> float:
        """Return the whole network's training MACs over all samples."""
        return float(PHI * self.plan.macs_of(self.plan.full) * report.samples)


class FedAvg(WholeNetwork[O]):
    """Everyone trains the whole network in time (Rapp et al. 2022, baseline 1): a bound, not a competitor."""

    name = "fedavg"
    resources = "full"
