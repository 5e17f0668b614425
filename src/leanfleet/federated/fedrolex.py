"""FedRolex (Alam et al. 2022): a window of channels that rolls over every layer, round by round."""

from __future__ import annotations

import torch

from leanfleet.federated.federated_dropout import fitting_counts
from leanfleet.federated.method import Options, Params, Report
from leanfleet.federated.submodel import SubModel
from leanfleet.subnet import Kept


class FedRolex(SubModel[Options]):
    """Sub-models as wide as Federated Dropout's, but of neighbouring channels, from channel `round mod C` on.

    So all channels are trained equally often over the rounds. Capacities follow the device's rate at the start of
    the round (our decision: the original has fixed classes of devices).
    """

    name = "fedrolex"

    def choose(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Kept:
        """Return the round's window, as wide as fits the device's rate at the start of the round."""
        return self.plan.windows(fitting_counts(self.plan, self.budget(report)), start=round)
