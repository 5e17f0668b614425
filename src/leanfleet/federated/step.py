"""One local step on packed leaves, shared by all methods: forward, backward, the clock, SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.sgd import sgd

from leanfleet.federated.method import Optimiser, Params
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.subnet import Kept, SubnetPlan

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """How every step of a round is taken.

    Attributes:
        plan: The network.
        optimiser: Momentum, weight decay, clipping.
        lr: Learning rate.
        scale: Inverted-dropout scaling.
        loss: Of logits [N, classes] and labels [N].
        mu: Strength of the proximal term, mu/2 * ||theta - theta_0||^2 (Li et al. 2020, FedProx).
    """

    plan: SubnetPlan
    optimiser: Optimiser
    lr: float
    scale: bool = False
    loss: Loss = F.cross_entropy
    mu: float = 0.0

    def take(
        self,
        leaves: dict[str, Tensor],
        momenta: dict[str, Tensor],
        kept: Kept,
        batch: Batch,
        pacer: Pacer,
        start: Params | None = None,
    ) -> bool:
        """Take one SGD step on packed leaves in place, unless it is late.

        Args:
            leaves: Packed parameters.
            momenta: Packed momentum of the same names; empty without momentum.
            kept: The kept sets of the leaves.
            batch: Inputs [N, ...] and labels [N].
            pacer: Is told what the step costs, and tells whether it ended in time.
            start: The packed parameters of the round's start; needed for the proximal term only.

        Returns:
            False if the step was late; then nothing has changed.
        """
        x, y = batch
        tracked = self.tracked(leaves)
        loss = self.loss(self.plan.run(tracked, kept, x, scale=self.scale), y)
        grads = self.gradients(loss, tracked)
        if not pacer.spend(float(PHI * self.plan.macs_of(kept) * len(y)), len(y), kept):
            return False
        if self.mu and start is not None:
            for name, grad in grads.items():
                grad.add_(leaves[name] - start[name], alpha=self.mu)
        self.descend_(leaves, grads, momenta)
        return True

    def tracked(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the leaves as autograd sees them."""
        return {name: t.detach().requires_grad_(name not in self.plan.frozen) for name, t in leaves.items()}

    def gradients(self, loss: Tensor, tracked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss's gradients by all leaves that it depends on."""
        wanted = [name for name in tracked if name not in self.plan.frozen]
        found = torch.autograd.grad(loss, [tracked[name] for name in wanted], allow_unused=True)
        return {name: grad for name, grad in zip(wanted, found, strict=True) if grad is not None}

    def descend_(
        self, leaves: Mapping[str, Tensor], grads: Mapping[str, Tensor], momenta: Mapping[str, Tensor]
    ) -> None:
        """Let SGD change leaves and momenta in place; the gradients may change too."""
        if self.optimiser.clip_norm is not None:
            _clip_(list(grads.values()), self.optimiser.clip_norm)
        with torch.no_grad():
            sgd(
                [leaves[name] for name in grads],
                list(grads.values()),
                [momenta.get(name) for name in grads],
                foreach=True,
                weight_decay=self.optimiser.weight_decay,
                momentum=self.optimiser.momentum,
                lr=self.lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )

    def momenta(self, params: Params) -> dict[str, Tensor]:
        """Return fresh momentum for parameters; nothing where there is none."""
        return {name: torch.zeros_like(p) for name, p in params.items()} if self.optimiser.momentum else {}


@dataclass
class Local:
    """A device's copy of parameters, with fresh momentum, for one round.

    Attributes:
        step: How steps are taken.
        start: The parameters at the start of the round.
        params: The parameters now.
    """

    step: Step
    start: Params
    params: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.params = {name: p.clone() for name, p in self.start.items()}
        self._momenta = self.step.momenta(self.start)

    def train(self, kept: Kept, batch: Batch, pacer: Pacer) -> bool:
        """Train the kept part on one mini-batch (Algorithm 1, the loop's body).

        Leaves are gathered outside autograd, so dropped entries of parameters and momentum stay bit for bit.

        Returns:
            False if the step was late; then nothing has changed.
        """
        plan = self.step.plan
        leaves, momenta = plan.pack(self.params, kept), plan.pack(self._momenta, kept)
        start = plan.pack(self.start, kept) if self.step.mu else None
        if not self.step.take(leaves, momenta, kept, batch, pacer, start):
            return False
        plan.unpack_(self.params, leaves, kept)
        plan.unpack_(self._momenta, momenta, kept)
        return True

    def descend(self, kept: Kept, batch: Batch) -> None:
        """Train the kept part on one mini-batch where no clock runs."""
        step, (x, y) = self.step, batch
        tracked = step.tracked(step.plan.pack(self.params, kept))
        loss = step.loss(step.plan.run(tracked, kept, x, scale=step.scale), y)
        self.descend_(kept, step.gradients(loss, tracked))

    def descend_(self, kept: Kept, grads: Mapping[str, Tensor]) -> None:
        """Let SGD change the kept part by gradients that are packed as it is."""
        plan = self.step.plan
        leaves, momenta = plan.pack(self.params, kept), plan.pack(self._momenta, kept)
        self.step.descend_(leaves, grads, momenta)
        plan.unpack_(self.params, leaves, kept)
        plan.unpack_(self._momenta, momenta, kept)


def _clip_(grads: list[Tensor], largest: float) -> None:
    total = torch.nn.utils.get_total_norm(grads)
    factor = (largest / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, factor)
