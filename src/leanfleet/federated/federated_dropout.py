"""Federated Dropout (Caldas et al. 2018) with a rate per device, as extended by Rapp et al. 2022."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from leanfleet.federated.method import Batches, Params, Report
from leanfleet.federated.step import Step
from leanfleet.federated.submodel import SubModel
from leanfleet.options import Options
from leanfleet.subnet import Kept, SubnetPlan
from leanfleet.wire import Message


class FederatedDropoutOptions(Options):
    """Federated Dropout's keys in `[method]`.

    Attributes:
        scale: Inverted-dropout scaling; off, as in the later code of DISTREAL's authors.
    """

    scale: bool = False


class FederatedDropout(SubModel[FederatedDropoutOptions]):
    """The server draws one sub-model per device and round, at random."""

    name = "federated-dropout"
    Options = FederatedDropoutOptions

    def choose(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Kept:
        """Return random channels that fit the device's rate at the start of the round."""
        return self.plan.draw_counts(fitting_counts(self.plan, self.budget(report)), rng)

    def step(self, message: Message, batches: Batches) -> Step:
        """Return plain steps, scaled if the options say so."""
        return replace(super().step(message, batches), scale=self.options.scale)


def fitting_counts(plan: SubnetPlan, macs: float) -> list[int]:
    """Return how many channels of every group one rate for all leaves within `macs`, forward per sample.

    The rate is the root of the network's own cost polynomial (our decision: the paper's 1 - sqrt(r) overshoots,
    which would make every device late).
    """
    share = 1.0 - plan.uniform_rate(macs)
    # An equal number in each cell, at least one; the last ulp of the root must not cost a channel.
    return [max(1, math.floor(share * g.channels / g.cells + 1e-9)) * g.cells for g in plan.groups]
