"""Networks with a node that cannot be cut, each after a convolution or linear layer that would be droppable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Around(nn.Module):
    """Two convolutions, then the troublesome part; its output is averaged and classified."""

    def __init__(self, part: nn.Module | None = None, width: int = 8, features: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, width, 3, padding=1)
        self.part = part
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trouble(torch.relu(self.second(torch.relu(self.first(x)))))
        return self.head(x.flatten(2).mean(2))

    def trouble(self, x: Tensor) -> Tensor:
        return self.part(x)


class SpatialAttention(Around):
    def trouble(self, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(dim=1, keepdim=True)], 1)
        return x * self.part(seen).sigmoid()


class Recurrent(Around):
    def trouble(self, x: Tensor) -> Tensor:
        out, _ = self.part(x.flatten(2).transpose(1, 2))
        return out.transpose(1, 2)


class Attention(Around):
    def trouble(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(0, 2, 1)
        return self.part(x, x, x)[0].transpose(1, 2)


class OwnHeads(Around):
    """Attention written out: heads are blocks of channels."""

    def trouble(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        n, t, d = x.shape
        q = x.view(n, t, 2, d // 2).transpose(1, 2)
        return (
            (F.softmax(q @ q.transpose(-2, -1), dim=-1) @ q).transpose(1, 2).reshape(n, t, d).transpose(1, 2)
        )


class Standardised(nn.Conv2d):
    """A convolution that computes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, padding=1)


class ChannelsLastFlatten(Around):
    def trouble(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.size(0), -1, 1)


class EverySecond(Around):
    def trouble(self, x: Tensor) -> Tensor:
        return x[:, ::2]


class OneChannel(Around):
    def trouble(self, x: Tensor) -> Tensor:
        return x[:, [0, 3]]


class DividedByWidth(Around):
    def trouble(self, x: Tensor) -> Tensor:
        return x / x.size(1) ** 0.5


class SpreadByWidth(Around):
    """A channel count that is no view's: repeat() would give another network for every kept set."""

    def trouble(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3), keepdim=True).repeat(1, x.size(1), 1, 1)


class Blur(Around):
    """A depthwise filter with a fixed kernel that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(8, 1, 3, 3) / 9)

    def trouble(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, groups=x.shape[1])


class TwoLayers(Around):
    """A grouped convolution whose groups hold different layers."""

    def trouble(self, x: Tensor) -> Tensor:
        return self.part[1](torch.cat([x, self.part[0](x)], 1))


class TiedWeight(Around):
    """An autoencoder that decodes with its encoder's weight, transposed."""

    def trouble(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return F.linear(torch.relu(F.linear(x, self.part.weight)), self.part.weight.t()).unsqueeze(2)


class Stacked(Around):
    def trouble(self, x: Tensor) -> Tensor:
        return torch.stack([x, x.relu()]).mean(0)


class Transposed(Around):
    def trouble(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).T.T.unsqueeze(-1)


class TurnedAround(Around):
    """Adds channels to pixels."""

    def trouble(self, x: Tensor) -> Tensor:
        x = x.mean(3)
        return x + x.transpose(1, 2)


class Unbatched(Around):
    """A 2d pooling of three dimensions pools over the channels."""

    def trouble(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.flatten(2), 3, stride=1, padding=1)


def hooked() -> nn.Module:
    net = Around(nn.Conv2d(8, 8, 1))
    net.part.register_forward_hook(lambda module, inputs, out: out * 2)
    return net


REFUSED = {
    "spatial-attention": (lambda: SpatialAttention(nn.Conv2d(2, 1, 3, padding=1)), "mean"),
    "lstm": (lambda: Recurrent(nn.LSTM(8, 8, batch_first=True)), "module part"),
    "attention": (lambda: Attention(nn.MultiheadAttention(8, 2, batch_first=True)), "module part"),
    "own-heads": (OwnHeads, "softmax|matmul|transpose"),
    "computed-weight": (lambda: Around(Standardised(8, 8, 3)), "conv2d"),
    "weight-norm": (lambda: Around(parametrizations.weight_norm(nn.Conv2d(8, 8, 1))), "module part"),
    "hook": (hooked, "module part"),
    "pixel-shuffle": (lambda: Around(nn.PixelShuffle(2), features=2), "module part"),
    "response-norm": (lambda: Around(nn.LocalResponseNorm(3)), "module part"),
    "channels-last-flatten": (lambda: ChannelsLastFlatten(features=8 * 16), "reshape"),
    "every-second": (lambda: EverySecond(features=4), "getitem"),
    "by-index": (lambda: OneChannel(features=2), "getitem"),
    "divided-by-width": (DividedByWidth, "channel count"),
    "spread-by-width": (SpreadByWidth, "mean"),
    "blur": (Blur, "conv2d"),
    "two-layers": (
        lambda: TwoLayers(nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1, groups=2)])), "module part.1"
    ),
    "uneven-blocks": (
        lambda: Around(nn.Sequential(nn.Conv2d(8, 12, 1, groups=4), nn.GroupNorm(6, 12)), features=12),
        "module part.0\\) needs equal counts",
    ),
    "tied-weight": (lambda: TiedWeight(nn.Linear(8, 10, bias=False)), "linear|part.weight"),
    "stack": (Stacked, "stack"),
    "attribute": (Transposed, "attribute T"),
    "turned-around": (lambda: TurnedAround(width=4, features=4), "different dimensions"),
    "unbatched": (Unbatched, "max_pool2d"),
}  # fmt: skip
"""Name to (network for 3x4x4 images, what the message says of the node)."""
