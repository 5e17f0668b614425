"""DenseNet-BC for small images (Huang et al. 2017), as reconstructed from the MACs in Rapp et al. 2022."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import torch
from torch import Tensor, nn

GROWTH: Final = 12


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 conv to 4g channels, BN, ReLU, 3x3 conv to g, joined to the input: c -> c + g."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, c, H, W]` to `[N, c + g, H, W]`."""
        new = self.conv1(torch.relu(self.norm1(x)))
        new = self.conv2(torch.relu(self.norm2(new)))
        return torch.cat([x, new], dim=1)


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


def densenet_bc(depth: int, growth: int = GROWTH, *, classes: int, channels: int) -> nn.Sequential:
    """Return a DenseNet-BC with compression 0.5.

    Three blocks of (depth - 4) // 6 layers; convs without bias; global average pooling, so any image of at
    least 4x4 pixels fits.

    Args:
        depth: 19, 40 or 100 in the paper.
        growth: Channels that a layer adds, 12 in the paper; the stem has twice as many, a bottleneck four times.
        classes: Number of outputs.
        channels: Channels of the image.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv0"] = nn.Conv2d(channels, 2 * growth, 3, padding=1, bias=False)
    width, layers = 2 * growth, (depth - 4) // 6
    for block in (1, 2, 3):
        parts[f"block{block}"] = nn.Sequential(
            *(DenseLayer(width + i * growth, growth) for i in range(layers))
        )
        width += layers * growth
        if block < 3:
            parts[f"transition{block}"] = _transition(width)
            width //= 2
    parts["norm"] = nn.BatchNorm2d(width)
    parts["relu"] = nn.ReLU()
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(width, classes)
    return nn.Sequential(parts)
