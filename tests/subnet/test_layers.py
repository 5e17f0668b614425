"""Layers with parameters: what is special to one of them. All of them at once: `test_plan.py`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from masked import Case, check_sliced_is_masked, close, trace
from odd_networks import CASES
from torch import Tensor, nn

from leanfleet.errors import TraceError
from leanfleet.subnet import SubnetPlan


def groups(net: nn.Module, *shape: int, keep: tuple[str, ...] = ()) -> dict[str, int]:
    plan = SubnetPlan.trace(net, torch.zeros(1, *shape), keep)
    return {group.name: group.channels for group in plan.groups}


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (("stem",), {"gate.down": 6, "point": 8}),
        (("depthwise",), {"gate.down": 6, "point": 8}),
        (("norm",), {"gate.down": 6, "point": 8}),
        (("gate",), {"point": 8}),
        (("gate.down", "twice"), {"stem": 16}),
        (("gate.down.weight",), {"stem": 16, "point": 8}),
    ],
)
def test_the_output_channels_of_kept_layers_are_never_dropped(
    keep: tuple[str, ...], left: dict[str, int]
) -> None:
    assert groups(CASES["separable"].build(), 3, 6, 6, keep=keep) == left


def test_one_kept_writer_keeps_the_stream() -> None:
    assert groups(CASES["residual"].build(), 3, 6, 6, keep=("project",)) == {
        "stem.0": 8,
        "a1.0": 16,
        "b1": 10,
    }


def test_a_kept_layer_may_share_its_weight() -> None:
    assert groups(CASES["called-twice"].build(), 3, 6, 6, keep=("sharing",)) == {}


def test_kept_layers_stay_whole_while_others_are_cut() -> None:
    case = CASES["separable"]
    net = case.build().double()
    plan = SubnetPlan.trace(net, torch.zeros(1, *case.shape, dtype=torch.float64), ("point",))
    kept = plan.draw(plan.uniform(0.5), torch.Generator())

    def reads(f) -> dict[str, Tensor]:
        return case.reads(lambda name: torch.ones(8) if name == "point" else f(name))

    check_sliced_is_masked(Case(case.build, case.shape, {}, reads), net, plan, kept)


def test_a_bare_parameter_follows_the_layer_it_meets_and_nothing_else() -> None:
    _, plan = trace(CASES["affine"])
    assert plan.groups[0].layers == ("conv", "gain", "shift")
    _, plan = trace(CASES["transformer"])
    assert [group.name for group in plan.groups] == ["widen"]


def test_a_parameter_held_by_the_network_itself_is_advised_and_kept_by_name() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.a, self.b = nn.Parameter(torch.ones(6)), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.gain * self.a(x)).cumsum(1))

    with pytest.raises(TraceError, match=r"keep=\['gain'\]|keep=\['a'\]|keep=\['a', 'gain'\]"):
        groups(Scaled(), 4)
    assert groups(Scaled(), 4, keep=("gain",)) == groups(Scaled(), 4, keep=("a",)) == {}


def test_frozen_and_unused_parameters_do_no_harm() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    net[0].weight.requires_grad_(False)
    net.register_module("spare", None)
    net.spare = nn.ParameterList([torch.zeros(3)])
    net.forward = lambda x: net[2](net[1](net[0](x)))
    plan = SubnetPlan.trace(nn.Sequential(net[0], net[1], net[2]), torch.zeros(1, 3, dtype=torch.float64))
    kept = plan.draw((0.5,), torch.Generator())
    leaves = plan.pack(dict(net.named_parameters()), kept)
    assert leaves["spare.0"].shape == (3,)
    assert plan.run(leaves, kept, torch.zeros(1, 3, dtype=torch.float64)).shape == (1, 2)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of an image, as many write it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def test_the_function_of_a_layer_norm_is_the_module() -> None:
    parts = nn.Conv2d(3, 8, 1), LayerNorm2d(8), nn.GELU(), nn.Conv2d(8, 2, 1)
    case = Case(lambda: nn.Sequential(*parts), (3, 4, 4), {}, lambda f: {"3": f("0")}, lambda f: {})
    net, plan = trace(case)
    kept = plan.draw((0.5,), torch.Generator())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    factors = torch.zeros(8, dtype=torch.float64)
    factors[kept["0"]] = 8 / len(kept["0"])
    seen = net[0](x)[:, kept["0"]].permute(0, 2, 3, 1)
    normed = F.layer_norm(
        seen, (len(kept["0"]),), net[1].weight[kept["0"]], net[1].bias[kept["0"]], net[1].eps
    )
    wide = torch.zeros(2, 4, 4, 8, dtype=torch.float64)
    wide[..., kept["0"]] = F.gelu(normed)
    expected = net[3]((wide * factors).permute(0, 3, 1, 2))
    close(plan.run(plan.pack(dict(net.named_parameters()), kept), kept, x), expected)


def test_a_layer_norm_of_whole_and_of_cut_values_keeps_its_parameters_whole() -> None:
    """The norm sees the image itself too, so that its input from the layer cannot be cut either."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.norm(self.a(torch.relu(self.norm(x))))))

    with pytest.raises(TraceError, match=r"needs the whole of parameter 'norm.weight'.*keep=\['a'\]"):
        groups(Twice(), 6)
    assert groups(Twice(), 6, keep=("a",)) == {}


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"])
def test_padding_of_a_convolution(mode: str, padding: object) -> None:
    parts = nn.Conv2d(2, 6, 3, padding=padding, padding_mode=mode), nn.Conv2d(6, 2, 1, dilation=2, stride=2)
    case = Case(lambda: nn.Sequential(*parts), (2, 5, 6), {}, lambda f: {"1": f("0")})
    net, plan = trace(case)
    check_sliced_is_masked(case, net, plan, plan.draw((0.5,), torch.Generator()))


def test_three_dimensions() -> None:
    parts = (
        nn.Conv3d(1, 6, 2), nn.BatchNorm3d(6), nn.ReLU(), nn.ConvTranspose3d(6, 4, 2), nn.AvgPool3d(2),
        nn.Flatten(), nn.Linear(4 * 2 * 2 * 2, 3),
    )  # fmt: skip
    case = Case(
        lambda: nn.Sequential(*parts), (1, 4, 4, 4), {},
        lambda f: {"3": f("0"), "6": f("3").repeat_interleave(8)},
    )  # fmt: skip
    net, plan = trace(case)
    check_sliced_is_masked(case, net, plan, plan.draw((0.5, 0.5), torch.Generator()))


def test_groups_of_one_channel_are_a_depthwise_convolution() -> None:
    """Whatever it reads: what is never dropped comes out never dropped."""
    assert groups(nn.Sequential(nn.Conv2d(3, 12, 1, groups=3), nn.ReLU(), nn.Conv2d(12, 2, 1)), 3, 2, 2) == {}


def test_a_kept_part_keeps_what_its_depthwise_convolution_passes_on() -> None:
    part = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU())
    net = nn.Sequential(nn.Conv2d(3, 8, 1), part, nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert groups(net, 3, 4, 4) == {"0": 8, "2": 6}
    assert groups(net, 3, 4, 4, keep=("1",)) == {"2": 6}


class TwoSources(nn.Module):
    """A grouped convolution each of whose groups reads both layers, which have rates of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 1), nn.Conv2d(2, 8, 1)
        self.grouped, self.up = nn.Conv2d(16, 8, 1, groups=2), nn.ConvTranspose2d(16, 8, 2, groups=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = F.channel_shuffle(torch.cat([self.a(x), torch.tanh(self.b(x))], 1), 2)
        return self.head(torch.cat([F.pad(self.grouped(both), (0, 1, 0, 1)), self.up(both)], 1))


def test_a_grouped_convolution_scales_every_source_by_its_own_rate() -> None:
    def reads(f) -> dict[str, Tensor]:
        both = torch.stack([f("a"), f("b")], 1).flatten()
        return {"grouped": both, "up": both, "head": torch.cat([f("grouped"), f("up")])}

    case = Case(TwoSources, (2, 3, 3), {}, reads)
    net, plan = trace(case)
    kept = plan.draw_counts([2, 6, 4, 6], torch.Generator())
    check_sliced_is_masked(case, net, plan, kept)


class Resized(nn.Module):
    """Up again to the size there was, which the layer alone does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1)
        self.last, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.down(x), output_size=x.shape[2:])
        return self.head(self.last(y).mean((2, 3)))


def test_a_transposed_convolution_that_is_told_a_size_heeds_it() -> None:
    net, x = Resized(), torch.randn(2, 3, 8, 8)
    with pytest.raises(TraceError, match=r"node 'up' \(module up\) cannot be cut along channels"):
        SubnetPlan.trace(net, x)
    plan = SubnetPlan.trace(net, x, keep=("down", "up"))
    torch.testing.assert_close(plan.run(dict(net.named_parameters()), plan.full, x, training=False), net(x))


class Gated(nn.Module):
    """A gate over places: one channel for all, on either side."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.conv, self.gate, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 1, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.gate(x))
        return self.head((gate * x if self.first else x * gate).mean((2, 3)))


@pytest.mark.parametrize("first", [True, False])
def test_a_gate_over_places_leaves_channels_free(first: bool) -> None:
    torch.manual_seed(0)
    net, x = Gated(first), torch.randn(2, 3, 6, 6)
    plan = SubnetPlan.trace(net, x)
    assert [(g.name, g.channels) for g in plan.groups] == [("conv", 32)]
    kept = plan.draw(plan.uniform(0.5), torch.Generator().manual_seed(0))
    leaves = plan.pack(dict(net.named_parameters()), kept)
    assert len(leaves["conv.weight"]) == 16
    # A channel whose parameters are all zero is zero.
    zeros = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    plan.unpack_(zeros, leaves, kept)
    whole = torch.func.functional_call(net, zeros, (x,))
    torch.testing.assert_close(plan.run(leaves, kept, x, scale=False), whole)
