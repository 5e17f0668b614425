"""Plain convolutional networks for small grey images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def femnist_cnn(filters: tuple[int, int], *, classes: int, channels: int) -> nn.Sequential:
    """Return the four-layer CNN for 28x28 images of Rapp et al. 2022, after Caldas et al. 2018.

    Reconstruction: "valid" convolutions and 256 hidden units give the 4.0 M MACs that the paper states. No
    batch norm.

    Args:
        filters: Filters of the two convolutions; (32, 64) in the paper, (16, 32) for the small version.
        classes: Number of outputs.
        channels: Channels of the image.
    """
    first, second = filters
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, first, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(second * 4 * 4, 256),
            relu3=nn.ReLU(),
            classifier=nn.Linear(256, classes),
        )
    )


def digits_cnn(filters: tuple[int, int, int], hidden: int, *, classes: int, channels: int) -> nn.Sequential:
    """Return a CNN for 8x8 images, our decision, wide enough that a rate for every layer means something.

    Args:
        filters: Filters of the three convolutions.
        hidden: Units of the hidden linear layer.
        classes: Number of outputs.
        channels: Channels of the image.
    """
    first, second, third = filters
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, first, 3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(first),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(second),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(second, third, 3, padding=1, bias=False),
            norm3=nn.BatchNorm2d(third),
            relu3=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(third * 2 * 2, hidden),
            relu4=nn.ReLU(),
            classifier=nn.Linear(hidden, classes),
        )
    )
