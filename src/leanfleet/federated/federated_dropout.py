"""Federated Dropout (Caldas et al. 2018) with a rate per device, as extended by Rapp et al. 2022."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leanfleet.averaging import HolderSum
from leanfleet.federated.method import Batches, Method, Options, Params, Report
from leanfleet.federated.step import train_leaves
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.subnet import Kept
from leanfleet.wire import Expected, Message, describe

_KEPT = "kept/"


class FederatedDropoutOptions(Options):
    """Federated Dropout's keys in `[method]`.

    Attributes:
        scale: Inverted-dropout scaling; off, as in the later code of DISTREAL's authors.
    """

    scale: bool = False


class FederatedDropout(Method[FederatedDropoutOptions, HolderSum]):
    """The server draws one sub-model per device and round, and averages each weight over its holders.

    The rate is the root of the network's own cost polynomial (our decision: the paper's 1 - sqrt(r) overshoots,
    which would make every device late), common to all layers.
    """

    name = "federated-dropout"
    Options = FederatedDropoutOptions

    def assign(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Message:
        """Return the sub-model that fits the device's rate at the start of the round, and which channels it has."""
        budget = report.rate_macs_per_s * self.setting.round_seconds / (PHI * report.samples)
        share = 1.0 - self.plan.uniform_rate(budget)
        # An equal number in each cell, at least one; the last ulp of the root must not cost a channel.
        counts = [max(1, math.floor(share * g.channels / g.cells + 1e-9)) * g.cells for g in self.plan.groups]
        kept = self.plan.draw_counts(counts, rng)
        ids = {_KEPT + name: positions.to(torch.int32) for name, positions in kept.items()}
        tensors = {**self.plan.pack(params, kept), **ids}
        return Message(tensors, {"lr": self.setting.optimiser.lr_at(round)})

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train the sub-model as it is, for the whole round."""
        kept, sent = self._open(message)
        leaves = {name: leaf.clone() for name, leaf in sent.items()}
        optimiser, lr = self.setting.optimiser, float(message.scalars["lr"])
        momenta = (
            {name: torch.zeros_like(leaf) for name, leaf in leaves.items()} if optimiser.momentum else {}
        )
        done = False
        for batch in batches:
            if not train_leaves(
                self.plan, leaves, momenta, kept, batch, pacer, optimiser, lr, self.options.scale
            ):
                break
            done = True
        return Message(leaves, {}) if done else None

    def expects(self, assigned: Message) -> tuple[Expected, dict[str, type]]:
        """Return the sub-model's own names and shapes: the server remembers what it assigned."""
        return describe(self._open(assigned)[1]), {}

    def empty(self, params: Params) -> HolderSum:
        """Return the running sum over no device."""
        return HolderSum.like(params)

    def accumulate(self, total: HolderSum, assigned: Message, update: Message) -> None:
        """Add the trained values at the places that were assigned, one vote a device."""
        kept, _ = self._open(assigned)
        total.add(update.tensors, self.plan.positions(kept))

    def finish(self, params: Params, total: HolderSum) -> dict[str, Tensor]:
        """Return the mean over holders, weight by weight."""
        return total.mean(params)

    def _open(self, message: Message) -> tuple[Kept, dict[str, Tensor]]:
        ids = {n.removeprefix(_KEPT): t.long() for n, t in message.tensors.items() if n.startswith(_KEPT)}
        sub = {name: tensor for name, tensor in message.tensors.items() if not name.startswith(_KEPT)}
        return self.plan.keep({name: positions.cpu() for name, positions in ids.items()}), sub
