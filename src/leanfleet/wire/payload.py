"""What is sent of a tensor: all of it or some positions, in full or rounded to fewer bits.

A payload *is* what the receiver will see: the sender subtracts `payload.dense()` (or `payload.received()` at the
positions) from what it wanted to send, and the rest goes into its error memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from leanfleet.errors import WireError

Values = Literal["exact", "bf16", "int8", "int4"]
"""How values travel: in the dtype they have, as bfloat16, or as whole numbers of 8 or 4 bits times a scale."""

_LEVEL_BITS: Final = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Levels:
    """Whole numbers of a fixed number of bits.

    Attributes:
        bits: 1 to 16.
        signed: Whether they run from -largest to largest (with one bit: -1 or 1) instead of from 0.
        per_channel: Whether each sample and channel has a scale of its own instead of one for the tensor.
    """

    bits: int
    signed: bool
    per_channel: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"levels of {self.bits} bits; there may be 1 to 16")

    @property
    def largest(self) -> int:
        """The largest number; with one signed bit 1, else 2^(bits - 1) - 1, or 2^bits - 1 without sign."""
        return max(1, (1 << self.bits - self.signed) - 1)

    @property
    def binary(self) -> bool:
        """Whether there are only -1 and 1, and no zero."""
        return self.signed and self.bits == 1


@dataclass(frozen=True, eq=False)
class Payload:
    """What is sent of one tensor.

    Attributes:
        shape: Of the whole tensor.
        dtype: Of the whole tensor.
        positions: Ascending int64 indices into the flattened tensor [values], or None for all of them.
        values: What is sent there [values]: of `dtype`, bfloat16, or int32 for `levels`.
        levels: What the whole numbers mean; None where values stand for themselves.
        scales: Float32, one for each of the equal parts of the flattened tensor [parts]; empty without levels.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    positions: Tensor | None
    values: Tensor
    levels: Levels | None = None
    scales: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def numel(self) -> int:
        """How many elements the whole tensor has."""
        return math.prod(self.shape)

    def received(self) -> Tensor:
        """Return the values at the positions as the receiver sees them [values], of the tensor's dtype."""
        if self.levels is None:
            return self.values.to(self.dtype)
        return (self.values.float() * self._scales_there(self.scales)).to(self.dtype)

    def dense(self) -> Tensor:
        """Return the whole tensor as the receiver sees it, zero where nothing was sent.

        It shares the payload's memory where every element was sent as it is.
        """
        if self.positions is None:
            return self.received().reshape(self.shape)
        zeros = torch.zeros(self.numel, dtype=self.dtype)
        return zeros.index_copy_(0, self.positions, self.received()).reshape(self.shape)

    def values_only(self) -> Payload:
        """Return what has to travel to a receiver that knows the positions: a payload of shape (values,).

        The gradient of sparse activations goes down this way (AdaSplit; exact, as ReLU's derivative kills the
        rest), and so do random positions that both sides draw from one seed.
        """
        if self.scales.numel() > 1:
            raise ValueError("values with a scale for each channel cannot travel without their positions")
        return replace(self, shape=(len(self.values),), positions=None)

    def at(self, positions: Tensor | None, shape: tuple[int, ...]) -> Payload:
        """Return the payload whose `values_only` this is."""
        return replace(self, shape=shape, positions=positions)

    def rounded(self, values: Values, per: Literal["tensor", "channel"] = "tensor") -> Payload:
        """Return the payload with its values rounded to the nearest that can be sent.

        Args:
            values: What to round to.
            per: Whether whole numbers share one scale, or, which is meant for activations, each sample and
                channel (the first two of three and more dimensions, the first of two) has its own. The latter
                do without a sign where no value is negative, as after ReLU: one more bit of precision.

        Raises:
            WireError: If a value is too large to be rounded, or the tensor is not one of floating point.
        """
        if values == "exact":
            return self
        if not self.dtype.is_floating_point or self.levels is not None:
            raise WireError(f"values of {self.values.dtype} for a tensor of {self.dtype} cannot be rounded")
        if values == "bf16":
            return replace(self, values=finite(self.values.to(torch.bfloat16)))
        # One scale means parameters; there a sign that comes and goes would tear the runs of a message apart.
        signed = per == "tensor" or bool((self.values < 0).any())
        return self._quantised(Levels(_LEVEL_BITS[values], signed, per == "channel"))

    def _quantised(self, levels: Levels) -> Payload:
        scales = self._peaks(scale_count(self.shape, levels)) / levels.largest
        codes = (self.values.float() / self._scales_there(scales)).round_()
        # A scale may underflow to zero; all values of its part then do too.
        codes = codes.nan_to_num_(0.0, 0.0, 0.0).clamp_(-levels.largest, levels.largest)
        rounded = replace(self, values=codes.to(torch.int32), levels=levels, scales=scales)
        finite(rounded.received())
        return rounded

    def _peaks(self, parts: int) -> Tensor:
        """Return the largest magnitude of each part [parts]."""
        magnitude = self.values.float().abs()
        if parts == 1 and len(magnitude):
            return magnitude.max().reshape(1)
        return torch.zeros(parts).scatter_reduce_(0, self._parts(parts), magnitude, "amax")

    def _parts(self, parts: int) -> Tensor:
        """Return the part of the tensor that each value belongs to [values]."""
        positions = torch.arange(self.numel) if self.positions is None else self.positions
        return positions // max(1, self.numel // max(1, parts))

    def _scales_there(self, scales: Tensor) -> Tensor:
        return scales if scales.numel() == 1 else scales[self._parts(scales.numel())]


def scale_count(shape: tuple[int, ...], levels: Levels) -> int:
    """Return how many scales a tensor of this shape has."""
    return math.prod(shape[: max(0, min(2, len(shape) - 1))]) if levels.per_channel else 1


def whole(tensor: Tensor) -> Payload:
    """Return a payload of a copy of all elements.

    Raises:
        WireError: If a value is not finite. So do the functions below.
    """
    return Payload(tuple(tensor.shape), tensor.dtype, None, flattened(tensor).clone())


def sparse(tensor: Tensor) -> Payload:
    """Return a payload of the elements that are not zero. A negative zero is a zero."""
    return gather(tensor, nonzero(flattened(tensor)))


def gather(tensor: Tensor, positions: Tensor | None) -> Payload:
    """Return a payload of the elements at ascending positions of the flattened tensor; None takes all."""
    if positions is None:
        return whole(tensor)
    return Payload(
        tuple(tensor.shape), tensor.dtype, positions, finite(tensor.detach().cpu().reshape(-1)[positions])
    )


def nonzero(flat: Tensor) -> Tensor:
    """Return the ascending positions of what is not zero in a vector."""
    # NumPy scans truth values several times as fast as PyTorch does, which is slow to compare them.
    truth = flat if flat.dtype == torch.bool else flat != 0
    return torch.from_numpy(np.flatnonzero(truth.numpy()))


def finite(tensor: Tensor) -> Tensor:
    """Return the tensor.

    Raises:
        WireError: If a value is not finite.
    """
    # Both bounds are NaN as soon as one value is.
    if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
        raise WireError("a value to be sent is not finite")
    return tensor


def flattened(tensor: Tensor) -> Tensor:
    """Return a finite tensor as a vector on the CPU, a view where that is possible."""
    return finite(tensor.detach().cpu().reshape(-1))
