"""DISTREAL: every device fits every mini-batch to what it can compute at that moment.

Rapp, Khalili, Pfeiffer, Henkel: "DISTREAL: Distributed Resource-Aware Learning in Heterogeneous Systems",
AAAI 2022, arXiv 2112.08761.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from leanfleet.averaging import WeightedSum
from leanfleet.errors import WireError
from leanfleet.federated.method import Batches, DeltaMethod, Params, Report, Setting, change
from leanfleet.federated.step import Local, Step
from leanfleet.fleet import Pacer
from leanfleet.options import Options
from leanfleet.subnet import Kept
from leanfleet.subnet.cycle import Cycle
from leanfleet.subnet.lut import Lut
from leanfleet.wire import Expected, Message

_ACTIVE = "active/"

# Each weight's MACs are added up in float32 on the device.
_FLOAT32 = 1e-4


class DistrealOptions(Options):
    """DISTREAL's keys in `[method]`; what is not the default is there to be compared.

    Attributes:
        lut: File with the table D, or "uniform" for one rate for all layers. Without either, the table that comes with
            the package for such a network; the uniform one if there is none.
        drop: "fixed" keeps aligned counts (our decision); "bernoulli" draws every filter by itself (the paper).
        scale: Inverted-dropout scaling (our decision; the paper does not mention it).
        weight: Weigh an update by MACs times samples (our decision), or by MACs a mini-batch (the paper).
        masks: "independent" filters for every mini-batch (the paper), or "cycled" without replacement in a round.
        average: "device" weighs a whole update by the device's MACs (the paper); "coverage" each weight by the MACs
            of the steps in which it was active, which the device sends along: twice the uplink.
        react: Choose the vector before every "batch" (the paper), or once a "round", by the rate at its start.
        mu: Strength of a proximal term as in FedProx.
    """

    lut: Path | Literal["uniform"] | None = None
    drop: Literal["fixed", "bernoulli"] = "fixed"
    scale: bool = True
    weight: Literal["samples", "batches"] = "samples"
    masks: Literal["independent", "cycled"] = "independent"
    average: Literal["device", "coverage"] = "device"
    react: Literal["batch", "round"] = "batch"
    mu: float = Field(0.0, ge=0)


class Distreal(DeltaMethod[DistrealOptions]):
    """Algorithm 1 on the device, Algorithm 2 on the server."""

    name = "distreal"
    Options = DistrealOptions
    partial = True

    def __init__(self, setting: Setting, options: DistrealOptions) -> None:
        super().__init__(setting, options)
        self.lut = self._table(options.lut)

    def _table(self, asked: Path | str | None) -> Lut:
        found = Lut.load(asked) if isinstance(asked, Path) else None
        if found is not None:
            found.check(self.plan, str(asked))
        elif asked is None:
            found = Lut.shipped(self.plan.fingerprint)
        if found is None:
            return Lut.uniform(self.plan)
        # The classifier's share of the cost is this network's: a table holds for any number of classes.
        return Lut.costed(self.plan, found.rows, found.origin, found.about)

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Run Algorithm 1; the change of all parameters, and c_i, the forward MACs invested, as its weight."""
        options = self.options
        lr = float(message.scalars["lr"])
        step = Step(self.plan, self.setting.optimiser, lr, scale=options.scale, mu=options.mu)
        local = Local(step, message.tensors)
        draw = self._masks(rng)
        active = {_ACTIVE + name: torch.zeros_like(p) for name, p in self._covered(message.tensors).items()}
        invested, budget = 0.0, None
        for x, y in batches:
            samples = len(y)
            now = pacer.budget(samples, self.lut.cheapest.macs)
            if now is None:
                break
            budget = now if budget is None or options.react == "batch" else budget
            # Counts are rounded at random: a draw that comes out too dear to end in time gives way (our decision).
            for d in (self.lut.pick(budget), self.lut.cheapest)[: None if options.react == "batch" else 1]:
                kept = draw(d.rates)
                if pacer.fits(self.plan.macs_of(kept), samples):
                    break
            if not local.train(kept, (x, y), pacer):
                break
            macs = d.macs * (samples if options.weight == "samples" else 1)
            invested += macs
            self._cover_(active, kept, macs)
        if invested == 0.0:
            return None
        return Message({**change(local.params, message.tensors), **active}, {"weight": invested})

    def expects(self, assigned: Message) -> tuple[Expected, dict[str, type]]:
        """Return the form of a change of all parameters, with each weight's MACs if these are sent."""
        tensors, scalars = super().expects(assigned)
        covered = {_ACTIVE + name: form for name, form in tensors.items() if self._by_coverage}
        return {**tensors, **covered}, scalars

    def most_weight(self, report: Report) -> float:
        """Return the whole network's forward MACs over all of the device's samples."""
        return self.plan.macs(self.plan.uniform(0.0)) * report.samples

    def check(self, report: Report, update: Message) -> None:
        """Check the claimed MACs, of the update and of each weight."""
        super().check(report, update)
        most = float(update.scalars["weight"]) * (1 + _FLOAT32)
        for name, tensor in update.tensors.items():
            if name.startswith(_ACTIVE) and not 0.0 <= float(tensor.min()) <= float(tensor.max()) <= most:
                raise WireError(f"{name}: claims less than no MACs, or more than all of the update's")

    def accumulate(self, total: WeightedSum, assigned: Message, update: Message) -> None:
        """Add c_i * dtheta_i and c_i, or a_ij * dtheta_ij and a_ij for every weight j."""
        if not self._by_coverage:
            super().accumulate(total, assigned, update)
            return
        active = {name: t.double() for name, t in update.tensors.items() if name.startswith(_ACTIVE)}
        changes = {name: update.tensors[name] * active[_ACTIVE + name] for name in self.plan.parameters}
        total.add({**changes, **active}, 1.0)

    def finish(self, params: Params, total: WeightedSum) -> dict[str, Tensor]:
        """Return theta plus the weighted mean; what nobody has trained stays."""
        mean = total.mean()
        if not self._by_coverage or mean is None:
            return super().finish(params, total)
        active = {name: mean[_ACTIVE + name] for name in params}
        shifts = {name: torch.where(active[name] > 0, mean[name] / active[name], 0.0) for name in params}
        return {name: (p.double() + shifts[name]).to(p.dtype) for name, p in params.items()}

    @property
    def _by_coverage(self) -> bool:
        return self.options.average == "coverage"

    def _covered(self, params: Params) -> Params:
        return params if self._by_coverage else {}

    def _cover_(self, active: dict[str, Tensor], kept: Kept, macs: float) -> None:
        """Add a step's MACs to every weight that it trained."""
        named = {name.removeprefix(_ACTIVE): t for name, t in active.items()}
        # A part that is kept whole shares memory with its tensor, hence no addition in place.
        self.plan.unpack_(named, {n: t + macs for n, t in self.plan.pack(named, kept).items()}, kept)

    def _masks(self, rng: torch.Generator) -> Callable[[Sequence[float]], Kept]:
        bernoulli = self.options.drop == "bernoulli"
        if self.options.masks == "cycled":
            return partial(Cycle(self.plan, rng).draw, bernoulli=bernoulli)
        return partial(self.plan.draw, generator=rng, bernoulli=bernoulli)
