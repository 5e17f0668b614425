"""What is measured: one training step of a network, on made-up data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanfleet.federated import Optimiser
from leanfleet.federated.step import Batch, Local, Step
from leanfleet.randomness import torch_generator
from leanfleet.subnet import SubnetPlan

_LR = 1e-6


@dataclass(frozen=True)
class Workload:
    """A training step, as far as its time and memory depend on it.

    Attributes:
        plan: The network.
        optimiser: Local training.
        shape: Of one input.
        classes: How many there are.
        batch_size: Samples of a mini-batch.
    """

    plan: SubnetPlan
    optimiser: Optimiser
    shape: Sequence[int]
    classes: int
    batch_size: int

    def local(self, device: str = "cpu") -> Local:
        """Return a device's copy of the network, at the start of a round."""
        rng = torch_generator("profile", "weights")
        params = {name: _weights(shape, rng, device) for name, shape in self.plan.parameters.items()}
        return Local(Step(self.plan, self.optimiser, _LR, scale=True), params)

    def batch(self, device: str = "cpu") -> Batch:
        """Return a mini-batch of noise."""
        x = torch.randn(self.batch_size, *self.shape, generator=torch_generator("profile", "images"))
        layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        labels = torch.arange(self.batch_size, device=device) % self.classes
        return x.to(device).contiguous(memory_format=layout), labels


def _weights(shape: torch.Size, rng: torch.Generator, device: str) -> Tensor:
    """Return weights that keep activations about as large as inputs; on `meta`, which holds no numbers, any."""
    if device == "meta":
        return torch.empty(shape, device=device)
    if len(shape) < 2:
        return torch.ones(shape, device=device)
    return torch.randn(shape, generator=rng).mul_(math.sqrt(2 / shape[1:].numel())).to(device)
