"""The head between a client's activations and its own loss; training only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from torch import nn

from leanfleet.errors import NetworkError

EMBEDDING: Final = 64
"""Length of an embedding; it is not normalised."""

_SLOPE: Final = 0.01
_FILTERS: Final = 128
_UNITS: Final = 256


def local_head(shape: Sequence[int], outputs: int = EMBEDDING) -> nn.Sequential:
    """Return a head for the activations at a cut (Chopra et al. 2021, as the first author's code has it).

    Channels with places (images; the same for signals and volumes): a convolution over single places to 128
    channels, LeakyReLU, the largest value of every channel, a linear layer. Flat features: linear to 256,
    LeakyReLU, linear.

    Args:
        shape: Of one sample's activation: (features,), or channels first and one to three dimensions of places.
        outputs: What it ends with: an embedding's numbers; classes make it an auxiliary classifier (ours).

    Raises:
        NetworkError: The activation has another number of dimensions.
    """
    width, dims = shape[0] if shape else 0, len(shape) - 1
    if dims == 0:
        return nn.Sequential(nn.Linear(width, _UNITS), nn.LeakyReLU(_SLOPE), nn.Linear(_UNITS, outputs))
    if dims not in (1, 2, 3):
        raise NetworkError(f"no head for an activation of shape {tuple(shape)}; cut elsewhere")
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](width, _FILTERS, 1)
    pool = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[dims - 1](1)
    return nn.Sequential(conv, nn.LeakyReLU(_SLOPE), pool, nn.Flatten(), nn.Linear(_FILTERS, outputs))


def head_macs(shape: Sequence[int], outputs: int = EMBEDDING) -> int:
    """Return the forward MACs per sample of `local_head(shape, outputs)`."""
    if len(shape) == 1:
        return (shape[0] + outputs) * _UNITS
    return (math.prod(shape) + outputs) * _FILTERS
