from __future__ import annotations

import pytest
import torch
from torch import nn

from leanfleet.errors import NetworkError
from leanfleet.nets import build, forward_macs

CONVS = (
    (3, 64, 32),
    (64, 128, 16),
    (128, 256, 8),
    (256, 256, 8),
    (256, 512, 4),
    (512, 512, 4),
    (512, 512, 2),
)


def test_counts_are_those_of_the_author_code() -> None:
    net = build("vgg-11")
    assert sum(p.numel() for p in net.parameters()) == 9_488_266
    assert len(list(net.parameters())) == 20


def test_macs_layer_by_layer() -> None:
    convs = sum(9 * before * width * side**2 for before, width, side in CONVS) + 9 * 512 * 512 * 2**2
    assert forward_macs(build("vgg-11"), torch.zeros(2, 3, 32, 32)) == convs + 512 * 512 + 512 * 10


def test_the_order_of_layers() -> None:
    kinds = {nn.Conv2d: "c", nn.MaxPool2d: "M", nn.Dropout: "d", nn.Linear: "l"}
    found = "".join(kinds.get(type(layer), "") for layer in build("vgg-11").children())
    assert found == "cMcMccMccMccMdldl"


def test_only_images_of_32_pixels_fit() -> None:
    with pytest.raises(NetworkError, match="'vgg-11': images of 3x64x64 do not fit"):
        build("vgg-11", shape=(3, 64, 64))
