"""FjORD (Horvath et al. 2021): ordered dropout, the width of every mini-batch drawn among those a device can afford."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from leanfleet.federated.levels import LEVEL, Levels
from leanfleet.federated.method import Batches, Params, Report, Setting
from leanfleet.federated.step import Batch, Local
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.options import Options
from leanfleet.subnet import Kept
from leanfleet.wire import Message


class FjordOptions(Options):
    """FjORD's keys in `[method]`.

    Attributes:
        widths: Shares of the channels that a sub-model may have.
        distil: A mini-batch that draws less than the widest also trains the widest, on the labels, and itself on what
            the widest says (self-distillation). This costs both their MACs, so a device affords less width.
    """

    widths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.2, 0.4, 0.6, 0.8, 1.0), min_length=1)
    distil: bool = False

    @field_validator("widths")
    @classmethod
    def _distinct(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(widths)) < len(widths):
            raise ValueError("should differ from one another")
        return widths


class Fjord(Levels[FjordOptions]):
    """A device gets the widest sub-model that fits its rate at the start of the round, and trains random prefixes.

    Widths vary from mini-batch to mini-batch as in DISTREAL, but by chance, not by what the device can do. Averages
    are over holders, by samples. Norms use the statistics of each mini-batch, so that every width has its own.
    """

    name = "fjord"
    Options = FjordOptions

    def __init__(self, setting: Setting, options: FjordOptions) -> None:
        super().__init__(setting, options, sorted(options.widths, reverse=True))

    def level(self, report: Report) -> int:
        """Return the widest level that fits, the narrowest if none does; 0 is the widest."""
        budget = self.budget(report) * (1 + 1e-9)
        fitting = [level for level in range(len(self.levels)) if self._dearest(level) <= budget]
        return min(fitting, default=len(self.levels) - 1)

    def vote(self, report: Report) -> float:
        """Return the device's samples."""
        return float(report.samples)

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train every mini-batch at a width drawn uniformly among those up to the device's own."""
        widest = int(message.scalars[LEVEL])
        kept, sent = self.opened(message)
        some = next(iter(sent.values()))
        whole = {
            name: torch.zeros(shape, dtype=some.dtype, device=some.device)
            for name, shape in self.plan.parameters.items()
        }
        self.plan.unpack_(whole, sent, kept)
        local = Local(self.step(message, batches), whole)
        done = False
        for batch in batches:
            level = int(torch.randint(widest, len(self.levels), (), generator=rng))
            if self.options.distil and level > widest:
                in_time = self._distil(local, level, widest, batch, pacer)
            else:
                in_time = local.train(self.levels[level], batch, pacer)
            if not in_time:
                break
            done = True
        return Message(self.plan.pack(local.params, kept), {}) if done else None

    def work(self, report: Report) -> float:
        """Return the mean training MACs of the widths up to the device's own, over all samples."""
        return PHI * self._mean(self.level(report)) * report.samples

    def _dearest(self, level: int) -> float:
        """Return what a level must fit: its own MACs, or with two widths a mini-batch what they cost on average."""
        return self._mean(level) if self.options.distil else self.macs[level]

    def _mean(self, level: int) -> float:
        """Return the expected forward MACs per sample of a device with this level."""
        drawn = self.macs[level:]
        taught = self.macs[level] * (len(drawn) - 1) if self.options.distil else 0
        return (sum(drawn) + taught) / len(drawn)

    @property
    def most_macs(self) -> float:
        """See `Method.most_macs`; with self-distillation the widest level is trained beside another."""
        return (
            self.macs[0] + self.macs[1] if self.options.distil and len(self.macs) > 1 else super().most_macs
        )

    def _distil(self, local: Local, level: int, widest: int, batch: Batch, pacer: Pacer) -> bool:
        """Take one step on the gradients of both widths together."""
        step, (x, y) = local.step, batch
        wide, narrow = self.levels[widest], self.levels[level]
        tracked = [step.tracked(self.plan.pack(local.params, kept)) for kept in (wide, narrow)]
        taught = self.plan.run(tracked[0], wide, x, scale=False)
        learnt = self.plan.run(tracked[1], narrow, x, scale=False)
        grads = step.gradients(F.cross_entropy(taught, y), tracked[0])
        more = step.gradients(F.cross_entropy(learnt, taught.detach().softmax(1)), tracked[1])
        macs = self.macs[widest] + self.macs[level]
        if not pacer.spend(float(PHI * macs * len(y)), len(y), wide):
            return False
        both = self._together(local.params, grads, more, wide, narrow)
        local.descend_(wide, both)
        return True

    def _together(
        self, params: Params, wide_grads: Params, narrow_grads: Params, wide: Kept, narrow: Kept
    ) -> dict[str, Tensor]:
        """Return the sum of both gradients, packed as the wider one is."""
        whole = {name: torch.zeros_like(params[name]) for name in wide_grads}
        self.plan.unpack_(whole, wide_grads, wide)
        inner = self.plan.pack(whole, narrow)
        total = {name: inner[name] + narrow_grads.get(name, 0.0) for name in inner}
        self.plan.unpack_(whole, total, narrow)
        return self.plan.pack(whole, wide)
