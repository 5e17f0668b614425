"""Every way to move, split, join or count channels, between a convolution and what reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from masked import Case, check_sliced_is_masked, trace
from shuffled_networks import shuffled
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import TraceError
from leanfleet.subnet import SubnetPlan


class Through(nn.Module):
    """A convolution to 6 channels of 4x4, an operation, and a layer that reads its result."""

    def __init__(self, operation: Callable[[Tensor], Tensor], head: nn.Module) -> None:
        super().__init__()
        self.conv, self.operation, self.head = nn.Conv2d(3, 6, 1), operation, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(torch.tanh(self.conv(x))))


def all_of(f) -> Tensor:
    return f("conv")


def flat(f) -> Tensor:
    return f("conv").repeat_interleave(16)


def halves(f) -> Tensor:
    return torch.cat([f("conv"), f("conv#2")])


def turned(f) -> Tensor:
    return torch.cat([f("conv#2"), f("conv")])


FLATTENS = [
    lambda x: x.view(-1, 96),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], 96),
    lambda x: x.reshape((x.size(0), x.size(1) * x.size(2) * x.size(3))),
    lambda x: x.flatten(1),
    lambda x: torch.flatten(x, start_dim=1),
    lambda x: x.view(x.size()[0], x.shape[1], 16).view(-1, 6, 4, 4).flatten(1),
]
LAST = [
    lambda x: x.mean((2, 3)).view(-1, 6),
    lambda x: x.mean((2, 3)).unsqueeze(1),
    lambda x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2),
    lambda x: x.permute(0, 2, 3, 1),
    lambda x: x.permute((0, 3, 2, 1)).contiguous(),
    lambda x: x.transpose(1, -1),
    lambda x: x.flatten(2).swapaxes(1, 2),
    lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 6),
    lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 6).view(x.size(0), 16, 6),
    lambda x: x.view(x.size(0), 6, -1).amax(-1),
    lambda x: x.amin(dim=[-1, -2]),
    lambda x: torch.sum(x, (2, 3)),
    lambda x: x.mean(3).permute(2, 0, 1),
    lambda x: x.flatten(2).softmax(-1)[:, :, 0],
    lambda x: x[:, :, 1, 2],
    lambda x: x[..., -1, -1],
    lambda x: x.clone().to(torch.float64).detach()[:, :, 0].mean(2),
]
WIDE = [
    lambda x: x.unflatten(2, (2, 2)).flatten(2, 3),
    lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    lambda x: x.mean((2, 3), keepdim=True).expand(x.size(0), x.size(1), x.size(2), 4),
    lambda x: x.mean(2, keepdim=True).expand_as(x),
    lambda x: x.amax((2, 3)).view(x.size(0), x.size(1), 1, 1) * x,
    lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:], mode="bilinear"),
    lambda x: F.interpolate(F.avg_pool2d(x, kernel_size=2, stride=1), scale_factor=2),
    lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    lambda x: F.adaptive_max_pool2d(x, 2),
    lambda x: F.pad(x, (1, 1, 0, 2), mode="reflect"),
    lambda x: F.pad(x, [x.size(2) - 3, 1]),
    lambda x: torch.cat([x, x * 2.0], dim=3),
    lambda x: x[:, :, 1:, ::2],
    lambda x: x[:, 0:6],
    lambda x: x * torch.ones(1, 1, 1, 4, dtype=torch.float64) + torch.tensor(1.0),
]
JOINED = [
    lambda x: torch.cat(x.chunk(2, 1), 1),
    lambda x: torch.cat(torch.split(x, 3, dim=1), dim=1),
    lambda x: torch.cat(x.split([3, x.size(1) // 2], 1), 1),
    lambda x: torch.cat([x[:, :3], x[:, 3:]], 1),
    lambda x: torch.cat([x[:, : x.size(1) // 2], x[:, -3:]], -3),
]
MOVED = [
    (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), turned, 6),
    (lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), turned, 6),
    (lambda x: torch.cat([x, x], 1), lambda f: torch.cat([f("conv"), f("conv")]), 12),
    (lambda x: x.split([2, 4], 1)[1], lambda f: f("conv#2"), 4),
    (lambda x: x[:, 1:4], lambda f: f("conv"), 3),
    (lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1], lambda f: f("conv"), 3),
    (lambda x: x.view(x.size(0), 2, 3, 4, 4).transpose(1, 2).reshape(x.size(0), 6, 4, 4),
     lambda f: shuffled(f("conv"), 2), 6),
    (lambda x: x.view(x.size(0), 3, 2, 4, 4).permute(0, 2, 1, 3, 4).contiguous().view(x.size()),
     lambda f: shuffled(f("conv"), 3), 6),
    (lambda x: torch.channel_shuffle(x, 3), lambda f: shuffled(f("conv"), 3), 6),
    (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), lambda f: torch.cat([torch.ones(1), f("conv"), torch.ones(2)]), 9),
    (lambda x: x.view(x.size(0), 2, 3, 16).transpose(2, 1).reshape(x.size(0), 6, 4, 4),
     lambda f: shuffled(f("conv"), 2), 6),
]  # fmt: skip


def check(operation: Callable[[Tensor], Tensor], head: nn.Module, reads: Callable) -> SubnetPlan:
    case = Case(lambda: Through(operation, head), (3, 4, 4), {}, lambda f: {"head": reads(f)})
    net, plan = trace(case)
    for seed in range(4):
        kept = plan.draw(plan.uniform(0.5), torch.Generator().manual_seed(seed), bernoulli=True)
        check_sliced_is_masked(case, net, plan, kept)
    return plan


@pytest.mark.parametrize("at", range(len(FLATTENS)))
def test_flattens(at: int) -> None:
    check(FLATTENS[at], nn.Linear(96, 2), flat)


@pytest.mark.parametrize("at", range(len(LAST)))
def test_channels_move_to_the_end(at: int) -> None:
    check(LAST[at], nn.Linear(6, 2), all_of)


@pytest.mark.parametrize("at", range(len(WIDE)))
def test_channels_stay(at: int) -> None:
    check(WIDE[at], nn.Conv2d(6, 2, 1), all_of)


@pytest.mark.parametrize("at", range(len(JOINED)))
def test_pieces_are_joined_again(at: int) -> None:
    plan = check(JOINED[at], nn.Conv2d(6, 2, 1), halves)
    assert {group.name: group.channels for group in plan.groups} == {"conv": 3, "conv#2": 3}


@pytest.mark.parametrize("at", range(len(MOVED)))
def test_channels_change_places(at: int) -> None:
    operation, reads, width = MOVED[at]
    check(operation, nn.Conv2d(width, 2, 1), reads)


def test_a_sum_with_a_shuffle_of_itself_ties_what_changes_places() -> None:
    """Channels 0, 5 stay; 1-3-4-2 is one ring: it can only go as a whole, so nothing can be dropped."""
    plan = SubnetPlan.trace(
        Through(lambda x: x + torch.channel_shuffle(x, 2), nn.Conv2d(6, 2, 1)), torch.zeros(1, 3, 4, 4)
    )
    assert [(group.channels, group.layers) for group in plan.groups] == [(2, ("conv",))]
    kept = plan.draw_counts([1], torch.Generator())
    assert plan.macs_of(kept) == 16 * (3 + 2) * 5


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x.view(x.size(0), 2, 3, 4, 4).mean(2).mean(1), "node 'mean'"),
        (
            lambda x: x.view(x.size(0), 2, 3, 4, 4).transpose(1, 2).flatten(1),
            "splits its channels into blocks",
        ),
        (
            lambda x: x.view(x.size(0), 2, 3, 4, 4).transpose(2, 3).transpose(2, 3).flatten(1, 2),
            "permutes blocks",
        ),
        (lambda x: x.view(x.size(0), 12, 2, 4).mean(3), "mixes channels with other dimensions"),
        (lambda x: x[:, :, : x.size(1) // 3], "computes with a channel count"),
        (lambda x: x.split(x.size(1) // 3, 2)[0], "computes with a channel count"),
        (lambda x: x * x.shape[1], "computes with a channel count"),
        (lambda x: x.mean(1, keepdim=True).expand(x.size(0), x.size(1), 4, 4), "reduces over its channels"),
        (lambda x: x[:, :4, 0] + x[:, :4, 0].transpose(1, 2), "different dimensions"),
        (lambda x: torch.cat([x[:, :4, 0], x[:, :4, 0].transpose(1, 2)], 0), "different dimensions"),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), "cuts channels off"),
        (lambda x: x.mean((2, 3)).T.T, "reads the attribute T"),
        (lambda x: sum(x.chunk(2, 1)[i].cumsum(1) for i in (0, 1)), "cumsum"),
    ],
)
def test_what_would_need_all_channels_is_refused(operation: Callable, message: str) -> None:
    head = nn.LazyLinear(2)
    with torch.no_grad():
        Through(operation, head)(torch.zeros(2, 3, 4, 4))
    with pytest.raises(TraceError, match=message) as caught:
        SubnetPlan.trace(Through(operation, head), torch.zeros(1, 3, 4, 4))
    assert "keep=['conv']" in str(caught.value)
    net = Through(operation, head).double()
    plan = SubnetPlan.trace(net, torch.zeros(1, 3, 4, 4, dtype=torch.float64), keep=["conv"])
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(plan.run(dict(net.named_parameters()), plan.full, x), net(x))


@pytest.mark.parametrize(
    "shape",
    [
        lambda x, a: x.view(x.size(0), a.size(1), 2),
        lambda x, a: x.unsqueeze(2).expand(-1, -1, a.size(1))[:, ::2],
        lambda x, a: x[:, : a.size(1)].unsqueeze(2),
    ],
)
def test_a_channel_count_may_not_shape_another_value(shape: Callable) -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(12, 6), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            return self.head(torch.cat([torch.relu(a), shape(x, a).mean(2)], 1))

    with pytest.raises(TraceError, match=r"computes with a channel count.*keep=\['a'\]"):
        SubnetPlan.trace(Borrowing(), torch.zeros(1, 12))


class Indexed(nn.Module):
    """Every second channel, by way of a view as blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        return self.head(x.view(n, c // 2, 2, h, w)[:, :, 0]).mean((2, 3))


class Joined(nn.Module):
    """Two values joined block by block, for a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.grouped, self.head = nn.Conv2d(16, 8, 1, groups=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        blocks = [conv(x).view(n, 2, 4, h, w) for conv in (self.one, self.other)]
        return self.head(self.grouped(torch.cat(blocks, 2).view(n, 16, h, w)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "keep", "refused"),
    [
        (Indexed, ["conv"], r"node 'getitem_4' \(getitem\(\)\)"),
        (Joined, ["one", "other"], r"node 'cat' \(cat\(\)\)"),
    ],
)
def test_parts_of_blocks_must_be_whole(build: type[nn.Module], keep: list[str], refused: str) -> None:
    net, x = build(), torch.randn(4, 3, 6, 6)
    with pytest.raises(TraceError, match=f"{refused} cannot be cut along channels"):
        SubnetPlan.trace(net, x)
    plan = SubnetPlan.trace(net, x, keep=keep)
    with FlopCounterMode(display=False) as counter:
        expected = net.eval()(x)
    assert plan.macs_of(plan.full) == counter.get_total_flops() / 2 / len(x)
    torch.testing.assert_close(plan.run(dict(net.named_parameters()), plan.full, x), expected)
    kept = plan.draw(plan.uniform(0.5), torch.Generator().manual_seed(0))
    leaves = plan.pack(dict(net.named_parameters()), kept)
    assert plan.run(leaves, kept, x).shape == (4, 5)
