"""Which positions of a vector to send: those of the largest magnitudes."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from leanfleet.wire.payload import nonzero

_SAMPLE: Final = 2**16
_SPARE: Final = 5.0  # standard deviations by which a threshold from a sample is set too low


def largest(flat: Tensor, count: int) -> Tensor:
    """Return the ascending positions of the `count` largest magnitudes, of equals the lowest positions.

    Where few are wanted of many, a sample gives a threshold that somewhat more than `count` elements pass, and
    only those are compared. It decides about speed alone: if too few pass, all are compared.

    Args:
        flat: Finite numbers [elements].
        count: How many positions; not more than there are elements.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    passed = _passing(flat, count)
    magnitudes = (flat if passed is None else flat[passed]).abs()
    least = torch.topk(magnitudes, count, sorted=False).values.min()
    above, equal = nonzero(magnitudes > least), nonzero(magnitudes == least)
    chosen = torch.cat([above, equal[: count - len(above)]]).sort().values
    return chosen if passed is None else passed[chosen]


def _passing(flat: Tensor, count: int) -> Tensor | None:
    """Return the ascending positions of some elements that include the largest, or None for all."""
    if len(flat) < 8 * _SAMPLE or count > len(flat) // 8:
        return None
    sample = flat[:: len(flat) // _SAMPLE].abs()
    expected = count / len(flat) * len(sample)
    rank = int(expected + _SPARE * expected**0.5 + _SPARE)
    threshold = float(torch.topk(sample, rank, sorted=False).values.min())
    # Two comparisons, because the magnitudes of all elements would be a large tensor more.
    passed = nonzero((flat >= threshold) | (flat <= -threshold))
    return passed if len(passed) >= count else None
