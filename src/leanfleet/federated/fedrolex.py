"""FedRolex (Alam et al. 2022): a window of channels that rolls over every layer, round by round."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from leanfleet.federated.federated_dropout import fitting_counts
from leanfleet.federated.method import Batches, Params, Report
from leanfleet.federated.step import Step
from leanfleet.federated.submodel import SubModel
from leanfleet.options import Options
from leanfleet.subnet import Kept
from leanfleet.wire import Message


class FedRolexOptions(Options):
    """FedRolex' keys in `[method]`.

    Attributes:
        scale: Scale what no norm reads by C/n in training, as the public code does by default.
    """

    scale: bool = True


class FedRolex(SubModel[FedRolexOptions]):
    """Sub-models as wide as Federated Dropout's, but of neighbouring channels, from channel `round mod C` on.

    So all channels are trained equally often over the rounds (the paper's rolling extraction). Capacities follow the
    device's rate at the start of the round (our decision: the original has fixed classes of devices).
    """

    name = "fedrolex"
    Options = FedRolexOptions

    def choose(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Kept:
        """Return the round's window, as wide as fits the device's rate at the start of the round."""
        return self.plan.windows(fitting_counts(self.plan, self.budget(report)), start=round)

    def opened(self, message: Message) -> tuple[Kept, dict[str, Tensor]]:
        """Return the window, with its scale, and its parameters."""
        kept, sub = super().opened(message)
        return self.scaled(kept, self.plan.full), sub

    def step(self, message: Message, batches: Batches) -> Step:
        """Return steps that are scaled if the options say so."""
        return replace(super().step(message, batches), scale=self.options.scale)
