"""A small network in the manner of MobileNetV2 (Sandler et al. 2018): depthwise convolutions, inverted residuals."""

from __future__ import annotations

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """Widens, filters every channel by itself, narrows; with a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, expand: int = 4) -> None:
        super().__init__()
        hidden = expand * inputs
        self.shortcut = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, height / stride, width / stride]."""
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


def net(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Return the network for images of this shape (channels, height, width), from 8x8 on."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        InvertedResidual(16, 24, stride=2),
        InvertedResidual(24, 24),
        InvertedResidual(24, 32, stride=2),
        InvertedResidual(32, 32),
        nn.Conv2d(32, 96, 1, bias=False),
        nn.BatchNorm2d(96),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, classes),
    )
