"""Well-known architectures against themselves: full width, with all parameters of dropped channels set to zero.

Where nothing normalises over several channels, a channel without parameters is zero wherever it goes, so the whole
network then computes what the narrow one computes without scaling. This oracle needs no knowledge of a network.
"""

from __future__ import annotations

import pytest
import torch
from masked import close, leaves_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from leanfleet.subnet import SubnetPlan


def made(name: str) -> tuple[nn.Module, SubnetPlan, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build, shape = ZOO[name]
        net, x = build().double(), torch.randn(4, *shape, dtype=torch.float64)
        for parameter in net.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.3)
    return net, SubnetPlan.trace(net, x), x


@pytest.mark.parametrize("name", ZOO)
def test_narrow_is_the_whole_network_with_zeros(name: str) -> None:
    net, plan, x = made(name)
    droppable = sum(group.channels for group in plan.groups)
    assert droppable >= 12
    for seed in range(3):
        kept = plan.draw(plan.uniform(0.45), torch.Generator().manual_seed(seed), bernoulli=seed == 2)
        leaves = leaves_of(plan, net, kept)
        out = plan.run(leaves, kept, x, scale=False)
        out.square().sum().backward()
        zeros = {key: torch.zeros_like(parameter) for key, parameter in net.named_parameters()}
        plan.unpack_(zeros, leaves, kept)
        full = {key: value.requires_grad_() for key, value in zeros.items()}
        whole = torch.func.functional_call(net.train(), full, (x,))
        whole.square().sum().backward()
        close(out, whole)
        gradients = plan.pack({key: value.grad for key, value in full.items()}, kept)
        for key, leaf in leaves.items():
            close(leaf.grad, gradients[key])


@pytest.mark.parametrize("name", ZOO)
def test_torch_counts_what_is_counted(name: str) -> None:
    net, plan, x = made(name)
    kept = plan.draw(plan.uniform(0.45), torch.Generator().manual_seed(1))
    leaves = {key: leaf.to("meta") for key, leaf in plan.pack(dict(net.named_parameters()), kept).items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plan.run(leaves, kept, x.to("meta"))
    assert counter.get_total_flops() / 2 / len(x) == plan.macs_of(kept)
