"""FedProx (Li et al. 2020): the whole network, fewer mini-batches where time is short, a proximal term."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from leanfleet.federated.fedavg import WholeNetwork
from leanfleet.federated.method import Report
from leanfleet.federated.step import Step
from leanfleet.options import Options
from leanfleet.wire import Message


class FedProxOptions(Options):
    """FedProx's keys in `[method]`.

    Attributes:
        mu: Strength of the proximal term; the paper tries 0.001, 0.01, 0.1 and 1. At 0 a device just does fewer
            full mini-batches with the MACs it has: the control for every method that trains narrower networks.
    """

    mu: float = Field(0.01, ge=0)


class FedProx(WholeNetwork[FedProxOptions]):
    """Every device trains the whole network until the deadline; what it has done by then counts, by samples.

    It begins every mini-batch, whatever its rate: nothing cheaper exists for it, and the rate may rise.
    """

    name = "fedprox"
    Options = FedProxOptions
    partial = True

    def step(self, message: Message) -> Step:
        """Return steps with the proximal term."""
        return replace(super().step(message), mu=self.options.mu)

    def work(self, report: Report) -> float:
        """Return the whole network's training MACs over all samples, or what the device can spend."""
        return min(super().work(report), report.rate_macs_per_s * self.setting.round_seconds)
