"""VGG for small images (Simonyan and Zisserman 2015), as Sparse-Push's author code has it (Aketi et al. 2021)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

_POOL = 0


def vgg_11(widths: tuple[int, ...], *, classes: int, channels: int) -> nn.Sequential:
    """Return VGG configuration A: eight 3x3 convolutions with bias, without norms, and two linear layers.

    Images of 32x32 leave the last pooling as one pixel. Dropout stands before both linear layers; where it stands is
    our reading. PyTorch's initialisation.

    Args:
        widths: Filters of the convolutions; 0 is a max-pooling. The linear layer is as wide as the last of them.
        classes: Number of outputs.
        channels: Channels of the image.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    before, number = channels, 0
    for width in widths:
        if width == _POOL:
            parts[f"pool{number}"] = nn.MaxPool2d(2)
            continue
        number += 1
        parts[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1)
        parts[f"relu{number}"] = nn.ReLU()
        before = width
    parts["flatten"] = nn.Flatten()
    parts["dropout1"] = nn.Dropout()
    parts["hidden"] = nn.Linear(before, before)
    parts["relu"] = nn.ReLU()
    parts["dropout2"] = nn.Dropout()
    parts["classifier"] = nn.Linear(before, classes)
    return nn.Sequential(parts)
