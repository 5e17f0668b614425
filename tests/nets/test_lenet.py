from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.nets import NETWORKS, build
from leanfleet.nets.lenet import response_norm
from leanfleet.nets.response_norm import ResponseNorm
from leanfleet.subnet import SubnetPlan

# Layer by layer: shape of the output, forward MACs, parameters; of the last layer, per class.
LAYERS = (
    ((20, 16, 16), 1_536_000, 1_520),
    ((50, 8, 8), 6_400_000, 25_050),
    ((800,), 2_560_000, 2_560_800),
    ((500,), 400_000, 400_500),
    ((), 500, 501),
)


def lenet(classes: int = 10) -> nn.Sequential:
    net = build("lenet", classes=classes)
    assert isinstance(net, nn.Sequential)
    return net


def macs(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as flops:
        net(x)
    return flops.get_total_flops() // (2 * len(x))


@pytest.mark.parametrize("classes", [5, 10])
def test_table_layer_by_layer(classes: int) -> None:
    net = lenet(classes)
    assert len(net) == len(LAYERS)
    x = torch.randn(2, 3, 32, 32)
    for layer, (shape, cost, count) in zip(net, LAYERS, strict=True):
        times = 1 if shape else classes
        assert macs(layer, x) == cost * times
        assert sum(p.numel() for p in layer.parameters()) == count * times
        x = layer(x)
        assert x.shape == (2, *(shape or (classes,)))
    assert sum(p.numel() for p in net.parameters()) == {5: 2_990_375, 10: 2_992_880}[classes]


def test_order_inside_a_convolutional_layer() -> None:
    kinds = [nn.Conv2d, nn.ReLU, ResponseNorm, nn.MaxPool2d]
    net = lenet()
    assert [type(part) for part in net[0]] == [type(part) for part in net[1]] == kinds


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_any_first_layers_and_the_others_make_the_network_and_what_passes_is_not_negative(
    layers: int,
) -> None:
    net = lenet()
    x = torch.randn(2, 3, 32, 32)
    passing = net[:layers](x)
    assert (passing >= 0).all()
    assert torch.equal(net[layers:](passing), net(x))


def test_response_norm_of_one_pixel() -> None:
    x = torch.arange(100.0, 700.0, 100.0).view(1, 6, 1, 1)
    expected = torch.tensor([52.0419, 60.8306, 56.1815, 50.0000, 44.8710, 58.2944])
    torch.testing.assert_close(response_norm()(x).flatten(), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", ["lenet", "lenet-small"])
def test_narrow_runs_cut_only_what_no_response_norm_mixes(name: str) -> None:
    net = build(name).double()
    plan = SubnetPlan.trace(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64), NETWORKS[name].keep)
    assert [group.name for group in plan.groups] == ["layer3.linear", "layer4.linear"]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert plan.macs_of(plan.full) == macs(net, x)
    kept = plan.draw((0.5, 0.5), torch.Generator())
    third, fourth = (
        torch.zeros(group.channels, dtype=torch.float64).index_fill(0, kept[group.name], 2.0)
        for group in plan.groups
    )
    expected = net[4](net[3](net[:3](x) * third) * fourth)
    out = plan.run(plan.pack(dict(net.named_parameters()), kept), kept, x)
    torch.testing.assert_close(out, expected)
