"""Sums that never lose precision: whole numbers of small steps that wrap around (our decision).

Float32 sums of all that was ever pushed would be wrong in the last bits, and grow. A counter of 32 bits is exact,
and wraps around without harm as long as a receiver is less than 2^31 steps behind.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

QUANTUM: Final = 2.0**-20
"""Step of a counter of parameters; differences up to 2,048 can be told."""
WEIGHT_QUANTUM: Final = 2.0**-40
"""Step of a counter of push-sum weights, which has 64 bits: a weight may become very small."""
LEAST_WEIGHT: Final = 2.0**-6
"""A node gives away nothing below: x in steps of 2^-20 would say little about z = x / w any more."""

_HALF, _WHOLE = 2**31, 2**32
_WEIGHT_HALF, _WEIGHT_WHOLE = 2**63, 2**64


def increments(values: Tensor, quantum: float = QUANTUM) -> Tensor:
    """Return values as the nearest whole numbers of steps, int64.

    Raises:
        OverflowError: One is too large to be told from a small one.
    """
    steps = torch.round(values.double() / quantum)
    if not bool((steps.abs() < _HALF).all()):
        raise OverflowError(f"a value of {float(values.abs().max()):g} is more than running sums can carry")
    return steps.to(torch.int64)


def wrapped(numbers: Tensor) -> Tensor:
    """Return whole numbers modulo 2^32, as int32 from -2^31 to 2^31 - 1."""
    return ((numbers.to(torch.int64) + _HALF) % _WHOLE - _HALF).to(torch.int32)


def weight_increment(weight: float) -> int:
    """Return a weight as the nearest whole number of steps."""
    return round(weight / WEIGHT_QUANTUM)


def weight_wrapped(number: int) -> int:
    """Return a whole number modulo 2^64, from -2^63 to 2^63 - 1."""
    return (number + _WEIGHT_HALF) % _WEIGHT_WHOLE - _WEIGHT_HALF
