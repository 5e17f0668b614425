"""LeNet as split learning studies use it: five layers, any of which may be the last on the client."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from torch import nn

from leanfleet.nets.response_norm import ResponseNorm

SIZE: Final = 32
"""Height and width of the images that it takes."""


def lenet(widths: tuple[int, int, int, int], *, classes: int, channels: int) -> nn.Sequential:
    """Return the LeNet for 32x32 images of AdaSplit (Chopra et al. 2021, as the first author's code has it).

    A sequence of five layers, each a sequence by itself, so that a cut after the first 1 to 4 of them gives
    what the client holds. What leaves any of these is >= 0.

    Args:
        widths: Filters of the two convolutions and units of the two hidden linear layers; (20, 50, 800, 500)
            in the reference.
        classes: Number of outputs.
        channels: Channels of the image.
    """
    first, second, third, fourth = widths
    return nn.Sequential(
        OrderedDict(
            layer1=_conv_layer(channels, first),
            layer2=_conv_layer(first, second),
            layer3=nn.Sequential(
                OrderedDict(
                    flatten=nn.Flatten(), linear=nn.Linear(second * (SIZE // 4) ** 2, third), relu=nn.ReLU()
                )
            ),
            layer4=nn.Sequential(OrderedDict(linear=nn.Linear(third, fourth), relu=nn.ReLU())),
            layer5=nn.Sequential(OrderedDict(linear=nn.Linear(fourth, classes))),
        )
    )


def response_norm() -> ResponseNorm:
    """Return the normalisation over neighbouring channels that both convolutional layers end with."""
    return ResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1.0)


def _conv_layer(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, filters, 5, padding=2),
            relu=nn.ReLU(),
            norm=response_norm(),
            pool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )
