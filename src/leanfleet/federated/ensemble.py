"""An ensemble of small networks: as many as the whole network's MACs pay for (Cheng et al. 2022)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from leanfleet.averaging import HolderSum
from leanfleet.federated.method import Batches, Method, Params, Report
from leanfleet.federated.small import Small, SmallOptions
from leanfleet.federated.step import Local, Step
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.nets import vote
from leanfleet.wire import Expected, Message, describe

_MEMBER = "members."
_WEIGHT = "weight/"


class EnsembleOptions(SmallOptions):
    """The ensemble's keys in `[method]`.

    Attributes:
        count: How many networks; by default as many as the experiment's network costs MACs.
    """

    count: int | None = Field(None, ge=1, le=100)


class Ensemble(Method[EnsembleOptions, HolderSum]):
    """Independent small networks, FedAvg for each, mean softmax of all.

    A device gets as many members as its rate at the start of the round allows, at least one, in turn. It trains them
    side by side, mini-batch by mini-batch; what a late device has done counts, by samples (our decision).
    """

    name = "ensemble"
    Options = EnsembleOptions
    partial = True

    @classmethod
    def network(cls, reference: str, options: EnsembleOptions) -> str:
        """Return the small network that belongs to the experiment's.

        Raises:
            ExperimentError: None is known and none is named.
        """
        return Small.network(reference, options)

    @classmethod
    def members(cls, macs_reference: float, macs_own: float, options: EnsembleOptions) -> int:
        """Return M = floor(MACs(full) / MACs(small)), at least 1."""
        return options.count or max(1, int(macs_reference / macs_own))

    def logits(self, params: Params, x: Tensor) -> Tensor:
        """Return the logarithm of the members' mean softmax."""
        count = self.setting.members
        return vote([super(Ensemble, self).logits(_member(params, m, count), x) for m in range(count)])

    def assign(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Message:
        """Return the members whose turn it is."""
        count = self.setting.members
        chosen = [(report.turn + place) % count for place in range(self._affordable(report))]
        lr = self.setting.optimiser.lr_at(round)
        return Message({n: p for m in chosen for n, p in _named(params, m, count).items()}, {"lr": lr})

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train each member on every mini-batch; stop at the first step that cannot end in time."""
        step = Step(self.plan, self.setting.optimiser, float(message.scalars["lr"]))
        count, whole = self.setting.members, self.plan.full
        macs = self.plan.macs_of(whole)
        mine = [m for m in range(count) if _named(message.tensors, m, count)]
        locals_ = {m: Local(step, _member(message.tensors, m, count)) for m in mine}
        done = dict.fromkeys(locals_, 0.0)
        turns = ((batch, member) for batch in batches for member in locals_)
        for batch, member in turns:
            samples = len(batch[1])
            if pacer.budget(samples, macs) is None or not locals_[member].train(whole, batch, pacer):
                break
            done[member] += samples
        if not any(done.values()):
            return None
        tensors = {_prefix(m, count) + n: p for m, local in locals_.items() for n, p in local.params.items()}
        return Message(tensors, {f"{_WEIGHT}{m}": samples for m, samples in done.items()})

    def expects(self, assigned: Message) -> tuple[Expected, dict[str, type]]:
        """Return the assigned members' names and shapes, and a weight for each."""
        count = self.setting.members
        sent = [m for m in range(count) if _named(assigned.tensors, m, count)]
        return describe(assigned.tensors), {f"{_WEIGHT}{m}": float for m in sent}

    def most_weight(self, report: Report) -> float:
        """Return the device's samples."""
        return float(report.samples)

    def empty(self, params: Params) -> HolderSum:
        """Return the running sum over no device."""
        return HolderSum.like(params)

    def accumulate(self, total: HolderSum, assigned: Message, update: Message) -> None:
        """Add every trained member, by samples."""
        for name, weight in update.scalars.items():
            member = int(name.removeprefix(_WEIGHT))
            total.add(_named(update.tensors, member, self.setting.members), {}, float(weight))

    def finish(self, params: Params, total: HolderSum) -> dict[str, Tensor]:
        """Return each member's mean over the devices that trained it."""
        return total.mean(params)

    def work(self, report: Report) -> float:
        """Return the training MACs of the device's members over all samples, or what it can spend."""
        wanted = self._affordable(report) * PHI * self.plan.macs_of(self.plan.full) * report.samples
        return float(min(wanted, report.rate_macs_per_s * self.setting.round_seconds))

    def _affordable(self, report: Report) -> int:
        whole = PHI * self.plan.macs_of(self.plan.full) * report.samples
        fitting = report.rate_macs_per_s * self.setting.round_seconds / whole
        return min(max(1, int(fitting * (1 + 1e-9))), self.setting.members)


def _prefix(member: int, count: int) -> str:
    # A single network is not wrapped.
    return f"{_MEMBER}{member}." if count > 1 else ""


def _named(params: Params, member: int, count: int) -> dict[str, Tensor]:
    prefix = _prefix(member, count)
    return {name: p for name, p in params.items() if name.startswith(prefix)}


def _member(params: Params, member: int, count: int) -> dict[str, Tensor]:
    prefix = _prefix(member, count)
    return {name.removeprefix(prefix): p for name, p in _named(params, member, count).items()}
