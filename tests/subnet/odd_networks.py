"""Networks of many kinds, and for each by hand: which layer reads which channels. See `masked.Case`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from masked import Case
from shuffled_networks import GroupedShuffle, ShuffleUnits, shuffle_reads, units_reads
from torch import Tensor, nn


def mlp() -> nn.Module:
    layers = nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 5)
    return nn.Sequential(*layers)


def _conv_norm(read: int, written: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(read, written, 3, stride, padding=1, bias=False), nn.BatchNorm2d(written), nn.ReLU()
    )


class Residual(nn.Module):
    """A projection shortcut, then an identity shortcut on the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm(3, 8)
        self.a1 = _conv_norm(8, 16, stride=2)
        self.a2 = nn.Conv2d(16, 20, 3, padding=1)
        self.project = nn.Conv2d(8, 20, 1, stride=2)
        self.norm = nn.BatchNorm2d(20)
        self.b1 = nn.Conv2d(20, 10, 1)
        self.b2 = nn.Conv2d(10, 20, 3, padding=1)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.a2(self.a1(x)) + self.project(x)))
        y = self.b2(F.silu(self.b1(x)))
        y += x
        return self.head(y.mean(dim=[2, 3]))


def residual_reads(f) -> dict[str, Tensor]:
    stream = f("a2")
    return {
        "a1.0": f("stem.0"), "a2": f("a1.0"), "project": f("stem.0"), "b1": stream, "b2": f("b1"), "head": stream,
    }  # fmt: skip


class ConcatOfConcats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, n, 3, padding=1) for n in (8, 6, 4))
        self.norm1, self.d = nn.BatchNorm2d(18), nn.Conv2d(18, 8, 3, padding=1)
        self.norm2, self.e = nn.BatchNorm2d(8 + 18 + 8 + 3), nn.Conv2d(8 + 18 + 8 + 3, 12, 1)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        first = torch.cat([torch.cat([a, self.b(x)], dim=1), self.c(x)], dim=1)
        d = self.d(torch.relu(self.norm1(first)))
        second = torch.cat((d, torch.cat([first, a], dim=-3), x), 1)
        e = F.max_pool2d(self.e(F.elu(self.norm2(second))), 3)
        return self.head(torch.flatten(e, 1))


def concat_reads(f) -> dict[str, Tensor]:
    first = torch.cat([f("a"), f("b"), f("c")])
    return {
        "d": first, "e": torch.cat([f("d"), first, f("a"), torch.ones(3)]), "head": f("e").repeat_interleave(4),
    }  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        gate = F.adaptive_avg_pool2d(x, 1).view(n, c)
        gate = torch.sigmoid(self.up(torch.relu(self.down(gate))))
        return x * gate.view(x.size(0), x.size(1), 1, 1).expand_as(x)


class Separable(nn.Module):
    """Depthwise-separable with a squeeze-excite gate; the second depthwise convolution doubles its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding="same", padding_mode="circular")
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.gate = nn.BatchNorm2d(16), SqueezeExcite(16, 6)
        self.point = nn.Conv2d(16, 8, 1)
        self.twice = nn.Conv2d(8, 16, 3, groups=8)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(F.silu(self.norm(self.depthwise(self.stem(x)))))
        x = F.hardswish(self.twice(self.point(x)))
        return self.head(x).mean((-1, -2))


def separable_reads(f) -> dict[str, Tensor]:
    return {
        "gate.down": f("stem"), "gate.up": f("gate.down"), "point": f("stem"),
        "head": f("point").repeat_interleave(2),
    }  # fmt: skip


class Transposed(nn.Module):
    """Transposed convolutions: plain, grouped, depthwise, depthwise with a multiplier; a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1)
        self.grouped = nn.ConvTranspose2d(12, 8, 3, groups=2)
        self.depthwise = nn.ConvTranspose2d(8, 8, 2, groups=8)
        self.twice = nn.ConvTranspose2d(8, 16, 2, groups=8, bias=False)
        self.join = nn.Conv2d(16 + 8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.stem(x))
        x = torch.tanh(self.grouped(torch.relu(self.up(skip))))
        x = self.twice(F.leaky_relu(self.depthwise(x)))
        skip = F.interpolate(skip, size=x.shape[2:], mode="nearest")
        dy = x.size(2) - skip.size(2)
        joined = torch.cat([x, F.pad(skip, [0, 0, dy, 0])], 1)
        return self.head(self.join(joined).amax(3).sum(dim=2))


def transposed_reads(f) -> dict[str, Tensor]:
    return {
        "up": f("stem"), "grouped": f("up"), "join": torch.cat([f("grouped").repeat_interleave(2), f("stem")]),
        "head": f("join"),
    }  # fmt: skip


class ConvNeXt(nn.Module):
    """Depthwise convolution, channels-last layer norm and MLP, layer scale, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, stride=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.widen, self.narrow = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.gamma = nn.Parameter(0.5 * torch.ones(16))
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.narrow(F.gelu(self.widen(self.norm(y))))
        x = x + y.permute(0, 3, 1, 2).contiguous()
        return self.head(self.last(x.mean([-2, -1])))


def convnext_reads(f) -> dict[str, Tensor]:
    return {"widen": f("stem"), "narrow": f("widen"), "head": f("stem")}


class GroupNorms(nn.Module):
    """Four groups, one group, and one channel a group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16)
        self.b, self.norm_b = nn.Conv2d(16, 12, 1), nn.GroupNorm(1, 12)
        self.c, self.norm_c = nn.Conv2d(12, 10, 1), nn.GroupNorm(10, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(x)))
        x = F.relu(self.norm_b(self.b(x)))
        return self.head(F.relu(self.norm_c(self.c(x))).mean((2, 3)))


class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3)
        self.left, self.right = nn.Conv2d(6, 8, 1), nn.Conv2d(10, 8, 1)
        self.head = nn.Linear(8 + 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        half = x.shape[1] // 2
        joined = self.left(x[:, :6]) * torch.sigmoid(self.right(x[:, half:, :, :]))
        return self.head(torch.cat([joined, x[:, 6:half]], 1)[..., 0, 1])


def slices_reads(f) -> dict[str, Tensor]:
    return {"left": f("stem"), "right": f("stem#3"), "head": torch.cat([f("left"), f("stem#2")])}


class OptionA(nn.Module):
    """A shortcut that pads with zero channels: what is added to the padding is never dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.a(torch.relu(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0.0))
        return self.head(F.avg_pool2d(x, 2).flatten(2).mean(-1))


def option_a_reads(f) -> dict[str, Tensor]:
    return {"a": f("stem"), "head": torch.cat([torch.ones(2), f("stem"), torch.ones(2)])}


class CalledTwice(nn.Module):
    """One convolution and one norm used twice; a second convolution that shares the first one's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.sharing = nn.Conv2d(8, 8, 3, padding=1)
        self.sharing.weight = self.again.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.again(torch.relu(self.stem(x))))
        x = self.norm(self.again(F.max_pool2d(x, 2)))
        return self.head(self.sharing(x).mean((2, 3)))


class Sequence(nn.Module):
    """One dimension: PReLU a channel and one for all, instance norm, activation dropout, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slopes = nn.Conv1d(2, 8, 3), nn.PReLU(8)
        self.norm = nn.InstanceNorm1d(8, affine=True)
        self.b, self.slope = nn.Conv1d(8, 6, 3), nn.PReLU()
        self.hidden, self.head = nn.Linear(6 * 4, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.slopes(self.a(x)))
        x = self.slope(self.b(F.avg_pool1d(x, 2)))
        x = F.dropout(x.view(x.size(0), -1), 0.0, training=self.training)
        return F.log_softmax(self.head(torch.relu(self.hidden(x))), dim=1)


def sequence_reads(f) -> dict[str, Tensor]:
    return {"b": f("a"), "hidden": f("b").repeat_interleave(4), "head": f("hidden")}


class Affine(nn.Module):
    """Parameters, buffers and constants used by themselves; a gate made of halves; layer norm on features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(8, 1, 1))
        self.shift = nn.Parameter(torch.zeros(8))
        self.halves = nn.Conv2d(8, 20, 1)
        self.register_buffer("slant", torch.linspace(0, 1, 4).view(1, 1, 1, 4))
        self.hidden, self.norm, self.head = nn.Linear(10, 12), nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x) * self.gain + self.shift.view(1, -1, 1, 1)) * 2.0 + self.slant
        value, gate = torch.split(self.halves(x), 10, dim=1)
        x = (value * gate.sigmoid()).mean((2, 3)).unsqueeze(1) * torch.tensor(0.5)
        return self.head(torch.relu(self.norm(self.hidden(x)))).squeeze(1)


class Functional(nn.Module):
    """Calls with the parameters of another module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.Linear):
            return F.linear(x, self.inner.weight, self.inner.bias)
        return F.conv2d(x, self.inner.weight, bias=self.inner.bias, padding=1)


def functional() -> nn.Module:
    parts = Functional(nn.Conv2d(3, 8, 3)), nn.ReLU(), Functional(nn.Conv2d(8, 6, 3)), nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(6, 5))


class Transformer(nn.Module):
    """Class token, positions, attention (never cut), MLP (its hidden columns are)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.widen, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.size(0), -1, -1), self.embed(x)], dim=1) + self.places
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norm2(x)
        flat = self.widen(y.view(-1, 8)).view(x.size(0), -1, 16)
        return self.head((x + self.narrow(F.gelu(flat)))[:, 0])


CASES: dict[str, Case] = {
    "mlp": Case(mlp, (12,), {"0": 16, "2": 20}, lambda f: {"2": f("0"), "4": f("2")}),
    "residual": Case(
        Residual, (3, 6, 6), {"stem.0": 8, "a1.0": 16, "a2": 20, "b1": 10}, residual_reads
    ),
    "concat": Case(ConcatOfConcats, (3, 6, 6), {"a": 8, "b": 6, "c": 4, "d": 8, "e": 12}, concat_reads),
    "separable": Case(Separable, (3, 6, 6), {"stem": 16, "gate.down": 6, "point": 8}, separable_reads),
    "transposed": Case(
        Transposed, (2, 6, 6), {"stem": 8, "up": 12, "grouped": 8, "join": 6}, transposed_reads
    ),
    "convnext": Case(
        ConvNeXt, (3, 8, 8), {"stem": 16, "widen": 24}, convnext_reads,
        lambda f: {"norm": f("stem"), "last": f("stem")},
    ),
    "group-norms": Case(
        GroupNorms, (3, 6, 6), {"a": 16, "b": 12, "c": 10},
        lambda f: {"b": f("a"), "c": f("b"), "head": f("c")},
        lambda f: {"norm_a": f("a"), "norm_b": f("b")},
    ),
    "grouped-shuffle": Case(
        GroupedShuffle, (3, 5, 5), {"stem": 16, "first": 32, "second": 16, "third": 8}, shuffle_reads
    ),
    "shuffle-units": Case(
        ShuffleUnits, (3, 5, 5), {"stem": 4, "stem#2": 4, "stem#3": 8, "a.0": 4, "a.0#2": 4, "b": 8}, units_reads
    ),
    "slices": Case(
        Slices, (3, 5, 5), {"stem": 6, "stem#2": 4, "stem#3": 10, "left": 8}, slices_reads
    ),
    "option-a": Case(OptionA, (3, 8, 8), {"stem": 8}, option_a_reads),
    "called-twice": Case(
        CalledTwice, (3, 6, 6), {"stem": 8}, lambda f: {n: f("stem") for n in ("again", "sharing", "head")}
    ),
    "sequence": Case(Sequence, (2, 14), {"a": 8, "b": 6, "hidden": 10}, sequence_reads),
    "affine": Case(
        Affine, (3, 6, 6), {"conv": 8, "halves": 10, "hidden": 12},
        lambda f: {"halves": f("conv"), "hidden": f("halves"), "head": f("hidden")},
        lambda f: {"norm": f("hidden")},
    ),
    "functional": Case(
        functional, (3, 6, 6), {"0.inner": 8, "2.inner": 6}, lambda f: {"2": f("0.inner"), "5": f("2.inner")}
    ),
    "transformer": Case(Transformer, (4, 6), {"widen": 16}, lambda f: {"narrow": f("widen")}),
}  # fmt: skip
