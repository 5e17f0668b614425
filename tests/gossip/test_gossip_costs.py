"""Bytes in the author's way of counting; the numbers of the specification."""

from __future__ import annotations

from itertools import pairwise

import pytest

from leanfleet.gossip.costs import authors_bytes


def resnet_20() -> list[int]:
    """The author's ResNet-20, whose shortcuts are bare 1x1 convolutions: 65 tensors, 272,474 numbers."""
    sizes, before = [16 * 3 * 9, 16, 16], 16
    for width in (16, 32, 64):
        for block in range(3):
            sizes += [
                width * (before if block == 0 else width) * 9,
                width,
                width,
                width * width * 9,
                width,
                width,
            ]
            if block == 0 and width != before:
                sizes += [width * before, width, width]
        before = width
    return [*sizes, 640, 10]


def vgg_11() -> list[int]:
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convs = [n for a, b in pairwise(widths) for n in (a * b * 9, b)]
    return [*convs, 512 * 512, 512, 5120, 10]


@pytest.mark.parametrize(
    ("sizes", "density", "expected"),
    [
        (resnet_20(), 1, 1_089_900),
        (resnet_20(), 0.1, 163_329),
        (resnet_20(), 0.01, 16_479),
        (resnet_20(), 0.002, 3_447),
        (resnet_20(), 0.001, 1_845),
        (vgg_11(), 1, 37_953_068),
        (vgg_11(), 0.1, 5_692_911),
        (vgg_11(), 0.01, 569_265),
        (vgg_11(), 0.002, 113_853),
        (vgg_11(), 0.001, 56_943),
    ],
)
def test_bytes_of_a_message(sizes: list[int], density: float, expected: int) -> None:
    assert authors_bytes(sizes, density) == expected
