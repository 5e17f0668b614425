"""Local training: the gradient at the de-biased model, and SGD's step from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from leanfleet.gossip.layout import Layout
from leanfleet.randomness import key, seed_global

Loss = Callable[[Tensor, Tensor], Tensor]
"""(what the network says [N, ...], labels [N]) -> a scalar."""

WEIGHT_FLOOR: Final = 0.5
"""Below this push-sum weight local steps are scaled down, where mass may be on its way (our decision)."""


@dataclass(frozen=True)
class Sgd:
    """Local SGD, dense; defaults are those of the author's later trainer (Aketi et al. 2021).

    Attributes:
        lr: Learning rate of step 0.
        momentum: Of the local gradients.
        nesterov: Whether the step looks ahead along the momentum.
        weight_decay: L2 penalty. It is part of the loss, so its gradient is taken at the de-biased model, too.
        milestones: Steps from which on the learning rate is multiplied by `gamma` once more.
        gamma: See `milestones`.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.lr * self.gamma ** sum(step >= m for m in self.milestones)

    def direction(self, gradient: Tensor, momentum: Tensor) -> Tensor:
        """Return what lr times is subtracted, and let the momentum follow.

        Args:
            gradient: With weight decay [d].
            momentum: Changed in place [d].
        """
        momentum.mul_(self.momentum).add_(gradient)
        return gradient.add(momentum, alpha=self.momentum) if self.nesterov else momentum

    def quasi_global(self, gradient: Tensor, momentum: Tensor) -> Tensor:
        """Return what lr times is subtracted by quasi-global momentum (Lin et al. 2021, arXiv 2102.04761).

        Args:
            gradient: With weight decay [d].
            momentum: Of the moves of whole steps, mixing included; it follows after mixing [d].
        """
        return gradient + self.momentum * (self.momentum * momentum + gradient)


@dataclass(frozen=True, eq=False)
class Training:
    """What all nodes have in common: one network, used with the parameters of each in turn.

    Attributes:
        net: The network, in training mode.
        loss: What is minimised.
        sgd: How.
        seed: Of the run.
    """

    net: nn.Module
    loss: Loss = F.cross_entropy
    sgd: Sgd = Sgd()
    seed: int = 0

    @cached_property
    def layout(self) -> Layout:
        """Where every parameter stands in a node's vector."""
        return Layout.of(self.net)

    @cached_property
    def used(self) -> nn.Module:
        """The network as it is used."""
        return copy.deepcopy(self.net).eval()

    def start(self) -> Tensor:
        """Return the parameters at the start, a new vector [d]."""
        return self.layout.flat(dict(self.net.named_parameters()))

    def others(self) -> dict[str, Tensor]:
        """Return what of the network's state is not exchanged: statistics, and parameters that are not trained."""
        frozen = ((name, p) for name, p in self.net.named_parameters() if not p.requires_grad)
        return {name: t.detach().clone() for name, t in (*self.net.named_buffers(), *frozen)}

    def gradient(
        self,
        z: Tensor,
        others: dict[str, Tensor],
        batch: tuple[Tensor, Tensor],
        stream: tuple[int | str, ...],
    ) -> tuple[float, Tensor]:
        """Return loss and gradient of one mini-batch.

        Args:
            z: The parameters [d].
            others: As `others` returns them; statistics follow the batch, in place.
            batch: Inputs [N, ...] and labels [N].
            stream: Names the random stream of dropout.

        Returns:
            The loss, and its gradient with weight decay [d].
        """
        leaves = {name: view.detach().requires_grad_() for name, view in self.layout.views(z).items()}
        with torch.random.fork_rng(devices=[]):
            seed_global(key(*stream), z.device)
            loss = self.loss(functional_call(self.net, {**leaves, **others}, (batch[0],)), batch[1])
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradient = self.layout.flat(dict(zip(leaves, found, strict=True)))
        return float(loss.detach()), gradient.add_(z, alpha=self.sgd.weight_decay)

    def logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return what the network says when it is used.

        Args:
            params: Parameters and statistics of a node, as `Node.model` returns them.
            x: [N, ...].
        """
        with torch.no_grad():
            found: Tensor = functional_call(self.used, dict(params), (x,))
        return found
