"""HeteroFL (Diao et al. 2021): a few widths, each the first channels of every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.federated.levels import LEVEL, Levels
from leanfleet.federated.method import Batches, Params, Report, Setting
from leanfleet.federated.step import Step
from leanfleet.federated.submodel import Places
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.options import Options
from leanfleet.subnet import Kept
from leanfleet.wire import Expected, Message

_LABELS = "heterofl/labels"
_WIDEST = "widest"


class HeteroFLOptions(Options):
    """HeteroFL's keys in `[method]`.

    Attributes:
        s: Shrinkage ratio: the width of a level over that of the level before.
        levels: How many levels there are.
        fit: "strict" gives a device the widest level within its rate at the start of the round (our decision: Rapp
            et al. 2022 are silent); "nearest" the nearest in MACs, with the deadline waived: a favourable bound.
        mask_labels: Classes that a device does not have are masked in its loss, and their rows of the classifier are
            not averaged, as the original does for non-IID data. The server then learns who has which classes.
    """

    s: float = Field(0.7, gt=0, lt=1)
    levels: int = Field(3, ge=1, le=20)
    fit: Literal["strict", "nearest"] = "strict"
    mask_labels: bool = False


class HeteroFL(Levels[HeteroFLOptions]):
    """Level p has the first ceil(C s^(p-1)) channels of every layer with C channels; holders average every weight.

    In training only, what no norm reads is scaled by C/n, relative to the widest level that has been held, as in the
    public code.
    """

    name = "heterofl"
    Options = HeteroFLOptions

    def __init__(self, setting: Setting, options: HeteroFLOptions) -> None:
        super().__init__(setting, options, [options.s**level for level in range(options.levels)])
        self.deadline = options.fit == "strict"

    def level(self, report: Report) -> int:
        """Return the level for a device, 0 the widest."""
        budget = self.budget(report)
        if self.options.fit == "nearest":
            return min(range(len(self.macs)), key=lambda level: abs(self.macs[level] - budget))
        fitting = [level for level, macs in enumerate(self.macs) if macs <= budget * (1 + 1e-9)]
        return fitting[0] if fitting else len(self.macs) - 1

    def assign(self, params: Params, report: Report, round: int, rng: torch.Generator) -> Message:
        """Return the level's parameters, its number, and the widest that has been held: its own in the first round."""
        assigned = super().assign(params, report, round, rng)
        widest = self.widest(params)
        widest = self.level(report) if widest is None else widest
        return Message(assigned.tensors, {**assigned.scalars, _WIDEST: float(widest)})

    def opened(self, message: Message) -> tuple[Kept, dict[str, Tensor]]:
        """Return the level, scaled against the widest, and its parameters."""
        kept, sub = super().opened(message)
        level, widest = (int(message.scalars[name]) for name in (LEVEL, _WIDEST))
        return self.scaled(kept, self.levels[min(level, widest)]), sub

    def step(self, message: Message, batches: Batches) -> Step:
        """Return scaled steps, on the classes that the device has if the options say so."""
        step = replace(super().step(message, batches), scale=True)
        if not self.options.mask_labels:
            return step
        return replace(step, loss=masked_loss(torch.unique(batches.labels)))

    def train(self, message: Message, batches: Batches, pacer: Pacer, rng: torch.Generator) -> Message | None:
        """Train the level for the whole round."""
        update = super().train(message, batches, pacer, rng)
        if update is None or not self.options.mask_labels:
            return update
        present = torch.zeros(self._classes, dtype=torch.uint8)
        present[torch.unique(batches.labels)] = 1
        return Message({**update.tensors, _LABELS: present}, update.scalars)

    def expects(self, assigned: Message) -> tuple[Expected, dict[str, type]]:
        """Return the level's own names and shapes, and the classes if they are masked."""
        tensors, scalars = super().expects(assigned)
        if self.options.mask_labels:
            tensors = {**tensors, _LABELS: (torch.uint8, torch.Size([self._classes]))}
        return tensors, scalars

    def check(self, report: Report, update: Message) -> None:
        """Check that the classes are flags."""
        super().check(report, update)
        if _LABELS in update.tensors and bool((update.tensors[_LABELS] > 1).any()):
            raise WireError(f"{_LABELS}: should be 0 or 1")

    def places(self, assigned: Message, update: Message) -> tuple[Params, Places]:
        """Return the trained values and their places, without the rows of classes that the device has not."""
        values, places = super().places(assigned, update)
        if _LABELS not in values:
            return values, places
        values, places = dict(values), dict(places)
        rows = values.pop(_LABELS).nonzero().squeeze(1)
        for name in self._classifier:
            values[name] = values[name].index_select(0, rows)
            places[name] = (rows, *places[name][1:])
        return values, places

    def work(self, report: Report) -> float:
        """Return the training MACs of the level over all samples."""
        return float(PHI * self.macs[self.level(report)] * report.samples)

    @property
    def _classifier(self) -> list[str]:
        layer = self.plan.terms[-1].layer
        return [name for name in self.plan.parameters if name.rpartition(".")[0] == layer]

    @property
    def _classes(self) -> int:
        return self.plan.parameters[self._classifier[0]][0]


def masked_loss(present: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the cross entropy in which the logits of absent classes are 0 (HeteroFL's public code)."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        absent = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        absent[present.to(logits.device)] = False
        return F.cross_entropy(logits.masked_fill(absent, 0.0), labels)

    return loss
