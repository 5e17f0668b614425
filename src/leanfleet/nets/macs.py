"""What any network costs, counted as it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def forward_macs(net: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of convolutions and linear layers for one sample.

    Args:
        net: The network; it is not changed.
        example: [N, ...] inputs.
    """
    training = net.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net.eval()(example[:1])
    net.train(training)
    return counter.get_total_flops() // 2
