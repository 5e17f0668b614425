"""DISTREAL: every device fits every mini-batch to what it can compute at that moment.

Rapp, Khalili, Pfeiffer, Henkel: "DISTREAL: Distributed Resource-Aware Learning in Heterogeneous Systems",
AAAI 2022, arXiv 2112.08761.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from leanfleet.federated.method import Batches, DeltaMethod, Options, Report, Setting, change
from leanfleet.federated.step import Local
from leanfleet.fleet import Pacer
from leanfleet.subnet.lut import Lut
from leanfleet.wire import Message


class DistrealOptions(Options):
    """DISTREAL's keys in `[method]`.

    Attributes:
        lut: File with the table D; without one, one rate for all layers.
        drop: "fixed" keeps aligned counts (our decision); "bernoulli" draws every filter by itself (the paper).
        scale: Inverted-dropout scaling (our decision; the paper does not mention it).
        weight: Weigh an update by MACs times samples (our decision), or by MACs a mini-batch (the paper).
    """

    lut: Path | None = None
    drop: Literal["fixed", "bernoulli"] = "fixed"
    scale: bool = True
    weight: Literal["samples", "batches"] = "samples"


class Distreal(DeltaMethod[DistrealOptions]):
    """Algorithm 1 on the device, Algorithm 2 on the server."""

    name = "distreal"
    Options = DistrealOptions
    partial = True

    def __init__(self, setting: Setting, options: DistrealOptions) -> None:
        super().__init__(setting, options)
        if options.lut is None:
            self.lut = Lut.uniform(self.plan)
        else:
            found = Lut.load(options.lut)
            found.check(self.plan, str(options.lut))
            # The classifier's share of the cost is this network's: a table holds for any number of classes.
            self.lut = Lut.of(self.plan, [row.rates for row in found.rows], found.origin)

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Run Algorithm 1; the change of all parameters, and c_i, the forward MACs invested, as its weight."""
        local = Local(self.plan, message.tensors, self.setting.optimiser, float(message.scalars["lr"]))
        bernoulli = self.options.drop == "bernoulli"
        invested = 0.0
        for x, y in batches:
            samples = len(y)
            budget = pacer.budget(samples, self.lut.cheapest.macs)
            if budget is None:
                break
            # Counts are rounded at random: a draw that comes out too dear to end in time gives way (our decision).
            for d in (self.lut.pick(budget), self.lut.cheapest):
                kept = self.plan.draw(d.rates, rng, bernoulli=bernoulli)
                if pacer.fits(self.plan.macs_of(kept), samples):
                    break
            if not local.step(kept, (x, y), pacer, scale=self.options.scale):
                break
            invested += d.macs * (samples if self.options.weight == "samples" else 1)
        if invested == 0.0:
            return None
        return Message(change(local.params, message.tensors), {"weight": invested})

    def most_weight(self, report: Report) -> float:
        """Return the whole network's forward MACs over all of the device's samples."""
        return self.plan.macs(self.plan.uniform(0.0)) * report.samples
