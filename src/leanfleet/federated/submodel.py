"""Sub-models: the server chooses a part of the network for each device and averages over who holds what."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from leanfleet.averaging import HolderSum, Positions
from leanfleet.federated.method import Batches, Method, O, Params, Report
from leanfleet.federated.step import Step
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.subnet import Kept
from leanfleet.wire import Expected, Message, describe

_KEPT = "kept/"
VOTE = "vote"


Places = Mapping[str, Positions]


class SubModel(Method[O, HolderSum]):
    """One sub-model per device and round, fixed at its start; holders average every weight.

    This is per-weight averaging as in HeteroFL's public code. A subclass chooses the sub-model; everything else has a
    default.
    """

    @abstractmethod
    def choose(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Kept:
        """Return the channels that a device gets for a round."""

    def vote(self, report: Report) -> float:
        """Return how much a device counts in the averages of what it holds."""
        return 1.0

    def step(self, message: Message, batches: Batches) -> Step:
        """Return how the device takes its steps."""
        return Step(self.plan, self.setting.optimiser, float(message.scalars["lr"]))

    def scaled(self, kept: Kept, whole: Mapping[str, Tensor]) -> Kept:
        """Return kept sets whose scale is that of the Scaler in HeteroFL's and FedRolex's public code.

        It stands between a layer and its norm, which takes it out again: so only what no norm reads is scaled.

        Args:
            kept: What a device has.
            whole: What stands for the whole network.
        """
        sets = dict(kept)
        within = {name: sets[name] if name in self.plan.normed else whole[name] for name in sets}
        return self.plan.keep(sets, within)

    def budget(self, report: Report) -> float:
        """Return the forward MACs per sample that fit the round if the rate stays as it is."""
        return report.rate_macs_per_s * self.setting.round_seconds / (PHI * report.samples)

    def assign(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Message:
        """Return the sub-model for a device, and which channels it has."""
        kept = self.choose(params, report, round, rng)
        own = {name: params[name] for name in self.plan.parameters}
        ids = {_KEPT + name: positions.to(torch.int32) for name, positions in kept.items()}
        lr = self.setting.optimiser.lr_at(round)
        return Message({**self.plan.pack(own, kept), **ids}, {"lr": lr, VOTE: self.vote(report)})

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train the sub-model as it is, for the whole round."""
        kept, sent = self.opened(message)
        leaves = {name: leaf.clone() for name, leaf in sent.items()}
        step = self.step(message, batches)
        momenta = step.momenta(leaves)
        done = False
        for batch in batches:
            if not step.take(leaves, momenta, kept, batch, pacer):
                break
            done = True
        return Message(leaves, {}) if done else None

    def expects(self, assigned: Message) -> tuple[Expected, dict[str, type]]:
        """Return the sub-model's own names and shapes: the server remembers what it assigned."""
        return describe(self.opened(assigned)[1]), {}

    def empty(self, params: Params) -> HolderSum:
        """Return the running sum over no device."""
        return HolderSum.like(params)

    def accumulate(self, total: HolderSum, assigned: Message, update: Message) -> None:
        """Add the trained values at the places that were assigned."""
        values, places = self.places(assigned, update)
        total.add(values, places, float(assigned.scalars[VOTE]))

    def places(self, assigned: Message, update: Message) -> tuple[Params, Places]:
        """Return what of an update is averaged, and where it lies."""
        kept, _ = self.opened(assigned)
        return update.tensors, self.plan.positions(kept)

    def finish(self, params: Params, total: HolderSum) -> dict[str, Tensor]:
        """Return the mean over holders, weight by weight."""
        return total.mean(params)

    def opened(self, message: Message) -> tuple[Kept, dict[str, Tensor]]:
        """Return the channels of an assigned sub-model, and its parameters."""
        ids = {n.removeprefix(_KEPT): t.long() for n, t in message.tensors.items() if n.startswith(_KEPT)}
        sub = {name: tensor for name, tensor in message.tensors.items() if not name.startswith(_KEPT)}
        return self.plan.keep({name: positions.cpu() for name, positions in ids.items()}), sub
