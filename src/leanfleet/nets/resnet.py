"""ResNet for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convs with batch norm around a shortcut; the shortcut is a 1x1 conv where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=nn.BatchNorm2d(width)))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, channels, H, W]` to `[N, width, H / stride, W / stride]`."""
        new = torch.relu(self.norm1(self.conv1(x)))
        new = self.norm2(self.conv2(new))
        return torch.relu(new + self.shortcut(x))


def resnet_20(widths: tuple[int, int, int], *, classes: int, channels: int) -> nn.Sequential:
    """Return a ResNet of three stages of three blocks.

    Shortcuts between stages are 1x1 convolutions with batch norm (option B of the paper), not padding with
    zero channels: both writers of a stream can then be cut to the same channels. PyTorch's initialisation.

    Args:
        widths: Channels of the stages; (16, 32, 64) in the paper.
        classes: Number of outputs.
        channels: Channels of the image.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv0"] = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
    parts["norm0"] = nn.BatchNorm2d(widths[0])
    parts["relu0"] = nn.ReLU()
    before = widths[0]
    for stage, width in enumerate(widths, start=1):
        first = BasicBlock(before, width, stride=1 if stage == 1 else 2)
        parts[f"stage{stage}"] = nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(2)))
        before = width
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(before, classes)
    return nn.Sequential(parts)
