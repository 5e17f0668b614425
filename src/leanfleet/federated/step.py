"""One local step on packed leaves, shared by all methods: forward, backward, the clock, SGD."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.sgd import sgd

from leanfleet.federated.method import Optimiser, Params
from leanfleet.fleet import Pacer
from leanfleet.ledger import PHI
from leanfleet.subnet import Kept, SubnetPlan


class Local:
    """A device's copy of parameters, with fresh momentum, for one round."""

    def __init__(self, plan: SubnetPlan, params: Params, optimiser: Optimiser, lr: float) -> None:
        self._plan, self._optimiser, self._lr = plan, optimiser, lr
        self.params = {name: p.clone() for name, p in params.items()}
        self._momenta = (
            {name: torch.zeros_like(p) for name, p in params.items()} if optimiser.momentum else {}
        )

    def step(self, kept: Kept, batch: tuple[Tensor, Tensor], pacer: Pacer, *, scale: bool) -> bool:
        """Train the kept part on one mini-batch (Algorithm 1, the loop's body).

        Leaves are gathered outside autograd, so dropped entries of parameters and momentum stay bit for bit.

        Args:
            kept: What this mini-batch trains.
            batch: Inputs [N, ...] and labels [N].
            pacer: Is told what the step costs, and tells whether it ended in time.
            scale: Inverted-dropout scaling.

        Returns:
            False if the step was late; then nothing has changed.
        """
        leaves = self._plan.pack(self.params, kept)
        momenta = self._plan.pack(self._momenta, kept)
        if not train_leaves(
            self._plan, leaves, momenta, kept, batch, pacer, self._optimiser, self._lr, scale
        ):
            return False
        self._plan.unpack_(self.params, leaves, kept)
        self._plan.unpack_(self._momenta, momenta, kept)
        return True


def train_leaves(
    plan: SubnetPlan,
    leaves: dict[str, Tensor],
    momenta: dict[str, Tensor],
    kept: Kept,
    batch: tuple[Tensor, Tensor],
    pacer: Pacer,
    optimiser: Optimiser,
    lr: float,
    scale: bool,
) -> bool:
    """Take one SGD step on packed leaves in place, unless it is late.

    Args:
        plan: The network.
        leaves: Packed parameters.
        momenta: Packed momentum of the same names; empty without momentum.
        kept: The kept sets of the leaves.
        batch: Inputs and labels.
        pacer: Is told what the step costs, and tells whether it ended in time.
        optimiser: Momentum, weight decay, clipping.
        lr: Learning rate.
        scale: Inverted-dropout scaling.
    """
    x, y = batch
    tracked = {name: leaf.detach().requires_grad_(name not in plan.frozen) for name, leaf in leaves.items()}
    trained = [name for name in leaves if name not in plan.frozen]
    loss = F.cross_entropy(plan.run(tracked, kept, x, scale=scale), y)
    found = torch.autograd.grad(loss, [tracked[name] for name in trained], allow_unused=True)
    if not pacer.spend(float(PHI * plan.macs_of(kept) * len(y)), len(y)):
        return False
    pairs = zip(trained, found, strict=True)
    grads = {name: g for name, g in pairs if g is not None}
    if optimiser.clip_norm is not None:
        _clip_(list(grads.values()), optimiser.clip_norm)
    with torch.no_grad():
        sgd(
            [leaves[name] for name in grads],
            list(grads.values()),
            [momenta.get(name) for name in grads],
            foreach=True,
            weight_decay=optimiser.weight_decay,
            momentum=optimiser.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
    return True


def _clip_(grads: list[Tensor], largest: float) -> None:
    total = torch.nn.utils.get_total_norm(grads)
    factor = (largest / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, factor)
